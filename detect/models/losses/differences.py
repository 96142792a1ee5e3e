"""Losses of numbers one by one: of deltas between boxes, or of anything else that is regressed."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from detect.models.arguments import NotNegative, Positive
from detect.models.losses.weighting import FunctionLoss, Reduction, weighted_loss
from detect.registry import MODELS


@weighted_loss
def l1_loss(pred: Tensor, target: Tensor) -> Tensor:
    """Absolute differences of tensors of one shape."""
    return (pred - target).abs()


@weighted_loss
def smooth_l1_loss(pred: Tensor, target: Tensor, *, beta: float = 1.0) -> Tensor:
    """Differences of tensors of one shape: squared and halved over ``beta`` below ``beta``, absolute above."""
    return F.smooth_l1_loss(pred, target, beta=beta, reduction="none")


@weighted_loss
def balanced_l1_loss(
    pred: Tensor, target: Tensor, *, alpha: float = 0.5, gamma: float = 1.5, beta: float = 1.0
) -> Tensor:
    """Differences of tensors of one shape, small ones with more gradient than smooth L1 gives them (arXiv 1904.02701).

    Args:
        pred: (...).
        target: (...).
        alpha: The smaller, the more of the gradient goes to small differences.
        gamma: The gradient of large differences.
        beta: From here on a difference is large.
    """
    # The paper's b, which makes the gradients alpha * ln(b * difference + 1) and gamma meet at a difference of 1.
    b = math.exp(gamma / alpha) - 1
    difference = (pred - target).abs()
    small = alpha / b * (b * difference + 1) * torch.log(b * difference / beta + 1) - alpha * difference
    return torch.where(difference < beta, small, gamma * difference + gamma / b - alpha * beta)


@MODELS.register
class L1Loss(FunctionLoss):
    """Absolute difference.

    Args:
        reduction: ``mean``, ``sum`` or ``none``.
        loss_weight: What the result is multiplied by.
    """

    takes_boxes: ClassVar[bool] = False

    def __init__(self, reduction: Reduction = "mean", loss_weight: NotNegative = 1.0) -> None:
        super().__init__(l1_loss, reduction, loss_weight)


@MODELS.register
class SmoothL1Loss(FunctionLoss):
    """Quadratic below ``beta`` and linear above (Fast R-CNN, arXiv 1504.08083).

    Args:
        beta: Where the two meet.
        reduction: ``mean``, ``sum`` or ``none``.
        loss_weight: What the result is multiplied by.
    """

    takes_boxes: ClassVar[bool] = False

    def __init__(self, beta: NotNegative = 1.0, reduction: Reduction = "mean", loss_weight: NotNegative = 1.0) -> None:
        super().__init__(smooth_l1_loss, reduction, loss_weight, beta=beta)


@MODELS.register
class BalancedL1Loss(FunctionLoss):
    """Smooth L1 with more weight for boxes that nearly fit (Libra R-CNN, arXiv 1904.02701).

    Args:
        alpha: The smaller, the more of the gradient goes to small differences.
        gamma: The gradient of large differences.
        beta: From here on a difference is large.
        reduction: ``mean``, ``sum`` or ``none``.
        loss_weight: What the result is multiplied by.
    """

    takes_boxes: ClassVar[bool] = False

    def __init__(
        self,
        alpha: Positive = 0.5,
        gamma: Positive = 1.5,
        beta: Positive = 1.0,
        reduction: Reduction = "mean",
        loss_weight: NotNegative = 1.0,
    ) -> None:
        super().__init__(balanced_l1_loss, reduction, loss_weight, alpha=alpha, gamma=gamma, beta=beta)
