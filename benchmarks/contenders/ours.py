"""dpipe's loader with its OpenCV backend, as any trainer uses it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from samples import Output, Sample

from dpipe import Augment, CocoIndex, DetectionLoader
from dpipe.target import BoxSource


class Ours:
    """Iterates over a ``DetectionLoader``; it draws its plans itself, which all others are given.

    Args:
        index: The data set, in the order of the samples of a round.
        images: Folder of the images.
        augment: The recipe, with or without its normalisation.
        threads: That decode and resample.
        boxes_from: ``polygons``, which is what a trainer gets, or ``corners``, to compare with others.
    """

    share = 1

    def __init__(
        self, index: CocoIndex, images: Path, augment: Augment, threads: int = 1, boxes_from: BoxSource = "polygons"
    ) -> None:
        self.name = "dpipe" + (f", {threads} threads" if threads > 1 else "")
        self.threads = threads
        self.loader = DetectionLoader(
            index, images, augment=augment, backend="opencv", shuffle=False, threads=threads, boxes_from=boxes_from
        )

    def run(self, samples: Sequence[Sample], epoch: int) -> Iterator[Output]:
        """See ``Contender``; the samples are those that the loader itself comes to."""
        self.loader.set_epoch(epoch)
        for batch in self.loader:
            target = batch.targets[0]
            yield Output(batch.images[0], target.boxes.numpy(), target.annotation_ids.numpy(), target.masks)
