"""Augmentation policies: what may happen to an image, and how it is drawn.

Each operation is a small frozen dataclass that draws its own chance and magnitude and adds a matrix or a photometric
step to the plan. Operations are drawn and composed in the order of the list. Lengths are in pixels of the image as it
stands at that point: before a ``Resize`` those are pixels of the source.

Names and magnitudes follow OpenMMLab's auto_augment (after "AutoAugment", arXiv 1805.09501, and "Learning Data
Augmentation Strategies for Object Detection", arXiv 1906.11172), so that its recipes can be carried over; coordinates
are continuous (a rotation turns about (w/2, h/2)), and all geometric operations of a sample become one matrix.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from dpipe import geometry
from dpipe.errors import InputError
from dpipe.plan import Draft, SamplePlan, Size
from dpipe.registry import TRANSFORMS
from dpipe.rng import AUGMENT, check_seed, random_stream

Colour: TypeAlias = int | tuple[int, int, int]
Scale: TypeAlias = tuple[int, int]
Direction: TypeAlias = Literal["horizontal", "vertical"]

MAX_LEVEL = 10.0


class Operation(ABC):
    """Something that changes an image, with the boxes and polygons on it."""

    @abstractmethod
    def apply(self, draft: Draft) -> None:
        """Draws what happens, from ``draft.rng``, and adds it to the draft."""


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
        _check_level(self, self.level)
        _check_probabilities(self, prob=self.prob, random_negative_prob=self.random_negative_prob)
        _check_colour(self, self.img_fill_val)
        if not self.scale > 0:
            raise InputError(f"Rotate: scale must be above 0, got {self.scale}")

    def apply(self, draft: Draft) -> None:
        """See the class."""
        if not draft.chance(self.prob):
            return
        angle = _signed(draft, _magnitude(self.level, self.max_rotate_angle), self.random_negative_prob)
        height, width = draft.size
        center = (width / 2, height / 2) if self.center is None else self.center
        draft.transform(geometry.rotation(angle, center, self.scale))
        draft.fill = _rgb(self.img_fill_val)


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
        _check_level(self, self.level)
        _check_probabilities(self, prob=self.prob, random_negative_prob=self.random_negative_prob)
        _check_direction(self, self.direction)
        _check_colour(self, self.img_fill_val)

    def apply(self, draft: Draft) -> None:
        """See the class."""
        if not draft.chance(self.prob):
            return
        whole = int(_magnitude(self.level, self.max_translate_offset))
        offset = _signed(draft, whole, self.random_negative_prob)
        horizontal = self.direction == "horizontal"
        draft.transform(geometry.translation(offset if horizontal else 0, 0 if horizontal else offset))
        draft.fill = _rgb(self.img_fill_val)


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
        _check_level(self, self.level)
        _check_probabilities(self, prob=self.prob, random_negative_prob=self.random_negative_prob)
        _check_direction(self, self.direction)
        _check_colour(self, self.img_fill_val)

    def apply(self, draft: Draft) -> None:
        """See the class."""
        if not draft.chance(self.prob):
            return
        amount = _signed(draft, _magnitude(self.level, self.max_shear_magnitude), self.random_negative_prob)
        horizontal = self.direction == "horizontal"
        draft.transform(geometry.shear(amount if horizontal else 0, 0 if horizontal else amount))
        draft.fill = _rgb(self.img_fill_val)


@TRANSFORMS.register
@dataclass(frozen=True)
class Color(Operation):
    """Blends the image with its grey version: factor 0 is grey, 1 is the image, above 1 is more colourful.

    Args:
        level: 0..10; the factor is level/10 * 1.8 + 0.1.
        prob: Chance that it is applied.
    """

    level: float
    prob: float = 0.5

    def __post_init__(self) -> None:
        _check_level(self, self.level)
        _check_probabilities(self, prob=self.prob)

    def apply(self, draft: Draft) -> None:
        """See the class."""
        _enhance(draft, "color", self.level, self.prob)


@TRANSFORMS.register
@dataclass(frozen=True)
class Brightness(Operation):
    """Blends the image with black: factor 0 is black, 1 is the image, above 1 is brighter.

    Args:
        level: 0..10; the factor is level/10 * 1.8 + 0.1.
        prob: Chance that it is applied.
    """

    level: float
    prob: float = 0.5

    def __post_init__(self) -> None:
        _check_level(self, self.level)
        _check_probabilities(self, prob=self.prob)

    def apply(self, draft: Draft) -> None:
        """See the class."""
        _enhance(draft, "brightness", self.level, self.prob)


@TRANSFORMS.register
@dataclass(frozen=True)
class Contrast(Operation):
    """Blends the image with its mean grey level: factor 0 is that grey, 1 is the image, above 1 has more contrast.

    Args:
        level: 0..10; the factor is level/10 * 1.8 + 0.1.
        prob: Chance that it is applied.
    """

    level: float
    prob: float = 0.5

    def __post_init__(self) -> None:
        _check_level(self, self.level)
        _check_probabilities(self, prob=self.prob)

    def apply(self, draft: Draft) -> None:
        """See the class."""
        _enhance(draft, "contrast", self.level, self.prob)


@TRANSFORMS.register
@dataclass(frozen=True)
class Equalize(Operation):
    """Equalises the histogram of each channel.

    Args:
        prob: Chance that it is applied.
    """

    prob: float = 0.5

    def __post_init__(self) -> None:
        _check_probabilities(self, prob=self.prob)

    def apply(self, draft: Draft) -> None:
        """See the class."""
        if draft.chance(self.prob):
            draft.photometric.append(("equalize", 1.0))


@TRANSFORMS.register
@dataclass(frozen=True)
class AutoAugment(Operation):
    """Draws one of several policies, each as likely, and applies its operations in order.

    Args:
        policies: Lists of operations; an empty list leaves the image as it is.
    """

    policies: Sequence[Sequence[Operation]]

    def __post_init__(self) -> None:
        if not self.policies:
            raise InputError("AutoAugment: expected at least one policy, got none")
        for number, policy in enumerate(self.policies):
            if not isinstance(policy, list | tuple):
                raise InputError(f"AutoAugment: policy {number} must be a list of operations, got {policy!r}")
            for operation in policy:
                if not isinstance(operation, Operation):
                    raise InputError(
                        f"AutoAugment: policy {number} holds {operation!r}, which is no operation on images"
                    )

    def apply(self, draft: Draft) -> None:
        """See the class."""
        for operation in self.policies[int(draft.rng.integers(len(self.policies)))]:
            operation.apply(draft)


@TRANSFORMS.register
@dataclass(frozen=True)
class Resize(Operation):
    """Resizes the image.

    Args:
        scale: One pair, or two pairs between which both edges are drawn as integers, both ends included. With
            ``keep_ratio`` a pair is the largest (long, short) edges, in any order, and the image becomes as large as
            fits both; otherwise it is the (width, height).
        keep_ratio: Keep width to height.
    """

    scale: Scale | tuple[Scale, Scale]
    keep_ratio: bool = True

    def __post_init__(self) -> None:
        for pair in self._pairs():
            if len(pair) != 2 or not all(isinstance(edge, int) and edge > 0 for edge in pair):
                raise InputError(
                    f"Resize: scale must be a pair of pixels above 0, or two such pairs, got {self.scale!r}"
                )

    def _pairs(self) -> tuple[Sequence[Any], Sequence[Any]]:
        """The two ends of the range, equal for a single pair."""
        scale: Any = self.scale
        if isinstance(scale, list | tuple) and len(scale) == 2:
            if all(isinstance(pair, list | tuple) for pair in scale):
                return scale[0], scale[1]
            return scale, scale
        return (), ()

    def apply(self, draft: Draft) -> None:
        """See the class."""
        height, width = draft.size
        ends = [sorted(pair, reverse=True) if self.keep_ratio else pair for pair in self._pairs()]
        first, second = (int(draft.rng.integers(min(edges), max(edges) + 1)) for edges in zip(*ends, strict=True))
        if self.keep_ratio:
            ratio = min(max(first, second) / max(height, width), min(first, second) / min(height, width))
            new_width, new_height = max(int(width * ratio + 0.5), 1), max(int(height * ratio + 0.5), 1)
        else:
            new_width, new_height = first, second
        draft.transform(geometry.scaling(new_width / width, new_height / height), (new_height, new_width))


@TRANSFORMS.register
@dataclass(frozen=True)
class RandomFlip(Operation):
    """Mirrors the image.

    Args:
        prob: Chance that it is applied.
        direction: ``horizontal`` (left and right change places) or ``vertical``.
    """

    prob: float = 0.5
    direction: Direction = "horizontal"

    def __post_init__(self) -> None:
        _check_probabilities(self, prob=self.prob)
        _check_direction(self, self.direction)

    def apply(self, draft: Draft) -> None:
        """See the class."""
        if not draft.chance(self.prob):
            return
        height, width = draft.size
        horizontal = self.direction == "horizontal"
        draft.transform(geometry.horizontal_flip(width) if horizontal else geometry.vertical_flip(height))


@TRANSFORMS.register
@dataclass(frozen=True)
class Normalize:
    """Turns grey levels 0..255 into float32 (value - mean) / std.

    Args:
        mean: A grey level for each output channel, in their order.
        std: As ``mean``, above 0.
        bgr: Put the channels in the order blue, green, red, which weights trained the "caffe" way expect.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    bgr: bool = False

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3 or not all(math.isfinite(value) for value in values):
                raise InputError(f"Normalize: {name} must be three numbers, got {values!r}")
        if min(self.std) <= 0:
            raise InputError(f"Normalize: std must be above 0, got {self.std!r}")


