"""Plots of what costs average precision, and of what another result changes."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from detect.analysis.analyzing import Analysis
from detect.analysis.comparing import Comparison
from detect.analysis.errors import ERROR_KINDS, SIZES
from dpipe.cli_text import short
from dpipe.looking.plot_style import BARS, MARKS, new_figure, show_names

COLORS = ("#d55e00", "#0072b2", "#cc79a7", "#e69f00", "#7f7f7f", "#009e73")
"""Of the kinds of errors, in their order."""
MOST_CLASSES = 60
"""Classes that a plot has room for: those that cost most, or differ most."""


def costs(analysis: Analysis) -> Figure:
    """The cost of each kind of error, over all classes."""
    errors = analysis.errors
    names = [*ERROR_KINDS, "all false positives", "all false negatives"]
    values = [*(errors.cost[kind] for kind in ERROR_KINDS), errors.false_positives, errors.false_negatives]
    counts = [*(errors.counts[kind] for kind in ERROR_KINDS), None, None]
    figure = new_figure(8.0, 3.8)
    axes = figure.add_subplot()
    places = [*range(6), 6.5, 7.5]
    axes.barh(places, 100 * np.nan_to_num(values), color=[*COLORS, "#bbbbbb", "#bbbbbb"])
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    for place, value, count in zip(places, values, counts, strict=True):
        text = ("-" if np.isnan(value) else f"{100 * value:.1f}") + ("" if count is None else f"  ({count:,} errors)")
        axes.annotate(
            text, (100 * np.nan_to_num(value), place), (3, 0), textcoords="offset points", va="center", fontsize=8
        )
    axes.margins(x=0.2)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"AP at IoU {errors.iou:g} that mending them would win, in percent")
    ap = "-" if np.isnan(errors.ap) else f"{100 * errors.ap:.1f}"
    axes.set_title(f"What costs AP ({analysis.kind}, AP at IoU {errors.iou:g} is {ap})")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def costs_by_class(analysis: Analysis) -> Figure:
    """The cost of each kind of error for each class.

    A class that has no AP and that no kind costs anything by itself comes first: all of them together cost it.
    """
    table = np.nan_to_num(analysis.errors.cost_by_class)
    total = table.sum(axis=1)
    lost = np.array([told.objects > 0 and told.ap_at_iou == 0 for told in analysis.classes]) & (total == 0)
    total[lost] = np.inf
    order = np.argsort(-total, kind="stable")
    order = order[total[order] > 0]
    title = f"What costs the classes' AP at IoU {analysis.errors.iou:g}"
    left_out = len(order) - MOST_CLASSES
    if left_out > 0:
        title += f"\n{left_out:,} classes that lose less left out"
    order = order[:MOST_CLASSES]
    names = [
        short(analysis.classes[label].name) + (" (AP 0, none alone)" if lost[label] else "") for label in order.tolist()
    ]
    return _side_by_side(table[order], names, title)


def costs_by_size(analysis: Analysis) -> Figure:
    """The cost of the errors that concern small, medium and large objects."""
    errors = analysis.errors
    names = [f"{size} ({count:,} objects)" for size, count in zip(SIZES, errors.objects_by_size.tolist(), strict=True)]
    title = f"What costs AP at IoU {errors.iou:g}, by the size of the object"
    return _side_by_side(np.nan_to_num(errors.cost_by_size), names, title)


def differences(comparison: Comparison) -> Figure:
    """The differences of the classes' AP, with their intervals."""
    known = [each for each in comparison.classes if not np.isnan(each.difference)]
    known.sort(key=lambda each: -abs(each.difference))
    left_out = len(known) - MOST_CLASSES
    known = sorted(known[:MOST_CLASSES], key=lambda each: -each.difference)
    rows = [*comparison.overall, *known]
    places = [*range(len(comparison.overall)), *(len(comparison.overall) + 0.5 + at for at in range(len(known)))]
    figure = new_figure(8.0, max(3.0, 1.4 + 0.2 * len(rows)))
    axes = figure.add_subplot()
    axes.axvline(0, color="gray", linewidth=0.8)
    for place, row in zip(places, rows, strict=True):
        color = (BARS if row.difference > 0 else MARKS) if row.is_clear else "#999999"
        axes.plot([100 * row.low, 100 * row.high], [place, place], color=color, linewidth=1.5)
        filled = "white" if np.isnan(row.low) else color
        axes.plot([100 * row.difference], [place], color=color, marker="o", markersize=4, markerfacecolor=filled)
    axes.set_yticks(places, [short(row.name) for row in rows], fontsize=8)
    show_names(axes)
    axes.set_ylim(max(places) + 0.7, -0.7)
    axes.grid(axis="x", color="#e8e8e8")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(
        "second - first, in percent\n lines: 95% intervals, gray with zero in them; hollow: too few images for one"
    )
    title = f"Differences of AP ({comparison.first.kind}), overall and by class"
    axes.set_title(title + (f"\n{left_out:,} classes that differ less left out" if left_out > 0 else ""))
    return figure


def _side_by_side(table: NDArray[np.float64], names: list[str], title: str) -> Figure:
    """A panel for each kind of error, a row for each name.

    The costs of the kinds do not add up, so that stacked bars would mislead.
    """
    figure = new_figure(11.0, max(2.6, 1.5 + 0.19 * len(names)))
    panels = figure.subplots(1, len(ERROR_KINDS), sharex=True, sharey=True)
    for panel, kind, color, column in zip(panels, ERROR_KINDS, COLORS, table.T, strict=True):
        panel.barh(range(len(names)), 100 * column, color=color)
        panel.set_title(kind, fontsize=9)
        panel.tick_params(axis="x", labelsize=8)
        panel.grid(axis="x", color="#e8e8e8")
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(names)), names, fontsize=8)
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    panels[0].set_xlim(0, max(1.0, 105 * float(table.max(initial=0))))
    show_names(panels[0])
    figure.supxlabel("AP that mending them would win, in percent", fontsize=9)
    figure.suptitle(title, fontsize=11)
    return figure
