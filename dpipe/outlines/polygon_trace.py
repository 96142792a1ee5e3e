"""Run-length masks to rings along their exact pixel edges, without ever making a bitmap.

COCO runs go down the columns. Where a run starts or ends in a column there is a piece of horizontal border, one pixel
wide. A grid point is a corner of the mask where the borders of the columns on its left and right do not simply go on.
Corners sorted along columns pair up into vertical edges, sorted along rows into horizontal edges, and following both in
turn gives the rings. Where two pixels touch by their corners only, the corner is split in two, one for each pixel, so
that parts are 4-connected. All masks are traced in one go; the work goes with the number of runs, not of pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dpipe.outlines.ragged import Ints, group_numbers, offsets_of, ranges


def trace_runs(
    counts: Ints, count_offsets: Ints, heights: Ints, widths: Ints
) -> tuple[NDArray[np.float32], Ints, Ints, NDArray[np.bool_]]:
    """Traces masks given by run lengths.

    Args:
        counts: Run lengths of all masks, of background and foreground in turn, beginning with background; they add up
            to each mask's size.
        count_offsets: (I+1,) mask i owns ``counts[count_offsets[i]:count_offsets[i+1]]``.
        heights: (I,) of the masks.
        widths: (I,) of the masks.

    Returns:
        vertices, ring_offsets, instance_offsets and holes of ``Polygons``. Outer rings run clockwise on the screen,
        holes the other way; every vertex is a true corner.
    """
    instances = len(heights)
    column, row, sign = _borders(counts, count_offsets, heights, widths)
    # Instances side by side on one long strip, with a spare column between them; `key` orders down the columns.
    strip = offsets_of(widths + 1)
    tall = int(heights.max(initial=0)) + 1
    x, y, rightwards, after_twin = _corners(column, row, sign, tall)
    # Corners are in column order: each pair is a vertical edge. Now along the rows, instance by instance.
    instance = np.searchsorted(strip, x, side="right") - 1
    along = (instance * tall + y) * (2 * int(strip[-1]) + 2) + 2 * x + after_twin
    order = np.argsort(along, kind="stable").reshape(-1, 2)
    # Horizontal edges, in reading order: from, to, so that the mask is on the right-hand side of who walks along them.
    forward = rightwards[order[:, 0]]
    begin = np.where(forward, order[:, 0], order[:, 1])
    end = np.where(forward, order[:, 1], order[:, 0])
    edge_from = np.empty(len(x), dtype=np.int64)
    edge_from[begin] = np.arange(len(begin))
    following = edge_from[end ^ 1]
    walk, ring_of_edge, ring_counts = _cycles(following)

    first = walk[offsets_of(ring_counts)[:-1]]  # each ring's topmost edge, the left one of these
    holes = ~forward[first]
    ring_instance = instance[begin[first]]
    outer = _outer_rings(holes, first, order, along, x, y, (column, row), tall, strip, ring_of_edge)
    ring_order = np.lexsort((np.arange(len(first)), outer))
    walk = walk[ranges(offsets_of(ring_counts)[ring_order], ring_counts[ring_order])]
    corner = np.stack([begin[walk], end[walk]], axis=1).reshape(-1)
    vertices = np.empty((len(corner), 2), dtype=np.float32)
    vertices[:, 0] = x[corner] - strip[instance[corner]]
    vertices[:, 1] = y[corner]
    ring_offsets = offsets_of(2 * ring_counts[ring_order])
    instance_offsets = offsets_of(np.bincount(ring_instance, minlength=instances))
    return vertices, ring_offsets, instance_offsets, holes[ring_order]


def _borders(counts: Ints, count_offsets: Ints, heights: Ints, widths: Ints) -> tuple[Ints, Ints, Ints]:
    """The pieces of horizontal border, in column order: column on the strip, row, +1 above the mask and -1 below."""
    stops = np.cumsum(counts)
    starts = stops - counts
    instance = group_numbers(count_offsets)
    local = np.arange(len(counts)) - count_offsets[instance]
    origin = offsets_of(counts)[count_offsets[:-1]]
    chosen = np.flatnonzero((local % 2 == 1) & (counts > 0))
    instance = instance[chosen]
    start, stop = starts[chosen] - origin[instance], stops[chosen] - origin[instance]
    # A background run of no length between two runs joins them.
    joined = np.zeros(len(chosen) + 1, dtype=np.bool_)
    joined[1:-1] = (instance[1:] == instance[:-1]) & (start[1:] == stop[:-1])
    start, stop, instance = start[~joined[:-1]], stop[~joined[1:]], instance[~joined[:-1]]
    # A run that reaches into further columns is one run in each.
    height = heights[instance]
    first, last = start // height, (stop - 1) // height
    spans = last - first + 1
    run = np.repeat(np.arange(len(start)), spans)
    column = ranges(first, spans)
    above = np.where(column == first[run], start[run] - first[run] * height[run], 0)
    below = np.where(column == last[run], stop[run] - last[run] * height[run], height[run])
    column = np.repeat(column + offsets_of(widths + 1)[instance[run]], 2)
    row = np.stack([above, below], axis=1).reshape(-1)
    return column, row, np.tile(np.array([1, -1]), len(run))


def _corners(column: Ints, row: Ints, sign: Ints, tall: int) -> tuple[Ints, Ints, NDArray[np.bool_], Ints]:
    """Corners of the masks in column order, split where two pixels touch by their corners.

    Returns:
        x, y (C,) on the strip; whether the border at the corner has the mask below it, and so is walked to the right
        (C,); and 1 where the corner comes after its twin along the row.
    """
    keys = np.concatenate([column * tall + row, (column + 1) * tall + row])
    # Borders left of the point are those of the column before it.
    signs = np.concatenate([sign, sign])
    order = np.argsort(keys, kind="stable")
    keys, signs, on_left = keys[order], signs[order], order >= len(column)
    same_as_next = np.append(keys[1:] == keys[:-1], False)[: len(keys)]
    same_as_last = np.insert(keys[1:] == keys[:-1], 0, False)[: len(keys)]
    pair = np.flatnonzero(same_as_next)
    crossing = signs[pair] != signs[pair + 1]
    single = np.flatnonzero(~same_as_next & ~same_as_last)
    # A split corner's upper twin belongs to the pixel above the point: it has the border whose mask is above.
    pair = pair[crossing]
    upper = np.where(signs[pair] < 0, pair, pair + 1)
    lower = 2 * pair + 1 - upper
    chosen = np.concatenate([single, upper, lower])
    down = np.concatenate([np.zeros(len(single) + len(upper), dtype=np.int64), np.ones(len(lower), dtype=np.int64)])
    # Along the row the twin comes first whose border is on the left of the point.
    after = np.concatenate([np.zeros(len(single), dtype=np.int64), ~on_left[upper], ~on_left[lower]]).astype(np.int64)
    final = np.lexsort((down, keys[chosen]))
    chosen, after = chosen[final], after[final]
    x, y = np.divmod(keys[chosen], tall)
    return x, y, signs[chosen] > 0, after


def _cycles(following: Ints) -> tuple[Ints, Ints, Ints]:
    """The cycles of a permutation, each from its lowest number, in the order of these.

    Returns:
        The numbers cycle by cycle (E,), the cycle of each number (E,), and the lengths of cycles (R,).
    """
    successor = following.tolist()
    cycle = [-1] * len(successor)
    walk: list[int] = []
    lengths: list[int] = []
    for start in range(len(successor)):
        if cycle[start] >= 0:
            continue
        number, before, current = len(lengths), len(walk), start
        while cycle[current] < 0:
            cycle[current] = number
            walk.append(current)
            current = successor[current]
        lengths.append(len(walk) - before)
    return np.array(walk, dtype=np.int64), np.array(cycle, dtype=np.int64), np.array(lengths, dtype=np.int64)


def _outer_rings(
    holes: NDArray[np.bool_],
    first: Ints,
    order: Ints,
    along: Ints,
    x: Ints,
    y: Ints,
    borders: tuple[Ints, Ints],
    tall: int,
    strip: Ints,
    ring_of_edge: Ints,
) -> Ints:
    """The outer ring of the part that each ring belongs to: for an outer ring itself.

    Just above a hole's topmost edge is a run of the mask. The border where that run starts is on the outer ring of the
    same part or on another of its holes, whose top is higher up; its outer ring is then known already.
    """
    outer = np.arange(len(holes), dtype=np.int64)
    numbers = np.flatnonzero(holes)
    if not len(numbers):
        return outer
    corner = order[first[numbers], 0]  # left end of the topmost edge
    column, row = borders
    key = column * tall + row  # ascending, as borders are in column order
    start = np.searchsorted(key, x[corner] * tall + y[corner]) - 1
    instance = np.searchsorted(strip, column[start], side="right") - 1
    point = (instance * tall + row[start]) * (2 * int(strip[-1]) + 2) + 2 * column[start] + 1
    parent = ring_of_edge[np.searchsorted(along[order[:, 0]], point, side="right") - 1]
    for hole, above in zip(numbers.tolist(), parent.tolist(), strict=True):
        outer[hole] = outer[above]
    return outer
