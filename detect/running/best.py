"""Which of a run's evaluations is best, and when the run has stopped getting better.

Both follow from what was evaluated so far, which is part of a checkpoint, so that a resumed run comes to the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detect.metrics.scores import MAIN_METRICS, Kind, Scores
from detect.sections.evaluation import Evaluation


@dataclass(frozen=True)
class Measure:
    """The number that evaluations are compared by; more is better.

    Attributes:
        kind: The kind of evaluation that gives it.
        metric: Its name there.
        settings: What else it depends on.
        data: SHA-256 of the annotations.
    """

    kind: Kind
    metric: str
    settings: str
    data: str

    @classmethod
    def of_recipe(cls, section: Evaluation, annotations: str | Path, proposes: bool) -> Measure:
        """What a recipe says, or else the main metric of the first kind that is evaluated.

        Args:
            section: The recipe's ``evaluation``.
            annotations: The validation set's JSON.
            proposes: Whether the model finds proposals.

        Raises:
            OSError: If the annotations cannot be read.
        """
        if section.best is not None:
            kind, metric = section.best_parts
        else:
            kind = section.kinds[0] if section.kinds else "proposal" if proposes else "bbox"
            metric = MAIN_METRICS[kind]
        settings = ""
        if kind == "voc":
            ious = ", ".join(f"{iou:g}" for iou in section.voc_ious) if metric == "mAP" else ""
            settings = f" ({section.voc_mode}{', IoU ' if ious else ''}{ious}{', inclusive' * section.voc_inclusive})"
        return cls(kind, metric, settings, hashlib.sha256(Path(annotations).read_bytes()).hexdigest())

    @property
    def name(self) -> str:
        """Such as ``bbox/AP50``."""
        return f"{self.kind}/{self.metric}"

    @property
    def key(self) -> tuple[str, str]:
        """What two measures have in common whose values can be compared."""
        return self.name + self.settings, self.data

    def of_scores(self, all_scores: Sequence[Scores]) -> float:
        """Its value in an evaluation of its kind, among others."""
        return next(scores for scores in all_scores if scores.kind == self.kind).metrics[self.metric]


@dataclass(frozen=True)
class Best:
    """The evaluation whose checkpoint stays.

    Attributes:
        iteration: Of its checkpoint.
        value: Of the measure.
        key: See :attr:`Measure.key`.
    """

    iteration: int
    value: float
    key: tuple[str, str]


class Evaluations:
    """A run's evaluations by one measure.

    Args:
        measure: What they are compared by.

    Attributes:
        best: The best one so far; after a change of measure that of the former one, until there is another.
    """

    def __init__(self, measure: Measure) -> None:
        self.measure = measure
        self.best: Best | None = None
        self._values: dict[int, float] = {}

    def add(self, iteration: int, value: float) -> bool:
        """Adds an evaluation; one that is there already makes no difference.

        Returns:
            Whether it is the best so far. Values of another measure are not compared, and never better.
        """
        self._values[iteration] = value
        return self._offer(Best(iteration, value, self.measure.key))

    def __contains__(self, iteration: int) -> bool:
        return iteration in self._values

    def without_gain(self, min_delta: float) -> int:
        """How many evaluations in a row, up to the last, have not raised the best value by more than ``min_delta``."""
        reached, count = -float("inf"), 0
        for value in self._values.values():
            if value > reached + min_delta:
                reached, count = value, 0
            else:
                count += 1
        return count

    def state_dict(self) -> dict[str, Any]:
        """What a run that is resumed needs to know."""
        best = None if self.best is None else [self.best.iteration, self.best.value, list(self.best.key)]
        return {"measure": list(self.measure.key), "values": list(self._values.items()), "best": best}

    def load_state_dict(self, state: Mapping[str, Any], record: Mapping[str, Any] | None) -> None:
        """Takes over what was there.

        Args:
            state: What :meth:`state_dict` returned.
            record: That of the evaluation in ``train.jsonl`` of the checkpoint itself, which is made after it is saved.

        Raises:
            KeyError, TypeError, ValueError: If they are no such state and record.
        """
        best = state["best"]
        if best is not None:
            iteration, value, (name, data) = best
            self.best = Best(int(iteration), float(value), (str(name), str(data)))
        name, data = state["measure"]
        values = {int(iteration): float(value) for iteration, value in state["values"]}
        if record is not None:
            kind, _, metric = name.partition(" ")[0].partition("/")
            if metric in record.get(kind, {}):
                iteration, value = int(record["iteration"]), float(record[kind][metric])
                values[iteration] = value
                self._offer(Best(iteration, value, (name, data)))
        if (name, data) == self.measure.key:
            self._values = values

    def change(self) -> str | None:
        """A line for the user where the best value so far is of another measure; else None."""
        if self.best is None or self.best.key == self.measure.key:
            return None
        (before, data), (now, data_now) = self.best.key, self.measure.key
        other = " on other annotations" * (data != data_now)
        return (
            f"the best checkpoint, of iteration {self.best.iteration}, is so by {before}{other}, which is not compared "
            f"with {now}: the next evaluation is best"
        )

    def _offer(self, new: Best) -> bool:
        if self.best is not None and self.best.key == new.key and new.value <= self.best.value:
            return False
        self.best = new
        return True
