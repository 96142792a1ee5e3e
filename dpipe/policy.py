"""Augmentation policies: which operations a sample gets, and how its pixels are handed out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import ArrayLike

from dpipe.building.arguments import check_arguments
from dpipe.errors import InputError
from dpipe.operations.colours import Brightness, Color, Contrast, Equalize
from dpipe.operations.geometric import Rotate, Shear, Translate
from dpipe.operations.operation import Colour, Operation, apply, check_colour, check_level
from dpipe.plan import MOST_PIXELS, Draft, SamplePlan, Size
from dpipe.registry import TRANSFORMS
from dpipe.rng import AUGMENT, check_number, random_stream


@TRANSFORMS.register
@dataclass(frozen=True)
class AutoAugment(Operation):
    """Draws one of several policies, each as likely, and applies its operations in order.

    Source: "AutoAugment" (arXiv 1805.09501); the policies are the caller's.

    Args:
        policies: Lists of operations of any kind, policies among them; an empty list leaves the image as it is.
    """

    policies: Sequence[Sequence[Operation]]

    def __post_init__(self) -> None:
        super().__post_init__()
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

    @property
    def inner(self) -> Sequence[Operation]:
        """The operations of all policies."""
        return [operation for policy in self.policies for operation in policy]

    def apply(self, draft: Draft) -> None:
        """See the class."""
        for operation in self.policies[int(draft.rng.integers(len(self.policies)))]:
            apply(operation, draft)


@TRANSFORMS.register
@dataclass(frozen=True)
class RandAugment(Operation):
    """Applies a few operations, each drawn anew from one list and all as likely, at one level.

    Source: "RandAugment" (arXiv 1909.13719), whose N is ``num_ops`` and whose M is ``level``. What is drawn happens for
    certain: an operation's own ``prob`` does not count, nor does its ``level``, where it has one.

    Args:
        level: 0..10, or two such numbers between which the level of each operation is drawn. At level 5 colours stay
            as they are: the factor of ``Color``, ``Brightness`` and ``Contrast`` is 1 there.
        num_ops: How many operations a sample gets, 1 or more; the same one may come twice.
        operations: To draw from. Where not given: ``Rotate``, ``Translate`` and ``Shear`` in both directions,
            ``Color``, ``Brightness``, ``Contrast``, ``Equalize``, and none at all.
        img_fill_val: Grey level, or red, green and blue, that the operations fill with where none are given, 0..255.
    """

    level: float | tuple[float, float]
    num_ops: int = 2
    operations: Sequence[Operation] | None = None
    img_fill_val: Colour = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        for level in self._levels():
            check_level(self, level)
        least, most = self._levels()
        if least > most:
            raise InputError(f"RandAugment: expected the lower level first, got {self.level!r}")
        if self.num_ops < 1:
            raise InputError(f"RandAugment: num_ops must be at least 1, got {self.num_ops}")
        check_colour(self, self.img_fill_val)
        if self.operations is not None and not self.operations:
            raise InputError("RandAugment: expected at least one operation, got none")
        for number, operation in enumerate(self.operations or ()):
            if not isinstance(operation, Operation):
                raise InputError(f"RandAugment: operation {number} is {operation!r}, which is no operation on images")

    @property
    def inner(self) -> Sequence[Operation]:
        """The operations that are drawn from."""
        if self.operations is not None:
            return self.operations
        fill = self.img_fill_val
        return (
            Rotate(0, img_fill_val=fill),
            Translate(0, img_fill_val=fill),
            Translate(0, direction="vertical", img_fill_val=fill),
            Shear(0, img_fill_val=fill),
            Shear(0, direction="vertical", img_fill_val=fill),
            Color(0),
            Brightness(0),
            Contrast(0),
            Equalize(),
            AutoAugment([[]]),  # leaves the image as it is
        )

    def apply(self, draft: Draft) -> None:
        """See the class."""
        operations = self.inner
        least, most = self._levels()
        for _ in range(self.num_ops):
            operation = operations[int(draft.rng.integers(len(operations)))]
            apply(operation.at_level(float(draft.rng.uniform(least, most))), draft)

    def _levels(self) -> tuple[float, float]:
        """The ends of the range of levels, equal for a single one."""
        if not isinstance(self.level, list | tuple):
            return self.level, self.level
        return self.level


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
        check_arguments(type(self), vars(self))
        for name, values in (("mean", self.mean), ("std", self.std)):
            if not all(math.isfinite(value) for value in values):
                raise InputError(f"Normalize: {name} must be three numbers, got {values!r}")
        if min(self.std) <= 0:
            raise InputError(f"Normalize: std must be above 0, got {self.std!r}")
        if max(self.std) < 1 and max(self.mean) <= 1 and any(self.mean):
            raise InputError(
                f"Normalize: mean {self.mean!r} and std {self.std!r} are those of images in 0..1: expected them times "
                "255, for grey levels of 0..255"
            )


@TRANSFORMS.register
@dataclass(frozen=True)
class Pad:
    """Pads batches with zeros, right and below, to the largest image and then to a multiple of a number.

    Args:
        size_divisor: Height and width become multiples of it; 1..32768.
    """

    size_divisor: int = 32

    def __post_init__(self) -> None:
        check_arguments(type(self), vars(self))
        if self.size_divisor < 1:
            raise InputError(f"Pad: size_divisor must be at least 1, got {self.size_divisor}")
        if self.size_divisor**2 > MOST_PIXELS:
            raise InputError(f"Pad: size_divisor must be at most {math.isqrt(MOST_PIXELS)}, got {self.size_divisor}")


class Augment:
    """A list of transforms: what is drawn for a sample, then how its pixels are normalised and padded.

    Args:
        transforms: Operations in order, then at most one ``Normalize``, then at most one ``Pad``; each built, or as a
            mapping ``{"type": name, argument: value}``.

    Attributes:
        operations: What plans are drawn from.
        needs_boxes: Whether plans depend on the objects' boxes, so that ``draw`` wants them.
        normalize: None where images stay uint8.
        size_divisor: 1 where there is no ``Pad``.

    Raises:
        InputError: For something that is no transform, or stands in the wrong place.
    """

    def __init__(self, transforms: Sequence[Operation | Normalize | Pad | Mapping[str, Any]]) -> None:
        check_arguments(Augment, {"transforms": transforms})
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
        self.needs_boxes = any(operation.needs_boxes for operation in self.operations)

    def every_operation(self) -> Iterator[Operation]:
        """All operations, with those inside of policies."""
        waiting = list(self.operations)
        while waiting:
            operation = waiting.pop()
            yield operation
            waiting.extend(operation.inner)

    def draw(
        self,
        source_size: Size,
        *,
        seed: int,
        epoch: int,
        sample: int,
        image: int | None = None,
        boxes: ArrayLike | None = None,
    ) -> SamplePlan:
        """Draws the plan of one sample, a function of the arguments alone.

        Args:
            source_size: Height and width of the image.
            seed: 0..2**64-1.
            epoch: 0 or more.
            sample: Sample number in the repeated data set.
            image: Image number in the index; the sample's number where not given.
            boxes: (n, 4) float xyxy of the image's objects, crowds apart, in source coordinates; looked at only where
                ``needs_boxes``, and none where not given.

        Raises:
            InputError: For a number out of range, and for a matrix or a size that an operation must not make.
        """
        for name, number in (("seed", seed), ("epoch", epoch), ("sample", sample)):
            check_number(name, number)
        height, width = source_size
        draft = Draft((int(height), int(width)), random_stream(AUGMENT, seed, epoch, sample), boxes)
        for operation in self.operations:
            apply(operation, draft)
        return draft.finish(sample, sample if image is None else image, epoch)
