"""Losses of boxes by how they overlap, pair by pair.

Shapes and names:
    N pairs of boxes; pred and target are boxes (N, 4) as (x1, y1, x2, y2) in pixels, and the loss is (N,).
    A weight is (N,) or (N, 4).
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor

from detect.models.arguments import NotNegative, Positive
from detect.models.boxes import box_areas
from detect.models.losses.weighting import FunctionLoss, Reduction, weighted_loss
from detect.registry import MODELS

MIN_UNION = 1e-6
"""What a union is at least, in pixels squared, when the IoU itself is the loss."""


def overlaps_and_unions(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Areas of the intersections and of the unions of boxes (N, 4), pair by pair: both (N,)."""
    sides = torch.minimum(boxes[:, 2:], others[:, 2:]) - torch.maximum(boxes[:, :2], others[:, :2])
    width, height = sides.clamp(min=0).unbind(dim=1)
    overlaps = width * height
    return overlaps, box_areas(boxes) + box_areas(others) - overlaps


def enclosing_sides(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Width and height (N,) of the smallest box around each pair of boxes (N, 4)."""
    sides = torch.maximum(boxes[:, 2:], others[:, 2:]) - torch.minimum(boxes[:, :2], others[:, :2])
    width, height = sides.clamp(min=0).unbind(dim=1)
    return width, height


@weighted_loss
def iou_loss(
    pred: Tensor, target: Tensor, *, mode: Literal["linear", "square", "log"] = "log", eps: float = 1e-6
) -> Tensor:
    """1 - IoU, 1 - IoU squared, or -log IoU (UnitBox, arXiv 1608.01471), with IoUs of at least ``eps``."""
    overlaps, unions = overlaps_and_unions(pred, target)
    ious = (overlaps / unions.clamp(min=MIN_UNION)).clamp(min=eps)
    if mode == "linear":
        return 1 - ious
    return 1 - ious.square() if mode == "square" else -ious.log()


@weighted_loss
def giou_loss(pred: Tensor, target: Tensor, *, eps: float = 1e-7) -> Tensor:
    """1 - IoU + the share of the enclosing box that is outside the union (arXiv 1902.09630); areas at least ``eps``."""
    overlaps, unions = overlaps_and_unions(pred, target)
    unions = unions.clamp(min=eps)
    width, height = enclosing_sides(pred, target)
    enclosing = (width * height).clamp(min=eps)
    return 1 - (overlaps / unions - (enclosing - unions) / enclosing)


@weighted_loss
def diou_loss(pred: Tensor, target: Tensor, *, eps: float = 1e-7) -> Tensor:
    """1 - IoU + the distance of centres in diagonals of the enclosing box, squared (arXiv 1911.08287)."""
    return 1 - _distance_ious(pred, target, eps)[1]


@weighted_loss
def ciou_loss(pred: Tensor, target: Tensor, *, eps: float = 1e-7) -> Tensor:
    """The DIoU loss, and from IoU 0.5 on also how far the ratios of the sides differ (arXiv 2005.03572)."""
    ious, distance_ious = _distance_ious(pred, target, eps)
    angles = [torch.atan((b[:, 2] - b[:, 0]) / (b[:, 3] - b[:, 1] + eps)) for b in (target, pred)]
    misfit = 4 / math.pi**2 * (angles[0] - angles[1]).square()
    with torch.no_grad():
        # Boxes that are the same can leave 0 to be divided by 0, which OpenMMLab's makes NaN.
        trade_off = (ious > 0.5) * misfit / (1 - ious + misfit).clamp(min=torch.finfo(ious.dtype).tiny)
    return 1 - (distance_ious - trade_off * misfit).clamp(-1, 1)


def _distance_ious(boxes: Tensor, others: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """IoUs and DIoUs (N,) of boxes (N, 4), pair by pair; ``eps`` is added to unions and squared diagonals."""
    overlaps, unions = overlaps_and_unions(boxes, others)
    ious = overlaps / (unions + eps)
    width, height = enclosing_sides(boxes, others)
    shifts = (others[:, :2] + others[:, 2:]) - (boxes[:, :2] + boxes[:, 2:])  # twice the distance
    distances = (shifts.square() / 4).sum(dim=1)
    return ious, ious - distances / (width.square() + height.square() + eps)


@MODELS.register
class IoULoss(FunctionLoss):
    """Loss of boxes by their IoU with the ground truths (UnitBox, arXiv 1608.01471).

    Args:
        eps: The least IoU that is told apart from none.
        reduction: ``mean``, ``sum`` or ``none``.
        loss_weight: What the result is multiplied by.
        mode: ``linear`` for 1 - IoU, ``square`` for 1 - IoU squared, ``log`` for -log IoU.
    """

    takes_boxes: ClassVar[bool] = True

    def __init__(
        self,
        eps: Positive = 1e-6,
        reduction: Reduction = "mean",
        loss_weight: NotNegative = 1.0,
        mode: Literal["linear", "square", "log"] = "log",
    ) -> None:
        super().__init__(iou_loss, reduction, loss_weight, mode=mode, eps=eps)


@MODELS.register
class GIoULoss(FunctionLoss):
    """Loss of boxes by their generalised IoU, which tells how far boxes without overlap are apart (arXiv 1902.09630).

    Args:
        eps: What unions and enclosing boxes measure at least, in pixels squared.
        reduction: ``mean``, ``sum`` or ``none``.
        loss_weight: What the result is multiplied by.
    """

    takes_boxes: ClassVar[bool] = True

    def __init__(self, eps: Positive = 1e-7, reduction: Reduction = "mean", loss_weight: NotNegative = 1.0) -> None:
        super().__init__(giou_loss, reduction, loss_weight, eps=eps)


@MODELS.register
class DIoULoss(FunctionLoss):
    """Loss of boxes by their IoU and the distance of their centres (arXiv 1911.08287).

    Args:
        eps: What is added to whatever divides, in pixels or their square.
        reduction: ``mean``, ``sum`` or ``none``.
        loss_weight: What the result is multiplied by.
    """

    takes_boxes: ClassVar[bool] = True

    def __init__(self, eps: Positive = 1e-7, reduction: Reduction = "mean", loss_weight: NotNegative = 1.0) -> None:
        super().__init__(diou_loss, reduction, loss_weight, eps=eps)


@MODELS.register
class CIoULoss(FunctionLoss):
    """Loss of boxes by their IoU, the distance of their centres and the ratios of their sides (arXiv 2005.03572).

    Args:
        eps: What is added to whatever divides, in pixels or their square.
        reduction: ``mean``, ``sum`` or ``none``.
        loss_weight: What the result is multiplied by.
    """

    takes_boxes: ClassVar[bool] = True

    def __init__(self, eps: Positive = 1e-7, reduction: Reduction = "mean", loss_weight: NotNegative = 1.0) -> None:
        super().__init__(ciou_loss, reduction, loss_weight, eps=eps)
