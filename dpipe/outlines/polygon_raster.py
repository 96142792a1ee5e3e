"""Polygons to coverage on grids over boxes. Works on the arrays of ``Polygons``.

Names: V vertices, R rings, P parts (an outer ring and its holes), I instances, E edges.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dpipe.outlines.ragged import Ints, group_numbers, offsets_of, ranges

# Work of to_grids is cut into pieces of about this many edges and accumulator cells, whose arrays stay in the cache.
GRID_EDGES = 1 << 12
GRID_CELLS = 1 << 15

# Coverage that is larger than 1 by more than this is a ring's that winds more than once.
ROUNDING = 1e-9


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
    x, y = vertices.astype(np.float64).T.copy()
    following = next_vertex(ring_offsets)
    # Outer rings run one way and holes the other, so that plain signed areas add up to the part's.
    sign = np.where((signed_ring_areas(vertices, ring_offsets) < 0) != holes, -1.0, 1.0)[group_numbers(ring_offsets)]
    edge_part = (np.cumsum(~holes) - 1)[group_numbers(ring_offsets)]

    work = np.maximum(edge_counts[useful] / GRID_EDGES, part_counts[useful] * size * (size + 1) / GRID_CELLS)
    chunk = np.floor(np.cumsum(work)).astype(np.int64)
    for rois in np.split(useful, np.flatnonzero(np.diff(chunk)) + 1):
        parts = offsets_of(part_counts[rois])
        counts = edge_counts[rois]
        edge = ranges(edge_offsets[instances[rois]], counts)
        (left, top), (across, down) = boxes[rois, :2].T, (size / extent[rois]).T
        x0 = (x[edge] - np.repeat(left, counts)) * np.repeat(across, counts)
        y0 = (y[edge] - np.repeat(top, counts)) * np.repeat(down, counts)
        after = following[edge] - edge + np.arange(len(edge))
        x1, y1 = x0[after], y0[after]
        seen = np.flatnonzero(
            (y0 != y1) & (np.minimum(y0, y1) < size) & (np.maximum(y0, y1) > 0) & (np.minimum(x0, x1) < size)
        )
        edge = edge[seen]
        part = edge_part[edge] + np.repeat(parts[:-1] - parts_before[instances[rois]], counts)[seen]
        cover = _coverage(x0[seen], y0[seen], x1[seen], y1[seen], sign[edge], part, int(parts[-1]), size)
        # Even-odd where a ring winds more than once, then the union of parts.
        np.abs(cover, out=cover)
        if cover.max(initial=0.0) > 1.0 + ROUNDING:
            cover = 1.0 - np.abs(cover % 2.0 - 1.0)
        if len(parts) - 1 < parts[-1]:
            cover = np.add.reduceat(cover, parts[:-1], axis=1)
        result[rois] = np.minimum(cover, 1.0).transpose(1, 2, 0)
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
        (columns, parts, rows) float64: sums along the rows of cells go fast where these come first.
    """
    # Cut into rows of cells.
    slope = (x1 - x0) / (y1 - y0)
    sign = np.where(y0 < y1, sign, -sign)
    upper, lower = np.minimum(y0, y1), np.maximum(y0, y1)
    first = np.maximum(np.floor(upper), 0).astype(np.int64)
    counts = np.minimum(np.ceil(lower), size).astype(np.int64) - first
    edge = np.repeat(np.arange(len(x0)), counts)
    row = ranges(first, counts)
    line = (part * size)[edge] + row
    top, bottom = np.maximum(upper[edge], row), np.minimum(lower[edge], row + 1)
    height = sign[edge] * (bottom - top)
    slope, y0 = slope[edge], y0[edge]
    x0 = x0[edge]
    left, right = x0 + (top - y0) * slope, x0 + (bottom - y0) * slope
    left, right = np.minimum(left, right), np.maximum(left, right)
    # Cut into cells.
    first = np.clip(np.floor(left), -1, size).astype(np.int64)
    counts = np.clip(np.floor(right), first, size - 1).astype(np.int64) - first + 1
    piece = np.repeat(np.arange(len(left)), counts)
    column = ranges(first, counts)
    # All that is left of the grid counts as lying on its left border, what is right of it not at all.
    beyond = column < 0
    low, high = np.maximum(left[piece], np.where(beyond, -np.inf, column)), np.minimum(right[piece], column + 1)
    width = (right - left)[piece]
    share = np.divide(high - low, width, out=np.ones_like(width), where=width > 0)
    height = height[piece] * share
    # To the right of the piece lie `height` of each further cell, and of its own cell what is right of its middle.
    inner = np.where(beyond, 0.0, (low + high) * 0.5 - column) * height
    lines = parts * size
    key = np.maximum(column, 0) * lines + line[piece]
    keys, weights = np.concatenate([key, key + lines]), np.concatenate([height - inner, inner])
    sums = np.asarray(np.bincount(keys, weights=weights, minlength=(size + 1) * lines), dtype=np.float64)
    steps = sums.reshape(size + 1, parts, size)
    for number in range(1, size):
        steps[number] += steps[number - 1]
    return steps[:size]


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
