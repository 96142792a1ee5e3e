"""What the points of FCOS (arXiv 1904.01355, sections 3.1 to 3.3) are trained on.

Shapes and names:
    L levels; H, W size of a level's feature map; n points, the sum of H * W over levels, in the order level, row,
    column; G ground truths of one image; K classes.
    distances: (..., 4) from a point to the left, top, right and bottom edge of its box, in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detect.models.boxes import blocks, box_areas


@dataclass(frozen=True)
class PointTargets:
    """What the points of one image are trained on.

    Attributes:
        labels: (n,) int64, the class of the object that each point answers for, or K for the background.
        distances: (n, 4) to the edges of that object's box; of the background without meaning.
        gt_indices: (n,) int64, that object's index, or -1 for the background.
    """

    labels: Tensor
    distances: Tensor
    gt_indices: Tensor


def level_points(sizes: Sequence[tuple[int, int]], strides: Sequence[int], device: torch.device) -> list[Tensor]:
    """The centres of all cells.

    Args:
        sizes: (H, W) of each level.
        strides: Pixels per cell of each level.
        device: Where the points are wanted.

    Returns:
        For each level (H * W, 2) float32 as (x, y), row by row: (j + 1/2, i + 1/2) strides for the cell in row i and
        column j.
    """
    points = []
    for (height, width), stride in zip(sizes, strides, strict=True):
        y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) * stride
        x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) * stride
        yy, xx = torch.meshgrid(y, x, indexing="ij")
        points.append(torch.stack([xx, yy], dim=-1).reshape(-1, 2))
    return points


def assign_points(
    points: Tensor, ranges: Tensor, radii: Tensor | None, gt_boxes: Tensor, gt_labels: Tensor, num_classes: int
) -> PointTargets:
    """Finds the object that each point of an image answers for.

    A point answers for a box that it is strictly inside of, if the longest of its distances to the edges is within
    its level's range, both ends included. Of several boxes it takes the one of the smallest area. With ``radii`` it has
    to be near the box's centre as well (centre sampling).

    Args:
        points: (n, 2) of all levels, as (x, y).
        ranges: (n, 2), the least and the greatest distance that each point may predict.
        radii: (n,) how far from the box's centre a point may be along each axis; None for anywhere in the box.
        gt_boxes: (G, 4).
        gt_labels: (G,) int64.
        num_classes: K.

    Returns:
        What the points are trained on. Ignore regions have no part in this: points in them are background, as
        OpenMMLab has it.
    """
    if len(gt_boxes) == 0:
        background = torch.full_like(points[:, 0], num_classes, dtype=torch.int64)
        return PointTargets(background, points.new_zeros((len(points), 4)), torch.full_like(background, -1))
    found = [
        _assign(points[rows], ranges[rows], None if radii is None else radii[rows, None], gt_boxes)
        for rows in blocks(len(points), len(gt_boxes))
    ]
    gt_indices, distances = (torch.cat(parts) for parts in zip(*found, strict=True))
    return PointTargets(torch.where(gt_indices < 0, num_classes, gt_labels[gt_indices]), distances, gt_indices)


def _assign(points: Tensor, ranges: Tensor, radii: Tensor | None, gt_boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Ground truths (n,) of some points (n, 2), -1 for none, and distances (n, 4); ``radii`` are (n, 1)."""
    x, y = points[:, :1], points[:, 1:]
    left, top, right, bottom = x - gt_boxes[:, 0], y - gt_boxes[:, 1], gt_boxes[:, 2] - x, gt_boxes[:, 3] - y  # (n, G)
    shortest = torch.minimum(torch.minimum(left, right), torch.minimum(top, bottom))
    longest = torch.maximum(torch.maximum(left, right), torch.maximum(top, bottom))
    usable = (shortest > 0) & (longest >= ranges[:, :1]) & (longest <= ranges[:, 1:])
    if radii is not None:
        centres = (gt_boxes[:, :2] + gt_boxes[:, 2:]) / 2
        usable &= ((x - centres[:, 0]).abs() < radii) & ((y - centres[:, 1]).abs() < radii)
    smallest, chosen = torch.where(usable, box_areas(gt_boxes), torch.inf).min(dim=1)
    rows = chosen[:, None]
    distances = torch.cat([edge.gather(1, rows) for edge in (left, top, right, bottom)], dim=1)
    return torch.where(smallest.isinf(), -1, chosen), distances


def centerness(distances: Tensor) -> Tensor:
    """How central points are in their boxes (section 3.4): 1 at the centre, 0 at an edge.

    Args:
        distances: (P, 4), all above 0.

    Returns:
        (P,): the square root of the product of both axes' ratio of the shorter to the longer distance.
    """
    left, top, right, bottom = distances.unbind(dim=1)
    horizontal = torch.minimum(left, right) / torch.maximum(left, right)
    vertical = torch.minimum(top, bottom) / torch.maximum(top, bottom)
    return (horizontal * vertical).sqrt()
