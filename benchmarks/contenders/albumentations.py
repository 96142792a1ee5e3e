"""albumentations: one Compose that is built once, with the drawn values as the ends of its ranges."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2
import numpy as np
from samples import Output, Sample

from contenders.bitmaps import read_bitmaps
from dpipe import Normalize


class Albumentations:
    """Affine, Affine, Resize, HorizontalFlip, Normalize and PadIfNeeded on the image, its masks and its boxes.

    A Compose is costly to build and is not built again for each image: its transforms get the drawn values as ranges
    of one value, and a probability of 0 where they were not drawn.

    Args:
        normalize: Where floats are asked for.
        size_divisor: Of the padding.
    """

    name = "albumentations"
    threads = 1
    share = 3

    def __init__(self, normalize: Normalize | None, size_divisor: int) -> None:
        linear, nearest = cv2.INTER_LINEAR, cv2.INTER_NEAREST
        self.rotate = A.Affine(rotate=0, interpolation=linear, mask_interpolation=nearest, p=1)
        self.shift = A.Affine(translate_px=0, interpolation=linear, mask_interpolation=nearest, p=1)
        self.resize = A.Resize(1, 1, interpolation=linear, mask_interpolation=nearest, p=1)
        self.flip = A.HorizontalFlip(p=1)
        last: list[A.BasicTransform] = []
        if normalize is not None:
            mean, std = (tuple(value / 255 for value in values) for values in (normalize.mean, normalize.std))
            last.append(A.Normalize(mean, std, p=1))
        last.append(
            A.PadIfNeeded(
                min_height=None,
                min_width=None,
                pad_height_divisor=size_divisor,
                pad_width_divisor=size_divisor,
                position="top_left",
                p=1,
            )
        )
        self.compose = A.Compose(
            [self.rotate, self.shift, self.resize, self.flip, *last],
            bbox_params=A.BboxParams("pascal_voc", label_fields=["numbers"], min_width=1, min_height=1),
        )

    def run(self, samples: Sequence[Sample], epoch: int) -> Iterator[Output]:
        """See ``Contender``."""
        cv2.setNumThreads(1)
        for sample in samples:
            yield self._one(sample)

    def _one(self, sample: Sample) -> Output:
        steps = sample.steps
        image = cv2.imdecode(np.fromfile(sample.path, dtype=np.uint8), cv2.IMREAD_COLOR_RGB)
        # Theirs is anticlockwise.
        self.rotate.rotate, self.rotate.p = (-steps.angle, -steps.angle), float(steps.angle != 0)
        self.shift.translate_px = {"x": (steps.shift, steps.shift), "y": (0, 0)}
        self.shift.p = float(steps.shift != 0)
        self.rotate.fill = self.shift.fill = steps.fill
        self.resize.height, self.resize.width = steps.size
        self.flip.p = float(steps.flip)
        numbers = np.arange(len(sample.ids))
        done = self.compose(image=image, masks=read_bitmaps(sample), bboxes=sample.boxes, numbers=numbers)
        kept = np.asarray(done["numbers"], dtype=np.int64)  # it drops boxes, and leaves their masks to the caller
        masks = done["masks"] if len(kept) == len(numbers) else done["masks"][kept]
        return Output(done["image"], done["bboxes"], sample.ids[kept], masks)
