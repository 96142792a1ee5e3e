"""How overlapping detections of one image are thinned out in evaluation.

Shapes and names:
    m candidates, k of them kept; boxes (m, 4), scores (m,), labels (m,) int64.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

from detect.models.arguments import Positive, Probability, require
from detect.models.boxes import group_nms, pairwise_iou
from detect.registry import MODELS


class Suppression(Protocol):
    """Chooses among detections that overlap."""

    def suppress(
        self, boxes: Tensor, scores: Tensor, labels: Tensor, iou_thr: float, max_kept: int
    ) -> tuple[Tensor, Tensor]:
        """Indices (k,) of what is kept, best first, and the scores (k,) that these then have."""
        ...


@MODELS.register
class NMS:
    """Of two boxes that overlap by more than the threshold only the better is kept.

    Args:
        class_agnostic: Boxes of different classes suppress each other as well.
    """

    def __init__(self, class_agnostic: bool = False) -> None:
        self.class_agnostic = class_agnostic

    def suppress(
        self, boxes: Tensor, scores: Tensor, labels: Tensor, iou_thr: float, max_kept: int
    ) -> tuple[Tensor, Tensor]:
        """Indices (k,) of what is kept, best first, and their scores (k,), which stay as they were.

        Args:
            boxes: (m, 4).
            scores: (m,).
            labels: (m,) int64.
            iou_thr: Two boxes overlap when their IoU is greater.
            max_kept: How many are kept at most.
        """
        groups = torch.zeros_like(labels) if self.class_agnostic else labels
        kept = group_nms(boxes, scores, groups, iou_thr, max_kept)
        return kept, scores[kept]


@MODELS.register
class SoftNMS:
    """Boxes that overlap with a better one keep a part of their score (Soft-NMS, arXiv 1704.04503).

    The best box is taken, the scores of all others of its class are lowered, and so on. As in OpenMMLab's, only what
    still has ``min_score`` then can be taken.

    Args:
        method: ``linear`` multiplies scores by 1 - IoU from the threshold on, ``gaussian`` by exp(-IoU^2 / sigma),
            without a threshold.
        sigma: Of ``gaussian``: the lower, the fewer boxes remain.
        min_score: Boxes whose score falls below are dropped.
        class_agnostic: Boxes of different classes lower each other's scores as well.
    """

    def __init__(
        self,
        method: Literal["linear", "gaussian"] = "linear",
        sigma: Positive = 0.5,
        min_score: Probability = 1e-3,
        class_agnostic: bool = False,
    ) -> None:
        self.method = method
        self.sigma = sigma
        self.min_score = min_score
        self.class_agnostic = class_agnostic

    def suppress(
        self, boxes: Tensor, scores: Tensor, labels: Tensor, iou_thr: float, max_kept: int
    ) -> tuple[Tensor, Tensor]:
        """Indices (k,) of what is kept, best lowered score first, and these scores (k,).

        Args:
            boxes: (m, 4).
            scores: (m,), not negative.
            labels: (m,) int64.
            iou_thr: Two boxes overlap when their IoU is at least this (``linear``).
            max_kept: How many are kept at most. Scores only fall, so that nothing taken later could be better.
        """
        left = torch.ones_like(labels, dtype=torch.bool)
        rows, kept_scores = [labels[:0]], [scores[:0]]
        # Nothing in the loop waits for the device, which is why it goes on when no box is left.
        for _ in range(min(max_kept, len(boxes))):
            best, row = scores.masked_fill(~left, -1.0).max(dim=0, keepdim=True)  # (1,) each
            rows.append(row)
            kept_scores.append(best)
            factors = self._factors(pairwise_iou(boxes[row], boxes)[0], iou_thr)
            if not self.class_agnostic:
                factors = torch.where(labels == labels[row], factors, 1.0)
            scores = scores * factors
            left = (left & (scores >= self.min_score)).index_fill(0, row, False)
        indices, kept = torch.cat(rows), torch.cat(kept_scores)
        # How many were left to take, the device has to tell.
        taken = (kept >= 0).nonzero().squeeze(1)
        return indices[taken], kept[taken]

    def _factors(self, ious: Tensor, iou_thr: float) -> Tensor:
        """What scores are multiplied by, (m,), given the IoU (m,) of their boxes with a better one."""
        if self.method == "gaussian":
            return torch.exp(-ious.square() / self.sigma)
        return torch.where(ious >= iou_thr, 1 - ious, 1.0)


def suppression(nms: Suppression | None, owner: str) -> Suppression:
    """What thins out the detections of a head: NMS within each class where it was given nothing.

    Args:
        nms: What it was given.
        owner: The head's class, for the message.

    Raises:
        InputError: If it cannot suppress.
    """
    if nms is None:
        return NMS()
    require(nms, ("suppress",), f"{owner}: nms")
    return nms
