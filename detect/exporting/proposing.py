"""What dense heads propose and detect, in shapes that no image decides.

They are the same boxes and scores as those of ``propose`` and ``predict``.

Shapes and names:
    N images; L levels; A anchors a position; K classes; k places of an image; H, W size of a level's feature map.
    bounds: (2,) width and height of the images, without padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from detect.exporting.selection import EMPTY, best_of, suppress, take
from detect.models.boxes import clip_boxes
from detect.models.dense_heads.fcos import FCOSHead
from detect.models.dense_heads.fcos_targets import level_points
from detect.models.dense_heads.rpn import RPNHead
from detect.models.dense_heads.rpn_outputs import objectness
from detect.models.nms import NMS


@dataclass(frozen=True)
class Found:
    """What was found in each image, best first; places where nothing is have the score ``EMPTY``.

    Attributes:
        boxes: (N, k, 4), clipped to the image.
        scores: (N, k).
        labels: (N, k) int64.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def best(self, scores: Tensor, count: int) -> Found:
        """The best by these scores (N, k)."""
        best, order = best_of(scores, count)
        return Found(take(self.boxes, order), best, take(self.labels, order))

    def large(self, min_size: float) -> Found:
        """The same places, of which those are empty whose box is not wider and higher than ``min_size`` pixels."""
        is_large = (self.boxes[..., 2:] - self.boxes[..., :2] > min_size).all(dim=-1)
        return Found(self.boxes, torch.where(is_large, self.scores, EMPTY), self.labels)


def propose(head: RPNHead | FCOSHead, features: Sequence[Tensor], bounds: Tensor) -> Found:
    """The proposals of a dense head, in ``test_max_per_img`` places."""
    if isinstance(head, RPNHead):
        return _propose_of_anchors(head, features, bounds)
    found = _points(head, features, bounds, head.test_nms_pre, None)
    scores = suppress(found.boxes, found.scores, found.labels, head.num_classes, bounds, head.proposal_nms_iou)
    return found.best(scores, head.test_max_per_img)


def detect(head: FCOSHead, features: Sequence[Tensor], bounds: Tensor) -> Found:
    """The detections of a dense head, in ``max_per_img`` places."""
    found = _points(head, features, bounds, head.nms_pre, head.score_thr)
    return thin_out(cast(NMS, head.nms), found, head.num_classes, bounds, head.nms_iou, head.max_per_img)


def thin_out(nms: NMS, found: Found, num_classes: int, bounds: Tensor, iou_thr: float, max_kept: int) -> Found:
    """What a suppression keeps, in ``max_kept`` places."""
    groups, count = (torch.zeros_like(found.labels), 1) if nms.class_agnostic else (found.labels, num_classes)
    return found.best(suppress(found.boxes, found.scores, groups, count, bounds, iou_thr), max_kept)


def _propose_of_anchors(head: RPNHead, features: Sequence[Tensor], bounds: Tensor) -> Found:
    outputs = head(features)
    level_scores, level_anchors, level_deltas = [], [], []
    grids = head.anchors.grids(outputs.sizes)
    for logits, deltas, anchors in zip(outputs.flat_logits(), outputs.flat_deltas(), grids, strict=True):
        best, order = best_of(objectness(logits), head.test_nms_pre, empty=-torch.inf)
        level_scores.append(best.sigmoid())  # 0 for what is empty
        level_anchors.append(anchors[order])  # (N, k, 4)
        level_deltas.append(take(deltas, order))
    boxes = head.coder.decode(torch.cat(level_anchors, dim=1), torch.cat(level_deltas, dim=1), bounds)
    numbers = torch.arange(len(grids), device=boxes.device)[:, None].expand(-1, head.test_nms_pre).flatten()
    levels = numbers.expand(boxes.shape[0], -1)
    found = Found(boxes, torch.cat(level_scores, dim=1), torch.zeros_like(levels)).large(head.min_size)
    scores = suppress(found.boxes, found.scores, levels, len(grids), bounds, head.nms_iou)
    return found.best(scores, head.test_max_per_img)


def _points(head: FCOSHead, features: Sequence[Tensor], bounds: Tensor, nms_pre: int, score_thr: float | None) -> Found:
    """The best predictions of each level of an FCOS, ``nms_pre`` places a level; all without a ``score_thr``."""
    outputs = head(features)
    points = level_points(outputs.sizes, head.level_strides, bounds.device)
    level_boxes, level_scores, level_labels = [], [], []
    for level, stride in enumerate(head.level_strides):
        scores = outputs.logits[level].flatten(2).mT.flatten(1).sigmoid()  # (N, H * W * K)
        if score_thr is not None:
            scores = torch.where(scores > score_thr, scores, EMPTY)
        best, order = best_of(scores, nms_pre)
        rows = order // head.num_classes
        distances = take(outputs.distances[level].flatten(2).mT, rows)  # (N, k, 4)
        if head.norm_on_bbox:
            distances = distances * stride
        at = points[level][rows]  # (N, k, 2)
        level_boxes.append(torch.cat([at - distances[..., :2], at + distances[..., 2:]], dim=-1))
        central = outputs.centerness[level].flatten(1).gather(1, rows).sigmoid()
        level_scores.append(torch.where(best > EMPTY, best * central, EMPTY))
        level_labels.append(order % head.num_classes)
    boxes = clip_boxes(torch.cat(level_boxes, dim=1), bounds)
    return Found(boxes, torch.cat(level_scores, dim=1), torch.cat(level_labels, dim=1)).large(head.min_size)
