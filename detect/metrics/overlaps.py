"""Intersection over union of many boxes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def pairwise_iou(first: Floats, second: Floats) -> Floats:
    """IoUs of all pairs of two sets of boxes.

    Args:
        first: (A, 4) x1, y1, x2, y2.
        second: (B, 4).

    Returns:
        (A, B); 0 for boxes without an area.
    """
    corner = np.maximum(first[:, None, :2], second[None, :, :2])
    size = np.maximum(np.minimum(first[:, None, 2:], second[None, :, 2:]) - corner, 0.0)
    overlap = size.prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None] - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)


def corners(boxes: Floats) -> Floats:
    """Boxes (D, 4) of x, y, width and height as x1, y1, x2, y2."""
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
