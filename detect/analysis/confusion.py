"""Which classes are taken for which."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from detect.analysis.matching import MaskOrBox, Matches
from detect.metrics.coco import coco_evaluation

if TYPE_CHECKING:
    from detect.metrics.results import Results
    from dpipe.coco import CocoIndex


@dataclass(frozen=True, eq=False)
class Confusion:
    """Objects by their class and the class that was predicted.

    Attributes:
        iou: The IoU from which on a detection and an object can be a pair.
        score: The score from which on detections count.
        counts: (C + 1, C + 1) pairs by the object's class (rows) and the detection's (columns), in the order of the
            class names. The last column has objects without a detection, the last row detections without an object.
    """

    iou: float
    score: float
    counts: NDArray[np.int64]

    def shares(self) -> NDArray[np.float64]:
        """(C + 1, C + 1) the counts as shares of their row; NaN where the row is empty."""
        totals = self.counts.sum(axis=1, keepdims=True)
        return np.divide(self.counts, totals, out=np.full(self.counts.shape, np.nan), where=totals > 0)

    def pairs(self) -> list[tuple[int, int, int]]:
        """Object's label, predicted label and count of all mistakes between two classes, the most frequent first."""
        table = self.counts[:-1, :-1].copy()
        np.fill_diagonal(table, 0)
        rows, columns = np.nonzero(table)
        order = np.argsort(-table[rows, columns], kind="stable")
        return [(int(rows[at]), int(columns[at]), int(table[rows[at], columns[at]])) for at in order]


def confuse(
    results: Results, index: CocoIndex, matches: Matches, kind: MaskOrBox, iou: float, score: float
) -> Confusion:
    """Pairs detections and objects whatever their classes are.

    By falling score, each detection gets the object that it overlaps most among those that are left, if the IoU is
    enough (hotcoco's). Detections that COCO's evaluation does not count, such as those in crowd regions, are left out.

    Args:
        results: The detections.
        index: Their data set.
        matches: Of both.
        kind: Whether boxes or masks are compared.
        iou: One of ``matches.ious``.
        score: Detections below do not count.
    """
    counts = matches.counted[matches.at(iou)] & (matches.scores >= score)
    kept = np.sort(matches.places[counts])
    masks = None if results.masks is None else [results.masks[place] for place in kept.tolist()]
    columns = ("image_ids", "category_ids", "boxes", "scores")
    some = replace(results, masks=masks, **{name: getattr(results, name)[kept] for name in columns})
    told = coco_evaluation(some, index, kind).confusion_matrix(iou_thr=iou, max_det=max(len(some), 1))
    place_of = {category_id: place for place, category_id in enumerate(told["cat_ids"])}
    order = [*(place_of[category_id] for category_id in index.category_ids.tolist()), len(place_of)]
    return Confusion(iou, score, told["matrix"][np.ix_(order, order)].astype(np.int64))
