"""RoIAlign (arXiv 1703.06870), on a CPU as products of matrices.

Shapes and names:
    N images; L levels (N, C, H_l, W_l); R RoIs (number of the image, x1, y1, x2, y2) in pixels; S side of the output
    grid; h, w cells that a RoI reads along an axis.

The samples of an output cell lie on a grid, and interpolation treats each axis by itself. So the output of a RoI is
``rows @ patch @ columns.T`` for each channel, where ``rows`` (S, h) and ``columns`` (S, w) hold the axes' weights.
With the channels last that is a few products with long rows, about five times as fast as torchvision's loops, and
backwards fifteen times: those use one thread there, whatever there are. The result is the same but for rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BATCH_VALUES = 2**20
"""Values between the two products that are worked on at a time: they stay in a core's cache."""


def by_products(feature: Tensor) -> bool:
    """Whether RoIs of a level are cut out by products: on a CPU, but not where the model is traced or compiled.

    There it has to be one operator, whose shapes are known without the RoIs.
    """
    one_operator = _ONE_OPERATOR.get() or torch.compiler.is_compiling() or torch.jit.is_tracing()
    return feature.device.type == "cpu" and not one_operator


@contextmanager
def as_one_operator() -> Iterator[None]:
    """Within it RoIs are cut out by one operator on a CPU too, whose products nobody takes for those of layers."""
    before = _ONE_OPERATOR.set(True)
    try:
        yield
    finally:
        _ONE_OPERATOR.reset(before)


_ONE_OPERATOR = ContextVar("one operator", default=False)


def laid_out(levels: Sequence[Tensor]) -> list[Tensor]:
    """Levels (N, C, H_l, W_l) in memory as RoIAlign reads them, which would else copy a level at each call."""
    return [
        level.contiguous(memory_format=torch.channels_last if by_products(level) else torch.contiguous_format)
        for level in levels
    ]


