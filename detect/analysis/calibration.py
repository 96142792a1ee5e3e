"""Whether scores are probabilities: of the detections with a score of 0.8, 80% should be right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hotcoco import metrics
from numpy.typing import NDArray

from detect.analysis.matching import NOTHING, Matches

BINS = 10


@dataclass(frozen=True, eq=False)
class Calibration:
    """Scores against the share of right detections, in ten bins of equal width.

    Attributes:
        iou: The IoU from which on a detection is right.
        edges: (11,) bounds of the bins; a score on a bound belongs to the bin above, 1 to the last.
        counts: (10,) detections.
        confidence: (10,) their mean score; NaN where there are none.
        precision: (10,) the share of them that is right; NaN where there are none.
        expected_error: The mean difference of both, weighted by the counts (ECE); NaN without detections.
        largest_error: The largest difference of a bin (MCE); NaN without detections.
        expected_error_by_class: (C,) the ECE of each class; NaN where it has no detections.
    """

    iou: float
    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    confidence: NDArray[np.float64]
    precision: NDArray[np.float64]
    expected_error: float
    largest_error: float
    expected_error_by_class: NDArray[np.float64]


def calibrate(matches: Matches, iou: float) -> Calibration | None:
    """Compares scores and precision (detection ECE, Kueppers et al., arXiv 2004.13546, by confidence alone).

    Args:
        matches: Of detections and objects.
        iou: One of ``matches.ious``.

    Returns:
        The calibration; None where scores are no probabilities: below 0 or above 1.
    """
    place = matches.at(iou)
    counted = matches.counted[place]
    scores, labels = matches.scores[counted], matches.labels[counted]
    right = matches.found[place, counted] != NOTHING
    if len(scores) and (scores.min() < 0 or scores.max() > 1):
        return None
    bins = metrics.calibration_curve(scores, right, n_bins=BINS)
    counts = np.array([each["count"] for each in bins], np.int64)
    expected, largest = _errors(scores, right)
    return Calibration(
        iou,
        np.array([bins[0]["bin_lower"], *(each["bin_upper"] for each in bins)]),
        counts,
        np.where(counts > 0, [each["avg_confidence"] for each in bins], np.nan),
        np.where(counts > 0, [each["avg_accuracy"] for each in bins], np.nan),
        expected,
        largest,
        np.array([_errors(scores[own], right[own])[0] for own in _members(labels, len(matches.class_names))]),
    )


def _errors(scores: NDArray[np.float64], right: NDArray[np.bool_]) -> tuple[float, float]:
    if not len(scores):
        return np.nan, np.nan
    expected, largest = metrics.calibration_error(scores, right, n_bins=BINS)
    return float(expected), float(largest)


def _members(labels: NDArray[np.int64], count: int) -> list[NDArray[np.int64]]:
    """The places of each label."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.searchsorted(labels[order], np.arange(1, count)))
