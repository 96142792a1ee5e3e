"""Polygons to bitmaps and to grids over boxes, as tensors on any device.

The vertices go to the device once, and all else is made there, by the methods of ``polygon_fill`` and
``polygon_raster``; the host waits two or three times, for how much memory is needed next. All sums are of whole
numbers, which come out the same in whatever order a GPU adds: the same polygons give the same bits each time.

Names: V vertices, R rings, P parts (an outer ring and its holes), I instances, E edges, n boxes, S cells along a side.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dpipe.backends.choose import checked_device
from dpipe.outlines.polygon_raster import next_vertex, signed_ring_areas
from dpipe.outlines.ragged import group_numbers, offsets_of
from dpipe.polygons import Polygons, check_grids, no_such_instance

# Cover is counted in parts of a cell so small that float32 does not see them; there is room for 2**22 whole cells.
ONE = 1 << 40

# Boxes are measured in two halves, and these again, where there is more than this to do at a time, to bound the memory.
GRID_EDGES = 1 << 21
GRID_CELLS = 1 << 26


class _Edges(NamedTuple):
    """Polygons on a device.

    Attributes:
        start: (2, V) float64, x and y of where each edge begins.
        following: (V,) the number of the edge that begins where it ends.
        part: (V,) its part.
        sign: (V,) +1 or -1: taken in these directions, outer rings run one way and holes the other.
        offsets: (I+1,): instance i owns edges ``offsets[i]:offsets[i+1]``.
        parts: (I+1,): it owns parts ``parts[i]:parts[i+1]``.
    """

    start: Tensor
    following: Tensor
    part: Tensor
    sign: Tensor
    offsets: Tensor
    parts: Tensor


def _edges_on(polygons: Polygons, device: torch.device) -> _Edges:
    rings = group_numbers(polygons.ring_offsets)
    backwards = (signed_ring_areas(polygons.vertices, polygons.ring_offsets) < 0) != polygons.holes
    numbers = [
        next_vertex(polygons.ring_offsets),
        (np.cumsum(~polygons.holes) - 1)[rings],
        np.where(backwards, -1, 1)[rings],
        polygons.ring_offsets[polygons.instance_offsets],
        offsets_of((~polygons.holes).astype(np.int64))[polygons.instance_offsets],
    ]
    sent = torch.from_numpy(np.concatenate(numbers))
    vertices = torch.from_numpy(np.ascontiguousarray(polygons.vertices))
    if device.type == "cuda":
        sent, vertices = sent.pin_memory(), vertices.pin_memory()
    received = sent.to(device, non_blocking=True).split([len(part) for part in numbers])
    start = vertices.to(device, non_blocking=True).double().T.contiguous()
    return _Edges(start, *received)


def bitmaps_on(polygons: Polygons, height: int, width: int, device: torch.device | str) -> Tensor:
    """Full-size masks made on a device: those of ``Polygons.to_bitmaps``.

    Args:
        polygons: I instances.
        height: Of the masks, in pixels.
        width: Of the masks, in pixels.
        device: Where they are made.

    Returns:
        (I, height, width) uint8.

    Raises:
        InputError: If this machine has no such device.
    """
    device = checked_device(device)
    steps = torch.zeros(len(polygons) * height * width + 1, dtype=torch.int8, device=device)
    if len(polygons.holes) and len(steps) > 1:
        edges = _edges_on(polygons, device)
        # One line of pixels after another: those of the first part, or instance, then those of the second, ...
        parts = np.diff(offsets_of((~polygons.holes).astype(np.int64))[polygons.instance_offsets])
        instance_of_part = _groups(edges.parts)
        alone = bool((parts <= 1).all())
        owner = instance_of_part[edges.part] if alone else edges.part
        lines, columns = _toggles(edges, owner * height, height, width)
        keys = (lines * (width + 1) + columns).sort().values
        if not alone:
            keys = _union(keys, (width + 1) * height, instance_of_part)
        lines = keys // (width + 1)
        changes = torch.ones_like(keys, dtype=torch.int8)
        changes[1::2] = -1
        # A run that ends at the right border ends at the first pixel of the next line.
        steps.index_add_(0, keys - lines, changes)
    filled = steps.cumsum(0, dtype=torch.int8)[:-1]
    return filled.view(torch.uint8).view(len(polygons), height, width)


def _toggles(edges: _Edges, first_line: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Lines and columns where edges toggle rows of pixels; see ``polygon_fill.toggles`` for what is done and why."""
    x, y = edges.start
    first = (y - 0.5).ceil().clamp(0, height).long()
    last = first[edges.following]
    slope = (x[edges.following] - x) / (y[edges.following] - y)
    edge, row = _ranges(torch.minimum(first, last), (last - first).abs())
    crossing = x[edge] + (row + 0.5 - y[edge]) * slope[edge] - 0.5
    columns = crossing.ceil()
    columns += (columns == crossing) & (slope > 0)[edge]
    return first_line[edge] + row, columns.clamp(0, width).long()