@TRANSFORMS.register
@dataclass(frozen=True)
class Pad:
    """Pads batches with zeros, right and below, to the largest image and then to a multiple of a number.

    Args:
        size_divisor: Height and width become multiples of it.
    """

    size_divisor: int = 32

    def __post_init__(self) -> None:
        if self.size_divisor < 1:
            raise InputError(f"Pad: size_divisor must be at least 1, got {self.size_divisor}")


class Augment:
    """A list of transforms: what is drawn for a sample, then how its pixels are normalised and padded.

    Args:
        transforms: Operations in order, then at most one ``Normalize``, then at most one ``Pad``; each built, or as a
            mapping ``{"type": name, argument: value}``.

    Attributes:
        operations: What plans are drawn from.
        normalize: None where images stay uint8.
        size_divisor: 1 where there is no ``Pad``.

    Raises:
        InputError: For something that is no transform, or stands in the wrong place.
    """

    def __init__(self, transforms: Sequence[Operation | Normalize | Pad | Mapping[str, Any]]) -> None:
        built: list[Any] = [
            TRANSFORMS.build(transform) if isinstance(transform, Mapping) else transform for transform in transforms
        ]
        self.normalize: Normalize | None = None
        self.size_divisor = 1
        if built and isinstance(built[-1], Pad):
            self.size_divisor = built.pop().size_divisor
        if built and isinstance(built[-1], Normalize):
            self.normalize = built.pop()
        for number, transform in enumerate(built):
            if isinstance(transform, Normalize | Pad):
                name = type(transform).__name__
                raise InputError(
                    f"transform {number} is {name}: expected operations first, then one Normalize, then one Pad"
                )
            if not isinstance(transform, Operation):
                raise InputError(f"transform {number} is {transform!r}: expected an operation, a Normalize or a Pad")
        self.operations: tuple[Operation, ...] = tuple(built)

    def draw(self, source_size: Size, *, seed: int, epoch: int, sample: int, image: int | None = None) -> SamplePlan:
        """Draws the plan of one sample, a function of the arguments alone.

        Args:
            source_size: Height and width of the image.
            seed: 0..2**64-1.
            epoch: 0 or more.
            sample: Sample number in the repeated data set.
            image: Image number in the index; the sample's number where not given.

        Raises:
            InputError: For a seed out of range.
        """
        check_seed(seed)
        draft = Draft(source_size, random_stream(AUGMENT, seed, epoch, sample))
        for operation in self.operations:
            operation.apply(draft)
        return draft.finish(sample, sample if image is None else image, epoch)


