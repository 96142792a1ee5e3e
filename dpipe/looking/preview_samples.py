"""The samples of a preview: pixels as a trainer gets them, and in words what was done to them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpipe.backends.base import OnBadSample
from dpipe.coco import CocoIndex
from dpipe.errors import InputError
from dpipe.geometry import compose, invert
from dpipe.loader import BackendName, DetectionLoader
from dpipe.operations.albumentations_op import Albumentations
from dpipe.operations.cropping import LargeScaleJitter, MinIoURandomCrop, RandomCrop
from dpipe.operations.geometric import RandomFlip, Resize, Rotate, Shear, Translate
from dpipe.operations.operation import Operation
from dpipe.plan import Draft, PhotometricStep, SamplePlan, Size
from dpipe.policy import Augment, AutoAugment, RandAugment
from dpipe.target import Target


@dataclass(frozen=True, eq=False)
class PreviewSample:
    """A sample as a trainer is given it, but for the normalisation and the padding.

    Attributes:
        image: (h, w, 3) uint8 RGB.
        target: What is to be found in it.
        plan: What was done to it.
        operations: The same in words, a text for each operation that did something.
    """

    image: NDArray[np.uint8]
    target: Target
    plan: SamplePlan
    operations: list[str]


def preview_samples(
    index: CocoIndex,
    images: str | Path,
    augment: Augment,
    *,
    count: int,
    seed: int = 0,
    epoch: int = 0,
    backend: BackendName = "opencv",
    on_bad_sample: OnBadSample = "fail",
) -> Iterator[PreviewSample]:
    """Yields the first samples of an epoch.

    Args:
        index: The annotations.
        images: Folder that the index's file names are relative to.
        augment: What is done to the samples.
        count: Samples; all where there are fewer.
        seed: Of the order and of the augmentation.
        epoch: Of the order and of the augmentation.
        backend: See ``DetectionLoader``.
        on_bad_sample: See ``DetectionLoader``; the next sample stands in for one that is skipped.

    Raises:
        InputError: For a number out of range, and what ``DetectionLoader`` raises.
    """
    for name, value, least in (("count", count, 1), ("epoch", epoch, 0)):
        if value < least:
            raise InputError(f"{name} must be at least {least}, got {value}")
    visible = Augment(augment.operations)
    loader = DetectionLoader(
        index,
        images,
        augment=visible,
        backend=backend,
        seed=seed,
        group_by_aspect=False,
        pad_last=False,
        on_bad_sample=on_bad_sample,
    )
    loader.set_epoch(epoch)
    try:
        for batch in islice(loader, count):
            (target,) = batch.targets
            image = np.ascontiguousarray(batch.images[0].permute(1, 2, 0).numpy())
            plan = loader.plan(target.sample, epoch)
            boxes = object_boxes(index, plan.image)
            yield PreviewSample(image, target, plan, describe_operations(visible, plan, seed, boxes))
    finally:
        loader.close()


def object_boxes(index: CocoIndex, image: int) -> NDArray[np.float32]:
    """(n, 4) xyxy boxes of an image's objects, crowds apart, as plans are drawn from."""
    rows = slice(int(index.offsets[image]), int(index.offsets[image + 1]))
    return index.boxes[rows][~index.crowd[rows]]


def describe_operations(augment: Augment, plan: SamplePlan, seed: int, boxes: ArrayLike | None = None) -> list[str]:
    """Says what was drawn for a sample, by drawing it once more.

    Args:
        augment: What the plan was drawn from.
        plan: The sample's.
        seed: That it was drawn with.
        boxes: That it was drawn with.

    Returns:
        A text for each operation that did something, in order: ``Rotate -21.0°``, ``Translate 100 px left`` ...
    """
    log: list[str] = []
    logging = Augment([_logged(operation, log) for operation in augment.operations])
    logging.draw(plan.source_size, seed=seed, epoch=plan.epoch, sample=plan.sample, image=plan.image, boxes=boxes)
    return log


@dataclass(frozen=True)
class _Logged(Operation):
    """An operation that writes down what it did."""

    operation: Operation
    log: list[str]

    def at_level(self, level: float) -> Operation:
        return replace(self, operation=self.operation.at_level(level))

    def apply(self, draft: Draft) -> None:
        matrix, size, steps = draft.matrix, draft.size, len(draft.photometric)
        self.operation.apply(draft)
        if draft.matrix is not matrix:
            self.log.append(_describe(self.operation, compose(invert(matrix), draft.matrix), size, draft.size))
        self.log.extend(_describe_step(self.operation, step) for step in draft.photometric[steps:])


def _describe_step(operation: Operation, step: PhotometricStep) -> str:
    """A photometric step in words: its name and its magnitude, or the names of another library's transforms."""
    if isinstance(step, tuple):
        name, magnitude = step
        return "Equalize" if name == "equalize" else f"{name.capitalize()} {magnitude:.2f}"
    names = [str(each["type"]) for each in operation.transforms] if isinstance(operation, Albumentations) else []
    return " ".join([type(operation).__name__, *names])


def _logged(operation: Operation, log: list[str]) -> Operation:
    if isinstance(operation, AutoAugment):
        policies = [[_logged(inner, log) for inner in policy] for policy in operation.policies]
        return replace(operation, policies=policies)
    if isinstance(operation, RandAugment):
        return replace(operation, operations=[_logged(inner, log) for inner in operation.inner])
    return _Logged(operation, log)


def _describe(operation: Operation, step: NDArray[np.float64], before: Size, after: Size) -> str:
    """One geometric operation in words.

    Args:
        operation: Which.
        step: What it did, (2, 3).
        before: Height and width of the image that came to it.
        after: Height and width of the image that it left.
    """
    (a, b, dx), (c, d, dy) = step.tolist()
    match operation:
        case Rotate():
            zoom = f" x{math.hypot(a, c):.2f}" if operation.scale != 1 else ""
            return f"Rotate {math.degrees(math.atan2(c, a)):+.1f}°{zoom}"
        case Translate() if operation.direction == "horizontal":
            return f"Translate {abs(dx):.0f} px {'right' if dx > 0 else 'left'}"
        case Translate():
            return f"Translate {abs(dy):.0f} px {'down' if dy > 0 else 'up'}"
        case Shear():
            return f"Shear {b if operation.direction == 'horizontal' else c:+.2f} {operation.direction}"
        case Resize():
            return f"Resize {before[1]}x{before[0]} to {after[1]}x{after[0]}"
        case RandomFlip():
            return f"Flip {'diagonal' if a < 0 and d < 0 else 'horizontal' if a < 0 else 'vertical'}"
        case RandomCrop() | MinIoURandomCrop():
            return f"{type(operation).__name__} {after[1]}x{after[0]} at {-dx:.0f},{-dy:.0f}"
        case LargeScaleJitter():
            return f"LargeScaleJitter x{a:.2f}"
        case _:
            return type(operation).__name__
