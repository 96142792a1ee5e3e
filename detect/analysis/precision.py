"""Average precision of detections whose matches are known."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RECALLS = np.linspace(0, 1, 101)
"""Where COCO reads the precision off."""


def average_precisions(
    labels: NDArray[np.int64], correct: NDArray[np.bool_], totals: NDArray[np.int64]
) -> NDArray[np.float64]:
    """COCO's average precision of each class at one IoU.

    Args:
        labels: (D,) classes of the detections that count, by falling score.
        correct: (D,) whether each finds an object.
        totals: (C,) objects of each class.

    Returns:
        (C,) values from 0 to 1; NaN for a class without objects.
    """
    order = np.argsort(labels.astype(np.uint32), kind="stable")
    bounds = np.searchsorted(labels[order], np.arange(len(totals) + 1))
    correct = correct[order]
    values = np.full(len(totals), np.nan)
    for label in np.flatnonzero(totals).tolist():
        hits = np.flatnonzero(correct[bounds[label] : bounds[label + 1]])
        values[label] = _area(
            np.arange(1.0, len(hits) + 1), hits.astype(np.float64) + 1, totals[label].astype(np.float64)
        )
    return values


def weighted_average_precisions(
    correct: list[NDArray[np.int64]],
    images: NDArray[np.int64],
    left_out: list[NDArray[np.int64]],
    object_images: NDArray[np.int64],
    weights: NDArray[np.float64],
) -> NDArray[np.float64]:
    """A class's average precision in data sets that have each image of the original so and so many times.

    Args:
        correct: For each of T IoUs, places of the detections that find an object.
        images: (D,) images of the class's detections, by falling score.
        left_out: For each of the IoUs, places of the detections that do not count.
        object_images: (M,) images of the class's objects.
        weights: (B, N) how often each of B data sets has each image.

    Returns:
        (B, T) values from 0 to 1; NaN where the data set has no object of the class.
    """
    totals = weights[:, object_images].sum(axis=1, keepdims=True)
    of_detections = weights[:, images]
    so_far = of_detections.cumsum(axis=1)
    values = np.full((len(weights), len(correct)), np.nan)
    for place, (hits, uncounted) in enumerate(zip(correct, left_out, strict=True)):
        counted = so_far
        if len(uncounted):
            skipped = np.zeros_like(of_detections)
            skipped[:, uncounted] = of_detections[:, uncounted]
            counted = so_far - skipped.cumsum(axis=1)
        found = of_detections[:, hits].cumsum(axis=1)
        values[:, place] = _area(found, counted[:, hits], totals)
    return np.where(totals > 0, values, np.nan)


def _area(
    found: NDArray[np.float64], seen: NDArray[np.float64], totals: NDArray[np.float64] | np.float64
) -> NDArray[np.float64]:
    """The mean over ``RECALLS`` of the best precision at that recall or a higher one.

    Args:
        found: (..., H) objects found up to each detection that finds one.
        seen: (..., H) detections up to there.
        totals: Objects, in a shape that divides ``found``.
    """
    precision = np.divide(found, seen, out=np.zeros_like(found), where=seen > 0)
    best = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
    recall = np.divide(found, totals, out=np.zeros_like(found), where=found > 0)
    # How many of the recalls each of these detections is the first to reach.
    reached = np.diff(np.searchsorted(RECALLS, recall, side="right"), axis=-1, prepend=0)
    return np.asarray((best * reached).sum(axis=-1) / len(RECALLS))
