"""The numbers of a report: tiles of what matters most, tables of metrics and of classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detect.metrics.recall import IOUS, PROPOSALS, recall_name
from detect.metrics.scores import MAIN_METRICS, NEED_CLASSES
from detect.metrics.tables import HEADINGS, TITLES
from detect.reporting.history import History
from detect.reporting.keeping import Kept
from dpipe.coco import CocoIndex


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation gave.

    Attributes:
        name: ``best`` or ``last``, or that of a file.
        record: By kind its numbers, see ``detect.running.logs.evaluation_record``.
        settings: By kind what they depend on.
        results: The detections, if they are there.
    """

    name: str
    record: Mapping[str, Any]
    settings: Mapping[str, str]
    results: Path | None

    @property
    def kinds(self) -> list[str]:
        """What was evaluated."""
        return [kind for kind, numbers in self.record.items() if kind in MAIN_METRICS and isinstance(numbers, dict)]

    @property
    def by_class(self) -> bool:
        """Whether detections have classes, as proposals have not."""
        return bool(NEED_CLASSES & set(self.kinds))

    @property
    def told(self) -> str:
        """When it was, in words; empty for detections that were given."""
        epoch, iteration = self.record.get("epoch"), self.record.get("iteration")
        return f"epoch {epoch}, iteration {iteration:,}" if iteration else ""

    def numbers(self, kind: str) -> dict[str, float]:
        """The numbers of a kind, without those of classes."""
        return {name: value for name, value in self.record[kind].items() if isinstance(value, int | float)}


