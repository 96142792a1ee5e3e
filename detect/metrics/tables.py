"""Scores as tables for a terminal; values in percent, a dash where there is nothing to count."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from detect.metrics.recall import IOUS, PROPOSALS, recall_name
from detect.metrics.scores import Scores
from dpipe.cli_text import IN_TABLE, short

TITLES = {
    "bbox": "COCO bbox",
    "segm": "COCO segm",
    "proposal": "COCO proposals",
    "proposal_fast": "Recall of proposals",
    "voc": "Pascal VOC",
    "cityscapes": "Cityscapes",
}
HEADINGS = {
    "AP": "AP",
    "APs": "small",
    "APm": "medium",
    "APl": "large",
    "AR1": "AR@1",
    "AR10": "AR@10",
    "AR100": "AR@100",
    "AR300": "AR@300",
    "AR1000": "AR@1000",
    "ARs": "AR small",
    "ARm": "AR medium",
    "ARl": "AR large",
}
ROW = 6
"""Numbers in a row of a table."""
MOST_COLUMNS = 8
"""Numbers of a class in a row of a table, beside its name on a terminal of 80 columns."""


def score_table(scores: Scores) -> Table:
    """The numbers of an evaluation."""
    title = f"{TITLES[scores.kind]}, {scores.settings}, in percent"
    if scores.kind == "proposal_fast":
        return _recall_table(title, scores)
    table = Table(title=title, title_justify="left")
    names = list(scores.metrics)
    for name in names[:ROW]:
        table.add_column(HEADINGS.get(name, name), justify="right")
    for begin in range(0, len(names), ROW):
        row = names[begin : begin + ROW]
        if begin:
            table.add_section()
            table.add_row(*(HEADINGS.get(name, name) for name in row), style="bold")
        table.add_row(*(_percent(scores.metrics[name]) for name in row))
    return table


def class_tables(all_scores: Sequence[Scores]) -> list[Table]:
    """The numbers of each class: a row for each class, columns for each kind, as many tables as the kinds need."""
    groups: list[list[Scores]] = []
    columns = MOST_COLUMNS
    for scores in all_scores:
        if not scores.per_class:
            continue
        count = len(next(iter(scores.per_class.values())))
        if columns + count > MOST_COLUMNS:
            groups.append([])
            columns = 0
        groups[-1].append(scores)
        columns += count
    return [_class_table(group) for group in groups]


def _class_table(group: Sequence[Scores]) -> Table:
    table = Table(title="Classes, in percent", title_justify="left", padding=(0, 1, 0, 0))
    table.add_column("class", overflow="fold")
    for scores in group:
        for name in next(iter(scores.per_class.values())):
            table.add_column(f"{scores.kind}\n{name}", justify="right", no_wrap=True)
    for class_name in group[0].per_class:
        numbers = [value for scores in group for value in scores.per_class[class_name].values()]
        table.add_row(Text(short(class_name, IN_TABLE)), *map(_percent, numbers))
    return table


def _recall_table(title: str, scores: Scores) -> Table:
    """A column for each number of proposals, a row for each IoU."""
    table = Table(title=title, title_justify="left")
    table.add_column("IoU", justify="right")
    for most in PROPOSALS:
        table.add_column(f"R@{most}", justify="right")
    for iou in IOUS.tolist():
        table.add_row(f"{iou:.2f}", *(_percent(scores.metrics[recall_name(most, iou)]) for most in PROPOSALS))
    table.add_section()
    table.add_row("mean", *(_percent(scores.metrics[f"AR{most}"]) for most in PROPOSALS))
    return table


def _percent(value: float) -> str:
    return "-" if math.isnan(value) or value < 0 else f"{100 * value:.1f}"
