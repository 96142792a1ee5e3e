"""Plots of precision, confusions and calibration."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from detect.analysis.analyzing import Analysis
from dpipe.cli_text import short
from dpipe.looking.plot_style import BARS, MARKS, new_figure, show_names

MOST_CURVES = 10
"""Classes whose curves are drawn: those with the most objects."""
MOST_CLASSES = 100
"""Classes that the confusion matrix has room for; of more, those with the most objects."""
WITH_NUMBERS = 25
"""Rows up to which a confusion matrix has room for numbers."""


def curves_by_iou(analysis: Analysis) -> Figure:
    """The mean of the classes' curves at each IoU."""
    figure, axes = _precision_recall(f"{analysis.kind}: mean over classes, AP {_percent(analysis.ap)}")
    means = analysis.curves.mean()
    for place, (iou, curve) in enumerate(zip(analysis.curves.ious.tolist(), means, strict=True)):
        color = colormaps["viridis"](0.95 * place / max(len(means) - 1, 1))
        axes.plot(analysis.curves.recalls, curve, color=color, label=f"{iou:.2f}: {_percent(curve.mean())}")
    axes.legend(title="IoU: AP", loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8)
    return figure


def curves_by_class(analysis: Analysis) -> Figure:
    """The curves of the classes with the most objects."""
    figure, axes = _precision_recall(f"{analysis.kind} at IoU {analysis.iou:g}: the classes with the most objects")
    at = analysis.matches.at(analysis.iou)
    for place, label in enumerate(_frequent(analysis, MOST_CURVES).tolist()):
        told = analysis.classes[label]
        # A label that begins with an underscore would be left out of the legend.
        name = f"{_percent(told.ap_at_iou)} {short(told.name, 24)}"
        color = colormaps["tab10"](place % 10)
        axes.plot(analysis.curves.recalls, analysis.curves.precisions[at, :, label], color=color, label=name)
    if axes.get_lines():
        axes.legend(title="AP, class", loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8)
    show_names(axes)
    return figure


def confusion_matrix(analysis: Analysis) -> Figure:
    """The shares of each class's objects by what was predicted."""
    confusion = analysis.confusion
    names, counts = [each.name for each in analysis.classes], confusion.counts
    left_out = len(names) - MOST_CLASSES
    if left_out > 0:
        shown = np.sort(_frequent(analysis, MOST_CLASSES, with_objects=False))
        counts = _summed_up(counts, shown)
        names = [*(names[label] for label in shown.tolist()), f"{left_out} other classes"]
    rows = [*map(short, names), "background"]
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(5 + 0.14 * len(rows), 18) if len(rows) > WITH_NUMBERS else 4.5 + 0.4 * len(rows)
    figure = new_figure(side + 0.8, side)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 100))  # small shares are what one looks for
    figure.colorbar(image, ax=axes, label="% of the row", shrink=0.7)
    size = 8 if len(rows) <= WITH_NUMBERS else 6
    axes.set_xticks(range(len(rows)), rows, rotation=90, fontsize=size)
    axes.set_yticks(range(len(rows)), rows, fontsize=size)
    show_names(axes)
    if len(rows) <= WITH_NUMBERS:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                color = "white" if shares[row, column] > 35 else "black"
                text = f"{shares[row, column]:.0f}%\n{count:,}"
                axes.text(column, row, text, ha="center", va="center", fontsize=7, color=color)
    else:  # lines guide the eye to the names
        axes.set_xticks(np.arange(len(rows) + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="#e8e8e8", linewidth=0.4)
        axes.tick_params(which="minor", length=0)
    axes.set_xlabel("predicted class (background: not found)")
    axes.set_ylabel("class of the object (background: there is none)")
    axes.set_title(f"{analysis.kind} at IoU {confusion.iou:g}, detections of scores from {confusion.score:g}")
    return figure


def reliability(analysis: Analysis) -> Figure:
    """Scores against the share of right detections."""
    figure = new_figure(6.5, 6.5)
    upper, lower = figure.subplots(2, 1, height_ratios=[3, 1], sharex=True)
    calibration = analysis.calibration
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
    upper.set_xlim(0, 1)
    upper.set_ylim(0, 1)
    upper.plot([0, 1], [0, 1], color="gray", linestyle=":", label="calibrated")
    if calibration is None:
        upper.set_title("no calibration: scores are no probabilities from 0 to 1")
    else:
        middles = (calibration.edges[1:] + calibration.edges[:-1]) / 2
        widths = np.diff(calibration.edges)
        some = calibration.counts > 0
        upper.bar(middles[some], calibration.precision[some], widths[some], color=BARS, edgecolor="white")
        upper.plot(
            calibration.confidence[some],
            calibration.precision[some],
            color=MARKS,
            marker="o",
            label="of each bin, at its mean score",
        )
        lower.bar(middles[some], calibration.counts[some], widths[some], color=BARS, edgecolor="white")
        lower.set_yscale("symlog", linthresh=1)
        lower.set_ylim(bottom=0)
        upper.set_title(
            f"{analysis.kind} at IoU {calibration.iou:g}: expected calibration error "
            f"{_percent(calibration.expected_error)}%, largest {_percent(calibration.largest_error)}%"
        )
    upper.legend(loc="upper left", fontsize=8)
    upper.set_ylabel("share of right detections")
    lower.set_ylabel("detections (log)")
    lower.set_xlabel("score")
    return figure


def _precision_recall(title: str) -> tuple[Figure, Axes]:
    figure = new_figure(8.0, 5.5)
    axes = figure.add_subplot()
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.01)
    axes.set_xlabel("recall")
    axes.set_ylabel("precision")
    axes.set_title(title)
    axes.grid(color="#e8e8e8")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _frequent(analysis: Analysis, most: int, with_objects: bool = True) -> NDArray[np.int64]:
    """Labels of the classes with the most objects, the most frequent first."""
    objects = np.array([each.objects for each in analysis.classes], np.int64)
    order = np.argsort(-objects, kind="stable")[:most]
    return order[objects[order] > 0] if with_objects else order


def _summed_up(counts: NDArray[np.int64], shown: NDArray[np.int64]) -> NDArray[np.int64]:
    """A matrix of some classes, all others together, and the background."""
    others = len(shown)
    group = np.full(len(counts), others)
    group[shown] = np.arange(others)
    group[-1] = others + 1
    summed = np.zeros((others + 2, others + 2), np.int64)
    np.add.at(summed, (group[:, None], group[None]), counts)
    return summed


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.1f}"
