"""Checks of segmentations: whether they can be read, what their polygons are worth, and whether box and area agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpipe.errors import InputError
from dpipe.looking.check_findings import Findings
from dpipe.looking.check_rings import self_intersecting
from dpipe.looking.coco_records import Records
from dpipe.outlines.polygon_raster import signed_ring_areas
from dpipe.outlines.ragged import group_numbers
from dpipe.polygons import Polygons

SIDE_TOLERANCE, SIDE_SHARE = 3.0, 1 / 20
"""A side of a box may be off by so many pixels and such a share of the box's width or height. Boxes drawn by hand are
no better, and Pascal VOC's masks end some pixels before the object does, where the void border begins. Boxes that were
derived from masks are exact, but for counting from the first or the last pixel."""

CONTRADICTION = 0.25
"""IoU of a box and its mask's extent below which one of them is wrong: that of another object, or a scrap of a mask."""

AREA_SHARE = 1 / 10
"""An area may be off by such a share, and by a pixel for each pixel of the box's edge: tools count pixels, or the area
inside of the polygons, and count what two polygons of an object share once or twice."""

SMALLEST_AREA = 1e-3  # square pixels: less is rounding

# Annotations whose segmentations are read together, to bound the memory.
CHUNK = 20_000


def check_masks(records: Records, findings: Findings, progress: Callable[[int], None]) -> None:
    """Looks at all segmentations.

    Args:
        records: The data set.
        findings: To add to.
        progress: Is told how many annotations have been looked at since it was called last.
    """
    values = list(records.segmentations())
    for start in range(0, len(values), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(values)))
        segmented = np.array([values[row] is not None for row in rows.tolist()], dtype=np.bool_)
        _check_box_areas(records, rows[~segmented], findings)
        rows, polygons = _read(records, rows[segmented], values, findings)
        if len(rows):
            _check_polygons(records, rows, polygons, values, findings)
        progress(min(CHUNK, len(values) - start))


def _read(
    records: Records, rows: NDArray[np.int64], values: Sequence[Any], findings: Findings
) -> tuple[NDArray[np.int64], Polygons]:
    """Reads segmentations, and finds those that cannot be read by halving.

    Returns:
        The rows that could be read, and their polygons.
    """
    sizes = records.sizes_of(rows)
    # A run-length mask has to be of its image's size: of no image, it says nothing.
    known = np.all(sizes > 0, axis=1) | np.array([not isinstance(values[row], dict) for row in rows.tolist()], np.bool_)
    rows, sizes = rows[known], sizes[known]

    def read(places: NDArray[np.int64]) -> tuple[NDArray[np.int64], Polygons]:
        try:
            chosen = [values[row] for row in rows[places].tolist()]
            return rows[places], Polygons.from_coco(chosen, sizes[places], where=lambda _: "")
        except InputError as error:
            if len(places) == 1:
                findings.annotation("malformed_mask", int(rows[places[0]]), str(error).removeprefix(": "))
                return rows[:0], Polygons.empty()
        halves = [read(half) for half in np.array_split(places, 2)]
        return np.concatenate([half[0] for half in halves]), Polygons.concatenate([half[1] for half in halves])

    if not len(rows):
        return rows, Polygons.empty()
    return read(np.arange(len(rows)))


def _check_polygons(
    records: Records, rows: NDArray[np.int64], polygons: Polygons, values: Sequence[Any], findings: Findings
) -> None:
    """Looks at segmentations that could be read, (n,) rows."""
    is_list = np.array([isinstance(values[row], list) for row in rows.tolist()], dtype=np.bool_)
    stated = np.array([len(values[row]) if isinstance(values[row], list) else 0 for row in rows.tolist()])
    crossing = _crossing_rings(polygons, is_list)
    ring_areas = np.abs(signed_ring_areas(polygons.vertices, polygons.ring_offsets))
    # The loops of a ring that crosses itself may cancel out.
    flat = (ring_areas < SMALLEST_AREA) & ~crossing
    instance = group_numbers(polygons.instance_offsets)
    kept = np.diff(polygons.instance_offsets)
    degenerate = np.where(is_list, stated - kept, 0) + np.bincount(instance, weights=flat, minlength=len(rows))
    empty = np.bincount(instance, weights=~flat, minlength=len(rows)) == 0
    for place in np.flatnonzero((degenerate > 0) & ~empty).tolist():
        findings.annotation("degenerate_polygon", int(rows[place]), f"{degenerate[place]:.0f} of {stated[place]}")
    findings.annotations("empty_mask", rows[empty])

    crosses = np.bincount(instance, weights=crossing, minlength=len(rows)) > 0
    findings.annotations("self_intersecting_polygon", rows[crosses])

    extents = polygons.boxes().astype(np.float64)
    _check_boxes(records, rows[~empty], extents[~empty], findings)

    # What polygons share counts once or twice: anything from the largest polygon to their sum is right. How much a
    # polygon covers that crosses itself depends on who counts: at most all of its extent.
    most = polygons.areas()
    least = most.copy()
    several = is_list & (kept > 1)
    largest = np.zeros(len(rows))
    np.maximum.at(largest, instance, ring_areas)
    least[several] = largest[several]
    least[crosses] = 0
    most[crosses] = (extents[crosses, 2:] - extents[crosses, :2]).prod(axis=1)
    _check_areas(records, rows[~empty], least[~empty], most[~empty], extents[~empty], findings)


