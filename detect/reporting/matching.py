"""Which detections of an image find an object, as COCO's evaluation tells it at one IoU of boxes.

Detections choose by score, the best first. So those above a higher score keep their verdicts, and one matching does for
every place of a slider.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from detect.metrics.overlaps import Floats, pairwise_iou

IOU = 0.5
Verdict = Literal["right", "wrong", "ignored"]


@dataclass(frozen=True)
class Matches:
    """How D detections and G objects of an image meet.

    Attributes:
        verdicts: For each detection: ``right`` where it finds an object, ``ignored`` where it lies in a region that
            does not count, else ``wrong``.
        found: (G,) the score of the detection that finds each object; NaN where none does, and of what does not count.
    """

    verdicts: list[Verdict]
    found: Floats

    def mistakes(self, scores: Floats, counts: NDArray[np.bool_], threshold: float) -> int:
        """Wrong detections and missed objects, where detections below a score are left out.

        Args:
            scores: (D,) of the detections.
            counts: (G,) which objects are to be found.
            threshold: The score.
        """
        wrong = sum(
            verdict == "wrong" and score >= threshold
            for verdict, score in zip(self.verdicts, scores.tolist(), strict=True)
        )
        return wrong + int((counts & ~(self.found >= threshold)).sum())


def match(
    boxes: Floats,
    labels: NDArray[np.int64],
    scores: Floats,
    true_boxes: Floats,
    true_labels: NDArray[np.int64],
    crowd: NDArray[np.bool_],
) -> Matches:
    """Matches the detections of an image with its objects.

    Args:
        boxes: (D, 4) x1, y1, x2, y2.
        labels: (D,)
        scores: (D,)
        true_boxes: (G, 4)
        true_labels: (G,)
        crowd: (G,) regions that do not count.
    """
    verdicts: list[Verdict] = ["wrong"] * len(boxes)
    found = np.full(len(true_boxes), math.nan)
    ious = pairwise_iou(boxes, true_boxes) * (labels[:, None] == true_labels[None])
    inside = _share_inside(boxes, true_boxes[crowd]) * (labels[:, None] == true_labels[crowd][None])
    free = np.where(crowd, 0.0, 1.0)
    for row in np.argsort(-scores, kind="stable").tolist():
        overlaps = ious[row] * free
        if len(overlaps) and overlaps.max() >= IOU:
            chosen = int(overlaps.argmax())
            verdicts[row], found[chosen], free[chosen] = "right", scores[row], 0.0
        elif (inside[row] >= IOU).any():
            verdicts[row] = "ignored"
    return Matches(verdicts, found)


def _share_inside(boxes: Floats, regions: Floats) -> Floats:
    """(D, R) share of each box that lies in each region."""
    corner = np.maximum(boxes[:, None, :2], regions[None, :, :2])
    overlap = np.maximum(np.minimum(boxes[:, None, 2:], regions[None, :, 2:]) - corner, 0.0).prod(axis=2)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)[:, None]
    shares: Floats = np.divide(overlap, areas, out=np.zeros_like(overlap), where=areas > 0)
    return shares
