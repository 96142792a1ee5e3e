"""Losses that count an element the less, the more others have gradients like its own (GHM, arXiv 1811.05181).

Shapes and names:
    N rows; C logits or numbers a row; B bins of equal width, which tell gradients apart by their length in 0..1.

All elements of a call share one histogram, so that the loss of a batch is not the sum of its rows' own. Weights are all
or nothing: an element takes part when its weight is above 0. What the sum is divided by comes from the histogram as
well; ``avg_factor`` is taken, as every loss is called with it, and not used.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from detect.models.arguments import Count, NotNegative, Positive
from detect.models.losses.cross_entropy import one_hot
from detect.models.losses.weighting import Reduction, fit_weight, weigh_and_reduce
from detect.registry import MODELS

Momentum = Annotated[float, Field(ge=0, lt=1)]


@torch.no_grad()
def harmony(
    lengths: Tensor, valid: Tensor, total: Tensor, edges: Tensor, running: Tensor | None, momentum: float
) -> Tensor:
    """What each element is multiplied by: the total over the elements in its bin, over the number of bins in use.

    Args:
        lengths: (...) lengths of gradients, 0..1.
        valid: (...) bool, the elements that take part.
        total: A scalar.
        edges: (B + 1,) edges of the bins, each of which holds its lower edge.
        running: (B,) running numbers of elements, updated in place where a bin is in use; without them this call's own
            numbers count.
        momentum: Share of the former running numbers.

    Returns:
        (...), 0 where an element takes no part.
    """
    bins = len(edges) - 1
    numbers = torch.bucketize(lengths.contiguous(), edges[1:-1], right=True).masked_fill_(~valid, bins)  # B for no part
    ones = numbers.new_ones(1).expand(numbers.numel())
    counts = numbers.new_zeros(bins + 1).scatter_add_(0, numbers.flatten(), ones)[:-1]
    in_use, sizes = counts > 0, counts.to(edges.dtype)
    if running is not None:
        running.copy_(torch.where(in_use, momentum * running + (1 - momentum) * sizes, running))
        sizes = running
    factors = torch.where(in_use, total / sizes, 0) / in_use.sum().clamp(min=1)
    return torch.cat([factors, factors.new_zeros(1)])[numbers]


@MODELS.register
class GHMC(nn.Module):
    """Cross entropy by sigmoid in which neither the many easy examples nor a few wild ones prevail.

    Args:
        bins: B.
        momentum: Share of the former calls in the running numbers of elements in each bin; 0 counts each call alone.
        use_sigmoid: Always true: there is no such loss by softmax.
        loss_weight: What the result is multiplied by.
        reduction: ``mean``, ``sum`` or ``none``.
    """

    edges: Tensor
    acc_sum: Tensor | None

    def __init__(
        self,
        bins: Count = 10,
        momentum: Momentum = 0.0,
        use_sigmoid: Literal[True] = True,
        loss_weight: NotNegative = 1.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.momentum = momentum
        self.use_sigmoid = use_sigmoid
        self.loss_weight = loss_weight
        self.reduction = reduction
        _register_bins(self, bins, momentum, last_edge=1 + 1e-6)

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
            weight: (N,) or (N, C); above 0 for what takes part.
            avg_factor: Not used.
            reduction_override: Replaces ``reduction``.
        """
        if pred.dim() != target.dim():
            target = one_hot(target, pred.shape[1])
        target = target.to(pred.dtype)
        valid = _valid(weight, pred)
        total = valid.sum().clamp(min=1)
        lengths = (pred.detach().sigmoid() - target).abs()
        factors = harmony(lengths, valid, total, self.edges, self.acc_sum, self.momentum)
        loss = F.binary_cross_entropy_with_logits(pred, target, reduction="none")
        return _reduce(self, loss, factors, total, reduction_override)


@MODELS.register
class GHMR(nn.Module):
    """A smooth L1 of boxes' deltas in which neither the many easy examples nor a few wild ones prevail.

    Args:
        mu: About where the loss turns from quadratic to linear.
        bins: B.
        momentum: Share of the former calls in the running numbers of elements in each bin; 0 counts each call alone.
        loss_weight: What the result is multiplied by.
        reduction: ``mean``, ``sum`` or ``none``.
    """

    takes_boxes: ClassVar[bool] = False
    edges: Tensor
    acc_sum: Tensor | None

    def __init__(
        self,
        mu: Positive = 0.02,
        bins: Count = 10,
        momentum: Momentum = 0.0,
        loss_weight: NotNegative = 1.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.mu = mu
        self.momentum = momentum
        self.loss_weight = loss_weight
        self.reduction = reduction
        _register_bins(self, bins, momentum, last_edge=1e3)

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
            pred: (N, C).
            target: (N, C).
            weight: (N,) or (N, C); above 0 for what takes part.
            avg_factor: Not used.
            reduction_override: Replaces ``reduction``.
        """
        difference = pred - target
        root = (difference.square() + self.mu**2).sqrt()
        valid = _valid(weight, pred)
        total = (valid if weight is None else fit_weight(weight, pred).expand(pred.shape)).sum().clamp(min=1)
        lengths = (difference / root).detach().abs()
        factors = harmony(lengths, valid, total, self.edges, self.acc_sum, self.momentum)
        return _reduce(self, root - self.mu, factors, total, reduction_override)


def _register_bins(loss: GHMC | GHMR, bins: int, momentum: float, last_edge: float) -> None:
    """Buffers under OpenMMLab's names, which checkpoints hold."""
    edges = torch.arange(bins + 1) / bins
    edges[-1] = last_edge
    loss.register_buffer("edges", edges)
    loss.register_buffer("acc_sum", torch.zeros(bins) if momentum > 0 else None)


def _valid(weight: Tensor | None, pred: Tensor) -> Tensor:
    """Which elements (N, C) bool take part."""
    if weight is None:
        return torch.ones_like(pred, dtype=torch.bool)
    return (fit_weight(weight, pred) > 0).expand(pred.shape)


def _reduce(loss: GHMC | GHMR, values: Tensor, factors: Tensor, total: Tensor, override: Reduction | None) -> Tensor:
    reduction = override or loss.reduction
    return loss.loss_weight * weigh_and_reduce(values, factors, reduction, total if reduction == "mean" else None)
