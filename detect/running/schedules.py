"""The learning rate over time: a warm-up, and what multiplies it in the course of the run.

All are functions of where the run is, and keep no state; so a run that goes on gets what it would have got.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from detect.sections import optimizer as sections


@dataclass(frozen=True)
class Progress:
    """Where a run is before an iteration, which is a step of the optimizer.

    Attributes:
        iteration: Iterations done.
        iterations: Those of the whole run.
        epoch: Epochs finished.
        epochs: Those of the whole run.
    """

    iteration: int
    iterations: int
    epoch: int
    epochs: int


def iterations_left(batches: int, batches_of_an_epoch: int, epochs: int, accumulate: int) -> int:
    """How many iterations are to come in a run, each of which learns from ``accumulate`` batches or what is left.

    Args:
        batches: Left of the epoch that has begun.
        batches_of_an_epoch: Of each epoch after it.
        epochs: To come, with the one that has begun; 0 or less where all are done.
        accumulate: Batches an iteration.
    """
    if epochs <= 0:
        return 0
    return math.ceil(batches / accumulate) + (epochs - 1) * math.ceil(batches_of_an_epoch / accumulate)


@dataclass(frozen=True)
class Warmup:
    """The factor of the first iterations.

    The linear one is that of PyTorch's ``LinearLR`` with ``total_iters``, and of mmdetection 2. mmdetection 3 reaches
    the full rate an iteration earlier.

    Args:
        iters: How many; 0 for none.
        ratio: The factor at the first iteration.
        kind: ``linear``: rises to 1; ``constant``: stays, and then is 1.
    """

    iters: int = 0
    ratio: float = 0.001
    kind: Literal["linear", "constant"] = "linear"

    def factor(self, iteration: int) -> float:
        """The factor for the iteration after so many."""
        if iteration >= self.iters:
            return 1.0
        rise = iteration / self.iters if self.kind == "linear" else 0.0
        return self.ratio + (1 - self.ratio) * rise


class Decay(Protocol):
    """The factor in the course of a run."""

    def factor(self, done: int, total: int) -> float:
        """The factor after ``done`` of the ``total`` epochs or iterations of the run."""
        ...


@dataclass(frozen=True)
class MultiStep:
    """``gamma`` to the power of how many of the ``steps`` are reached."""

    steps: Sequence[int] = ()
    gamma: float = 0.1

    def factor(self, done: int, total: int) -> float:
        """See :class:`Decay`."""
        return self.gamma ** sum(done >= step for step in self.steps)


@dataclass(frozen=True)
class Step:
    """``gamma`` after every ``size``."""

    size: int
    gamma: float = 0.1

    def factor(self, done: int, total: int) -> float:
        """See :class:`Decay`."""
        return self.gamma ** (done // self.size)


@dataclass(frozen=True)
class Cosine:
    """From 1 to ``floor`` along half a cosine (arXiv 1608.03983, equation 5, without restarts)."""

    floor: float = 0.0

    def factor(self, done: int, total: int) -> float:
        """See :class:`Decay`."""
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * done / total)) / 2


@dataclass(frozen=True)
class Schedule:
    """The factor on the learning rate: that of the warm-up times that of the decay; both begin with the run.

    Args:
        warmup: Counts iterations.
        decay: Counts what ``by`` says.
        by: ``epoch`` or ``iteration``.
    """

    warmup: Warmup = field(default_factory=Warmup)
    decay: Decay = field(default_factory=MultiStep)
    by: Literal["epoch", "iteration"] = "epoch"

    def factor(self, progress: Progress) -> float:
        """The factor for an iteration."""
        if self.by == "epoch":
            done, total = progress.epoch, progress.epochs
        else:
            done, total = progress.iteration, progress.iterations
        return self.warmup.factor(progress.iteration) * self.decay.factor(done, total)


def make_schedule(section: sections.Schedule) -> Schedule:
    """Makes what the ``schedule`` of a recipe says."""
    warmup = Warmup(section.warmup_iters, section.warmup_ratio, section.warmup)
    if isinstance(section, sections.MultiStepSection):
        return Schedule(warmup, MultiStep(section.steps, section.gamma), section.by)
    if isinstance(section, sections.StepSection):
        return Schedule(warmup, Step(section.step_size, section.gamma), section.by)
    if isinstance(section, sections.CosineSection):
        return Schedule(warmup, Cosine(section.min_ratio), section.by)
    return Schedule(warmup)
