"""From the loss of each element to the result: weights, then a mean, a sum or neither."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from dpipe.errors import InputError

Reduction = Literal["none", "mean", "sum"]

EPS = torch.finfo(torch.float32).eps
"""What is added to every ``avg_factor``, as OpenMMLab has it."""


class WeightedLoss(Protocol):
    """A function of a loss that has been given weights and reductions."""

    def __call__(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        reduction: Reduction = "mean",
        avg_factor: float | Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """The loss, a scalar; or that of each element where the reduction is ``none``."""
        ...


def weighted_loss(function: Callable[..., Tensor]) -> WeightedLoss:
    """Gives a function of one's own weights and reductions; used as a decorator.

    Args:
        function: Called with predictions, targets and options (by name); returns the loss of each element, or of each
            row.

    Returns:
        The function with the arguments ``weight``, ``reduction`` and ``avg_factor`` between targets and options, see
        :func:`weigh_and_reduce`.
    """

    @functools.wraps(function)
    def weighted(
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        reduction: Reduction = "mean",
        avg_factor: float | Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        return weigh_and_reduce(function(pred, target, **options), weight, reduction, avg_factor)

    return weighted


class FunctionLoss(nn.Module):
    """A loss by a function that has been given weights and reductions; what names and describes it is its subclass.

    Args:
        function: Made by :func:`weighted_loss`.
        reduction: ``mean``, ``sum`` or ``none``.
        loss_weight: What the result is multiplied by.
        **options: Given to the function in every call.
    """

    def __init__(self, function: WeightedLoss, reduction: Reduction, loss_weight: float, **options: Any) -> None:
        super().__init__()
        self.function = function
        self.reduction = reduction
        self.loss_weight = loss_weight
        self.options = options

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: Reduction | None = None,
    ) -> Tensor:
        """The loss, a scalar unless the reduction is ``none``; see :func:`weigh_and_reduce`.

        Args:
            pred: What the function takes.
            target: Of the same shape.
            weight: A factor for each element, or for each row.
            avg_factor: What the sum is divided by.
            reduction_override: Replaces ``reduction``.
        """
        reduction = reduction_override or self.reduction
        return self.loss_weight * self.function(pred, target, weight, reduction, avg_factor, **self.options)


def weigh_and_reduce(
    loss: Tensor,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
    avg_factor: float | Tensor | None = None,
) -> Tensor:
    """Multiplies the elements of a loss by their weights, and reduces them.

    Args:
        loss: Of each element (...), or of each row (N,).
        weight: Of the loss's shape; or one dimension less, a factor for each row of elements; or one more, whose mean
            over the last dimension is the row's.
        reduction: ``mean``, ``sum`` or ``none``.
        avg_factor: What a mean divides the sum by instead of the number of elements, after EPS was added.

    Returns:
        A scalar, or the weighted loss where the reduction is ``none``. The mean of nothing is 0.

    Raises:
        InputError: If the reduction is unknown, or is ``sum`` and there is an ``avg_factor``; or if the weight's shape
            does not fit.
    """
    if reduction not in get_args(Reduction):
        raise InputError(f"the reduction of a loss is one of {', '.join(get_args(Reduction))}, got {reduction!r}")
    if weight is not None:
        loss = loss * fit_weight(weight, loss)
    if reduction == "none":
        return loss
    if reduction == "sum":
        if avg_factor is not None:
            raise InputError("avg_factor divides a mean: it cannot be given with the reduction sum")
        return loss.sum()
    if avg_factor is not None:
        return loss.sum() / (avg_factor + EPS)
    return loss.mean() if loss.numel() else loss.sum()


def fit_weight(weight: Tensor, loss: Tensor) -> Tensor:
    """A weight in a shape that broadcasts with a loss, see :func:`weigh_and_reduce`.

    Raises:
        InputError: If there is none.
    """
    if weight.dim() == loss.dim() + 1 and weight.shape[:-1] == loss.shape:
        return weight.mean(dim=-1)
    if weight.dim() == loss.dim() - 1 and weight.shape == loss.shape[:-1]:
        return weight[..., None]
    if weight.dim() == loss.dim() and all(w in (1, n) for w, n in zip(weight.shape, loss.shape, strict=True)):
        return weight
    raise InputError(f"a weight of shape {list(weight.shape)} does not fit a loss of shape {list(loss.shape)}")
