"""What is done to one sample, drawn before any pixel is touched.

A plan drives the image backends, the boxes and the polygons alike, so they cannot disagree.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from dpipe import geometry
from dpipe.building.problems import shorten
from dpipe.errors import InputError

Size = tuple[int, int]
"""Height and width in pixels."""

LARGEST = 1e18
"""Of the numbers in a matrix: with coordinates up to this size as well, the products stay within float32."""

LEAST_DETERMINANT = 1e-20
"""What shrinks an area more is taken for one that flattens it: its inverse would leave float32."""

MOST_PIXELS = 1 << 30
"""Of an image, as many as OpenCV reads at most."""

PhotometricStep: TypeAlias = tuple[str, float] | Callable[[np.ndarray], np.ndarray]
"""The name and magnitude of an operation of ``dpipe.images.photometric``, or what takes (H, W, 3) uint8 RGB to
another such image of the same size, always the same for the same image."""


@dataclass(frozen=True, eq=False)
class SamplePlan:
    """One sample's source, geometry and photometric operations.

    Attributes:
        sample: Sample number in the repeated data set.
        image: Image number in the index.
        epoch: Epoch it was drawn for.
        source_size: Height and width of the decoded image.
        size: Height and width of the output, before padding.
        matrix: Source to output, continuous coordinates. Shape (2, 3), float64.
        fill: Colour of what no source pixel covers: red, green, blue, 0..255.
        photometric: Operations on output pixels (``dpipe.images.photometric``), in order.
    """

    sample: int
    image: int
    epoch: int
    source_size: Size
    size: Size
    matrix: np.ndarray
    fill: tuple[int, int, int] = (0, 0, 0)
    photometric: tuple[PhotometricStep, ...] = ()

    @property
    def resize_flips(self) -> tuple[bool, bool] | None:
        """Whether x and y are mirrored, where the plan is a resize with flips; None where it needs a warp.

        A resize maps the source rectangle onto the output rectangle: nothing is cut off, nothing is filled.
        """
        height, width = self.source_size
        out_height, out_width = self.size
        (a, b, tx), (c, d, ty) = self.matrix.tolist()
        # Off by less than a millionth of a pixel anywhere in the image is rounding in the composition.
        if abs(b) * height > 1e-6 or abs(c) * width > 1e-6:
            return None
        flip_x, flip_y = a < 0, d < 0
        near_x, far_x = (tx + a * width, tx) if flip_x else (tx, tx + a * width)
        near_y, far_y = (ty + d * height, ty) if flip_y else (ty, ty + d * height)
        off = max(abs(near_x), abs(near_y), abs(far_x - out_width), abs(far_y - out_height))
        return (flip_x, flip_y) if off < 1e-6 else None

    @property
    def halvings(self) -> tuple[int, int]:
        """How often the source is halved, down its height and along its width, before its one interpolation.

        A bilinear interpolation looks at two pixels an axis. Where the output has fewer than one pixel for two of the
        source, it would skip some and show aliases of fine patterns; an image that was halved (the mean of each two
        neighbours) as often as the shrinking holds a factor of two has at most two pixels for each of the output. This
        is the choice of the level in a mip map (Williams, "Pyramidal Parametrics", SIGGRAPH 1983), an axis at a time.
        """
        height, width = self.source_size
        return _halvings(self.matrix[:, 1], height), _halvings(self.matrix[:, 0], width)

    @property
    def halved_matrix(self) -> np.ndarray:
        """From the source after its ``halvings`` to the output, continuous coordinates. Shape (2, 3), float64.

        Halving an edge of odd length repeats its last pixel, so pixel j of the halved image always covers 2j..2j+2.
        """
        down, along = self.halvings
        return geometry.compose(geometry.scaling(2.0**along, 2.0**down), self.matrix)


class Draft:
    """A plan in the making: each operation adds its part.

    Args:
        source_size: Height and width of the decoded image.
        rng: The sample's random stream.
        boxes: (n, 4) float xyxy of the image's objects in source coordinates; none where not given.

    Attributes:
        size: Height and width of the image as the operations so far leave it.
        matrix: Source to ``size``. Shape (2, 3), float64.
    """

    def __init__(self, source_size: Size, rng: np.random.Generator, boxes: ArrayLike | None = None) -> None:
        self.rng = rng
        self.source_size = source_size
        self.size = source_size
        self.matrix = geometry.identity()
        self.fill = (0, 0, 0)
        self.photometric: list[PhotometricStep] = []
        self._source_boxes = np.zeros((0, 4)) if boxes is None else np.asarray(boxes, dtype=np.float64)

    @property
    def boxes(self) -> np.ndarray:
        """The objects' boxes on the image as it stands, (n, 4) float64 xyxy, in the order that they were given.

        Each is the box of the transformed corners, clipped; one that has left the image has no width or no height.
        """
        height, width = self.size
        return geometry.clip_boxes(geometry.transform_boxes(self._source_boxes, self.matrix), width, height)

    def chance(self, probability: float) -> bool:
        """Draws whether something with this probability happens."""
        return bool(self.rng.random() < probability)

    def transform(self, matrix: np.ndarray, size: Size | None = None) -> None:
        """Appends a geometric step.

        Args:
            matrix: From the image as it stands to the next one. Shape (2, 3), float64.
            size: Height and width of the next one; the same where not given.

        Raises:
            InputError: If the matrix has another shape, holds something else than finite numbers up to 1e18 or cannot
                be undone, or the size is not two whole numbers above 0 or has more than 2**30 pixels.
        """
        self.matrix = geometry.compose(self.matrix, _checked_matrix(matrix))
        self.size = self.size if size is None else _checked_size(size)

    def finish(self, sample: int, image: int, epoch: int) -> SamplePlan:
        """Returns the plan.

        Raises:
            InputError: If all steps together leave a matrix or a size that a single one could not have.
        """
        matrix, size = _checked_matrix(self.matrix), _checked_size(self.size)
        return SamplePlan(sample, image, epoch, self.source_size, size, matrix, self.fill, tuple(self.photometric))


def _checked_matrix(matrix: ArrayLike) -> geometry.Matrix:
    try:
        checked = np.asarray(matrix, dtype=np.float64)
    except (TypeError, ValueError):
        checked = np.zeros(0)
    if checked.shape == (2, 3):
        (a, b, _), (c, d, _) = checked.tolist()
        if np.abs(checked).max() <= LARGEST and abs(a * d - b * c) >= LEAST_DETERMINANT:
            return checked
    got = matrix.tolist() if isinstance(matrix, np.ndarray) else matrix
    raise InputError(f"expected a (2, 3) matrix of finite numbers that can be undone, got {shorten(got)}")


def _checked_size(size: Size) -> Size:
    if isinstance(size, list | tuple) and len(size) == 2:
        height, width = size
        if all(isinstance(edge, int | np.integer) and edge >= 1 for edge in size):
            height, width = int(height), int(width)
            if height * width > MOST_PIXELS:
                raise InputError(f"an image of {width}x{height} pixels is too large: expected at most {MOST_PIXELS}")
            return height, width
    raise InputError(f"expected a height and a width in whole pixels, at least 1, got {shorten(size)}")


def _halvings(column: np.ndarray, length: int) -> int:
    """How often an axis of so many pixels is halved, the column being what a step along it becomes in the output."""
    step = math.hypot(*column.tolist())
    # One pixel cannot be halved; and a factor of exactly two counts, whatever the composition's rounding made of it.
    most = (length - 1).bit_length()
    return min(max(math.floor(-math.log2(step) + 1e-9), 0), most) if step > 0 else most
