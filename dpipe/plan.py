"""What is done to one sample, drawn before any pixel is touched.

A plan drives the image backends, the boxes and the polygons alike, so they cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dpipe import geometry

Size = tuple[int, int]
"""Height and width in pixels."""


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
        photometric: Names and magnitudes of the operations on output pixels (``dpipe.photometric``), in order.
    """

    sample: int
    image: int
    epoch: int
    source_size: Size
    size: Size
    matrix: np.ndarray
    fill: tuple[int, int, int] = (0, 0, 0)
    photometric: tuple[tuple[str, float], ...] = ()

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


class Draft:
    """A plan in the making: each operation adds its part.

    Args:
        source_size: Height and width of the decoded image.
        rng: The sample's random stream.

    Attributes:
        size: Height and width of the image as the operations so far leave it.
        matrix: Source to ``size``. Shape (2, 3), float64.
    """

    def __init__(self, source_size: Size, rng: np.random.Generator) -> None:
        self.rng = rng
        self.source_size = source_size
        self.size = source_size
        self.matrix = geometry.identity()
        self.fill = (0, 0, 0)
        self.photometric: list[tuple[str, float]] = []

    def chance(self, probability: float) -> bool:
        """Draws whether something with this probability happens."""
        return bool(self.rng.random() < probability)

    def transform(self, matrix: np.ndarray, size: Size | None = None) -> None:
        """Appends a geometric step.

        Args:
            matrix: From the image as it stands to the next one. Shape (2, 3), float64.
            size: Height and width of the next one; the same where not given.
        """
        self.matrix = geometry.compose(self.matrix, matrix)
        self.size = self.size if size is None else size

    def finish(self, sample: int, image: int, epoch: int) -> SamplePlan:
        """Returns the plan."""
        return SamplePlan(
            sample, image, epoch, self.source_size, self.size, self.matrix, self.fill, tuple(self.photometric)
        )
