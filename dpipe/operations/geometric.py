"""Operations that move pixels: each adds a matrix to the plan.

They are drawn and composed in the order of their list. Lengths are in pixels of the image as it stands at that point:
before a ``Resize`` those are pixels of the source.

Names and magnitudes follow OpenMMLab's auto_augment (after "AutoAugment", arXiv 1805.09501, and "Learning Data
Augmentation Strategies for Object Detection", arXiv 1906.11172), so that its recipes can be carried over; coordinates
are continuous (a rotation turns about (w/2, h/2)), and all geometric operations of a sample become one matrix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, TypeAlias

import numpy as np

from dpipe import geometry
from dpipe.errors import InputError
from dpipe.operations.operation import (
    Colour,
    Direction,
    Operation,
    check_colour,
    check_largest,
    check_level,
    check_probabilities,
    magnitude,
    rgb,
    signed,
)
from dpipe.plan import Draft
from dpipe.registry import TRANSFORMS

Scale: TypeAlias = tuple[int, int]
MultiscaleMode: TypeAlias = Literal["range", "value"]
FlipDirection: TypeAlias = Literal["horizontal", "vertical", "diagonal"]


@TRANSFORMS.register
@dataclass(frozen=True)
class Rotate(Operation):
    """Rotates the image within its canvas.

    Args:
        level: 0..10; the angle is level/10 * ``max_rotate_angle``.
        prob: Chance that it is applied.
        scale: Zoom about the same centre, 1 for none.
        center: (x, y) of the fixed point in continuous pixel coordinates; the middle where not given.
        img_fill_val: Grey level, or red, green and blue, of what no source pixel covers, 0..255.
        max_rotate_angle: Degrees at level 10, clockwise.
        random_negative_prob: Chance that it turns anticlockwise instead.
    """

    level: float
    prob: float = 0.5
    scale: float = 1.0
    center: tuple[float, float] | None = None
    img_fill_val: Colour = 128
    max_rotate_angle: float = 30.0
    random_negative_prob: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_level(self, self.level)
        check_probabilities(self, prob=self.prob, random_negative_prob=self.random_negative_prob)
        check_largest(self, max_rotate_angle=self.max_rotate_angle)
        check_colour(self, self.img_fill_val)
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise InputError(f"Rotate: scale must be a number above 0, got {self.scale}")
        if self.center is not None and not all(map(math.isfinite, self.center)):
            raise InputError(f"Rotate: center must be two numbers, got {self.center}")

    def apply(self, draft: Draft) -> None:
        """See the class."""
        if not draft.chance(self.prob):
            return
        angle = signed(draft, magnitude(self.level, self.max_rotate_angle), self.random_negative_prob)
        height, width = draft.size
        center = (width / 2, height / 2) if self.center is None else self.center
        draft.transform(geometry.rotation(angle, center, self.scale))
        draft.fill = rgb(self.img_fill_val)


@TRANSFORMS.register
@dataclass(frozen=True)
class Translate(Operation):
    """Moves the image within its canvas.

    Args:
        level: 0..10; the offset is int(level/10 * ``max_translate_offset``).
        prob: Chance that it is applied.
        direction: ``horizontal`` (to the right) or ``vertical`` (down).
        img_fill_val: Grey level, or red, green and blue, of what no source pixel covers, 0..255.
        max_translate_offset: Pixels at level 10.
        random_negative_prob: Chance that it moves left or up instead.
    """

    level: float
    prob: float = 0.5
    direction: Direction = "horizontal"
    img_fill_val: Colour = 128
    max_translate_offset: float = 250.0
    random_negative_prob: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_level(self, self.level)
        check_probabilities(self, prob=self.prob, random_negative_prob=self.random_negative_prob)
        check_largest(self, max_translate_offset=self.max_translate_offset)
        check_colour(self, self.img_fill_val)

    def apply(self, draft: Draft) -> None:
        """See the class."""
        if not draft.chance(self.prob):
            return
        whole = int(magnitude(self.level, self.max_translate_offset))
        offset = signed(draft, whole, self.random_negative_prob)
        horizontal = self.direction == "horizontal"
        draft.transform(geometry.translation(offset if horizontal else 0, 0 if horizontal else offset))
        draft.fill = rgb(self.img_fill_val)


@TRANSFORMS.register
@dataclass(frozen=True)
class Shear(Operation):
    """Shears the image within its canvas; the top left corner stays.

    Args:
        level: 0..10; the shear is level/10 * ``max_shear_magnitude``.
        prob: Chance that it is applied.
        direction: ``horizontal`` (x grows with y) or ``vertical`` (y grows with x).
        img_fill_val: Grey level, or red, green and blue, of what no source pixel covers, 0..255.
        max_shear_magnitude: Pixels a pixel at level 10.
        random_negative_prob: Chance that the sign is turned.
    """

    level: float
    prob: float = 0.5
    direction: Direction = "horizontal"
    img_fill_val: Colour = 128
    max_shear_magnitude: float = 0.3
    random_negative_prob: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_level(self, self.level)
        check_probabilities(self, prob=self.prob, random_negative_prob=self.random_negative_prob)
        check_largest(self, max_shear_magnitude=self.max_shear_magnitude)
        check_colour(self, self.img_fill_val)

    def apply(self, draft: Draft) -> None:
        """See the class."""
        if not draft.chance(self.prob):
            return
        amount = signed(draft, magnitude(self.level, self.max_shear_magnitude), self.random_negative_prob)
        horizontal = self.direction == "horizontal"
        draft.transform(geometry.shear(amount if horizontal else 0, 0 if horizontal else amount))
        draft.fill = rgb(self.img_fill_val)


@TRANSFORMS.register
@dataclass(frozen=True)
class Resize(Operation):
    """Resizes the image.

    Args:
        scale: One pair, or several to draw from, see ``multiscale_mode``. With ``keep_ratio`` a pair is the largest
            (long, short) edges, in any order, and the image becomes as large as fits both; otherwise it is the (width,
            height).
        keep_ratio: Keep width to height.
        multiscale_mode: As OpenMMLab's. ``range``: both edges are drawn as integers between those of two pairs, both
            ends included. ``value``: one of the pairs is drawn, each as likely.
    """

    scale: Scale | tuple[Scale, ...]
    keep_ratio: bool = True
    multiscale_mode: MultiscaleMode = "range"

    def __post_init__(self) -> None:
        super().__post_init__()
        pairs = self._pairs()
        if not pairs or any(edge < 1 for pair in pairs for edge in pair):
            raise InputError(
                f"Resize: scale must be a pair of pixels above 0, or several such pairs, got {self.scale!r}"
            )
        if self.multiscale_mode == "range" and len(pairs) > 2:
            raise InputError(
                f"Resize: a range has two ends, got {len(pairs)} pairs: multiscale_mode value draws one of them"
            )

    def _pairs(self) -> Sequence[Scale]:
        scale: Any = self.scale
        return (scale,) if len(scale) and not isinstance(scale[0], list | tuple) else scale

    def _draw(self, rng: np.random.Generator) -> Scale:
        """Draws the edges: (long, short), or (width, height)."""
        pairs = self._pairs()
        if self.multiscale_mode == "value":
            pairs = (pairs[int(rng.integers(len(pairs)))],)
        ends = [sorted(pair, reverse=True) if self.keep_ratio else pair for pair in (pairs[0], pairs[-1])]
        first, second = (int(rng.integers(min(edges), max(edges) + 1)) for edges in zip(*ends, strict=True))
        return first, second

    def apply(self, draft: Draft) -> None:
        """See the class."""
        height, width = draft.size
        first, second = self._draw(draft.rng)
        if self.keep_ratio:
            ratio = min(max(first, second) / max(height, width), min(first, second) / min(height, width))
            new_width, new_height = max(int(width * ratio + 0.5), 1), max(int(height * ratio + 0.5), 1)
        else:
            new_width, new_height = first, second
        draft.transform(geometry.scaling(new_width / width, new_height / height), (new_height, new_width))


@TRANSFORMS.register
@dataclass(frozen=True)
class RandomFlip(Operation):
    """Mirrors the image, in one of several directions or not at all.

    Args:
        prob: Chance that it is applied, shared evenly among the directions; or the chance of each direction, which
            together make at most 1.
        direction: ``horizontal`` (left and right change places), ``vertical`` (top and bottom do) or ``diagonal``
            (both, a turn by 180 degrees); or several of them, at most one of which is applied.
    """

    prob: float | tuple[float, ...] = 0.5
    direction: FlipDirection | tuple[FlipDirection, ...] = "horizontal"

    def __post_init__(self) -> None:
        super().__post_init__()
        directions = self._directions()
        if not directions or len(set(directions)) < len(directions):
            raise InputError(
                f"RandomFlip: expected at least one direction, and each of them once, got {self.direction!r}"
            )
        if isinstance(self.prob, list | tuple) and len(self.prob) != len(directions):
            raise InputError(
                f"RandomFlip: expected a prob for each of the {len(directions)} directions, got {self.prob!r}"
            )
        for chance in self._chances():
            check_probabilities(self, prob=chance)
        if sum(self._chances()) > 1 + 1e-9:
            raise InputError(f"RandomFlip: the numbers in prob must make at most 1 together, got {self.prob!r}")

    def apply(self, draft: Draft) -> None:
        """See the class."""
        height, width = draft.size
        drawn = draft.rng.random()
        for direction, below in zip(self._directions(), accumulate(self._chances()), strict=True):
            if drawn < below:
                if direction != "vertical":
                    draft.transform(geometry.horizontal_flip(width))
                if direction != "horizontal":
                    draft.transform(geometry.vertical_flip(height))
                return

    def _directions(self) -> Sequence[FlipDirection]:
        return (self.direction,) if isinstance(self.direction, str) else self.direction

    def _chances(self) -> Sequence[float]:
        """The chance of each direction."""
        if isinstance(self.prob, list | tuple):
            return self.prob
        count = len(self._directions())
        return (self.prob / count,) * count
