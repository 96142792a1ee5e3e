"""Cross entropy of classes.

Shapes and names:
    N rows (anchors, RoIs, points); C logits a row. Labels are 0..C - 1; with one sigmoid a class, label C is the
    background, for which every class is off.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from detect.models.arguments import NotNegative
from detect.models.losses.weighting import Reduction, fit_weight, weigh_and_reduce
from detect.registry import MODELS

ClassWeights = Annotated[Sequence[NotNegative], Field(min_length=1)]

IGNORE_INDEX = -100
"""The label that takes no part unless another is named, as in PyTorch."""


@MODELS.register
class CrossEntropyLoss(nn.Module):
    """Cross entropy of classes, by softmax or by sigmoid.

    Args:
        use_sigmoid: One sigmoid a class instead of a softmax over all.
        reduction: ``mean``, ``sum`` or ``none``.
        class_weight: (C,) factors; of a row's loss by its class with softmax, of what is on with sigmoid.
        ignore_index: The label that takes no part; -100 without one. With sigmoid all below 0 take none either.
        loss_weight: What the result is multiplied by.
        avg_non_ignore: Whether a mean without ``avg_factor`` leaves out what takes no part in its count as well, as
            PyTorch's own cross entropy does.
    """

    def __init__(
        self,
        use_sigmoid: bool = False,
        reduction: Reduction = "mean",
        class_weight: ClassWeights | None = None,
        ignore_index: int | None = None,
        loss_weight: NotNegative = 1.0,
        avg_non_ignore: bool = False,
    ) -> None:
        super().__init__()
        self.use_sigmoid = use_sigmoid
        self.reduction = reduction
        self.ignore_index = IGNORE_INDEX if ignore_index is None else ignore_index
        self.loss_weight = loss_weight
        self.avg_non_ignore = avg_non_ignore
        # On the device with the model, so that no iteration copies them there; no part of checkpoints.
        self.class_weight: Tensor | None
        weights = None if class_weight is None else torch.tensor(list(class_weight), dtype=torch.float32)
        self.register_buffer("class_weight", weights, persistent=False)

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
            target: Labels (N,) int64. With sigmoid it may also be of as many dimensions as the logits, and then holds a
                probability for each (the pixels of a mask).
            weight: (N,), or of the logits' shape with sigmoid.
            avg_factor: What the sum is divided by.
            reduction_override: Replaces ``reduction``.
        """
        reduction = reduction_override or self.reduction
        if self.use_sigmoid:
            loss, valid = self._by_sigmoid(pred, target)
            weight = valid if weight is None else fit_weight(weight, loss) * valid
        else:
            loss = F.cross_entropy(
                pred, target, self.class_weight, ignore_index=self.ignore_index, reduction="none"
            )  # (N,)
            valid = target != self.ignore_index
        if self.avg_non_ignore and avg_factor is None and reduction == "mean":
            avg_factor = valid.expand(loss.shape).sum()
        return self.loss_weight * weigh_and_reduce(loss, weight, reduction, avg_factor)

    def _by_sigmoid(self, pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of each logit, and which take part, of a shape that broadcasts with it."""
        valid = (target >= 0) & (target != self.ignore_index)
        if pred.dim() != target.dim():
            target, valid = one_hot(target, pred.shape[1]), valid[:, None]
        target = target.to(pred.dtype)
        return F.binary_cross_entropy_with_logits(pred, target, pos_weight=self.class_weight, reduction="none"), valid


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Which class (N, C) bool is on for labels (N,); none is for labels outside 0..C - 1, such as the background's."""
    return labels[:, None] == torch.arange(num_classes, device=labels.device)


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Percentage of rows (N, C) whose largest logit is the label's; a scalar, 0 without rows."""
    if len(logits) == 0:
        return logits.new_zeros(())
    return (logits.argmax(dim=1) == labels).float().mean() * 100.0
