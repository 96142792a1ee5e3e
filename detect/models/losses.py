"""Losses. Each has a ``loss_weight`` and is called as ``loss(pred, target, avg_factor=None)``.

``avg_factor`` is what the sum is divided by (a number of samples, plus float32's eps as OpenMMLab has it); without it
the mean over all elements is taken.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detect.models.arguments import NotNegative
from detect.registry import MODELS

EPS = torch.finfo(torch.float32).eps


def average(loss: Tensor, avg_factor: float | None) -> Tensor:
    """The sum of a loss over ``avg_factor``, or its mean without one; a scalar."""
    return loss.mean() if avg_factor is None else loss.sum() / (avg_factor + EPS)


@MODELS.register
class CrossEntropyLoss(nn.Module):
    """Cross entropy of classes, by softmax or by sigmoid.

    Args:
        use_sigmoid: One sigmoid a class instead of a softmax over all.
        loss_weight: What the result is multiplied by.
    """

    def __init__(self, use_sigmoid: bool = False, loss_weight: NotNegative = 1.0) -> None:
        super().__init__()
        self.use_sigmoid = use_sigmoid
        self.loss_weight = loss_weight

    def forward(self, pred: Tensor, target: Tensor, *, avg_factor: float | None = None) -> Tensor:
        """The loss, a scalar.

        Args:
            pred: Logits (N, C).
            target: Labels (N,) int64. With sigmoid, label C is the background, for which every class is off; and a
                target of the same shape as the logits holds a probability for each (the pixels of a mask).
            avg_factor: What the sum is divided by.
        """
        if not self.use_sigmoid:
            loss = F.cross_entropy(pred, target, reduction="none")
        elif pred.shape == target.shape:
            loss = F.binary_cross_entropy_with_logits(pred, target.to(pred.dtype), reduction="none")
        else:
            one_hot = F.one_hot(target, pred.shape[1] + 1)[:, :-1]  # (N, C)
            loss = F.binary_cross_entropy_with_logits(pred, one_hot.to(pred.dtype), reduction="none")
        return self.loss_weight * average(loss, avg_factor)


@MODELS.register
class SmoothL1Loss(nn.Module):
    """Quadratic below ``beta`` and linear above (Fast R-CNN, arXiv 1504.08083).

    Args:
        beta: Where the two meet.
        loss_weight: What the result is multiplied by.
    """

    def __init__(self, beta: NotNegative = 1.0, loss_weight: NotNegative = 1.0) -> None:
        super().__init__()
        self.beta = beta
        self.loss_weight = loss_weight

    def forward(self, pred: Tensor, target: Tensor, *, avg_factor: float | None = None) -> Tensor:
        """The loss, a scalar, of ``pred`` and ``target`` of one shape."""
        loss = F.smooth_l1_loss(pred, target, beta=self.beta, reduction="none")
        return self.loss_weight * average(loss, avg_factor)


@MODELS.register
class L1Loss(nn.Module):
    """Absolute difference.

    Args:
        loss_weight: What the result is multiplied by.
    """

    def __init__(self, loss_weight: NotNegative = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, pred: Tensor, target: Tensor, *, avg_factor: float | None = None) -> Tensor:
        """The loss, a scalar, of ``pred`` and ``target`` of one shape."""
        return self.loss_weight * average((pred - target).abs(), avg_factor)


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Percentage of rows (N, C) whose largest logit is the label's; a scalar, 0 without rows."""
    if len(logits) == 0:
        return logits.new_zeros(())
    return (logits.argmax(dim=1) == labels).float().mean() * 100.0