def _union(keys: Tensor, size: int, instance_of_part: Tensor) -> Tensor:
    """Sorted toggles of parts, each with keys of its own ``size``, to those of their instances."""
    part = keys // size
    moved = (keys + (instance_of_part[part] - part) * size) * 2
    moved[1::2] += 1  # starts come before ends in the same place, so that runs which touch are one
    moved = moved.sort().values
    ends = moved % 2
    depth = (1 - 2 * ends).cumsum(0)
    return moved[depth == 1 - ends] // 2


def grids_on(polygons: Polygons, boxes: Tensor, instances: Tensor, size: int) -> Tensor:
    """The share of each cell that is inside, on a grid laid over each box: that of ``Polygons.to_grids``.

    It is made on the device that the boxes are on, where the vertices of all instances are sent.

    Args:
        polygons: I instances.
        boxes: (n, 4) xyxy boxes; one without width or height gives zeros.
        instances: (n,) int64, which instance each box looks at; on the same device.
        size: S.

    Returns:
        (n, S, S) float32 in 0..1, rows first.

    Raises:
        InputError: If there is not one instance for each box, one of them is not there, or ``size`` is below 1.
    """
    check_grids(len(boxes), len(instances), size)
    if len(boxes) == 0:
        return torch.zeros((0, size, size), device=boxes.device)
    if not len(polygons.holes):
        if bool(((instances < 0) | (instances >= len(polygons))).any()):
            raise no_such_instance(len(polygons))
        return torch.zeros((len(boxes), size, size), device=boxes.device)
    return _measure(_edges_on(polygons, boxes.device), boxes.detach().double(), instances, size)


def _measure(edges: _Edges, boxes: Tensor, instances: Tensor, size: int) -> Tensor:
    """See ``grids_on``."""
    extent = boxes[:, 2:] - boxes[:, :2]
    useful = (extent > 0).all(dim=1)
    # Looked up in vain, a number would end the program on a GPU; the host waits but once for all that it has to know.
    asked, instances = instances, instances.clamp(0, len(edges.offsets) - 2)
    edge_counts = torch.where(useful, edges.offsets[instances + 1] - edges.offsets[instances], 0)
    part_counts = torch.where(useful, edges.parts[instances + 1] - edges.parts[instances], 0)
    wanted = [edge_counts.sum(), part_counts.sum(), (asked != instances).sum()]
    edge_count, part_count, wrong = torch.stack(wanted).tolist()
    if wrong:
        raise no_such_instance(len(edges.offsets) - 1)
    if not edge_count:
        return torch.zeros((len(boxes), size, size), device=boxes.device)
    if len(boxes) > 1 and (edge_count > GRID_EDGES or part_count * size * (size + 1) > GRID_CELLS):
        halves = zip(boxes.tensor_split(2), instances.tensor_split(2), strict=True)
        return torch.cat([_measure(edges, *half, size) for half in halves])
    box, edge = _ranges(edges.offsets[instances], edge_counts, edge_count)
    parts_before = part_counts.cumsum(0) - part_counts
    part = edges.part[edge] + (parts_before - edges.parts[instances])[box]
    corner, factor = boxes[box, :2].T, (size / extent)[box].T
    x0, y0 = (edges.start[:, edge] - corner) * factor
    x1, y1 = (edges.start[:, edges.following[edge]] - corner) * factor
    cover = _coverage(x0, y0, x1, y1, edges.sign[edge], part, part_count, size)
    # Even-odd where a ring winds more than once, then the union of parts.
    cover = ONE - (cover.abs() % (2 * ONE) - ONE).abs()
    box_of_part = torch.repeat_interleave(part_counts, output_size=part_count)
    total = cover.new_zeros((size, len(boxes), size)).index_add_(1, box_of_part, cover)
    return (total.clamp(max=ONE).double() / ONE).permute(1, 2, 0).float().contiguous()


