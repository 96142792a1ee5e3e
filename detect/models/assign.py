"""Which ground truth a prior (an anchor or a proposal) answers for, and which priors a loss looks at.

Shapes and names:
    G ground truths of one image; n its priors; P sampled positives; S sampled positives and negatives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Protocol, cast

import torch
from pydantic import Field
from torch import Tensor

from detect.models.arguments import Count, Probability
from detect.models.boxes import blocks, pairwise_iof, pairwise_iou
from detect.registry import MODELS
from dpipe.errors import InputError

if TYPE_CHECKING:
    from dpipe.target import Target

NEGATIVE = -1
NEITHER = -2

ClassLosses = Callable[[Tensor], Tensor]
"""From indices (k,) of priors to the class loss (k,) of each, without gradient."""

RoILosses = Callable[[Tensor, Tensor], Tensor]
"""From boxes (k, 4) of one image and their labels (k,), NEGATIVE for the background, to their class losses (k,)."""


@dataclass(frozen=True)
class Assignment:
    """What each prior was assigned.

    Attributes:
        gt_indices: (n,) int64, the ground truth's index, NEGATIVE, or NEITHER (no part in the loss).
        max_ious: (n,) best IoU with any ground truth; -1 for a prior that an ignore region takes out.
    """

    gt_indices: Tensor
    max_ious: Tensor


@MODELS.register
class MaxIoUAssigner:
    """Assigns by the best IoU (arXiv 1506.01497, section 3.1.2).

    A prior is positive when its best IoU is at least ``pos_iou_thr``, negative when it is below ``neg_iou_thr``, and
    neither in between.

    Args:
        pos_iou_thr: From here on positive.
        neg_iou_thr: Below this negative.
        min_pos_iou: The least best IoU of a ground truth that a low-quality match may use.
        match_low_quality: Gives each ground truth every prior that has exactly its best IoU, even below
            ``pos_iou_thr``, and even when the prior fits another ground truth better.
        ignore_iof_thr: A prior that lies in an ignore region by more than this share of its own area is neither
            positive nor negative; off when not above 0.

    Raises:
        InputError: If a prior could be both positive and negative.
    """

    def __init__(
        self,
        pos_iou_thr: Probability,
        neg_iou_thr: Probability,
        min_pos_iou: Probability = 0.0,
        match_low_quality: bool = True,
        ignore_iof_thr: Annotated[float, Field(le=1)] = -1.0,
    ) -> None:
        if neg_iou_thr > pos_iou_thr:
            raise InputError(f"MaxIoUAssigner: neg_iou_thr {neg_iou_thr} is above pos_iou_thr {pos_iou_thr}")
        self.pos_iou_thr = pos_iou_thr
        self.neg_iou_thr = neg_iou_thr
        self.min_pos_iou = min_pos_iou
        self.match_low_quality = match_low_quality
        self.ignore_iof_thr = ignore_iof_thr

    def assign(self, priors: Tensor, gt_boxes: Tensor, ignore_boxes: Tensor) -> Assignment:
        """Assigns the priors of one image.

        Args:
            priors: (n, 4).
            gt_boxes: (G, 4).
            ignore_boxes: (k, 4) ignore regions.
        """
        n = len(priors)
        # Without ground truths it is as if there were one far away: all priors are negative. Ignore regions spare
        # theirs all the same, on purpose: OpenMMLab forgets them in an image that has nothing else.
        ious = pairwise_iou(gt_boxes, priors) if len(gt_boxes) else priors.new_zeros((1, n))  # (G, n)
        if self.ignore_iof_thr > 0 and len(ignore_boxes) and n:
            ignored = pairwise_iof(priors, ignore_boxes).amax(dim=1) > self.ignore_iof_thr
            ious.masked_fill_(ignored, -1.0)

        max_ious, best_gts = ious.max(dim=0)
        gt_indices = torch.full_like(best_gts, NEITHER)
        gt_indices.masked_fill_((max_ious >= 0) & (max_ious < self.neg_iou_thr), NEGATIVE)
        if len(gt_boxes) == 0 or n == 0:
            return Assignment(gt_indices, max_ious)
        gt_indices = torch.where(max_ious >= self.pos_iou_thr, best_gts, gt_indices)
        if self.match_low_quality:
            last_match = self._last_low_quality_match(ious)
            gt_indices = torch.where(last_match >= 0, last_match, gt_indices)
        return Assignment(gt_indices, max_ious)

    def _last_low_quality_match(self, ious: Tensor) -> Tensor:
        """Of overlaps (G, n) for each prior the last ground truth whose best it is, (n,) int64; -1 for none."""
        best = ious.amax(dim=1)
        best = torch.where(best >= self.min_pos_iou, best, torch.inf)  # which no overlap equals
        last = torch.full_like(ious[0], -1, dtype=torch.int32)
        for gts in blocks(*ious.shape):
            numbers = torch.arange(len(ious), device=ious.device, dtype=torch.int32)[gts, None]
            matches = torch.where(ious[gts] == best[gts, None], numbers, -1)
            last = torch.maximum(last, matches.amax(dim=0))
        return last.long()


class Assigner(Protocol):
    """Decides which ground truth each prior answers for."""

    def assign(self, priors: Tensor, gt_boxes: Tensor, ignore_boxes: Tensor) -> Assignment:
        """Assigns priors (n, 4) of one image to ground truths (G, 4), given its ignore regions (k, 4)."""
        ...


class Sampler(Protocol):
    """Chooses the priors that a loss looks at.

    Attributes:
        add_gt_as_proposals: Whether RoI heads put the ground truths before the proposals.
    """

    add_gt_as_proposals: bool

    def choose(self, assignment: Assignment) -> tuple[Tensor, Tensor]:
        """Indices of positives and of negatives, each ascending."""
        ...


class LossSampler(Protocol):
    """Chooses the RoIs that a loss looks at by the losses that they have, which cost a forward pass.

    Attributes:
        add_gt_as_proposals: Whether RoI heads put the ground truths before the proposals.
        needs_losses: True, which tells this sampler from others.
    """

    add_gt_as_proposals: bool
    needs_losses: bool

    def choose(self, assignment: Assignment, class_losses: ClassLosses) -> tuple[Tensor, Tensor]:
        """Indices of positives and of negatives, each ascending."""
        ...


@MODELS.register
class RandomSampler:
    """Draws a fixed number of priors at random, positives up to a share of them, negatives for the rest.

    Draws come from torch's default generator on the CPU whatever device the boxes are on, so that a seed gives the same
    sample everywhere.

    Args:
        num: Positives and negatives together.
        pos_fraction: Share of positives at most.
        add_gt_as_proposals: RoI heads put the ground truths before the proposals.
    """

    def __init__(self, num: Count, pos_fraction: Probability, add_gt_as_proposals: bool = True) -> None:
        self.num = num
        self.pos_fraction = pos_fraction
        self.add_gt_as_proposals = add_gt_as_proposals

    def choose(self, assignment: Assignment) -> tuple[Tensor, Tensor]:
        """Indices of positives (P,) and of negatives (S - P,), int64, each ascending."""
        positives, negatives = positives_and_negatives(assignment)
        positives = draw(positives, int(self.num * self.pos_fraction))
        return positives, draw(negatives, self.num - len(positives))


def positives_and_negatives(assignment: Assignment) -> tuple[Tensor, Tensor]:
    """Indices of all positives and of all negatives, int64, each ascending."""
    # nonzero waits for the device: how many there are decides the shapes of all that follows.
    positives = (assignment.gt_indices >= 0).nonzero().squeeze(1)
    negatives = (assignment.gt_indices == NEGATIVE).nonzero().squeeze(1)
    return positives, negatives


def draw(indices: Tensor, count: int) -> Tensor:
    """At most ``count`` of the indices (n,), drawn at random on the CPU, in their order."""
    if len(indices) <= count:
        return indices
    chosen = torch.randperm(len(indices))[:count].sort().values
    return indices[chosen.to(indices.device)]


@dataclass(frozen=True)
class Samples:
    """The RoIs of one image that take part in a loss: positives first, then negatives.

    Attributes:
        boxes: (S, 4).
        gt_indices: (P,) int64, each positive's ground truth.
        gt_boxes: (P, 4) its box.
        gt_labels: (P,) its label.
        is_gt: (P,) bool, whether the positive is itself a ground truth that was put among the proposals.
        mask_targets: By side S what masks are trained on, (at most P, S, S), once a head has asked for it: others that
            are trained on the same samples need not compute it again.
    """

    boxes: Tensor
    gt_indices: Tensor
    gt_boxes: Tensor
    gt_labels: Tensor
    is_gt: Tensor
    mask_targets: dict[int, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def num_positives(self) -> int:
        """P."""
        return len(self.gt_indices)

    @property
    def positive_boxes(self) -> Tensor:
        """(P, 4)."""
        return self.boxes[: self.num_positives]


def sample_rois(
    assigner: Assigner,
    sampler: Sampler | LossSampler,
    proposals: Tensor,
    target: Target,
    roi_losses: RoILosses | None = None,
) -> Samples:
    """Assigns and samples the proposals of one image.

    Args:
        assigner: Decides which are positive and negative.
        sampler: Chooses among them; with ``add_gt_as_proposals`` the ground truths come first and are their own
            matches.
        proposals: (n, 4).
        target: Its boxes, labels and ignore_boxes are read.
        roi_losses: What a LossSampler finds the hard RoIs by; None with others.
    """
    assignment = assigner.assign(proposals, target.boxes, target.ignore_boxes)
    num_gts = len(target.boxes)
    is_gt = torch.zeros(len(proposals), dtype=torch.bool, device=proposals.device)
    if sampler.add_gt_as_proposals and num_gts:
        proposals = torch.cat([target.boxes, proposals])
        is_gt = torch.cat([is_gt.new_ones(num_gts), is_gt])
        assignment = Assignment(
            torch.cat([torch.arange(num_gts, device=proposals.device), assignment.gt_indices]),
            torch.cat([assignment.max_ious.new_ones(num_gts), assignment.max_ious]),
        )
    if roi_losses is None:
        positives, negatives = cast(Sampler, sampler).choose(assignment)
    else:
        class_losses = _class_losses(roi_losses, proposals, target.labels, assignment.gt_indices)
        positives, negatives = cast(LossSampler, sampler).choose(assignment, class_losses)
    gt_indices = assignment.gt_indices[positives]
    return Samples(
        boxes=proposals[torch.cat([positives, negatives])],
        gt_indices=gt_indices,
        gt_boxes=target.boxes[gt_indices],
        gt_labels=target.labels[gt_indices],
        is_gt=is_gt[positives],
    )


def _class_losses(roi_losses: RoILosses, proposals: Tensor, gt_labels: Tensor, gt_indices: Tensor) -> ClassLosses:
    """The losses of proposals (n, 4) by their indices, given what ground truth each has (n,), or NEGATIVE."""
    # NEGATIVE as an index is the last place, and as a label the background.
    labels = torch.cat([gt_labels, gt_labels.new_full((1,), NEGATIVE)])
    return lambda rows: roi_losses(proposals[rows], labels[gt_indices[rows]])
