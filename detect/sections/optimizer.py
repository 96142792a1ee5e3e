"""The sections ``optimizer`` and ``schedule`` of a recipe, each with a ``type`` that decides which keys it has.

``detect.running.optim`` makes what they say; see there for the formulas.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator

from detect.sections.section import BelowOne, Count, CountOrZero, NotNegative, Positive, Section, Share, mistake
from dpipe.building.problems import shorten


class ParameterGroup(Section):
    """Weights with a learning rate or a weight decay of their own.

    Attributes:
        pattern: A regular expression that is searched in a weight's name, such as ``backbone.layer1.0.conv1.weight``.
        lr_mult: Multiplies the learning rate.
        decay_mult: Multiplies the weight decay.
    """

    pattern: str
    lr_mult: NotNegative = 1.0
    decay_mult: NotNegative = 1.0

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise mistake(f"expected a regular expression ({error})") from None
        return pattern


class OptimizerSection(Section):
    """What all optimizers have.

    Attributes:
        type: Which it is.
        lr: Learning rate after the warm-up.
        weight_decay: The penalty on all weights.
        groups: Weights that differ; of several patterns that match a weight's name the first counts.
        base_batch_size: Images an iteration, over all devices, that ``lr`` is meant for.
        auto_scale_lr: Whether ``lr`` is multiplied by the run's images an iteration over ``base_batch_size``.
    """

    type: str
    lr: Positive
    weight_decay: NotNegative = 0.0
    groups: list[ParameterGroup] = Field(default_factory=list)
    base_batch_size: Count | None = None
    auto_scale_lr: bool = False

    @field_validator("auto_scale_lr")
    @classmethod
    def _has_base(cls, auto_scale_lr: bool, info: ValidationInfo) -> bool:
        # A base batch size that is wrong itself is told as such, and is not in the data.
        if auto_scale_lr and info.data.get("base_batch_size", 1) is None:
            raise mistake("needs optimizer.base_batch_size to be set")
        return auto_scale_lr


class SGDSection(OptimizerSection):
    """Stochastic gradient descent; its weight decay is L2, added to the gradient.

    Attributes:
        type: ``SGD``.
        momentum: Share of the last step that goes on.
        nesterov: Whether the gradient is looked at where momentum leads.
    """

    type: Literal["SGD"] = "SGD"
    momentum: BelowOne = 0.9
    nesterov: bool = False

    @field_validator("nesterov")
    @classmethod
    def _has_momentum(cls, nesterov: bool, info: ValidationInfo) -> bool:
        if nesterov and info.data.get("momentum") == 0:
            raise mistake("needs optimizer.momentum above 0")
        return nesterov


class AdamWSection(OptimizerSection):
    """AdamW (arXiv 1711.05101); its weight decay is apart from the gradient.

    Attributes:
        type: ``AdamW``.
        betas: How much of the mean of gradients, and of their squares, goes on.
        eps: Added to the root of the squares' mean.
    """

    type: Literal["AdamW"]
    betas: list[BelowOne] = Field(default_factory=lambda: [0.9, 0.999], min_length=2, max_length=2)
    eps: Positive = 1e-8


class ScheduleSection(Section):
    """What all schedules have: a warm-up, whose factor multiplies the schedule's.

    Attributes:
        type: Which it is.
        warmup: ``linear``, or ``constant`` at the first factor.
        warmup_iters: Iterations of the warm-up; 0 for none.
        warmup_ratio: Share of the learning rate at the first iteration.
    """

    type: str
    warmup: Literal["linear", "constant"] = "linear"
    warmup_iters: CountOrZero = 0
    warmup_ratio: Share = 0.001


class MultiStepSection(ScheduleSection):
    """A factor after certain epochs or iterations.

    Attributes:
        type: ``multi_step``.
        by: What ``steps`` counts.
        steps: After so many the learning rate is multiplied by ``gamma``.
        gamma: The factor.
    """

    type: Literal["multi_step"] = "multi_step"
    by: Literal["epoch", "iteration"] = "epoch"
    steps: list[Count] = Field(default_factory=list)
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1

    @field_validator("steps")
    @classmethod
    def _rise(cls, steps: list[int]) -> list[int]:
        if any(second <= first for first, second in pairwise(steps)):
            raise mistake(f"expected numbers that rise, got {shorten(steps)}")
        return steps


class StepSection(ScheduleSection):
    """A factor again and again.

    Attributes:
        type: ``step``.
        by: What ``step_size`` counts.
        step_size: After each so many the learning rate is multiplied by ``gamma``.
        gamma: The factor.
    """

    type: Literal["step"]
    by: Literal["epoch", "iteration"] = "epoch"
    step_size: Count
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1


class CosineSection(ScheduleSection):
    """Half a cosine over the whole run (arXiv 1608.03983, without restarts).

    Attributes:
        type: ``cosine``.
        by: Whether the learning rate changes with every epoch or with every iteration.
        min_ratio: Share of the learning rate that it approaches at the end.
    """

    type: Literal["cosine"]
    by: Literal["epoch", "iteration"] = "iteration"
    min_ratio: Share = 0.0


class ConstantSection(ScheduleSection):
    """The same learning rate all along, after the warm-up.

    Attributes:
        type: ``none``.
    """

    type: Literal["none"]


def _type_or(default: str) -> Callable[[Any], str]:
    """What finds the type of a section, which is ``default`` where it says none."""

    def find(section: Any) -> str:
        found = section.get("type", default) if isinstance(section, dict) else getattr(section, "type", default)
        return found if isinstance(found, str) else ""

    return find


Optimizer = Annotated[
    Annotated[SGDSection, Tag("SGD")] | Annotated[AdamWSection, Tag("AdamW")], Discriminator(_type_or("SGD"))
]
Schedule = Annotated[
    Annotated[MultiStepSection, Tag("multi_step")]
    | Annotated[StepSection, Tag("step")]
    | Annotated[CosineSection, Tag("cosine")]
    | Annotated[ConstantSection, Tag("none")],
    Discriminator(_type_or("multi_step")),
]
TYPES: dict[str, dict[str, type[Section]]] = {
    "optimizer": {"SGD": SGDSection, "AdamW": AdamWSection},
    "schedule": {
        "multi_step": MultiStepSection,
        "step": StepSection,
        "cosine": CosineSection,
        "none": ConstantSection,
    },
}
"""The sections that have a ``type``: by their key, the schema of each type."""