def _crossing_rings(polygons: Polygons, is_list: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(R,) whether a ring crosses itself; what is traced from run lengths never does."""
    lists = np.flatnonzero(is_list)
    crossing = np.zeros(len(polygons.holes), dtype=np.bool_)
    if len(lists):
        chosen = polygons.select(lists)
        rings = np.flatnonzero(np.repeat(is_list, np.diff(polygons.instance_offsets)))
        crossing[rings] = self_intersecting(chosen.vertices, chosen.ring_offsets)
    return crossing


def _check_boxes(records: Records, rows: NDArray[np.int64], extents: NDArray[np.float64], findings: Findings) -> None:
    """Compares boxes with the extents of masks, (n, 4) xyxy."""
    boxes = records.boxes[rows].copy()
    boxes[:, 2:] += boxes[:, :2]
    sides = boxes[:, 2:] - boxes[:, :2]
    with np.errstate(invalid="ignore"):  # nan where there is no box: no comparison holds
        usable = (sides > 0).all(axis=1)
    rows, boxes, sides, extents = rows[usable], boxes[usable], sides[usable], extents[usable]
    off = np.abs(boxes - extents)
    loose = (off > SIDE_TOLERANCE + SIDE_SHARE * np.tile(sides, 2)).any(axis=1)
    shared = np.clip(np.minimum(boxes[:, 2:], extents[:, 2:]) - np.maximum(boxes[:, :2], extents[:, :2]), 0, None)
    overlap = shared.prod(axis=1)
    iou = overlap / (sides.prod(axis=1) + (extents[:, 2:] - extents[:, :2]).prod(axis=1) - overlap)
    for place in np.flatnonzero(loose).tolist():
        kind = "box_contradicts_mask" if iou[place] < CONTRADICTION else "box_off_mask"
        findings.annotation(kind, int(rows[place]), f"by {off[place].max():.1f} pixels, IoU {iou[place]:.2f}")


def _check_areas(
    records: Records,
    rows: NDArray[np.int64],
    least: NDArray[np.float64],
    most: NDArray[np.float64],
    extents: NDArray[np.float64],
    findings: Findings,
) -> None:
    """Compares areas with what they may be; an area of 0 is told elsewhere, and one that is missing is none."""
    areas = records.areas[rows]
    edge = 2 * (extents[:, 2:] - extents[:, :2]).sum(axis=1)
    stated = np.isfinite(areas) & (areas != 0)
    wrong = stated & ((areas < least * (1 - AREA_SHARE) - edge) | (areas > most * (1 + AREA_SHARE) + edge))
    for place in np.flatnonzero(wrong).tolist():
        low, high = least[place], most[place]
        found = f"{high:.0f}" if high - low < 0.01 * high else f"{low:.0f} to {high:.0f}"
        findings.annotation("area_differs", int(rows[place]), f"{areas[place]:.0f}, the mask has {found}")


def _check_box_areas(records: Records, rows: NDArray[np.int64], findings: Findings) -> None:
    """An area without a mask may be that of a mask that is not there, but no larger than the box."""
    sides = records.boxes[rows, 2:]
    areas = records.areas[rows]
    with np.errstate(invalid="ignore"):
        wrong = (sides > 0).all(axis=1) & ((areas < 0) | (areas > (sides + 1).prod(axis=1) * (1 + AREA_SHARE)))
    for row, area, (width, height) in zip(rows[wrong].tolist(), areas[wrong], sides[wrong], strict=True):
        findings.annotation("area_differs", row, f"{area:.0f}, the box has {width * height:.0f}")
