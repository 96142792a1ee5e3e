"""Adaptive pooling and resizing back as products of matrices, for graphs whose sizes are not known.

Graph formats have no pooling to a size that depends on the input's. Both steps treat each axis by itself, and are
linear: of an axis, one matrix of weights does both.

Shapes and names:
    n cells of an axis; p cells that it is pooled to, 1 <= p <= n.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pool_and_resize(x: Tensor, ratio: float) -> Tensor:
    """Averages to ``ratio`` of the size, rounded down and at least 1, then resizes back (bilinear, aligned corners).

    Args:
        x: (N, C, H, W).
        ratio: In 0..1.

    Returns:
        (N, C, H, W), but for rounding what ``adaptive_avg_pool2d`` and ``interpolate`` give.
    """
    rows, columns = (_weights(size, ratio, x) for size in x.shape[-2:])
    return rows @ x @ columns.T


def _weights(size: int, ratio: float, like: Tensor) -> Tensor:
    """What every cell of an axis is made of, (n, n), each row adding up to 1."""
    cells = torch.arange(size, device=like.device)
    # As Python computes it, in double precision.
    pooled_size = (torch.full((), size, dtype=torch.float64, device=like.device) * ratio).long().clamp(min=1)  # p
    # Row i of the pooling averages from floor(i n / p) to ceil((i + 1) n / p); rows from p on are not read.
    starts = cells * size // pooled_size
    stops = ((cells + 1) * size + pooled_size - 1) // pooled_size
    inside = (cells >= starts[:, None]) & (cells < stops[:, None])  # (n, n)
    pooling = inside.to(like.dtype) / (stops - starts)[:, None].to(like.dtype)
    # Cell 0 lies at 0 and cell n - 1 at p - 1; a single pooled cell is all there is.
    at = cells.to(like.dtype) * (pooled_size - 1).to(like.dtype) / max(size - 1, 1)
    resizing = (1 - (at[:, None] - cells.to(like.dtype)).abs()).clamp(min=0)  # (n, n)
    return resizing @ pooling
