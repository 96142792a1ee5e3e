"""Recall of proposals, straight from arrays: ``proposal_fast``.

Names: N images, G objects, P pairs of an object and a proposal that overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from detect.metrics.overlaps import corners, pairwise_iou
from detect.metrics.scores import Scores

if TYPE_CHECKING:
    from detect.metrics.results import Results
    from dpipe.coco import CocoIndex

PROPOSALS = (100, 300, 1000)
IOUS = np.linspace(0.5, 0.95, 10)


def evaluate_recall(results: Results, index: CocoIndex, image_ids: Sequence[int] | None = None) -> Scores:
    """Computes the recall of boxes over IoUs and numbers of proposals (mmdetection's ``eval_recalls``).

    In each image the pair of an object and a proposal with the highest IoU is matched first, then that of those left
    over, and so on. Crowd regions, and objects to ignore, are left out altogether.

    Args:
        results: The proposals of each image, of any class.
        index: The data set.
        image_ids: Ids of the images that count; all where not given.

    Returns:
        AR100, AR300, AR1000, the means over the IoUs 0.5, 0.55 ... 0.95; then ``R100@50`` and so on, the recall of each
        number of proposals at each IoU in percent.
    """
    recalls = np.full((len(PROPOSALS), len(IOUS)), -1.0)
    overlaps, objects, ranks, proposals, total = _pairs(results, index, image_ids)
    for number, most in enumerate(PROPOSALS if total else ()):
        within = ranks < most
        best = _greedy(overlaps[within], objects[within], proposals[within])
        recalls[number] = (best >= IOUS[:, None]).sum(axis=1) / total
    metrics = {f"AR{most}": float(row.mean()) for most, row in zip(PROPOSALS, recalls, strict=True)}
    for most, row in zip(PROPOSALS, recalls, strict=True):
        metrics |= {recall_name(most, iou): value for iou, value in zip(IOUS.tolist(), row.tolist(), strict=True)}
    return Scores("proposal_fast", metrics, settings="IoU 0.50:0.95")


def recall_name(most: int, iou: float) -> str:
    """The name of the recall of ``most`` proposals at an IoU."""
    return f"R{most}@{round(100 * iou)}"


def _pairs(
    results: Results, index: CocoIndex, image_ids: Sequence[int] | None
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], int]:
    """Pairs that overlap enough to count at any IoU, best first, and among equals in the order of objects and ranks.

    Returns:
        IoUs (P,), numbers of the objects (P,), ranks of the proposals in their images (P,), numbers of the proposals
        (P,); and how many objects there are.
    """
    order = np.lexsort((-results.scores, results.image_ids))
    sorted_ids = results.image_ids[order]
    wanted = None if image_ids is None else set(image_ids)
    found: list[NDArray[np.float64]] = [np.zeros((4, 0))]
    total = 0
    for number, image_id in enumerate(index.image_ids.tolist()):
        if wanted is not None and image_id not in wanted:
            continue
        rows = slice(index.offsets[number], index.offsets[number + 1])
        truth = index.boxes[rows][~index.crowd[rows]].astype(np.float64)
        first, end = np.searchsorted(sorted_ids, [image_id, image_id + 1])
        boxes = results.boxes[order[first : min(end, first + PROPOSALS[-1])]]
        ious = pairwise_iou(truth, corners(boxes))
        chosen = np.nonzero(ious >= IOUS[0])
        found.append(np.stack([ious[chosen], chosen[0] + total, chosen[1], chosen[1] + first]))
        total += len(truth)
    overlaps, objects, ranks, proposals = np.concatenate(found, axis=1)
    best_first = np.lexsort((ranks, objects, -overlaps))
    numbers = [array[best_first].astype(np.int64) for array in (objects, ranks, proposals)]
    return overlaps[best_first], numbers[0], numbers[1], numbers[2], total


def _greedy(
    overlaps: NDArray[np.float64], objects: NDArray[np.int64], proposals: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Matches pairs, given best first, and returns the IoUs of those that are matched.

    A pair that comes first both for its object and for its proposal is one that going through them one by one would
    match; all such pairs are taken at once, until none is left.
    """
    matched = []
    while len(overlaps):
        places = np.arange(len(overlaps))
        first = np.ones(len(overlaps), np.bool_)
        for sides in (objects, proposals):
            first &= places == np.unique(sides, return_index=True)[1][np.unique(sides, return_inverse=True)[1]]
        matched.append(overlaps[first])
        left = ~(np.isin(objects, objects[first]) | np.isin(proposals, proposals[first]))
        overlaps, objects, proposals = overlaps[left], objects[left], proposals[left]
    return np.concatenate([np.zeros(0), *matched])
