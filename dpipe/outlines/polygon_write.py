"""Polygons to the ``segmentation`` values of COCO annotations."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dpipe.errors import InputError
from dpipe.outlines import polygon_fill
from dpipe.outlines.ragged import Ints, offsets_of
from dpipe.outlines.run_lengths import encode_toggles

if TYPE_CHECKING:
    from dpipe.polygons import Polygons

# Masks are encoded in pieces of about this many vertices and pixels along their borders, to bound the memory.
ENCODE_WORK = 1 << 20

# Numbers that need more, being tiny, are written in full.
MOST_DECIMALS = 8


def write_polygons(polygons: Polygons, sizes: Ints | None) -> list[Any]:
    """See ``Polygons.to_coco``."""
    pierced = np.flatnonzero(np.diff(offsets_of(polygons.holes.astype(np.int64))[polygons.instance_offsets]))
    if len(pierced) and sizes is None:
        raise InputError(
            f"polygons: instance {pierced[0]} has a hole, which COCO can tell by run lengths only; these need the "
            "heights and widths of the images (sizes)"
        )
    numbers = _shortest(polygons.vertices.reshape(-1)).tolist()
    rings = [numbers[2 * begin : 2 * end] for begin, end in pairwise(polygons.ring_offsets.tolist())]
    written: list[Any] = [rings[begin:end] for begin, end in pairwise(polygons.instance_offsets.tolist())]
    if sizes is not None and len(pierced):
        masks = write_run_lengths(polygons.select(pierced), sizes[pierced])
        for number, mask in zip(pierced.tolist(), masks, strict=True):
            written[number] = mask
    return written


def write_run_lengths(polygons: Polygons, sizes: Ints, compressed: bool = True) -> list[dict[str, Any]]:
    """See ``Polygons.to_rle``; ``sizes`` is (I, 2) heights and widths."""
    written: list[dict[str, Any]] = []
    for begin, end in _pieces(polygons, sizes):
        some = polygons.select(slice(begin, end))
        heights, widths = sizes[begin:end].T
        runs = polygon_fill.toggles(
            some.vertices, some.ring_offsets, some.instance_offsets, some.holes, heights, widths
        )
        written += encode_toggles(*polygon_fill.columns(runs, heights), sizes[begin:end], compressed)
    return written


def _pieces(polygons: Polygons, sizes: Ints) -> list[tuple[int, int]]:
    """Successive instances that are work enough together."""
    boxes = np.clip(polygons.boxes().reshape(-1, 2, 2), 0, sizes[:, None, ::-1])  # xy
    rings = np.diff(polygons.instance_offsets)
    border = 2 * (boxes[:, 1] - boxes[:, 0]).sum(axis=1) * rings
    vertices = np.diff(polygons.ring_offsets[polygons.instance_offsets])
    piece = (np.cumsum(vertices + border) // ENCODE_WORK).astype(np.int64)
    bounds = np.concatenate([[0], np.flatnonzero(np.diff(piece)) + 1, [len(polygons)]])
    return list(pairwise(np.unique(bounds).tolist()))


def _shortest(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """The numbers with the fewest decimals that float32 rounds to the given ones: 10.3, and not 10.300000190734863."""
    exact = values.astype(np.float64)
    numbers = np.round(exact)
    left = np.flatnonzero(numbers != exact)
    for decimals in range(1, MOST_DECIMALS + 1):
        if not len(left):
            break
        rounded = np.round(exact[left], decimals)
        numbers[left] = rounded
        left = left[rounded.astype(np.float32) != values[left]]
    numbers[left] = exact[left]
    return numbers
