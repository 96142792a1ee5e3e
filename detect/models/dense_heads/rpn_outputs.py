"""What an RPN predicts, and which anchors its losses look at.

Shapes and names:
    N images; L levels; A anchors a position; C logits an anchor: one with a sigmoid, two with a softmax; H, W size of a
    level's feature map; n = sum of H * W * A over levels, in the order level, row, column, anchor.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class RPNOutputs:
    """Raw predictions: for each level logits (N, A * C, H, W), anchor by anchor, and deltas (N, A * 4, H, W)."""

    logits: list[Tensor]
    deltas: list[Tensor]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(H, W) of each level."""
        return [(level.shape[2], level.shape[3]) for level in self.logits]

    def flat_logits(self) -> list[Tensor]:
        """For each level (N, H * W * A, C)."""
        num_logits = 4 * self.logits[0].shape[1] // self.deltas[0].shape[1]
        return [_by_anchor(level, num_logits) for level in self.logits]

    def flat_deltas(self) -> list[Tensor]:
        """For each level (N, H * W * A, 4)."""
        return [_by_anchor(level, 4) for level in self.deltas]


def _by_anchor(level: Tensor, values: int) -> Tensor:
    """(N, A * values, H, W) to (N, H * W * A, values)."""
    return level.permute(0, 2, 3, 1).reshape(level.shape[0], -1, values)


def objectness(logits: Tensor) -> Tensor:
    """The one logit whose sigmoid is the probability of an object, (...), given logits (..., C).

    Of two, the first is the foreground's: their softmax is the sigmoid of their difference.
    """
    return logits[..., 0] if logits.shape[-1] == 1 else logits[..., 0] - logits[..., 1]


@dataclass(frozen=True)
class AnchorSamples:
    """The anchors of one image that take part in the loss, as indices into all n anchors.

    Attributes:
        positives: (P,) int64.
        negatives: (Q,) int64.
        gt_indices: (P,) int64, each positive's ground truth.
    """

    positives: Tensor
    negatives: Tensor
    gt_indices: Tensor

    @property
    def avg_factor(self) -> int:
        """What this image adds to the divisor of both losses: its samples, of either kind at least one."""
        return max(len(self.positives), 1) + max(len(self.negatives), 1)


def sample_errors(positive: Tensor, negative: Tensor, deltas: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """How far predictions for sampled anchors are off, to be logged.

    Args:
        positive: (P, C) logits of the positives.
        negative: (Q, C) logits of the negatives.
        deltas: (P, 4) predicted for the positives.
        targets: (P, 4) what they should be.

    Returns:
        ``rpn_cls_error``, the share of anchors whose class is wrong, and ``rpn_box_mae``, the mean absolute error of
        the deltas of positives; scalars without gradient, 0 where there is nothing to take the mean of.
    """
    wrong = (objectness(positive.detach()) <= 0).sum() + (objectness(negative.detach()) > 0).sum()
    error = (deltas.detach() - targets).abs().sum()
    count = len(positive) + len(negative)
    return {"rpn_cls_error": wrong / max(count, 1), "rpn_box_mae": error / max(targets.numel(), 1)}
