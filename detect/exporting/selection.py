"""Choosing boxes with shapes that no image decides: as many places as can be kept, of which some stay empty.

Shapes and names:
    N images; C candidates of an image, not all of which take part; k places for what is kept; boxes (x1, y1, x2, y2)
    in pixels, clipped to the image.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchvision.ops import nms

EMPTY = -1.0
"""The score of a place where nothing is; that of a box is a probability."""


def best_of(scores: Tensor, count: int, empty: float = EMPTY) -> tuple[Tensor, Tensor]:
    """The best candidates of each image, best first.

    Args:
        scores: (N, C), ``empty`` for what takes no part; C may depend on the images' size.
        count: k.
        empty: Less than any score.

    Returns:
        Scores (N, k), ``empty`` where there is nothing, and indices (N, k) int64 into the candidates, 0 there.
    """
    # With k places more, k is never too many: the size of an image does not decide shapes.
    places = scores.new_full((1, count), empty).expand(scores.shape[0], -1)
    best, order = torch.cat([scores, places], dim=1).topk(count, dim=1)
    return best, torch.where(best > empty, order, 0)


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, num_groups: int, bounds: Tensor, iou_thr: float) -> Tensor:
    """Non-maximum suppression within each group (a level, or a class) of each image.

    Args:
        boxes: (N, C, 4), nowhere beyond the image.
        scores: (N, C); what is not above 0 takes no part.
        groups: (N, C) int64 in 0..``num_groups`` - 1.
        num_groups: How many groups an image has.
        bounds: (2,) width and height of the images.
        iou_thr: A box is dropped when its IoU with a better one of its group is greater.

    Returns:
        Scores (N, C), ``EMPTY`` for what was dropped or took no part.
    """
    # Groups side by side on a grid, a row of images below the other: what does not meet cannot suppress. In two
    # directions coordinates stay small, which keeps the rounding of the overlaps small.
    columns = math.ceil(math.sqrt(num_groups))
    rows = math.ceil(num_groups / columns)
    images = torch.arange(boxes.shape[0], device=boxes.device)[:, None]
    cells = torch.stack([groups % columns, groups // columns + images * rows], dim=-1)  # (N, C, 2)
    moved = boxes + (cells.to(boxes.dtype) * (bounds + 1)).repeat(1, 1, 2)

    flat_scores = scores.flatten()
    taking_part = (flat_scores > 0).nonzero().squeeze(1)
    kept = taking_part[nms(moved.flatten(0, 1)[taking_part], flat_scores[taking_part], iou_thr)]
    is_kept = torch.zeros_like(flat_scores).index_fill(0, kept, 1.0)
    return torch.where(is_kept > 0, flat_scores, EMPTY).view_as(scores)


def take(values: Tensor, order: Tensor) -> Tensor:
    """Rows (N, k, ...) of values (N, C, ...) by indices (N, k)."""
    trailing = values.shape[2:]
    index = order.reshape(*order.shape, *(1 for _ in trailing)).expand(-1, -1, *trailing)
    return values.gather(1, index)
