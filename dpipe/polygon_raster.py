"""Polygons to pixels: full-size bitmaps, and coverage on grids over boxes. Works on the arrays of ``Polygons``.

Names: V vertices, R rings, P parts (an outer ring and its holes), I instances, E edges.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dpipe.ragged import Ints, group_numbers, offsets_of, ranges

# Work of to_grids is cut into pieces of about this many edges and accumulator cells, to bound its memory.
GRID_EDGES = 1 << 20
GRID_CELLS = 1 << 23


def bitmaps(
    vertices: NDArray[np.float32],
    ring_offsets: Ints,
    instance_offsets: Ints,
    holes: NDArray[np.bool_],
    height: int,
    width: int,
) -> NDArray[np.uint8]:
    """Masks with a pixel on when its centre is inside; see ``Polygons.to_bitmaps``.

    Each edge toggles every row of pixel centres that it crosses, from the first centre on its right; the toggles of one
    part in one row, sorted, are the starts and ends of its runs.

    Returns:
        (I, height, width) uint8.
    """
    masks = np.zeros((len(instance_offsets) - 1, height, width), dtype=np.uint8)
    if not len(holes) or not masks.size:
        return masks
    start = vertices.astype(np.float64)
    end = start[next_vertex(ring_offsets)]
    # Row r's centres lie at r + 1/2. An edge owns the rows from its upper end (included) to its lower end (excluded);
    # neighbours share the exact number, so a closed ring crosses each row an even number of times.
    first, last = _first_centre(start[:, 1], height), _first_centre(end[:, 1], height)
    edge_part = (np.cumsum(~holes) - 1)[group_numbers(ring_offsets)]
    crossing = np.flatnonzero(first != last)
    top, counts = np.minimum(first, last)[crossing], np.abs(last - first)[crossing]
    rows = ranges(top, counts)
    edge = np.repeat(crossing, counts)
    slope = np.zeros(len(start))
    slope[crossing] = (end[crossing, 0] - start[crossing, 0]) / (end[crossing, 1] - start[crossing, 1])
    x = start[edge, 0] + (rows + 0.5 - start[edge, 1]) * slope[edge]
    # A centre that lies on an edge is taken a hair's breadth further down, as pycocotools does in effect: such ties are
    # common, for polygons with whole coordinates run through many centres. In x this moves where the edge leans right.
    columns = np.where(slope[edge] > 0, np.floor(x - 0.5) + 1, np.ceil(x - 0.5))
    columns = np.clip(columns, 0, width).astype(np.int64)
    line = edge_part[edge] * height + rows
    keys = np.sort(line * (width + 1) + columns).reshape(-1, 2)
    # Runs: part, row, first column and the column after the last.
    line = keys[:, 0] // (width + 1)
    left = keys[:, 0] - line * (width + 1)
    right = keys[:, 1] - line * (width + 1)
    part_instance = group_numbers(instance_offsets)[~holes]
    instance = part_instance[line // height]
    bounds = np.searchsorted(instance, np.arange(len(masks) + 1))
    for number in range(len(masks)):
        low, high = bounds[number], bounds[number + 1]
        if low == high:
            continue
        row, a, b = line[low:high] % height, left[low:high], right[low:high]
        row0, row1, column0, column1 = row.min(), row.max() + 1, a.min(), b.max()
        # Counting up where a run starts and down where it ends makes the union of parts, should they overlap.
        stride = column1 - column0 + 1
        cells = (row1 - row0) * stride
        base = (row - row0) * stride - column0
        steps = np.bincount(base + a, minlength=cells) - np.bincount(base + b, minlength=cells)
        depth = np.cumsum(steps.reshape(-1, stride), axis=1)
        masks[number, row0:row1, column0:column1] = depth[:, :-1] > 0
    return masks


def grids(
    vertices: NDArray[np.float32],
    ring_offsets: Ints,
    instance_offsets: Ints,
    holes: NDArray[np.bool_],
    boxes: NDArray[np.float64],
    instances: Ints,
    size: int,
) -> NDArray[np.float32]:
    """Exact area coverage of grid cells; see ``Polygons.to_grids``.

    Returns:
        (n, size, size) float32.
    """
    result = np.zeros((len(boxes), size, size), dtype=np.float32)
    extent = boxes[:, 2:] - boxes[:, :2]
    parts_before = offsets_of((~holes).astype(np.int64))[instance_offsets]  # (I+1,) parts before each instance
    edge_offsets = ring_offsets[instance_offsets]
    part_counts = np.diff(parts_before)[instances]
    edge_counts = np.diff(edge_offsets)[instances]
    useful = np.flatnonzero((extent > 0).all(axis=1) & (part_counts > 0))
    if not len(useful):
        return result
    start = vertices.astype(np.float64)
    end = start[next_vertex(ring_offsets)]
    edges = np.concatenate([start, end], axis=1)  # (V, 4)
    # Outer rings run one way and holes the other, so that plain signed areas add up to the part's.
    sign = np.where((signed_ring_areas(vertices, ring_offsets) < 0) != holes, -1.0, 1.0)[group_numbers(ring_offsets)]
    edge_part = (np.cumsum(~holes) - 1)[group_numbers(ring_offsets)]

    work = np.maximum(edge_counts[useful] / GRID_EDGES, part_counts[useful] * size * (size + 1) / GRID_CELLS)
    chunk = np.floor(np.cumsum(work)).astype(np.int64)
    for rois in np.split(useful, np.flatnonzero(np.diff(chunk)) + 1):
        parts = offsets_of(part_counts[rois])
        edge = ranges(edge_offsets[instances[rois]], edge_counts[rois])
        roi = np.repeat(np.arange(len(rois)), edge_counts[rois])
        shift, factor = boxes[rois, :2], size / extent[rois]
        y0 = (edges[edge, 1] - shift[roi, 1]) * factor[roi, 1]
        y1 = (edges[edge, 3] - shift[roi, 1]) * factor[roi, 1]
        x0 = (edges[edge, 0] - shift[roi, 0]) * factor[roi, 0]
        x1 = (edges[edge, 2] - shift[roi, 0]) * factor[roi, 0]
        seen = (y0 != y1) & (np.minimum(y0, y1) < size) & (np.maximum(y0, y1) > 0) & (np.minimum(x0, x1) < size)
        edge, roi = edge[seen], roi[seen]
        part = parts[roi] + edge_part[edge] - parts_before[instances[rois[roi]]]
        cover = _coverage(x0[seen], y0[seen], x1[seen], y1[seen], sign[edge], part, int(parts[-1]), size)
        # Even-odd where a ring winds more than once, then the union of parts.
        np.abs(cover, out=cover)
        if cover.max(initial=0.0) > 1.0:
            cover = 1.0 - np.abs(cover % 2.0 - 1.0)
        result[rois] = np.minimum(np.add.reduceat(cover, parts[:-1], axis=0), 1.0)
    return result


def _coverage(
    x0: NDArray[np.float64],
    y0: NDArray[np.float64],
    x1: NDArray[np.float64],
    y1: NDArray[np.float64],
    sign: NDArray[np.float64],
    part: Ints,
    parts: int,
    size: int,
) -> NDArray[np.float64]:
    """Signed area of parts in grid cells, by what lies to the right of each edge.

    Args:
        x0: (E,) start of each edge, in cells; y0, x1 and y1 alike. No edge is horizontal.
        y0: See x0.
        x1: See x0.
        y1: See x0.
        sign: (E,) +1 or -1, the direction that the edge counts in.
        part: (E,) the part that the edge belongs to.
        parts: How many parts there are.
        size: Cells along each side.

    Returns:
        (parts, size, size) float64.
    """
    # Upper end first.
    sign = np.where(y0 < y1, sign, -sign)
    x0, x1 = np.where(y0 < y1, x0, x1), np.where(y0 < y1, x1, x0)
    y0, y1 = np.minimum(y0, y1), np.maximum(y0, y1)
    slope = (x1 - x0) / (y1 - y0)
    # Cut into rows of cells.
    first = np.clip(np.floor(y0), 0, size).astype(np.int64)
    counts = np.clip(np.ceil(y1), 0, size).astype(np.int64) - first
    edge = np.repeat(np.arange(len(x0)), counts)
    row = ranges(first, counts)
    slope, sign, line = slope[edge], sign[edge], part[edge] * size + row
    top, bottom = np.maximum(y0[edge], row), np.minimum(y1[edge], row + 1)
    left = x0[edge] + (top - y0[edge]) * slope
    right = x0[edge] + (bottom - y0[edge]) * slope
    height = sign * (bottom - top)
    left, right = np.minimum(left, right), np.maximum(left, right)
    # Cut into cells; all that is left of the grid counts as lying on its left border, what is right of it not at all.
    first = np.clip(np.floor(left), -1, size).astype(np.int64)
    counts = np.clip(np.floor(right), first, size).astype(np.int64) - first + 1
    piece = np.repeat(np.arange(len(left)), counts)
    column = ranges(first, counts)
    low = np.where(column < 0, left[piece], np.maximum(left[piece], column))
    high = np.where(column < 0, np.minimum(right[piece], 0.0), np.minimum(right[piece], column + 1))
    width = right - left
    per_width = np.divide(height, width, out=np.zeros_like(width), where=width > 0)
    height = np.where(counts[piece] == 1, height[piece], per_width[piece] * (high - low))
    # To the right of the piece lie `height` of each further cell, and of its own cell what is right of its middle.
    inner = np.where(column < 0, 0.0, (low + high) * 0.5 - column)
    inside = column < size
    column = np.maximum(column, 0)
    key = (line[piece] * (size + 1) + column)[inside]
    height, inner = height[inside], inner[inside]
    total = parts * size * (size + 1)
    steps = np.asarray(np.bincount(key, weights=height * (1.0 - inner), minlength=total), dtype=np.float64)
    steps += np.bincount(key + 1, weights=height * inner, minlength=total)
    return np.cumsum(steps.reshape(parts, size, size + 1), axis=2)[:, :, :size]


def next_vertex(ring_offsets: Ints) -> Ints:
    """(V,) the number of the vertex that follows each vertex on its ring."""
    following = np.arange(1, ring_offsets[-1] + 1, dtype=np.int64)
    following[ring_offsets[1:] - 1] = ring_offsets[:-1]
    return following


def signed_ring_areas(vertices: NDArray[np.float32], ring_offsets: Ints) -> NDArray[np.float64]:
    """(R,) float64 areas by the shoelace formula, positive for rings that run clockwise on the screen."""
    if len(ring_offsets) == 1:
        return np.zeros(0)
    # Measured from the ring's first vertex: large coordinates would cost digits.
    start = vertices.astype(np.float64)
    start -= start[np.repeat(ring_offsets[:-1], np.diff(ring_offsets))]
    end = start[next_vertex(ring_offsets)]
    doubled: NDArray[np.float64] = start[:, 0] * end[:, 1] - end[:, 0] * start[:, 1]
    return np.add.reduceat(0.5 * doubled, ring_offsets[:-1])


def _first_centre(position: NDArray[np.float64], count: int) -> Ints:
    """The first pixel whose centre lies at or after a position, within 0..count."""
    return np.clip(np.ceil(position - 0.5), 0, count).astype(np.int64)
