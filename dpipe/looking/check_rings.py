"""Which polygons cross themselves.

A ring counts as crossing itself where two of its edges pass through each other, each by more than a tolerance on both
sides. Rings that touch themselves, run back along an edge, or miss by rounding, hold the area they seem to.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dpipe.outlines.ragged import Ints, group_numbers, offsets_of, ranges

CROSSING_TOLERANCE = 0.1
"""Pixels: annotation files round coordinates to hundredths, which makes touching edges cross by as much."""

# Pairs of edges that are looked at together, and edges that are sorted together, to bound the memory.
PAIRS = 1 << 21
EDGES = 1 << 20


def self_intersecting(vertices: NDArray[np.float32], ring_offsets: Ints) -> NDArray[np.bool_]:
    """Looks at all rings at once: a sweep along each ring's longer side finds the pairs of edges to look at.

    Args:
        vertices: (V, 2) xy of all rings.
        ring_offsets: (R+1,) of at least three vertices each.

    Returns:
        (R,) bool.
    """
    crossing = np.zeros(len(ring_offsets) - 1, dtype=np.bool_)
    chunk = ring_offsets[:-1] // EDGES
    for rings in np.split(np.arange(len(crossing)), np.flatnonzero(np.diff(chunk)) + 1):
        if len(rings):
            bounds = ring_offsets[rings[0] : rings[-1] + 2]
            crossing[rings] = _crossing(vertices[bounds[0] : bounds[-1]].astype(np.float64), bounds - bounds[0])
    return crossing


def _crossing(start: NDArray[np.float64], offsets: Ints) -> NDArray[np.bool_]:
    """As ``self_intersecting``, for as many rings as fit the memory."""
    ring = group_numbers(offsets)
    lows, highs = np.minimum.reduceat(start, offsets[:-1]), np.maximum.reduceat(start, offsets[:-1])
    # Along the longer side, so that fewer edges lie above one another.
    turned = np.repeat((highs - lows)[:, 1] > (highs - lows)[:, 0], np.diff(offsets))
    start = np.where(turned[:, None], start[:, ::-1], start)
    following = np.arange(1, len(start) + 1)
    following[offsets[1:] - 1] = offsets[:-1]
    stop = start[following]

    # All rings on one line, each in a place of its own.
    length = float((highs - lows).max(initial=0)) + 1
    shift = ring * length - np.minimum.reduceat(start[:, 0], offsets[:-1])[ring]
    low, high = np.minimum(start[:, 0], stop[:, 0]) + shift, np.maximum(start[:, 0], stop[:, 0]) + shift
    order = np.argsort(low, kind="stable")
    start, stop, ring, low, high = start[order], stop[order], ring[order], low[order], high[order]
    bottom, top = np.minimum(start[:, 1], stop[:, 1]), np.maximum(start[:, 1], stop[:, 1])
    # Edge i may cross those that begin after it does, and before it ends.
    first = np.arange(1, len(low) + 1)
    counts = np.maximum(np.searchsorted(low, high, side="left") - first, 0)

    crossing = np.zeros(len(offsets) - 1, dtype=np.bool_)
    for edges in np.split(np.arange(len(low)), np.flatnonzero(np.diff(offsets_of(counts)[:-1] // PAIRS)) + 1):
        one = np.repeat(edges, counts[edges])
        other = ranges(first[edges], counts[edges])
        near = (bottom[one] < top[other]) & (bottom[other] < top[one])
        one, other = one[near], other[near]
        across = _passes(start[one], stop[one], start[other], stop[other])
        crossing[ring[one[across]]] = True
    return crossing


def _passes(
    a: NDArray[np.float64], b: NDArray[np.float64], c: NDArray[np.float64], d: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """(n,) whether edges a-b and c-d pass through each other by more than the tolerance; each (n, 2)."""
    return _parted(a, b, c, d) & _parted(c, d, a, b)


def _parted(
    a: NDArray[np.float64], b: NDArray[np.float64], c: NDArray[np.float64], d: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """(n,) whether the line through a and b has c and d on its two sides, each off it by more than the tolerance."""
    along = b - a
    least = CROSSING_TOLERANCE * np.hypot(along[:, 0], along[:, 1])
    of_c = along[:, 0] * (c[:, 1] - a[:, 1]) - along[:, 1] * (c[:, 0] - a[:, 0])
    of_d = along[:, 0] * (d[:, 1] - a[:, 1]) - along[:, 1] * (d[:, 0] - a[:, 0])
    return (np.minimum(of_c, of_d) < -least) & (np.maximum(of_c, of_d) > least)
