"""What every operation of a policy is, and what their arguments have in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, Literal, TypeAlias

from dpipe.building.arguments import check_arguments
from dpipe.errors import InputError
from dpipe.plan import Draft

Colour: TypeAlias = int | tuple[int, int, int]
Direction: TypeAlias = Literal["horizontal", "vertical"]

MAX_LEVEL = 10.0


class Operation(ABC):
    """Something that changes an image, with the boxes and polygons on it.

    One that is a dataclass has its arguments checked against their annotations; where it has a ``__post_init__`` of its
    own, that begins with ``super().__post_init__()``.
    """

    def __post_init__(self) -> None:
        check_arguments(type(self), vars(self))

    @property
    def inner(self) -> Sequence[Operation]:
        """The operations that it chooses among, where it is a policy."""
        return ()

    @property
    def needs_boxes(self) -> bool:
        """Whether what it draws depends on ``draft.boxes``."""
        return any(operation.needs_boxes for operation in self.inner)

    def at_level(self, level: float) -> Operation:
        """The same operation at another level and certain to happen, as far as it has a ``level`` and a ``prob``."""
        known = {each.name for each in fields(self)} if is_dataclass(self) else set[str]()
        changes: dict[str, Any] = {name: value for name, value in (("level", level), ("prob", 1.0)) if name in known}
        return replace(self, **changes) if changes else self  # type: ignore[type-var]

    @abstractmethod
    def apply(self, draft: Draft) -> None:
        """Draws what happens, from ``draft.rng``, and adds it to the draft."""


def apply(operation: Operation, draft: Draft) -> None:
    """Applies an operation.

    Raises:
        InputError: If it does what cannot be done; the message names it.
    """
    try:
        operation.apply(draft)
    except InputError as error:
        raise InputError(f"{type(operation).__name__}: {error}") from error


def magnitude(level: float, largest: float) -> float:
    """What a level stands for, between nothing at level 0 and ``largest`` at level 10."""
    return level / MAX_LEVEL * largest


def signed(draft: Draft, magnitude: float, negative_prob: float) -> float:
    """The magnitude, turned negative with a probability."""
    return -magnitude if draft.chance(negative_prob) else magnitude


def rgb(colour: Colour) -> tuple[int, int, int]:
    """A colour as red, green and blue."""
    if isinstance(colour, int):
        return colour, colour, colour
    red, green, blue = colour
    return red, green, blue


def check_level(operation: Operation, level: float) -> None:
    """Raises an InputError unless the level lies in 0..10."""
    if not 0 <= level <= MAX_LEVEL:
        raise InputError(f"{type(operation).__name__}: level must lie in 0..10, got {level}")


def check_probabilities(operation: Operation, **probabilities: float) -> None:
    """Raises an InputError unless the named probabilities lie in 0..1."""
    for name, value in probabilities.items():
        if not 0 <= value <= 1:
            raise InputError(f"{type(operation).__name__}: {name} must lie in 0..1, got {value}")


def check_largest(operation: Operation, **largest: float) -> None:
    """Raises an InputError unless the named magnitudes are finite and not negative."""
    for name, value in largest.items():
        if not (math.isfinite(value) and value >= 0):
            raise InputError(f"{type(operation).__name__}: {name} must be a number of at least 0, got {value}")


def check_colour(operation: Operation, colour: Colour) -> None:
    """Raises an InputError for anything but grey levels of 0..255."""
    if not all(0 <= value <= 255 for value in rgb(colour)):
        name = type(operation).__name__
        raise InputError(f"{name}: img_fill_val must be one integer or three integers in 0..255, got {colour!r}")