def _magnitude(level: float, largest: float) -> float:
    return level / MAX_LEVEL * largest


def _signed(draft: Draft, magnitude: float, negative_prob: float) -> float:
    return -magnitude if draft.chance(negative_prob) else magnitude


def _enhance(draft: Draft, name: str, level: float, prob: float) -> None:
    if draft.chance(prob):
        draft.photometric.append((name, level / MAX_LEVEL * 1.8 + 0.1))


def _rgb(colour: Colour) -> tuple[int, int, int]:
    if isinstance(colour, int):
        return colour, colour, colour
    red, green, blue = colour
    return red, green, blue


def _check_level(operation: Operation, level: float) -> None:
    if not 0 <= level <= MAX_LEVEL:
        raise InputError(f"{type(operation).__name__}: level must lie in 0..10, got {level}")


def _check_probabilities(operation: Operation, **probabilities: float) -> None:
    for name, value in probabilities.items():
        if not 0 <= value <= 1:
            raise InputError(f"{type(operation).__name__}: {name} must lie in 0..1, got {value}")


def _check_direction(operation: Operation, direction: str) -> None:
    if direction not in ("horizontal", "vertical"):
        raise InputError(f"{type(operation).__name__}: direction must be horizontal or vertical, got {direction!r}")


def _check_colour(operation: Operation, colour: Colour) -> None:
    values = colour if isinstance(colour, list | tuple) else (colour,) * 3
    if len(values) != 3 or not all(isinstance(value, int) and 0 <= value <= 255 for value in values):
        name = type(operation).__name__
        raise InputError(f"{name}: img_fill_val must be one integer or three integers in 0..255, got {colour!r}")
