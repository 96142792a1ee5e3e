"""Scores as tables for a terminal; values in percent, a dash where there is nothing to count."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.table import Table

from detect.metrics.recall import IOUS, PROPOSALS, recall_name
from detect.metrics.scores import Scores

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


def score_table(scores: Scores) -> Table:
    """The numbers of an evaluation."""
    table = Table(title=f"{TITLES[scores.kind]}, {scores.settings}, in percent", title_justify="left")
    if scores.kind == "proposal_fast":
        return _recall_table(table, scores)
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


def class_table(all_scores: Sequence[Scores]) -> Table | None:
    """The numbers of each class, columns for each kind; None where no kind has any."""
    all_scores = [scores for scores in all_scores if scores.per_class]
    if not all_scores:
        return None
    table = Table(title="Classes, in percent", title_justify="left")
    table.add_column("class")
    for scores in all_scores:
        for name in next(iter(scores.per_class.values())):
            table.add_column(f"{scores.kind}\n{name}", justify="right")
    for class_name in all_scores[0].per_class:
        numbers = [value for scores in all_scores for value in scores.per_class[class_name].values()]
        table.add_row(class_name, *map(_percent, numbers))
    return table


def _recall_table(table: Table, scores: Scores) -> Table:
    """A row for each number of proposals, a column for each IoU."""
    table.add_column("proposals", justify="right")
    table.add_column("AR", justify="right")
    for iou in IOUS.tolist():
        table.add_column(f"@{iou:.2f}", justify="right")
    for most in PROPOSALS:
        names = [f"AR{most}", *(recall_name(most, iou) for iou in IOUS.tolist())]
        table.add_row(str(most), *(_percent(scores.metrics[name]) for name in names))
    return table


def _percent(value: float) -> str:
    return "-" if math.isnan(value) or value < 0 else f"{100 * value:.1f}"
