"""The least that such a pipeline does with OpenCV as one calls it: decode, one resample, vertices by one matrix."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
from samples import Output, Sample

from dpipe import Normalize
from dpipe.geometry import pixel_centre_matrix, transform_boxes, transform_points


class Fused:
    """One ``cv2.warpAffine``, or ``cv2.resize`` where nothing else was drawn, into buffers that are used again.

    It clips no polygon, drops no object, checks no file, and hands out each image in the same memory: nothing to train
    with, but what all else is held against.

    Args:
        normalize: Where floats are asked for.
        threads: 1 or more; each takes images of its own.
    """

    share = 1

    def __init__(self, normalize: Normalize | None, threads: int = 1) -> None:
        self.name = "fused prototype" + (f", {threads} threads" if threads > 1 else "")
        self.threads = threads
        self.table = None if normalize is None else _table(normalize)
        self.local = threading.local()

    def run(self, samples: Sequence[Sample], epoch: int) -> Iterator[Output]:
        """See ``Contender``."""
        cv2.setNumThreads(1)
        if self.threads == 1:
            for sample in samples:
                yield self._one(sample)
        else:
            with ThreadPoolExecutor(self.threads) as pool:
                yield from pool.map(self._one, samples)

    def _one(self, sample: Sample) -> Output:
        steps = sample.steps
        height, width = steps.size
        image = self._buffer("image", steps.source_size, np.uint8)
        cv2.imread(str(sample.path), image, cv2.IMREAD_COLOR_RGB)
        padded = self._buffer("padded", steps.padded, np.uint8 if self.table is None else np.float32)
        padded[height:] = 0
        padded[:height, width:] = 0
        place = padded[:height, :width]
        moved = place if self.table is None else self._buffer("moved", steps.size, np.uint8)
        if steps.warps:
            matrix = pixel_centre_matrix(sample.matrix)
            cv2.warpAffine(image, matrix, (width, height), moved, flags=cv2.INTER_LINEAR, borderValue=steps.fill)
        elif steps.flip:
            resized = self._buffer("resized", steps.size, np.uint8)
            cv2.flip(cv2.resize(image, (width, height), resized, interpolation=cv2.INTER_LINEAR), 1, moved)
        else:
            cv2.resize(image, (width, height), moved, interpolation=cv2.INTER_LINEAR)
        if self.table is not None:
            cv2.LUT(moved, self.table, place)
        vertices = transform_points(np.concatenate([ring for rings in sample.rings for ring in rings]), sample.matrix)
        boxes = transform_boxes(sample.boxes, sample.matrix)
        return Output(padded, boxes, sample.ids, vertices)

    def _buffer(self, name: str, size: tuple[int, int], dtype: type) -> np.ndarray:
        """This thread's buffer of that name, (height, width, 3): one for all sizes, as large as the largest so far."""
        needed = size[0] * size[1] * 3
        memory = getattr(self.local, name, None)
        if memory is None or memory.size < needed:
            memory = np.empty(needed, dtype=dtype)
            setattr(self.local, name, memory)
        return memory[:needed].reshape(*size, 3)


def _table(normalize: Normalize) -> np.ndarray:
    """What each grey level becomes, (1, 256, 3) float32: looking up is as fast as one multiplication."""
    levels = np.arange(256, dtype=np.float64)[None, :, None]
    return ((levels - np.array(normalize.mean)) / np.array(normalize.std)).astype(np.float32)