def _coverage(
    x0: Tensor, y0: Tensor, x1: Tensor, y1: Tensor, sign: Tensor, part: Tensor, parts: int, size: int
) -> Tensor:
    """Signed area of parts in grid cells; see ``polygon_raster._coverage`` for what is done and why.

    Args:
        x0: (E,) start of each edge, in cells; y0, x1 and y1 alike.
        y0: See x0.
        x1: See x0.
        y1: See x0.
        sign: (E,) +1 or -1, the direction that the edge counts in.
        part: (E,) the part that the edge belongs to.
        parts: How many parts there are.
        size: S.

    Returns:
        (columns, parts, rows) int64, ``ONE`` being a whole cell.
    """
    # Cut into rows of cells. What lies right of the grid covers nothing in it.
    slope = (x1 - x0) / (y1 - y0)
    sign = torch.where(y0 < y1, sign, -sign)
    upper, lower = torch.minimum(y0, y1), torch.maximum(y0, y1)
    first = upper.floor().clamp(0, size).long()
    counts = (lower.ceil().clamp(0, size).long() - first) * ((torch.minimum(x0, x1) < size) & (upper < lower))
    edge, row = _ranges(first, counts)
    line = part[edge] * size + row
    top, bottom = torch.maximum(upper[edge], row), torch.minimum(lower[edge], row + 1)
    height = sign[edge] * (bottom - top)
    slope, y0, x0 = slope[edge], y0[edge], x0[edge]
    left, right = x0 + (top - y0) * slope, x0 + (bottom - y0) * slope
    left, right = torch.minimum(left, right), torch.maximum(left, right)
    # Cut into cells.
    first = left.floor().clamp(-1, size).long()
    counts = (right.floor().clamp(-1, size - 1).long() - first + 1).clamp(min=0)
    piece, column = _ranges(first, counts)
    beyond = column < 0
    low = torch.maximum(left[piece], torch.where(beyond, -torch.inf, column.double()))
    high = torch.minimum(right[piece], column + 1)
    width = (right - left)[piece]
    share = torch.where(width > 0, (high - low) / width, 1.0)
    height = height[piece] * share
    inner = torch.where(beyond, 0.0, (low + high) * 0.5 - column) * height
    lines = parts * size
    key = column.clamp(min=0) * lines + line[piece]
    steps = torch.zeros((size + 1) * lines, dtype=torch.int64, device=key.device)
    steps.index_add_(0, key, ((height - inner) * ONE).round().long())
    steps.index_add_(0, key + lines, (inner * ONE).round().long())
    return steps.view(size + 1, parts, size)[:size].cumsum(0)


def _groups(offsets: Tensor) -> Tensor:
    """The number of its group for every element, from (n+1,) offsets."""
    return torch.repeat_interleave(offsets.diff())


def _ranges(starts: Tensor, counts: Tensor, total: int | None = None) -> tuple[Tensor, Tensor]:
    """For every i the numbers from ``starts[i]`` on, as many as ``counts[i]``, one group after another.

    Returns:
        The group i of each, and the numbers.
    """
    group = torch.repeat_interleave(counts, output_size=total)
    before = counts.cumsum(0) - counts
    return group, torch.arange(len(group), device=counts.device) + (starts - before)[group]
