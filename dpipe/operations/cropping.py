"""Operations that change the canvas: how much of the image is seen, and how much around it is filled.

Each adds a matrix and a size to the plan, as those of ``dpipe.operations.geometric`` do. A crop cuts on whole pixels of
the image as it stands, so that a crop alone copies pixels. What is left of the objects is found by clipping, where
targets are made: no object is dropped for having its middle outside. After a crop, an operation that moves pixels
brings back what it finds beyond the crop's edge, since all of them are one matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dpipe import geometry
from dpipe.errors import InputError
from dpipe.operations.operation import Colour, Operation, check_colour, rgb
from dpipe.plan import Draft
from dpipe.registry import TRANSFORMS

Boxes: TypeAlias = NDArray[np.float64]
Crops: TypeAlias = NDArray[np.int64]
CropType: TypeAlias = Literal["absolute", "absolute_range", "relative", "relative_range"]

TRIES = 50
"""Crops that are drawn at a time; the first that keeps its promise is taken."""


@TRANSFORMS.register
@dataclass(frozen=True)
class RandomCrop(Operation):
    """Cuts a rectangle out of the image, at a random place.

    Names and meanings are those of OpenMMLab's RandomCrop, but that no sample is given up where its crop has no object:
    the crop is moved, up to 50 times, and at last to a drawn object.

    Args:
        crop_size: Two numbers, see ``crop_type``. A crop is never larger than the image.
        crop_type: ``absolute``: the (width, height) in pixels. ``absolute_range``: width and height are drawn as
            integers between the two numbers, both included. ``relative``: the (width, height) as shares of the
            image's, above 0 and up to 1. ``relative_range``: each share is drawn between its number and 1; the order is
            (width, height) here too, where OpenMMLab's is the other way round.
        allow_negative_crop: Whether a crop may hold no object. Where not, the middle of at least one object's box lies
            in the crop, if the image has an object.
    """

    crop_size: tuple[float, float]
    crop_type: CropType = "absolute"
    allow_negative_crop: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        relative = self.crop_type in ("relative", "relative_range")
        if not all(0 < edge <= 1 if relative else _is_edge(edge) for edge in self.crop_size):
            expected = "two shares above 0 and up to 1" if relative else "two whole numbers of pixels above 0"
            raise InputError(f"RandomCrop: crop_size must be {expected}, got {self.crop_size!r}")

    @property
    def needs_boxes(self) -> bool:
        """Whether a crop must hold an object."""
        return not self.allow_negative_crop

    def apply(self, draft: Draft) -> None:
        """See the class."""
        width, height = self._edges(draft)
        crops = _place(draft, np.full(TRIES, width), np.full(TRIES, height))
        objects = np.zeros((0, 4)) if self.allow_negative_crop else _objects(draft)
        if not len(objects):
            _cut(draft, crops[0])
            return
        held = _hold_a_middle(crops, objects)
        if held.any():
            _cut(draft, crops[held.argmax()])
        else:
            _cut(draft, _around(draft, objects[draft.rng.integers(len(objects))], width, height))

    def _edges(self, draft: Draft) -> tuple[int, int]:
        """Draws the crop's width and height."""
        height, width = draft.size
        first, second = self.crop_size
        if self.crop_type == "absolute":
            return min(int(first), width), min(int(second), height)
        if self.crop_type == "absolute_range":
            least, most = sorted((int(first), int(second)))
            drawn = (draft.rng.integers(min(least, edge), min(most, edge) + 1) for edge in (width, height))
            return int(next(drawn)), int(next(drawn))
        if self.crop_type == "relative_range":
            first, second = draft.rng.uniform(first, 1), draft.rng.uniform(second, 1)
        return max(int(width * first + 0.5), 1), max(int(height * second + 0.5), 1)


@TRANSFORMS.register
@dataclass(frozen=True)
class MinIoURandomCrop(Operation):
    """Cuts out a rectangle whose intersection over union with each object is at least a drawn number.

    The sampling of "SSD: Single Shot MultiBox Detector" (arXiv 1512.02325, section 2.2) by the rules of OpenMMLab's
    MinIoURandomCrop. It draws evenly among leaving the image as it is, the numbers in ``min_ious``, and 0, a crop
    without that condition; then up to 50 crops whose height is half to twice their width. The first is taken whose IoU
    with the box of every object of the image reaches the number, and in which the middle of at least one box lies.
    Where none does, it draws again from the beginning. An image without objects takes any crop.

    Args:
        min_ious: Each in 0..1.
        min_crop_size: Least width and height of a crop, as a share of the image's, above 0 and up to 1.
    """

    min_ious: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    min_crop_size: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.min_ious or not all(0 <= least <= 1 for least in self.min_ious):
            raise InputError(f"MinIoURandomCrop: expected min_ious in 0..1, got {self.min_ious!r}")
        if not 0 < self.min_crop_size <= 1:
            raise InputError(f"MinIoURandomCrop: min_crop_size must be above 0 and up to 1, got {self.min_crop_size!r}")

    @property
    def needs_boxes(self) -> bool:
        """Always."""
        return True

    def apply(self, draft: Draft) -> None:
        """See the class."""
        objects = _objects(draft)
        choices = (None, *self.min_ious, 0.0)
        while (least := choices[draft.rng.integers(len(choices))]) is not None:
            crop = self._crop(draft, objects, least)
            if crop is not None:
                _cut(draft, crop)
                return

    def _crop(self, draft: Draft, objects: Boxes, least: float) -> Crops | None:
        """Draws crops; returns the first that fits, (4,) xyxy, or None."""
        height, width = draft.size
        shares = draft.rng.uniform(self.min_crop_size, 1, (2, TRIES))
        widths = np.maximum(np.rint(shares[0] * width), 1).astype(np.int64)
        heights = np.maximum(np.rint(shares[1] * height), 1).astype(np.int64)
        crops = _place(draft, widths, heights)
        fits = (2 * heights >= widths) & (heights <= 2 * widths)
        if len(objects):
            fits &= _hold_a_middle(crops, objects) & (_ious(crops, objects) >= least).all(axis=1)
        return crops[fits.argmax()] if fits.any() else None


