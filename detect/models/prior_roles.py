"""What the priors of a dense head (anchors or points) are to it in training, for one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from torch import Tensor

if TYPE_CHECKING:
    from dpipe.target import Target

OUTSIDE, IGNORED, NEGATIVE_ROLE, POSITIVE_ROLE = range(4)
"""Not assigned at all, as beyond the border; neither positive nor negative; background; an object's."""


@dataclass(frozen=True)
class PriorRoles:
    """The n priors of one image, level by level.

    Attributes:
        priors: (n, 4) boxes, or (n, 2) points as (x, y), in pixels of the network's input.
        levels: (n,) int64, the number of each one's level.
        roles: (n,) int64, OUTSIDE, IGNORED, NEGATIVE_ROLE or POSITIVE_ROLE.
        sampled: (n,) bool, whether the loss looks at it.
        gt_indices: (n,) int64, the ground truth of each positive; of others without meaning.
    """

    priors: Tensor
    levels: Tensor
    roles: Tensor
    sampled: Tensor
    gt_indices: Tensor


@runtime_checkable
class TellsRoles(Protocol):
    """A dense head whose anchors or points can be drawn."""

    def prior_roles(self, sizes: Sequence[tuple[int, int]], target: Target) -> PriorRoles:
        """Assigns and samples as the loss does, given (H, W) of each level's feature map."""
        ...
