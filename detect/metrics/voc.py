"""Pascal VOC's mean average precision (VOC devkit, ``VOCevaldet.m``; the numbers of mmdetection's ``eval_map``).

VOC counts pixels from 1 and a box's last pixel as part of it, so its widths are x2 - x1 + 1. Here boxes are edges in
continuous coordinates (``dpipe convert voc`` writes xmin - 1 and xmax), and the same width is x2 - x1: IoUs are VOC's.

Names: C classes, N images, G objects, D detections.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from detect.metrics.overlaps import Floats, corners, pairwise_iou
from detect.metrics.scores import Scores, VocMode

if TYPE_CHECKING:
    from detect.metrics.results import Results
    from dpipe.coco import CocoIndex

Bools = NDArray[np.bool_]
ELEVEN_RECALLS = np.arange(0, 1.05, 0.1)
"""Their rounding (0.30000000000000004) is that of other programs: a recall of exactly 3/10 is below."""


def evaluate_voc(
    results: Results,
    index: CocoIndex,
    *,
    mode: VocMode = "area",
    ious: Sequence[float] = (0.5,),
    inclusive: bool = False,
    image_ids: Sequence[int] | None = None,
) -> Scores:
    """Computes VOC's mean average precision.

    Each detection, best score first, belongs to the object of its class that it overlaps most. If it overlaps it
    enough, it finds the object, or is false where a better one has; one that belongs to a difficult object does not
    count, whether others do or not. Difficult objects are those that the JSON marks ``difficult``, ``ignore`` or
    ``iscrowd``.

    Args:
        results: The detections.
        index: The data set.
        mode: ``11points`` averages the highest precision at recalls of 0, 0.1 ... 1 or more (VOC 2007 to 2009);
            ``area`` is the area under the precision made monotonic (from VOC 2010 on).
        ious: Lowest IoUs, each in (0, 1], from which on a box counts as found.
        inclusive: Whether detections end with their last pixel, as mmdetection's models on VOC predict them.
        image_ids: Ids of the images that count; all where not given.

    Returns:
        ``AP50`` and so on, the mean over the classes that have objects at each IoU in percent, and ``mAP``, their mean;
        AP of each class at each IoU, and the share of its objects that are found at the first.
    """
    wanted = np.ones(len(index), np.bool_) if image_ids is None else np.isin(index.image_ids, image_ids)
    image_of = np.repeat(np.arange(len(index)), np.diff(index.offsets))
    counts = wanted[image_of]
    order = np.argsort(index.image_ids)
    found_in = order[np.searchsorted(index.image_ids, results.image_ids, sorter=order)]
    boxes = corners(results.boxes)
    boxes[:, 2:] += inclusive
    per_class: dict[str, dict[str, float]] = {}
    for label, (name, category_id) in enumerate(zip(index.class_names, index.category_ids.tolist(), strict=True)):
        truth = np.flatnonzero(counts & (index.labels == label))
        truth = truth[np.argsort(index.crowd[truth], kind="stable")]  # of equal overlaps, one that counts
        found = np.flatnonzero((results.category_ids == category_id) & wanted[found_in])
        found = found[np.argsort(-results.scores[found], kind="stable")]
        overlaps, matches = _best_matches(
            boxes[found], found_in[found], index.boxes[truth].astype(np.float64), image_of[truth]
        )
        number = int((~index.crowd[truth]).sum())
        per_class[name] = {}
        for iou in ious:
            true, false = _verdicts(overlaps >= iou, matches, index.crowd[truth])
            ap, recall = average_precision(true, false, number, mode)
            per_class[name][ap_name(iou)] = ap
            if iou == ious[0]:
                per_class[name][f"recall{100 * iou:g}"] = recall
    metrics = {}
    for iou in ious:
        known = [numbers[ap_name(iou)] for numbers in per_class.values() if not math.isnan(numbers[ap_name(iou)])]
        metrics[ap_name(iou)] = float(np.mean(known)) if known else -1.0
    told = "11 points" if mode == "11points" else "area"
    edges = ", boxes end with their last pixel" if inclusive else ""
    return Scores(
        "voc",
        {"mAP": float(np.mean(list(metrics.values()))), **metrics},
        per_class,
        f"{told}, IoU {', '.join(f'{iou:g}' for iou in ious)}{edges}",
    )


def ap_name(iou: float) -> str:
    """The name of the AP at an IoU, such as ``AP50``, or ``AP62.5``."""
    return f"AP{100 * iou:g}"


def average_precision(true: Bools, false: Bools, objects: int, mode: VocMode) -> tuple[float, float]:
    """Average precision of one class.

    Args:
        true: (D,) which detections find an object, best score first.
        false: (D,) which do not; those that are neither do not count.
        objects: How many there are to find.
        mode: See :func:`evaluate_voc`.

    Returns:
        AP, and the highest recall; NaN where there is no object.
    """
    if not objects:
        return math.nan, math.nan
    hits = np.cumsum(true)
    recall = hits / objects
    precision = hits / np.maximum(hits + np.cumsum(false), 1)
    # From each recall on, the highest precision there still is.
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    last = float(recall[-1]) if len(recall) else 0.0
    if mode == "11points":
        places = np.searchsorted(recall, ELEVEN_RECALLS)
        return float(np.append(envelope, 0.0)[places].mean()), last
    return float((np.diff(recall, prepend=0.0) * envelope).sum()), last


def _best_matches(
    boxes: Floats, images: NDArray[np.int64], truth: Floats, truth_images: NDArray[np.int64]
) -> tuple[Floats, NDArray[np.int64]]:
    """The object of its image that each detection overlaps most, the first of equals.

    Returns:
        (D,) IoUs, 0 where the image has no object; (D,) numbers of the objects.
    """
    overlaps, matches = np.zeros(len(boxes)), np.zeros(len(boxes), np.int64)
    by_image, truth_by_image = np.argsort(images, kind="stable"), np.argsort(truth_images, kind="stable")
    names = np.unique(images)
    bounds = zip(
        names,
        np.searchsorted(images[by_image], names),
        np.searchsorted(images[by_image], names, side="right"),
        np.searchsorted(truth_images[truth_by_image], names),
        np.searchsorted(truth_images[truth_by_image], names, side="right"),
        strict=True,
    )
    for _, first, end, first_truth, end_truth in bounds:
        if first_truth == end_truth:
            continue
        here, objects = by_image[first:end], truth_by_image[first_truth:end_truth]
        ious = pairwise_iou(boxes[here], truth[objects])
        best = ious.argmax(axis=1)
        overlaps[here] = ious[np.arange(len(here)), best]
        matches[here] = objects[best]
    return overlaps, matches


def _verdicts(enough: Bools, matches: NDArray[np.int64], difficult: Bools) -> tuple[Bools, Bools]:
    """Which detections are true and which are false; those that match a difficult object are neither.

    Args:
        enough: (D,) whether a detection overlaps its object enough; best score first.
        matches: (D,) numbers of the objects.
        difficult: (G,)
    """
    counting = enough.copy()
    counting[enough] = ~difficult[matches[enough]]
    true = np.zeros_like(enough)
    candidates = np.flatnonzero(counting)
    true[candidates[np.unique(matches[candidates], return_index=True)[1]]] = True
    return true, ~enough | (counting & ~true)