def align_by_products(
    features: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,
    strides: Sequence[int],
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """RoIAlign of every RoI on its level.

    Can be differentiated once, with regard to the features.

    Args:
        features: L levels (N, C, H_l, W_l) on the CPU, of the RoIs' dtype.
        rois: (R, 5). One that is not finite gets no samples, and so zeros.
        levels: (R,) int64.
        strides: Pixels per cell of each level.
        output_size: S.
        sampling_ratio: Samples per output cell and axis; 0 adapts their number to the RoI's size.
        aligned: Whether the centre of cell i is at i + 0.5; else it is at i, and no RoI is smaller than a cell.

    Returns:
        (R, C, S, S), the channels last in memory.
    """
    sizes = torch.tensor([level.shape[-2:] for level in features])[levels]  # (R, 2)
    corners = rois[:, 1:] * (1 / torch.tensor(strides, dtype=rois.dtype))[levels, None]
    shape = (output_size, sampling_ratio, aligned)
    rows = _axis(corners[:, 1], corners[:, 3], sizes[:, 0], *shape)
    columns = _axis(corners[:, 0], corners[:, 2], sizes[:, 1], *shape)
    return _Products.apply(rows, columns, levels.tolist(), rois[:, 0].long().tolist(), *features)


@dataclass(frozen=True)
class _Axis:
    """How the output depends on the cells along one axis.

    Attributes:
        weights: (R, S, most), of ``extents`` cells each; 0 beyond them.
        starts: For each RoI the first cell.
        extents: For each RoI how many cells.
    """

    weights: Tensor
    starts: list[int]
    extents: list[int]


def _axis(low: Tensor, high: Tensor, cells: Tensor, bins: int, sampling_ratio: int, aligned: bool) -> _Axis:
    """Weights of one axis.

    Args:
        low: (R,) where RoIs begin, in cells.
        high: (R,) where they end.
        cells: (R,) int64, how many cells there are.
        bins: S.
        sampling_ratio: Samples per output cell; 0 for as many as input cells, rounded up.
        aligned: See :func:`align_by_products`.
    """
    if aligned:
        low, high = low - 0.5, high - 0.5
    length = high - low if aligned else (high - low).clamp(min=1)
    length = torch.where(length.isfinite(), length, 0.0)
    bin_size = length / bins
    counts = torch.full_like(length, sampling_ratio) if sampling_ratio > 0 else bin_size.ceil().clamp(min=0)
    number = torch.arange(max([1, *counts.long().tolist()]), dtype=low.dtype)  # of a sample in its bin
    steps = (number + 0.5) * bin_size[:, None] / counts[:, None]  # (R, samples)
    bins_at = low[:, None] + torch.arange(bins, dtype=low.dtype) * bin_size[:, None]  # (R, S)
    at = bins_at[:, :, None] + steps[:, None]  # (R, S, samples)
    last = (cells - 1)[:, None, None]
    # A sample up to a cell beyond the border is moved onto it, one further away is 0.
    valid = (at >= -1) & (at <= last + 1) & (number < counts[:, None])[:, None]
    at = torch.where(valid, at, 0.0).clamp(min=0).minimum(last.to(at.dtype))
    below = at.long()
    share = (at - below) / counts[:, None, None]  # of the cell above
    starts = torch.where(valid, below, last).flatten(1).amin(dim=1)
    offsets = torch.where(valid, below - starts[:, None, None], 0)
    reach = torch.where(valid, offsets + 2, 0).flatten(1).amax(dim=1)
    extents = torch.minimum(reach, cells - starts).tolist()
    weights = low.new_zeros((len(low), bins, max([0, *extents]) + 2))
    weights.scatter_add_(2, offsets, torch.where(valid, 1 / counts[:, None, None] - share, 0.0))
    weights.scatter_add_(2, offsets + 1, torch.where(valid, share, 0.0))
    return _Axis(weights, starts.tolist(), extents)


class _Products(torch.autograd.Function):
    """Applies the weights of both axes to patches of features."""

    @staticmethod
    def forward(
        ctx: Any, rows: _Axis, columns: _Axis, levels: list[int], images: list[int], *features: Tensor
    ) -> Tensor:
        """See :func:`align_by_products`."""
        ctx.arguments = rows, columns, levels, images, [feature.shape for feature in features]
        channels, bins = features[0].shape[1], rows.weights.shape[1]
        lines = [feature.permute(0, 2, 3, 1).contiguous().flatten(2) for feature in features]  # N, H_l, W_l * C
        out = features[0].new_empty((len(levels), bins, bins, channels))
        with torch.autocast("cpu", enabled=False):
            for batch, width in _batches(columns, channels):
                halves = out.new_zeros((batch.stop - batch.start, bins, width * channels))
                for half, roi in zip(halves, range(batch.start, batch.stop), strict=True):
                    y, height = rows.starts[roi], rows.extents[roi]
                    x, extent = columns.starts[roi] * channels, columns.extents[roi] * channels
                    patch = lines[levels[roi]][images[roi], y : y + height, x : x + extent]
                    torch.mm(rows.weights[roi, :, :height], patch, out=half[:, :extent])
                weights = columns.weights[batch, None, :, :width]  # B, 1, S, w
                torch.matmul(weights, halves.unflatten(2, (width, channels)), out=out[batch])
        return out.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The transposed products, added up in the order of the RoIs."""
        rows, columns, levels, images, shapes = ctx.arguments
        grad = grad.permute(0, 2, 3, 1).contiguous()  # R, S, S, C
        lines = [grad.new_zeros((n, height, width * channels)) for n, channels, height, width in shapes]
        channels = grad.shape[3]
        with torch.autocast("cpu", enabled=False):
            for batch, width in _batches(columns, channels):
                weights = columns.weights[batch, None, :, :width].transpose(2, 3)  # B, 1, w, S
                halves = torch.matmul(weights, grad[batch]).flatten(2)  # B, S, w * C
                for half, roi in zip(halves, range(batch.start, batch.stop), strict=True):
                    y, height = rows.starts[roi], rows.extents[roi]
                    x, extent = columns.starts[roi] * channels, columns.extents[roi] * channels
                    patch = lines[levels[roi]][images[roi], y : y + height, x : x + extent]
                    patch.addmm_(rows.weights[roi, :, :height].T, half[:, :extent])
        grads = [
            line.view(n, height, width, -1).permute(0, 3, 1, 2)
            for line, (n, _, height, width) in zip(lines, shapes, strict=True)
        ]
        return None, None, None, None, *grads


def _batches(columns: _Axis, channels: int) -> list[tuple[slice, int]]:
    """RoIs that are worked on together, and the most cells that one of them reads along a line."""
    bins, most = columns.weights.shape[1:]
    step = max(1, BATCH_VALUES // (bins * most * channels)) if most else 1
    count = len(columns.extents)
    return [
        (slice(start, min(start + step, count)), max(columns.extents[start : start + step]))
        for start in range(0, count, step)
    ]
