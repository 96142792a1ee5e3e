"""Samplers that prefer hard priors: by their losses, or by how nearly they fit a ground truth.

Shapes and names:
    n priors of one image; P sampled positives; S sampled positives and negatives; m negatives there are.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from detect.models.arguments import Count, Probability
from detect.models.assign import Assignment, ClassLosses, LossSampler, Sampler, draw, positives_and_negatives
from detect.models.interfaces import BBoxHead
from detect.registry import MODELS
from dpipe.errors import InputError


@MODELS.register
class OHEMSampler:
    """Takes the RoIs with the greatest class losses: online hard example mining (arXiv 1604.03540).

    As OpenMMLab has it: positives and negatives have their shares as in random sampling, and only where there are more
    than that do losses choose among them. For RoI heads alone, which compute the losses without gradient, image by
    image, with the bbox head that is about to be trained (a cascade's stage with its own).

    Args:
        num: Positives and negatives together.
        pos_fraction: Share of positives at most.
        add_gt_as_proposals: RoI heads put the ground truths before the proposals.
    """

    needs_losses = True

    def __init__(self, num: Count, pos_fraction: Probability, add_gt_as_proposals: bool = True) -> None:
        self.num = num
        self.pos_fraction = pos_fraction
        self.add_gt_as_proposals = add_gt_as_proposals

    def choose(self, assignment: Assignment, class_losses: ClassLosses) -> tuple[Tensor, Tensor]:
        """Indices of positives (P,) and of negatives (S - P,), int64, each ascending.

        Args:
            assignment: Of n priors.
            class_losses: Tells the priors' losses; called only for a kind of which there are too many.
        """
        positives, negatives = positives_and_negatives(assignment)
        positives = _hardest(positives, int(self.num * self.pos_fraction), class_losses)
        return positives, _hardest(negatives, self.num - len(positives), class_losses)


def _hardest(indices: Tensor, count: int, class_losses: ClassLosses) -> Tensor:
    """The at most ``count`` of the indices (n,) with the greatest losses, in their order."""
    if len(indices) <= count:
        return indices
    return indices[class_losses(indices).topk(count).indices.sort().values]


@MODELS.register
class IoUBalancedNegSampler:
    """Draws negatives evenly over their IoU with ground truths, positives at random (Libra R-CNN, arXiv 1904.02701).

    As OpenMMLab has it: bins of equal width go from ``floor_thr`` to the image's greatest IoU, that of positives
    included; each gives the same number of negatives, and what bins lack is drawn from all of them. All is random
    sampling's where there are no more negatives than are needed.

    Args:
        num: Positives and negatives together.
        pos_fraction: Share of positives at most.
        floor_thr: Negatives below this IoU (with 0, those of IoU 0) are in no bin; -1 puts all into bins, for every
            image (OpenMMLab's takes it for 0 from the second image on).
        floor_fraction: Share of the negatives that is drawn from those below ``floor_thr``.
        num_bins: How many bins; with 1 those above ``floor_thr`` are drawn alike.
        add_gt_as_proposals: RoI heads put the ground truths before the proposals.

    Raises:
        InputError: If ``floor_thr`` is negative and not -1.
    """

    def __init__(
        self,
        num: Count,
        pos_fraction: Probability,
        floor_thr: Annotated[float, Field(le=1)] = -1.0,
        floor_fraction: Probability = 0.0,
        num_bins: Count = 3,
        add_gt_as_proposals: bool = True,
    ) -> None:
        if floor_thr < 0 and floor_thr != -1:
            raise InputError(f"IoUBalancedNegSampler: floor_thr is an IoU, or -1 for none, got {floor_thr}")
        self.num = num
        self.pos_fraction = pos_fraction
        self.floor_thr = floor_thr
        self.floor_fraction = floor_fraction
        self.num_bins = num_bins
        self.add_gt_as_proposals = add_gt_as_proposals

    def choose(self, assignment: Assignment) -> tuple[Tensor, Tensor]:
        """Indices of positives (P,) and of negatives (S - P,), int64, each ascending."""
        positives, negatives = positives_and_negatives(assignment)
        positives = draw(positives, int(self.num * self.pos_fraction))
        count = self.num - len(positives)
        if len(negatives) > count:
            # Drawn on the CPU, as in random sampling; how full the bins are the host would have to know anyway.
            max_ious = assignment.max_ious.cpu()
            rows = self._balanced(max_ious[negatives.cpu()], max_ious.max().item(), count)
            negatives = negatives[rows.to(negatives.device)]
        return positives, negatives

    def _balanced(self, ious: Tensor, max_iou: float, count: int) -> Tensor:
        """Which ``count`` of the negatives' IoUs (m,) are drawn: rows (count,), ascending."""
        chosen = torch.zeros(len(ious), dtype=torch.bool)

        def take(allowed: Tensor, most: int) -> None:
            chosen[draw((allowed & ~chosen).nonzero().squeeze(1), most)] = True

        low = max(self.floor_thr, 0.0)
        # A floor of 0 is where IoU is 0; without a floor there is nothing below it.
        binned = ious > 0 if self.floor_thr == 0 else ious >= low
        most = int(count * (1 - self.floor_fraction))
        if self.num_bins > 1 and binned.sum() > most:
            width = (max_iou - low) / self.num_bins
            for number in range(self.num_bins):
                start, end = low + number * width, low + (number + 1) * width
                take(binned & (ious >= start) & (ious < end), most // self.num_bins)
        take(binned, most - int(chosen.sum()))
        take(~binned, count - int(chosen.sum()))
        take(torch.ones_like(chosen), count - int(chosen.sum()))
        return chosen.nonzero().squeeze(1)


def needs_losses(sampler: Sampler | LossSampler) -> bool:
    """Whether a sampler reads the losses of what it chooses from."""
    return getattr(sampler, "needs_losses", False)


def check_sampler(sampler: Sampler | LossSampler, heads: Sequence[BBoxHead], owner: str) -> None:
    """Checks that a RoI head can give a sampler what it needs.

    Args:
        sampler: The sampler.
        heads: Its bbox heads, whose losses of classes a sampler may read.
        owner: The class that got both.

    Raises:
        InputError: If a loss does not tell the loss of each RoI.
    """
    for loss in [head.loss_cls for head in heads] if needs_losses(sampler) else []:
        known = inspect.signature(loss.forward).parameters.values()
        if not any(p.name == "reduction_override" or p.kind is inspect.Parameter.VAR_KEYWORD for p in known):
            raise InputError(
                f"{owner}: {type(sampler).__name__} reads the loss of each RoI, but the forward of "
                f"{type(loss).__name__} has no reduction_override"
            )