@dataclass(frozen=True)
class Tile:
    """A number that is shown large.

    Attributes:
        name: What it is.
        value: As text.
        more: What else there is to say.
    """

    name: str
    value: str
    more: str


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        title: What it shows.
        head: Names of the columns.
        rows: The name of each row, what else is told of it, and its texts.
    """

    title: str
    head: list[str]
    rows: list[tuple[str, str, list[str]]]


@dataclass(frozen=True)
class Cell:
    """A number of a class.

    Attributes:
        text: In percent; a dash where there is no object.
        share: 0 to 100, for sorting and for a bar; -1 where there is no object.
        has_bar: Whether it is the main number of its kind.
    """

    text: str
    share: float
    has_bar: bool


@dataclass(frozen=True)
class ClassTable:
    """The numbers of all classes.

    Attributes:
        told: Which evaluation they are of.
        groups: Each kind with its number of columns.
        head: Names of the columns.
        rows: Name of the class, number of its objects (None where that is not known), and cells.
    """

    told: str
    groups: list[tuple[str, int]]
    head: list[str]
    rows: list[tuple[str, int | None, list[Cell]]]


def evaluation_of(name: str, kept: Kept) -> Evaluation:
    """An evaluation that was kept."""
    settings = kept.record.get("settings")
    return Evaluation(name, kept.record, settings if isinstance(settings, dict) else {}, kept.results)


def tiles(history: History, evaluations: Sequence[Evaluation], epochs: Any) -> list[Tile]:
    """What matters most: the main metrics, how far the run is, its loss, and what an iteration takes.

    Args:
        history: The run's log.
        evaluations: The one to show first.
        epochs: How many epochs the recipe asks for.
    """
    shown = []
    for kind in evaluations[0].kinds if evaluations else ():
        metric = MAIN_METRICS[kind]
        epoch = evaluations[0].record.get("epoch")
        told = evaluations[0].name + (f", epoch {epoch}" if epoch else "")
        last = [f"last: {percent(other.numbers(kind).get(metric))}" for other in evaluations[1:] if kind in other.kinds]
        shown.append(
            Tile(f"{kind} {metric}", percent(evaluations[0].numbers(kind).get(metric)), "; ".join([told, *last]))
        )
    if not history.training:
        return shown
    last_record = history.training[-1]
    shown.append(
        Tile("epoch", f"{last_record.get('epoch', '?')} of {epochs}", f"{last_record['iteration']:,} iterations")
    )
    losses = [curve for curve in history.losses if curve.name == "loss"]
    if losses:
        values = losses[0].values
        shown.append(Tile("loss", f"{values[-1]:.4g}", f"{values[0]:.4g} at first"))
    step, wait = _median(history, "iteration_time"), _median(history, "data_time")
    if step is not None:
        waits = "" if wait is None else f"{wait:.3f} s of it waiting for data"
        memory = _most(history, "memory_mib")
        shown.append(
            Tile("seconds an iteration", f"{step:.3f}", waits + (f"; {memory:,.0f} MiB of memory" if memory else ""))
        )
    return shown


def metric_tables(evaluations: Sequence[Evaluation]) -> list[Table]:
    """A table for each kind: a row for each evaluation. Of recalls at many IoUs also one with a row for each IoU."""
    tables = []
    for kind in dict.fromkeys(kind for evaluation in evaluations for kind in evaluation.kinds):
        having = [evaluation for evaluation in evaluations if kind in evaluation.kinds]
        names = [name for name in having[0].numbers(kind) if "@" not in name]
        settings = having[0].settings.get(kind)
        title = ", ".join(filter(None, (TITLES[kind], settings, "in percent")))
        rows = [(each.name, each.told, [percent(each.numbers(kind).get(name)) for name in names]) for each in having]
        tables.append(Table(title, [HEADINGS.get(name, name) for name in names], rows))
        numbers = having[0].numbers(kind)
        if recall_name(PROPOSALS[0], float(IOUS[0])) in numbers:
            by_iou = [
                (f"IoU {iou:.2f}", "", [percent(numbers.get(recall_name(most, iou))) for most in PROPOSALS])
                for iou in IOUS.tolist()
            ]
            tables.append(Table(f"{TITLES[kind]} at each IoU, in percent", [f"R@{most}" for most in PROPOSALS], by_iou))
    return tables


def class_table(evaluation: Evaluation, index: CocoIndex | None) -> ClassTable | None:
    """The numbers of each class; None where the kinds have none.

    Args:
        evaluation: Whose.
        index: The validation set, for the number of objects of each class.
    """
    per_class = {
        kind: classes
        for kind in evaluation.kinds
        if isinstance(classes := evaluation.record[kind].get("per_class"), dict) and classes
    }
    if not per_class:
        return None
    columns = [(kind, name) for kind, classes in per_class.items() for name in next(iter(classes.values())) if classes]
    counts: dict[str, int] = {}
    if index is not None:
        totals = np.bincount(index.labels[~index.crowd], minlength=len(index.class_names))
        counts = dict(zip(index.class_names, totals.tolist(), strict=True))
    firsts = {kind: next(column for column in columns if column[0] == kind) for kind in per_class}
    rows = []
    for name in next(iter(per_class.values())):
        cells = []
        for column in columns:
            value = per_class[column[0]].get(name, {}).get(column[1])
            share = -1.0 if percent(value) == "–" else round(100 * value, 2)
            cells.append(Cell(percent(value), share, column == firsts[column[0]]))
        rows.append((name, counts.get(name), cells))
    groups = [(kind, sum(column[0] == kind for column in columns)) for kind in per_class]
    return ClassTable(
        ", ".join(filter(None, (evaluation.name, evaluation.told))), groups, [name for _, name in columns], rows
    )


def percent(value: Any) -> str:
    """A number from 0 to 1 in percent; a dash where there is nothing to count."""
    if not isinstance(value, int | float) or math.isnan(value) or value < 0:
        return "–"
    return f"{100 * value:.1f}"


def _median(history: History, key: str) -> float | None:
    values = _numbers(history, key)
    return float(np.median(values)) if values else None


def _most(history: History, key: str) -> float | None:
    return max(_numbers(history, key), default=None)


def _numbers(history: History, key: str) -> list[float]:
    values = [record.get(key) for record in history.training]
    return [float(value) for value in values if isinstance(value, int | float) and math.isfinite(value)]
