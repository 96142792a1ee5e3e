"""Arithmetic of boxes: overlaps, the delta coder, clipping, non-maximum suppression.

Shapes and names:
    M, N: numbers of boxes; boxes are (x1, y1, x2, y2) edges in continuous pixels, so that the width is x2 - x1.
    deltas: (..., 4) as (dx, dy, dw, dh), a box relative to a prior (an anchor or a RoI).
    bounds: (..., 2) as (width, height), what boxes are clipped to: an image's true size, without padding.
    rois: (R, 5) as (number of the image in the batch, x1, y1, x2, y2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

if TYPE_CHECKING:
    from dpipe.target import Target

MAX_LOG_RATIO = abs(math.log(16 / 1000))
"""How far dw and dh may go: a box is at most 62.5 times larger or smaller than its prior."""


BLOCK = 2**21
"""Values of a table of pairs that are worked on at a time: little beside the table, and few steps for a GPU."""


def box_areas(boxes: Tensor) -> Tensor:
    """Areas of boxes (..., 4) as (...)."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _intersect(boxes: Tensor, others: Tensor, out: Tensor, scratch: Tensor) -> None:
    """Areas of intersection of boxes (M, 4) and others (N, 4) into ``out``; both buffers are (M, N)."""
    sides = []
    for low, side in ((0, out), (1, torch.empty_like(out))):
        torch.minimum(boxes[:, low + 2, None], others[None, :, low + 2], out=side)
        torch.maximum(boxes[:, low, None], others[None, :, low], out=scratch)
        sides.append(side.sub_(scratch).clamp_(min=0))
    out.mul_(sides[1])


@torch.no_grad()
def pairwise_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of every pair, without gradient.

    Args:
        boxes: (M, 4).
        others: (N, 4).

    Returns:
        (M, N), 0 where a union is empty. Hardly more memory than that is held on the way: rows are filled in blocks.
    """
    ious = boxes.new_empty((len(boxes), len(others)))
    areas, other_areas = box_areas(boxes), box_areas(others)
    for rows in blocks(len(boxes), len(others)):
        block = ious[rows]
        unions = torch.empty_like(block)
        _intersect(boxes[rows], others, block, unions)
        torch.add(areas[rows, None], other_areas[None], out=unions)
        block.div_(unions.sub_(block).clamp_(min=1e-6))
    return ious


@torch.no_grad()
def pairwise_iof(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over the area of the first (foreground) box, for every pair, without gradient.

    Args:
        boxes: (M, 4), whose areas divide.
        others: (N, 4).

    Returns:
        (M, N).
    """
    shares = boxes.new_empty((len(boxes), len(others)))
    areas = box_areas(boxes)
    for rows in blocks(len(boxes), len(others)):
        _intersect(boxes[rows], others, shares[rows], torch.empty_like(shares[rows]))
        shares[rows].div_(areas[rows, None].clamp(min=1e-6))
    return shares


