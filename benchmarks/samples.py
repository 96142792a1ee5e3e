"""One image with its objects, and the steps that its plan stands for: what every contender of a benchmark gets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dpipe import geometry
from dpipe.plan import SamplePlan


@dataclass(frozen=True)
class Steps:
    """What the recipe drew for one image, one step after another, in continuous coordinates.

    Attributes:
        source_size: Height and width of the image.
        angle: Degrees, clockwise, about (w/2, h/2); 0 where no rotation was drawn.
        shift: Pixels to the right; 0 where no translation was drawn.
        size: Height and width after the resize.
        flip: Whether left and right change places after it.
        padded: Height and width after padding.
        fill: Colour of what no source pixel covers.
    """

    source_size: tuple[int, int]
    angle: float
    shift: int
    size: tuple[int, int]
    flip: bool
    padded: tuple[int, int]
    fill: tuple[int, int, int]

    @property
    def warps(self) -> int:
        """How many of rotation and translation were drawn."""
        return (self.angle != 0) + (self.shift != 0)

    def matrices(self) -> list[np.ndarray]:
        """The matrix of each step of geometry, (2, 3) float64: rotation, translation, resize, flip."""
        height, width = self.source_size
        new_height, new_width = self.size
        return [
            geometry.rotation(self.angle, (width / 2, height / 2)),
            geometry.translation(self.shift, 0),
            geometry.scaling(new_width / width, new_height / height),
            geometry.horizontal_flip(new_width) if self.flip else geometry.identity(),
        ]


@dataclass(frozen=True, eq=False)
class Sample:
    """One image of a round.

    Attributes:
        path: The image file.
        boxes: (n, 4) float64 xyxy.
        labels: (n,) int64.
        ids: (n,) int64 ids of the annotations.
        rings: For each object, its rings as flat arrays x, y, x, y ... of float64.
        matrix: Source to output in one, (2, 3) float64.
        steps: The same in steps.
    """

    path: Path
    boxes: np.ndarray
    labels: np.ndarray
    ids: np.ndarray
    rings: list[list[np.ndarray]]
    matrix: np.ndarray
    steps: Steps


@dataclass(frozen=True, eq=False)
class Output:
    """What a contender hands to a trainer: the padded image, boxes with their ids, and masks in its own form."""

    image: Any  # (H, W, 3) or (3, H, W)
    boxes: np.ndarray  # (n, 4) xyxy
    ids: np.ndarray  # (n,)
    masks: Any


class Contender(Protocol):
    """One way to do the work of the recipe.

    Attributes:
        name: As in the tables.
        threads: How many it uses.
        share: It gets one of so many images of a round; above 1 for slow ones.
    """

    name: str
    threads: int
    share: int

    def run(self, samples: Sequence[Sample], epoch: int) -> Iterator[Output]:
        """Yields one output for each sample, in order.

        Args:
            samples: Of one round; their plans were drawn for that epoch.
            epoch: The number of the round.
        """
        ...


def steps_of(plan: SamplePlan, size_divisor: int) -> Steps:
    """Takes a plan's one matrix apart into the steps of the recipe.

    Raises:
        ValueError: If it is no rotation, translation, resize and flip in this order.
    """
    height, width = plan.source_size
    new_height, new_width = plan.size
    flip = bool(np.linalg.det(plan.matrix[:, :2]) < 0)
    resize = geometry.scaling(new_width / width, new_height / height)
    resize_flip = geometry.compose(resize, geometry.horizontal_flip(new_width)) if flip else resize
    moved = geometry.compose(plan.matrix, geometry.invert(resize_flip))
    angle = round(math.degrees(math.atan2(moved[1, 0], moved[0, 0])), 9)
    rest = moved - geometry.rotation(angle, (width / 2, height / 2))
    padded = (-(-new_height // size_divisor) * size_divisor, -(-new_width // size_divisor) * size_divisor)
    steps = Steps(plan.source_size, angle, round(float(rest[0, 2])), plan.size, flip, padded, plan.fill)
    if not np.allclose(geometry.compose(*steps.matrices()), plan.matrix, rtol=0, atol=1e-6):
        raise ValueError(f"the plan is no rotation, translation, resize and flip: {plan.matrix.tolist()}")
    return steps


def never_cut(sample: Sample) -> np.ndarray:
    """Which boxes lie within the canvas after every step, (n,) bool.

    A chain of steps crops to its canvas after each of them and loses what a later step would bring back; one warp does
    not. The two can only be compared where nothing was cut.
    """
    height, width = sample.steps.source_size
    new_height, new_width = sample.steps.size
    canvases = [(width, height), (width, height), (new_width, new_height), (new_width, new_height)]
    boxes = sample.boxes
    inside = np.ones(len(boxes), dtype=bool)
    for matrix, (right, bottom) in zip(sample.steps.matrices(), canvases, strict=True):
        boxes = geometry.transform_boxes(boxes, matrix)
        inside &= (boxes[:, :2] >= 0).all(axis=1) & (boxes[:, 2:] <= (right, bottom)).all(axis=1)
    return inside
