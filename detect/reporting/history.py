"""What ``train.jsonl`` tells of a run, as it was in the end: iterations that were lost and done again count once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from detect.running.logs import read_log

Record = Mapping[str, Any]
NOT_LOSSES = frozenset({"kind", "epoch", "iteration", "lr", "group_lrs", "data_time", "iteration_time", "memory_mib"})


@dataclass
class Curve:
    """A number over the iterations.

    Attributes:
        name: What it is.
        iterations: Where it is known, increasing.
        values: The numbers; NaN and infinity are among them where they are in the log.
    """

    name: str
    iterations: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, iteration: int, value: Any) -> None:
        """Adds a point, if the value is a number."""
        if isinstance(value, int | float) and not isinstance(value, bool):
            self.iterations.append(iteration)
            self.values.append(float(value))


@dataclass
class History:
    """A run's log.

    Attributes:
        training: Records of the kind ``train``, by iteration.
        evaluations: Records of the kind ``evaluation``, by iteration.
        skipped: Data set, name and reason of each file that could not be used.
    """

    training: list[Record] = field(default_factory=list)
    evaluations: list[Record] = field(default_factory=list)
    skipped: list[tuple[str, str, str]] = field(default_factory=list)

    @cached_property
    def losses(self) -> list[Curve]:
        """The losses and what else each iteration tells, ``loss`` first."""
        return _curves(self.training, lambda record: {k: v for k, v in record.items() if k not in NOT_LOSSES})

    @property
    def rates(self) -> list[Curve]:
        """The learning rate, and those of groups of weights."""

        def of_record(record: Record) -> Record:
            groups = record.get("group_lrs")
            return {"lr": record.get("lr"), **(groups if isinstance(groups, dict) else {})}

        return _curves(self.training, of_record)

    def metrics(self, kind: str) -> list[Curve]:
        """The numbers of a kind of evaluation, where there was something to count."""

        def of_record(record: Record) -> Record:
            numbers = record.get(kind)
            return {k: v for k, v in numbers.items() if v != -1} if isinstance(numbers, dict) else {}

        return _curves(self.evaluations, of_record)


def read_history(path: Path) -> History:
    """Reads a ``train.jsonl``; without one, the history is empty."""
    history = History()
    skipped: dict[tuple[str, str], str] = {}
    for record in read_log(path):
        iteration = record["iteration"]
        if record["kind"] == "train":
            # What comes at or after this iteration was lost, and is done again.
            _drop_from(history.training, iteration)
            _drop_from(history.evaluations, iteration)
            history.training.append(record)
        elif record["kind"] == "evaluation":
            _drop_from(history.evaluations, iteration)
            history.evaluations.append(record)
        elif record["kind"] == "skipped":
            skipped |= {(record["set"], str(name)): str(reason) for name, reason in record["files"].items()}
    history.skipped = [(data_set, name, reason) for (data_set, name), reason in skipped.items()]
    return history


def _drop_from(records: list[Record], iteration: int) -> None:
    while records and records[-1]["iteration"] >= iteration:
        records.pop()


def _curves(records: list[Record], of_record: Any) -> list[Curve]:
    curves: dict[str, Curve] = {}
    for record in records:
        for name, value in of_record(record).items():
            curves.setdefault(name, Curve(name)).add(record["iteration"], value)
    return [curve for curve in curves.values() if curve.values]
