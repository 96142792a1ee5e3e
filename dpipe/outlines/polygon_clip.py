"""Exact clipping of polygons to a rectangle. Works on the arrays of ``Polygons``.

Sutherland and Hodgman's method leaves edges along the border that bridge what is no longer joined. Here a part is cut
by one half-plane after another: its rings fall into chains at the line, and the ends of chains, sorted along the line,
are joined in pairs, for between the first and the second, the third and the fourth, ... lies the part's inside. A
vertex that lies on the line counts as outside: an edge that only touches the line makes no area.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dpipe.outlines.ragged import Ints, offsets_of, ranges

Ring = NDArray[np.float64]
Part = list[Ring]
"""The outer ring and its holes."""

# So many points of a hole are asked which ring they lie in, where that is in doubt.
HOLE_POINTS = 16

# Pixels: what is nearer to an edge lies on it. Coordinates come from float32.
TOUCHING = 1e-4


def clip(
    vertices: NDArray[np.float32],
    ring_offsets: Ints,
    instance_offsets: Ints,
    holes: NDArray[np.bool_],
    width: float,
    height: float,
) -> tuple[NDArray[np.float32], Ints, Ints, NDArray[np.bool_]] | None:
    """What lies in [0, width] x [0, height]; see ``Polygons.clip``.

    Returns:
        The arrays of the clipped polygons; None where nothing has to change.
    """
    if not len(holes):
        return None
    low = np.minimum.reduceat(vertices, ring_offsets[:-1], axis=0)  # (R, 2)
    high = np.maximum.reduceat(vertices, ring_offsets[:-1], axis=0)
    size = np.array([width, height])
    outer = np.flatnonzero(~holes)
    part_low = np.minimum.reduceat(low, outer, axis=0)  # (P, 2)
    part_high = np.maximum.reduceat(high, outer, axis=0)
    inside = (part_low >= 0).all(axis=1) & (part_high <= size).all(axis=1)
    if inside.all():
        return None
    outside = (part_high <= 0).any(axis=1) | (part_low >= size).any(axis=1)
    # Rings that stay as they are, and rings to take from the end of the new vertices, in the order of parts.
    part_rings = np.diff(np.append(outer, len(holes)))
    new_rings: list[Ring] = []
    new_holes: list[bool] = []
    new_counts = np.where(inside, part_rings, 0)
    cut = np.flatnonzero(~inside & ~outside)
    for part in cut.tolist():
        rings = [
            vertices[ring_offsets[ring] : ring_offsets[ring + 1]].astype(np.float64)
            for ring in range(outer[part], outer[part] + part_rings[part])
        ]
        before = len(new_rings)
        for piece in _clip_part(rings, width, height):
            new_rings += piece
            new_holes += [False] + [True] * (len(piece) - 1)
        new_counts[part] = len(new_rings) - before
    first = outer.copy()
    first[cut] = len(holes) + offsets_of(new_counts[cut])[:-1]
    chosen = ranges(first, new_counts)
    all_vertices = np.concatenate([vertices, *new_rings]).astype(np.float32)
    all_counts = np.append(np.diff(ring_offsets), [len(ring) for ring in new_rings]).astype(np.int64)
    all_holes = np.append(holes, np.array(new_holes, dtype=np.bool_))
    rings_before = offsets_of(new_counts)  # rings before each part
    parts_before = np.searchsorted(outer, instance_offsets)
    return (
        all_vertices[ranges(offsets_of(all_counts)[chosen], all_counts[chosen])],
        offsets_of(all_counts[chosen]),
        rings_before[parts_before],
        all_holes[chosen],
    )


def _clip_part(part: Part, width: float, height: float) -> list[Part]:
    """What is left of one part, as any number of parts."""
    parts = [part]
    for axis, bound, keep_above in ((0, 0.0, True), (0, width, False), (1, 0.0, True), (1, height, False)):
        parts = [piece for one in parts for piece in _clip_half_plane(one, axis, bound, keep_above)]
    return parts


def _has_extent(ring: Ring) -> bool:
    """Whether float32 can tell the ring from a line."""
    rounded = ring.astype(np.float32)
    return bool((rounded.max(axis=0) > rounded.min(axis=0)).all())


def _clip_half_plane(part: Part, axis: int, bound: float, keep_above: bool) -> list[Part]:
    """What of one part lies on one side of an axis-parallel line."""
    whole: list[Ring | None] = []
    chains: list[Ring] = []
    for ring in part:
        depth = ring[:, axis] - bound if keep_above else bound - ring[:, axis]
        if depth.min() >= 0:
            whole.append(ring)
            continue
        whole.append(None)
        if depth.max() > 0:
            chains += _chains(ring, depth, axis, bound)
    outer, inner = whole[0], [ring for ring in whole[1:] if ring is not None]
    joined = [ring for ring in _join(chains, axis) if _has_extent(ring)]
    if outer is not None:
        # If holes were cut, they reached out of their outer ring by rounding, and are its holes still.
        return [[outer, *inner, *joined]]
    return _group(joined, inner) if joined or inner else []


def _chains(ring: Ring, depth: NDArray[np.float64], axis: int, bound: float) -> list[Ring]:
    """The pieces of a ring strictly inside of a line, each from its point on the line to its point on the line."""
    inside = depth > 0
    following = np.roll(inside, -1)
    enters, leaves = np.flatnonzero(~inside & following), np.flatnonzero(inside & ~following)
    if leaves[0] < enters[0]:
        leaves = np.roll(leaves, -1)
    entry, exit_ = (_crossings(ring, depth, at, axis, bound) for at in (enters, leaves))
    doubled = np.concatenate([ring, ring])
    lengths = (leaves - enters) % len(ring)
    return [
        np.concatenate([entry[number, None], doubled[first + 1 : first + 1 + length], exit_[number, None]])
        for number, (first, length) in enumerate(zip(enters.tolist(), lengths.tolist(), strict=True))
    ]


def _crossings(ring: Ring, depth: NDArray[np.float64], at: Ints, axis: int, bound: float) -> Ring:
    """Where the edges that begin at given vertices meet the line."""
    start, end = ring[at], ring[(at + 1) % len(ring)]
    depth0, depth1 = depth[at], depth[(at + 1) % len(ring)]
    points = start + (end - start) * (depth0 / (depth0 - depth1))[:, None]
    points[depth1 == 0] = end[depth1 == 0]  # exactly, as where the next edge begins
    points[:, axis] = bound
    return points


def _join(chains: list[Ring], axis: int) -> list[Ring]:
    """Chains to closed rings: their ends, sorted along the line, belong together in pairs."""
    if len(chains) < 2:
        return chains
    ends = np.concatenate([chain[[0, -1]] for chain in chains])
    inwards = np.concatenate([chain[[1, -2]] for chain in chains]) - ends
    # Where a vertex lies on the line, ends meet: they are in the order that they have a hair's breadth inside of it.
    order = np.lexsort((inwards[:, 1 - axis] / np.abs(inwards[:, axis]), ends[:, 1 - axis]))
    partner = np.empty(len(order), dtype=np.int64)
    partner[order] = order.reshape(-1, 2)[:, ::-1].reshape(-1)
    partners = partner.tolist()
    rings: list[Ring] = []
    used = [False] * len(chains)
    for first in range(len(chains)):
        if used[first]:
            continue
        pieces: list[Ring] = []
        end = 2 * first  # we come to a chain at one of its ends, and walk to the other
        while not used[end // 2]:
            used[end // 2] = True
            chain = chains[end // 2]
            pieces.append(chain if end % 2 == 0 else chain[::-1])
            end = partners[end ^ 1]
        rings.append(np.concatenate(pieces))
    return rings


def _group(cut: list[Ring], uncut: list[Ring]) -> list[Part]:
    """The rings of one part as parts, after its outer ring was cut.

    A ring with an edge on the line has nothing around it there, so it is an outer one, and rings that the line did not
    touch are holes. Only where a ring of the data crosses itself can it be otherwise: rings that cross each other stay
    in one part, whose even-odd rule is that of the data, and a ring that lies in no other is an outer one.
    """
    rings = cut + uncut
    if len(cut) == 1 or len(rings) == 1:
        return [rings]
    boxes = np.array([np.concatenate([ring.min(axis=0), ring.max(axis=0)]) for ring in rings])
    part_of = list(range(len(rings)))
    for number in range(1, len(rings)):
        # Rings on the line may cross all before them; the others have to do with those on the line only.
        others = boxes[: min(number, len(cut))] if cut else boxes[:number]
        overlap = (others[:, :2] < boxes[number, 2:]) & (others[:, 2:] > boxes[number, :2])
        near = np.flatnonzero(overlap.all(axis=1)).tolist()
        if number >= len(cut) and len(near) == 1:
            part_of[number] = part_of[near[0]]
            continue
        if number >= len(cut):
            points = rings[number][:: -(-len(rings[number]) // HOLE_POINTS)]
            inside = [int(np.count_nonzero(_contained(points, rings[other]))) for other in near]
            if len(points) in inside:
                part_of[number] = part_of[near[inside.index(len(points))]]
                continue
        for other in near:
            if part_of[other] != part_of[number] and _rings_overlap(rings[number], rings[other]):
                part_of = [part_of[number] if part == part_of[other] else part for part in part_of]
    members: dict[int, list[int]] = {}
    for number, first in enumerate(part_of):
        members.setdefault(first, []).append(number)
    parts = []
    for numbers in members.values():
        part = [rings[number] for number in numbers]
        if len(numbers) > 1 and (numbers[1] < len(cut) or not cut):
            part.sort(key=_area, reverse=True)  # of rings that cross the largest is the outer one
        parts.append(part)
    return parts


def _area(ring: Ring) -> float:
    """Area by the shoelace formula."""
    return abs(float(_cross(ring - ring[0], np.roll(ring, -1, axis=0) - ring[0]).sum())) / 2


def _contained(points: Ring, ring: Ring) -> NDArray[np.bool_]:
    """Which points lie inside a ring, by the even-odd rule."""
    start, end = ring, np.roll(ring, -1, axis=0)
    low, high = points.min(axis=0), points.max(axis=0)
    near = (np.maximum(start, end) >= low).all(axis=1) & (np.minimum(start[:, 1], end[:, 1]) <= high[1])
    start, end = start[near], end[near]
    spans = (start[:, 1] <= points[:, 1, None]) != (end[:, 1] <= points[:, 1, None])  # (n, E)
    rise = np.where(end[:, 1] != start[:, 1], end[:, 1] - start[:, 1], 1.0)
    x = start[:, 0] + (points[:, 1, None] - start[:, 1]) * ((end[:, 0] - start[:, 0]) / rise)
    return ((spans & (x > points[:, 0, None])).sum(axis=1) % 2).astype(np.bool_)


def _rings_overlap(one: Ring, other: Ring) -> bool:
    """Whether two rings have area in common: they cross, or one reaches into the other from where they touch."""
    return _rings_cross(one, other) or _reaches_into(one, other) or _reaches_into(other, one)


def _reaches_into(one: Ring, other: Ring) -> bool:
    """Whether a vertex of one ring, or the middle of an edge, lies inside the other and not on its edges."""
    points = np.concatenate([one, (one + np.roll(one, -1, axis=0)) / 2])
    points = points[((points > other.min(axis=0)) & (points < other.max(axis=0))).all(axis=1)]
    if len(points):
        points = points[_contained(points, other)]
    if not len(points):
        return False
    start, end = _edges_near(other, points.min(axis=0) - TOUCHING, points.max(axis=0) + TOUCHING)
    along = end - start
    to_points = points[:, None] - start  # (n, E, 2)
    share = (to_points * along).sum(axis=-1) / np.maximum((along**2).sum(axis=-1), TOUCHING**2)
    gaps = to_points - np.clip(share, 0, 1)[..., None] * along
    return bool(((gaps**2).sum(axis=-1) > TOUCHING**2).all(axis=1).any())


def _rings_cross(one: Ring, other: Ring) -> bool:
    """Whether an edge of one ring properly crosses an edge of the other."""
    low = np.maximum(one.min(axis=0), other.min(axis=0))
    high = np.minimum(one.max(axis=0), other.max(axis=0))
    a, b = _edges_near(one, low, high)
    c, d = _edges_near(other, low, high)
    if not len(a) or not len(c):
        return False
    a, b = a[:, None], b[:, None]
    ab, cd = b - a, d - c
    return bool(
        (
            (_cross(ab, c - a) * _cross(ab, d - a) < 0)  # (E, F): c and d on two sides of ab
            & (_cross(cd, a - c) * _cross(cd, b - c) < 0)
        ).any()
    )


def _edges_near(ring: Ring, low: Ring, high: Ring) -> tuple[Ring, Ring]:
    """Starts and ends of the edges of a ring whose boxes meet a box."""
    start, end = ring, np.roll(ring, -1, axis=0)
    near = ((np.minimum(start, end) <= high) & (np.maximum(start, end) >= low)).all(axis=1)
    return start[near], end[near]


def _cross(u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cross products of vectors in the last axis."""
    return u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]