def blocks(num_rows: int, row_length: int) -> list[slice]:
    """Slices of rows that hold about BLOCK values each."""
    step = max(1, BLOCK // max(row_length, 1))
    return [slice(start, start + step) for start in range(0, num_rows, step)]


class DeltaCoder(nn.Module):
    """Boxes as deltas from priors: shifts in units of the prior's size, logs of scales (arXiv 1311.2524, appendix C).

    Args:
        stds: What the four deltas are divided by, so that regression targets have about unit variance.
    """

    def __init__(self, stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> None:
        super().__init__()
        # On the device with the model, so that no iteration copies them there; no part of checkpoints.
        self.stds: Tensor
        self.register_buffer("stds", torch.tensor(list(stds), dtype=torch.float32), persistent=False)

    def encode(self, priors: Tensor, boxes: Tensor) -> Tensor:
        """Deltas (..., 4) that take priors (..., 4) to boxes (..., 4)."""
        prior_sizes = priors[..., 2:] - priors[..., :2]
        sizes = boxes[..., 2:] - boxes[..., :2]
        prior_centres = (priors[..., :2] + priors[..., 2:]) * 0.5
        centres = (boxes[..., :2] + boxes[..., 2:]) * 0.5
        deltas = torch.cat([(centres - prior_centres) / prior_sizes, torch.log(sizes / prior_sizes)], dim=-1)
        return deltas / self.stds

    def decode(self, priors: Tensor, deltas: Tensor, bounds: Tensor | None = None) -> Tensor:
        """Boxes that deltas describe.

        Args:
            priors: (..., 4).
            deltas: (..., 4), of a shape that broadcasts with the priors.
            bounds: (..., 2) width and height to clip to; nothing is clipped without it.

        Returns:
            Boxes (..., 4).
        """
        deltas = deltas * self.stds
        prior_sizes = priors[..., 2:] - priors[..., :2]
        prior_centres = (priors[..., :2] + priors[..., 2:]) * 0.5
        centres = prior_centres + prior_sizes * deltas[..., :2]
        half_sizes = prior_sizes * deltas[..., 2:].clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp() * 0.5
        boxes = torch.cat([centres - half_sizes, centres + half_sizes], dim=-1)
        return boxes if bounds is None else clip_boxes(boxes, bounds)


def regression_loss(
    loss: nn.Module, coder: DeltaCoder, priors: Tensor, deltas: Tensor, gt_boxes: Tensor, avg_factor: float
) -> Tensor:
    """The loss of predicted deltas: of themselves, or of the boxes that they describe where the loss takes boxes.

    Args:
        loss: A loss of boxes; its attribute ``takes_boxes`` tells which, and without it deltas are meant.
        coder: How deltas are encoded.
        priors: (P, 4).
        deltas: (P, 4), predicted.
        gt_boxes: (P, 4).
        avg_factor: What the sum is divided by.

    Returns:
        A scalar.
    """
    if getattr(loss, "takes_boxes", False):
        return loss(coder.decode(priors, deltas), gt_boxes, avg_factor=avg_factor)
    return loss(deltas, coder.encode(priors, gt_boxes), avg_factor=avg_factor)


def clip_boxes(boxes: Tensor, bounds: Tensor) -> Tensor:
    """Boxes (..., 4) cut to 0..width and 0..height, where bounds are (..., 2) as (width, height)."""
    return torch.minimum(boxes.clamp(min=0), torch.cat([bounds, bounds], dim=-1))


def image_bounds(targets: Sequence[Target], like: Tensor) -> Tensor:
    """Width and height of each image without padding: (N, 2), of the dtype and on the device of ``like``."""
    return on_device([side for target in targets for side in target.size[::-1]], like).reshape(-1, 2)


def on_device(values: Sequence[float], like: Tensor) -> Tensor:
    """A few numbers (k,) as a tensor of the dtype and on the device of ``like``.

    They travel with the kernels that write them. A tensor made of a list is copied, and the copy waits for the device.
    """
    return torch.stack([like.new_full((), value) for value in values])


def boxes_to_rois(boxes: Sequence[Tensor]) -> Tensor:
    """One table of RoIs, image after image.

    Args:
        boxes: For each image, (n_i, 4).

    Returns:
        (R, 5): the image's number, then the box; R is the sum of n_i.
    """
    return torch.cat([torch.cat([b.new_full((len(b), 1), i), b], dim=1) for i, b in enumerate(boxes)])


def group_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou_thr: float, max_kept: int) -> Tensor:
    """Non-maximum suppression within each group (a level of the pyramid, or a class).

    A box is dropped when its IoU with a better box of its group is greater than ``iou_thr``.

    Args:
        boxes: (N, 4).
        scores: (N,).
        groups: (N,) int64.
        iou_thr: The threshold.
        max_kept: How many boxes of all groups together are kept at most.

    Returns:
        (K,) int64 indices, best score first.
    """
    return batched_nms(boxes, scores, groups, iou_thr)[:max_kept]