@TRANSFORMS.register
@dataclass(frozen=True)
class LargeScaleJitter(Operation):
    """Resizes the image by a largely drawn factor, and crops and pads it to a canvas of one size.

    The large-scale jittering of "Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation"
    (arXiv 2012.07177), with detectron2's rules (``ResizeScale``, ``FixedSizeCrop``): the image becomes as large as fits
    a drawn multiple of the canvas, its ratio kept; where it is larger than the canvas, a random part of it is taken;
    where it is smaller, it lies at the top left, and the rest is filled. The paper's recipe is this with its defaults
    and ``RandomFlip(0.5)``.

    Args:
        size: (width, height) of the canvas in pixels.
        min_scale: Least multiple of the canvas, above 0.
        max_scale: Largest multiple of the canvas.
        img_fill_val: Grey level, or red, green and blue, of what no source pixel covers, 0..255.
    """

    size: tuple[int, int] = (1024, 1024)
    min_scale: float = 0.1
    max_scale: float = 2.0
    img_fill_val: Colour = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(_is_edge(edge) for edge in self.size):
            raise InputError(f"LargeScaleJitter: size must be two whole numbers of pixels above 0, got {self.size!r}")
        if not 0 < self.min_scale <= self.max_scale < np.inf:
            raise InputError(
                "LargeScaleJitter: expected 0 < min_scale <= max_scale, "
                f"got min_scale {self.min_scale} and max_scale {self.max_scale}"
            )
        check_colour(self, self.img_fill_val)

    def apply(self, draft: Draft) -> None:
        """See the class."""
        height, width = draft.size
        canvas_width, canvas_height = self.size
        scale = draft.rng.uniform(self.min_scale, self.max_scale)
        ratio = min(canvas_width * scale / width, canvas_height * scale / height)
        new_width, new_height = max(int(width * ratio + 0.5), 1), max(int(height * ratio + 0.5), 1)
        draft.transform(geometry.scaling(new_width / width, new_height / height), (new_height, new_width))
        left = int(draft.rng.integers(max(new_width - canvas_width, 0) + 1))
        top = int(draft.rng.integers(max(new_height - canvas_height, 0) + 1))
        draft.transform(geometry.translation(-left, -top), (canvas_height, canvas_width))
        draft.fill = rgb(self.img_fill_val)


def _is_edge(value: float) -> bool:
    return value >= 1 and float(value).is_integer()


def _objects(draft: Draft) -> Boxes:
    """The boxes of which something is on the image, (n, 4) xyxy."""
    boxes = draft.boxes
    return boxes[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)]


def _place(draft: Draft, widths: NDArray[np.int64], heights: NDArray[np.int64]) -> Crops:
    """Draws where crops of k sizes lie, every place as likely; returns (k, 4) xyxy."""
    height, width = draft.size
    lefts = draft.rng.integers(0, width - widths, endpoint=True)
    tops = draft.rng.integers(0, height - heights, endpoint=True)
    return np.stack([lefts, tops, lefts + widths, tops + heights], axis=1)


def _around(draft: Draft, box: Boxes, width: int, height: int) -> Sequence[int]:
    """Draws a crop of a size that holds a box's middle; returns xyxy."""
    edges = []
    for low, high, crop, whole in zip(box[:2], box[2:], (width, height), draft.size[::-1], strict=True):
        # The one that the middle lies in; the middle of a box that is all but outside can round to the image's edge.
        pixel = min(int((low + high) / 2), whole - 1)
        edges.append(int(draft.rng.integers(max(pixel - crop + 1, 0), min(pixel, whole - crop), endpoint=True)))
    left, top = edges
    return left, top, left + width, top + height


def _cut(draft: Draft, crop: Sequence[int] | Crops) -> None:
    left, top, right, bottom = (int(edge) for edge in crop)
    draft.transform(geometry.translation(-left, -top), (bottom - top, right - left))


def _hold_a_middle(crops: Crops, boxes: Boxes) -> NDArray[np.bool_]:
    """Which crops (k, 4) hold the middle of at least one of the boxes (n, 4); (k,)."""
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside: NDArray[np.bool_] = (crops[:, None, :2] <= middles) & (middles < crops[:, None, 2:])  # (k, n, 2)
    return np.any(inside.all(axis=2), axis=1)


def _ious(crops: Crops, boxes: Boxes) -> Boxes:
    """Intersection over union of each crop (k, 4) with each box (n, 4); (k, n)."""
    sides = np.minimum(crops[:, None, 2:], boxes[:, 2:]) - np.maximum(crops[:, None, :2], boxes[:, :2])
    shared = np.clip(sides, 0, None).prod(axis=2)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return shared / ((crops[:, 2:] - crops[:, :2]).prod(axis=1)[:, None] + areas - shared)
