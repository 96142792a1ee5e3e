"""An analysis as short tables for a terminal; values in percent."""

from __future__ import annotations

import math

from rich.table import Table
from rich.text import Text

from detect.analysis.analyzing import Analysis
from detect.analysis.comparing import Comparison, Difference
from detect.analysis.errors import ERROR_KINDS, SIZES
from dpipe.cli_text import IN_TABLE, short

MOST_ROWS = 10


def summary_tables(analysis: Analysis) -> list[Table]:
    """What costs AP, the classes that lose most, and the pairs that are confused most."""
    return [_errors(analysis), _classes(analysis), _pairs(analysis)]


def calibration_line(analysis: Analysis) -> str:
    """What is to be said of the scores."""
    calibration = analysis.calibration
    if calibration is None:
        return "calibration: none, as scores are no probabilities from 0 to 1"
    if math.isnan(calibration.expected_error):
        return "calibration: none, as there are no detections"
    return (
        f"calibration: expected error {_percent(calibration.expected_error)}%, "
        f"largest of ten bins {_percent(calibration.largest_error)}%"
    )


def comparison_tables(comparison: Comparison) -> list[Table]:
    """Overall numbers of two results, what costs both, and the classes that surely differ."""
    overall = _difference_table(f"First and second, in percent, {comparison.resamples} resamples", "")
    for row in comparison.overall:
        overall.add_row(*_difference_row(row))
    costs = Table(title="What costs AP, in percent", title_justify="left")
    for heading in ("", "first", "second", "difference"):
        costs.add_column(heading, justify="right" if heading else "left")
    for kind in ERROR_KINDS:
        first, second = (each.errors.cost[kind] for each in (comparison.first, comparison.second))
        costs.add_row(kind, _percent(first), _percent(second), _signed(second - first))
    clear = sorted((row for row in comparison.classes if row.is_clear), key=lambda row: -abs(row.difference))
    able = sum(not math.isnan(row.low) for row in comparison.classes)
    title = f"Classes whose AP surely differs: {len(clear)} of {able} with an interval"
    classes = _difference_table(title, "class")
    for row in clear[:MOST_ROWS]:
        classes.add_row(*_difference_row(row))
    return [overall, costs, classes] if clear else [overall, costs]


def _errors(analysis: Analysis) -> Table:
    errors = analysis.errors
    title = (
        f"{analysis.kind}: AP {_percent(analysis.ap)}, at IoU {analysis.iou:g} {_percent(analysis.ap_at_iou)}; "
        "what costs the latter"
    )
    table = Table(title=title, title_justify="left")
    for heading in ("error", "number", "AP lost", *SIZES):
        table.add_column(heading, justify="left" if heading == "error" else "right")
    for place, kind in enumerate(ERROR_KINDS):
        by_size = errors.cost_by_size[:, place].tolist()
        table.add_row(kind, f"{errors.counts[kind]:,}", _percent(errors.cost[kind]), *map(_percent, by_size))
    table.add_section()
    table.add_row("all false positives", "", _percent(errors.false_positives))
    table.add_row("all false negatives", "", _percent(errors.false_negatives))
    table.add_row("objects", f"{analysis.objects:,}", "", *(f"{count:,}" for count in errors.objects_by_size.tolist()))
    return table


def _classes(analysis: Analysis) -> Table:
    """The classes of the lowest AP."""
    known = [label for label, told in enumerate(analysis.classes) if told.objects]
    known.sort(key=lambda label: analysis.classes[label].ap_at_iou)
    title = f"Classes of the lowest AP at IoU {analysis.iou:g}"
    table = Table(title=title, title_justify="left")
    table.add_column("class", overflow="fold")
    table.add_column("objects", justify="right")
    table.add_column("AP", justify="right")
    table.add_column(f"at {analysis.iou:g}", justify="right")
    table.add_column("costs most", no_wrap=True)
    for label in known[:MOST_ROWS]:
        told = analysis.classes[label]
        numbers = f"{told.objects:,}", _percent(told.ap), _percent(told.ap_at_iou)
        table.add_row(Text(short(told.name, IN_TABLE)), *numbers, _worst(analysis, label))
    return table


def _worst(analysis: Analysis, label: int) -> str:
    """The kind of error that costs a class most; where none costs anything by itself, the most frequent one."""
    cost, counts = analysis.errors.cost_by_class[label], analysis.errors.counts_by_class[label]
    worst, often = int(cost.argmax()), int(counts.argmax())
    if cost[worst] > 0:
        return f"{ERROR_KINDS[worst]} {_percent(cost[worst])}"
    return f"none alone; {counts[often]:,} {ERROR_KINDS[often]}" if counts[often] else ""


def _pairs(analysis: Analysis) -> Table:
    confusion = analysis.confusion
    title = f"Classes taken for others, scores from {confusion.score:g}"
    table = Table(title=title, title_justify="left")
    table.add_column("object", overflow="fold")
    table.add_column("predicted", overflow="fold")
    table.add_column("number", justify="right")
    table.add_column("% of objects", justify="right")
    shares = confusion.shares()
    for row, column, count in confusion.pairs()[:MOST_ROWS]:
        names = (Text(short(analysis.classes[label].name, IN_TABLE)) for label in (row, column))
        table.add_row(*names, f"{count:,}", _percent(shares[row, column]))
    if not table.rows:
        table.add_row("none", "", "", "")
    return table


def _difference_table(title: str, first: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first, overflow="fold")
    for heading in ("first", "second", "difference", "95% interval"):
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _difference_row(row: Difference) -> tuple[str | Text, ...]:
    interval = "-" if math.isnan(row.low) else f"{_signed(row.low)} to {_signed(row.high)}"
    return Text(short(row.name, IN_TABLE)), _percent(row.first), _percent(row.second), _signed(row.difference), interval


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def _signed(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:+.1f}"
