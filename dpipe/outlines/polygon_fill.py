"""Polygons to the pixels whose centres are inside: bitmaps and run lengths. Works on the arrays of ``Polygons``.

Each edge toggles every row of pixel centres that it crosses, from the first centre on its right; the toggles of a part
in one row, sorted, are the starts and ends of its runs. Bitmaps are filled from these runs. COCO's run lengths go down
the columns: a pixel differs from the one above it where one of the two rows is toggled and the other is not, so these
too come from the runs of rows, and are those of the bitmap to the last pixel, without a bitmap.

Names: V vertices, R rings, P parts (an outer ring and its holes), I instances, K toggles.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dpipe.outlines.polygon_raster import next_vertex
from dpipe.outlines.ragged import Ints, group_numbers, offsets_of, ranges


class Toggles(NamedTuple):
    """Where rows of instances change: at even ones a run starts, at odd ones it ends, before the column.

    Attributes:
        keys: (K,) ascending, ``line * stride + column``. A run may be of no length.
        stride: More than any column.
        lines: (I+1,) an instance's row 0; it has one more line than it has rows, which stays empty.
    """

    keys: Ints
    stride: int
    lines: Ints


def toggles(
    vertices: NDArray[np.float32],
    ring_offsets: Ints,
    instance_offsets: Ints,
    holes: NDArray[np.bool_],
    heights: Ints,
    widths: Ints,
) -> Toggles:
    """The runs of all instances, (I,) heights by widths in size: unions of parts, each by the even-odd rule."""
    lines = offsets_of(heights + 1)
    stride = int(widths.max(initial=0)) + 1
    if not len(holes):
        return Toggles(np.zeros(0, dtype=np.int64), stride, lines)
    instance = np.repeat(np.arange(len(heights)), np.diff(ring_offsets[instance_offsets]))  # (V,)
    # Row r's centres lie at r + 1/2. An edge owns the rows from its upper end (included) to its lower end (excluded);
    # neighbours share the exact number, so a closed ring crosses each row an even number of times.
    y = vertices[:, 1].astype(np.float64)
    first = np.clip(np.ceil(y - 0.5), 0, heights[instance]).astype(np.int64)
    following = next_vertex(ring_offsets)
    crossing = np.flatnonzero(first != first[following])
    instance, after = instance[crossing], following[crossing]
    x0, y0 = vertices[crossing, 0].astype(np.float64), y[crossing]
    slope = (vertices[after, 0] - x0) / (y[after] - y0)
    top, bottom = np.minimum(first[crossing], first[after]), np.maximum(first[crossing], first[after])
    counts = bottom - top
    edge = np.repeat(np.arange(len(crossing)), counts)
    rows = ranges(top, counts)
    x = x0[edge] + (rows + 0.5 - y0[edge]) * slope[edge] - 0.5
    # A centre that lies on an edge is taken a hair's breadth further down, as pycocotools does in effect: such ties are
    # common, for polygons with whole coordinates run through many centres. In x this moves where the edge leans right.
    columns = np.ceil(x)
    columns += (columns == x) & (slope > 0)[edge]
    columns = np.clip(columns, 0, widths[instance][edge]).astype(np.int64)

    parts = np.flatnonzero(~holes)
    part_instance = group_numbers(instance_offsets)[parts]
    alone = len(parts) == np.count_nonzero(np.diff(instance_offsets))
    part_lines = lines if alone else offsets_of(heights[part_instance] + 1)
    line = part_lines[instance if alone else (np.cumsum(~holes) - 1)[group_numbers(ring_offsets)[crossing]]]
    keys = (line[edge] + rows) * stride + columns
    keys.sort()
    if not alone:
        keys = _union(keys, part_lines * stride, lines[part_instance] * stride)
    return Toggles(keys, stride, lines)


def _union(keys: Ints, begins: Ints, moved: Ints) -> Ints:
    """Toggles of parts to those of their instances.

    Args:
        keys: (K,) sorted, of parts whose first keys ``begins`` (P+1,) tells.
        begins: See keys.
        moved: (P,) first key of each part's instance.
    """
    keys = keys + np.repeat(moved - begins[:-1], np.diff(np.searchsorted(keys, begins)))
    # Starts come before ends in the same place, so that runs which touch are one.
    tagged = keys * 2
    tagged[1::2] += 1
    tagged.sort()
    ends = tagged & 1
    depth = np.cumsum(1 - 2 * ends)
    return tagged[depth == 1 - ends] >> 1


def bitmaps(runs: Toggles, height: int, width: int) -> NDArray[np.uint8]:
    """Masks (I, height, width) of instances that all have this size; see ``Polygons.to_bitmaps``."""
    masks = np.zeros((len(runs.lines) - 1, height, width), dtype=np.uint8)
    rows, columns = np.divmod(runs.keys, runs.stride)
    bounds = np.searchsorted(rows, runs.lines).tolist()
    values = np.zeros(len(rows) + 1, dtype=np.uint8)
    values[1::2] = 1
    for number, mask in enumerate(masks):
        begin, end = bounds[number : number + 2]
        if begin == end:
            continue
        row, column = rows[begin:end], columns[begin:end]
        top, bottom = int(row[0]), int(row[-1]) + 1
        left, right = int(column.min()), int(column.max())
        # The rectangle around the instance, row after row, off and on in turn.
        at = (row - top) * (right - left) + (column - left)
        pixels = np.repeat(values[: len(at) + 1], np.diff(at, prepend=0, append=(bottom - top) * (right - left)))
        first = top - int(runs.lines[number])
        mask[first : first + bottom - top, left:right] = pixels.reshape(bottom - top, right - left)
    return masks


def columns(runs: Toggles, heights: Ints) -> tuple[Ints, Ints]:
    """Where masks change as one goes down their columns, one after another.

    Args:
        runs: Of I instances.
        heights: (I,) of their masks.

    Returns:
        Positions in column order (T,), ascending for each instance, and their offsets (I+1,), for ``encode_toggles``.
    """
    # The toggles of a row and of the one above it, together, bound what differs between the two.
    both = np.concatenate([runs.keys, runs.keys + runs.stride])
    both.sort()
    begins, lengths = both[::2], both[1::2] - both[::2]
    begins, lengths = begins[lengths > 0], lengths[lengths > 0]
    line, column = np.divmod(begins, runs.stride)
    instance = np.searchsorted(runs.lines, line, side="right") - 1
    pixels = offsets_of((heights + 1) * runs.stride)  # more than the places in each mask
    base = pixels[instance] + line - runs.lines[instance]
    places = np.repeat(base, lengths) + ranges(column, lengths) * np.repeat(heights[instance], lengths)
    places.sort()
    offsets = np.searchsorted(places, pixels)
    return places - np.repeat(pixels[:-1], np.diff(offsets)), offsets
