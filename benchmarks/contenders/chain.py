"""The step-by-step chain of OpenMMLab's detection toolbox (mmdet 3.3), with its two kinds of masks.

What is done to what, and in which convention, follows its transforms; the code is this project's and spares what the
toolbox adds: registries, dictionaries, boxes as tensors. A figure for the toolbox itself would be lower.

The toolbox rotates about ((w-1)/2, (h-1)/2) in pixel-centre coordinates and applies the same matrix to box edges and
polygon vertices, which are continuous coordinates: they end up to half a pixel from ours. It crops after each step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import cv2
import numpy as np
from samples import Output, Sample

from contenders.bitmaps import read_bitmaps
from dpipe import Normalize


class Masks(Protocol):
    """Masks of one image that follow the steps of the chain."""

    def warp(self, matrix: np.ndarray, size: tuple[int, int]) -> None:
        """Moves them by a pixel-centre matrix (2, 3) and crops to the canvas (height, width)."""
        ...

    def resize(self, old: tuple[int, int], new: tuple[int, int]) -> None:
        """Scales them from one (height, width) to another."""
        ...

    def flip(self, width: int) -> None:
        """Mirrors them."""
        ...

    def pad(self, size: tuple[int, int]) -> None:
        """Pads them to (height, width)."""
        ...

    def keep(self, kept: np.ndarray) -> None:
        """Keeps some of the objects, (n,) bool."""
        ...


class PolygonMasks:
    """Lists of flat coordinate arrays, one ring after another."""

    def __init__(self, sample: Sample) -> None:
        self.objects = sample.rings

    def warp(self, matrix: np.ndarray, size: tuple[int, int]) -> None:
        """See ``Masks``; vertices outside are put on the border."""
        linear, offset, limits = matrix[:, :2].T, matrix[:, 2], (size[1], size[0])
        self.objects = [
            [np.clip(ring.reshape(-1, 2) @ linear + offset, 0, limits).reshape(-1) for ring in rings]
            for rings in self.objects
        ]

    def resize(self, old: tuple[int, int], new: tuple[int, int]) -> None:
        """See ``Masks``."""
        factors = np.array([new[1] / old[1], new[0] / old[0]])
        self.objects = [[(ring.reshape(-1, 2) * factors).reshape(-1) for ring in rings] for rings in self.objects]

    def flip(self, width: int) -> None:
        """See ``Masks``."""
        flipped = [[ring.copy() for ring in rings] for rings in self.objects]
        for rings in flipped:
            for ring in rings:
                ring[0::2] = width - ring[0::2]
        self.objects = flipped

    def pad(self, size: tuple[int, int]) -> None:
        """See ``Masks``; nothing to do."""

    def keep(self, kept: np.ndarray) -> None:
        """See ``Masks``."""
        self.objects = [self.objects[number] for number in np.flatnonzero(kept)]


class BitmapMasks:
    """One full-size bitmap for each object, (n, H, W) uint8."""

    def __init__(self, sample: Sample) -> None:
        self.bitmaps = read_bitmaps(sample)

    def warp(self, matrix: np.ndarray, size: tuple[int, int]) -> None:
        """See ``Masks``: all of them as the channels of one image, bilinear."""
        channels = self.bitmaps.transpose(1, 2, 0)
        warped = cv2.warpAffine(channels, matrix, size[::-1], flags=cv2.INTER_LINEAR)
        self.bitmaps = warped.reshape(*size, -1).transpose(2, 0, 1)

    def resize(self, old: tuple[int, int], new: tuple[int, int]) -> None:
        """See ``Masks``: one after another, nearest."""
        self.bitmaps = np.stack([cv2.resize(one, new[::-1], interpolation=cv2.INTER_NEAREST) for one in self.bitmaps])

    def flip(self, width: int) -> None:
        """See ``Masks``."""
        self.bitmaps = np.stack([cv2.flip(one, 1) for one in self.bitmaps])

    def pad(self, size: tuple[int, int]) -> None:
        """See ``Masks``."""
        height, width = self.bitmaps.shape[1:]
        below, right = size[0] - height, size[1] - width
        border = (0, below, 0, right, cv2.BORDER_CONSTANT)
        self.bitmaps = np.stack([cv2.copyMakeBorder(one, *border, value=0) for one in self.bitmaps])

    def keep(self, kept: np.ndarray) -> None:
        """See ``Masks``."""
        self.bitmaps = self.bitmaps[kept]


class Chain:
    """Rotate, translate, resize, flip, normalise and pad, each in a pass of its own where it was drawn.

    Args:
        masks: What carries the masks.
        normalize: Where floats are asked for.
        name: As in the tables.
    """

    threads = 1

    def __init__(self, masks: type[PolygonMasks] | type[BitmapMasks], normalize: Normalize | None, name: str) -> None:
        self.masks = masks
        self.normalize = normalize
        self.name = name
        self.share = 1 if masks is PolygonMasks else 3

    def run(self, samples: Sequence[Sample], epoch: int) -> Iterator[Output]:
        """See ``Contender``."""
        cv2.setNumThreads(1)
        for sample in samples:
            yield self._one(sample)

    def _one(self, sample: Sample) -> Output:
        steps = sample.steps
        image = cv2.imdecode(np.fromfile(sample.path, dtype=np.uint8), cv2.IMREAD_COLOR)
        masks: Masks = self.masks(sample)
        boxes = sample.boxes.astype(np.float32)
        height, width = steps.source_size
        if steps.angle:  # OpenCV's is anticlockwise
            matrix = cv2.getRotationMatrix2D(((width - 1) * 0.5, (height - 1) * 0.5), -steps.angle, 1.0)
            image, boxes = self._warp(image, masks, boxes, matrix, steps.fill)
        if steps.shift:
            matrix = np.array([[1.0, 0.0, steps.shift], [0.0, 1.0, 0.0]])
            image, boxes = self._warp(image, masks, boxes, matrix, steps.fill)
        new_height, new_width = steps.size
        image = cv2.resize(image, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
        factors = np.array([new_width / width, new_height / height] * 2, dtype=np.float32)
        limits = np.array([new_width, new_height] * 2, dtype=np.float32)
        boxes = np.clip(boxes * factors, 0, limits)
        masks.resize(steps.source_size, steps.size)
        if steps.flip:
            image = cv2.flip(image, 1)
            boxes = np.stack([new_width - boxes[:, 2], boxes[:, 1], new_width - boxes[:, 0], boxes[:, 3]], axis=1)
            masks.flip(new_width)
        if self.normalize is not None:
            image = image.astype(np.float32)
            cv2.cvtColor(image, cv2.COLOR_BGR2RGB, image)
            cv2.subtract(image, (*self.normalize.mean, 0.0), image)
            cv2.multiply(image, (*(1 / std for std in self.normalize.std), 1.0), image)
        below, right = steps.padded[0] - new_height, steps.padded[1] - new_width
        image = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_CONSTANT, value=0)
        masks.pad(steps.padded)
        kept = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(axis=1)
        masks.keep(kept)
        return Output(image, boxes[kept], sample.ids[kept], masks)

    @staticmethod
    def _warp(
        image: np.ndarray, masks: Masks, boxes: np.ndarray, matrix: np.ndarray, fill: tuple[int, int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """One geometric step: image, masks and boxes by their corners, cropped to the canvas."""
        height, width = image.shape[:2]
        image = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderValue=fill[::-1])
        masks.warp(matrix, (height, width))
        corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 2) @ matrix[:, :2].T + matrix[:, 2]
        corners = corners.reshape(-1, 4, 2)
        boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
        return image, np.clip(boxes, 0, (width, height, width, height)).astype(np.float32)
