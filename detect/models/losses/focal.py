"""Focal loss of classes (arXiv 1708.02002)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from detect.models.arguments import NotNegative, Probability
from detect.models.losses.cross_entropy import one_hot
from detect.models.losses.weighting import FunctionLoss, Reduction, weighted_loss
from detect.registry import MODELS


@weighted_loss
def sigmoid_focal_loss(pred: Tensor, target: Tensor, *, gamma: float = 2.0, alpha: float = 0.25) -> Tensor:
    """Binary cross entropy, which counts the less the better the prediction already is.

    Args:
        pred: Logits (...).
        target: (...) probabilities, 1 for what is on and 0 for what is not.
        gamma: How much less.
        alpha: Weight of what is on; what is not weighs ``1 - alpha``.

    Returns:
        (...).
    """
    target = target.to(pred.dtype)
    probability = pred.sigmoid()
    miss = (1 - probability) * target + probability * (1 - target)
    balance = alpha * target + (1 - alpha) * (1 - target)
    return F.binary_cross_entropy_with_logits(pred, target, reduction="none") * (balance * miss.pow(gamma))


@MODELS.register
class FocalLoss(FunctionLoss):
    """Focal loss by one sigmoid a class.

    Args:
        use_sigmoid: Always true: there is no focal loss by softmax.
        gamma: How much less well predicted logits count.
        alpha: Weight of the class that is on; those that are off weigh ``1 - alpha``.
        reduction: ``mean``, ``sum`` or ``none``.
        loss_weight: What the result is multiplied by.
    """

    def __init__(
        self,
        use_sigmoid: Literal[True] = True,
        gamma: NotNegative = 2.0,
        alpha: Probability = 0.25,
        reduction: Reduction = "mean",
        loss_weight: NotNegative = 1.0,
    ) -> None:
        super().__init__(sigmoid_focal_loss, reduction, loss_weight, gamma=gamma, alpha=alpha)
        self.use_sigmoid = use_sigmoid

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: Reduction | None = None,
    ) -> Tensor:
        """The loss, a scalar unless the reduction is ``none``.

        Args:
            pred: Logits (N, C).
            target: Labels (N,) int64, C for the background; or (N, C), 1 for what is on and 0 for what is not.
            weight: (N,) or (N, C).
            avg_factor: What the sum is divided by.
            reduction_override: Replaces ``reduction``.
        """
        if pred.dim() != target.dim():
            target = one_hot(target, pred.shape[1])
        return super().forward(pred, target, weight, avg_factor, reduction_override)
