"""Losses of numbers one by one: of deltas between boxes, or of anything else that is regressed."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from detect.models.arguments import NotNegative
from detect.models.losses.weighting import Reduction, weighted_loss
from detect.registry import MODELS


@weighted_loss
def l1_loss(pred: Tensor, target: Tensor) -> Tensor:
    """Absolute differences of tensors of one shape."""
    return (pred - target).abs()


@weighted_loss
def smooth_l1_loss(pred: Tensor, target: Tensor, *, beta: float = 1.0) -> Tensor:
    """Differences of tensors of one shape: squared and halved over ``beta`` below ``beta``, absolute above."""
    return F.smooth_l1_loss(pred, target, beta=beta, reduction="none")


@MODELS.register
class L1Loss(nn.Module):
    """Absolute difference.

    Args:
        reduction: ``mean``, ``sum`` or ``none``.
        loss_weight: What the result is multiplied by.
    """

    takes_boxes: ClassVar[bool] = False

    def __init__(self, reduction: Reduction = "mean", loss_weight: NotNegative = 1.0) -> None:
        super().__init__()
        self.reduction = reduction
        self.loss_weight = loss_weight

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: Reduction | None = None,
    ) -> Tensor:
        """The loss of ``pred`` and ``target`` of one shape, a scalar unless the reduction is ``none``."""
        return self.loss_weight * l1_loss(pred, target, weight, reduction_override or self.reduction, avg_factor)


@MODELS.register
class SmoothL1Loss(nn.Module):
    """Quadratic below ``beta`` and linear above (Fast R-CNN, arXiv 1504.08083).

    Args:
        beta: Where the two meet.
        reduction: ``mean``, ``sum`` or ``none``.
        loss_weight: What the result is multiplied by.
    """

    takes_boxes: ClassVar[bool] = False

    def __init__(self, beta: NotNegative = 1.0, reduction: Reduction = "mean", loss_weight: NotNegative = 1.0) -> None:
        super().__init__()
        self.beta = beta
        self.reduction = reduction
        self.loss_weight = loss_weight

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: Reduction | None = None,
    ) -> Tensor:
        """The loss of ``pred`` and ``target`` of one shape, a scalar unless the reduction is ``none``."""
        return self.loss_weight * smooth_l1_loss(
            pred, target, weight, reduction_override or self.reduction, avg_factor, beta=self.beta
        )
