"""The ``segmentation`` values of COCO annotations to the arrays of ``Polygons``."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpipe.building.problems import shorten
from dpipe.errors import InputError
from dpipe.outlines.polygon_trace import trace_runs
from dpipe.outlines.ragged import Ints, group_numbers, offsets_of, ranges

Arrays = tuple[NDArray[np.float32], Ints, Ints, NDArray[np.bool_]]
Where = Callable[[int], str]

LARGEST_COORDINATE = 1e18
"""Pixels: what lies further out leaves float32 when it is transformed."""

# Masks are traced in pieces of about this many run lengths, to bound the memory.
TRACE_RUNS = 1 << 20


class FlatLists(NamedTuple):
    """The numbers of some polygon lists, one after another.

    Attributes:
        numbers: (2V,) float64 x and y in turn.
        ring_lengths: (R,) how many numbers each ring has.
        ring_counts: (I,) how many rings each list has.
    """

    numbers: NDArray[np.float64]
    ring_lengths: Ints
    ring_counts: Ints

    def are_polygons(self) -> bool:
        """Whether all numbers come in pairs and are coordinates."""
        # Each a single pass without an array; of nan both are nan.
        low, high = self.numbers.min(initial=0.0), self.numbers.max(initial=0.0)
        return not (self.ring_lengths % 2).any() and bool(low >= -LARGEST_COORDINATE and high <= LARGEST_COORDINATE)


def read_segmentations(segmentations: Sequence[Any], sizes: ArrayLike | None, where: Where | None) -> Arrays:
    """See ``Polygons.from_coco``."""
    name = where if where is not None else _default_name
    masks = {number: value for number, value in enumerate(segmentations) if isinstance(value, dict)}
    lists: Sequence[Any] = (
        [None if isinstance(value, dict) else value for value in segmentations] if masks else segmentations
    )
    return arrange(_flatten(lists, name), masks, sizes, name)


def arrange(lists: FlatLists, masks: Mapping[int, Any], sizes: ArrayLike | None, name: Where) -> Arrays:
    """The arrays of ``Polygons`` from polygon lists that are well-formed, and from run-length masks.

    Args:
        lists: Those of all I instances; of one that is a mask, an empty list.
        masks: The run-length masks by number of their instances, in this order.
        sizes: As in ``Polygons.from_coco``.
        name: Names an instance, for messages.

    Raises:
        InputError: A mask is malformed.
    """
    polygons = _rings(lists)
    if not masks:
        return polygons
    expected = None if sizes is None else np.asarray(sizes, dtype=np.int64).reshape(-1, 2)
    numbers = list(masks)
    counts, count_offsets, shapes = read_run_lengths(masks, numbers, expected, name)
    traced = []
    chunk = count_offsets[:-1] // TRACE_RUNS
    for piece in np.split(np.arange(len(masks)), np.flatnonzero(np.diff(chunk)) + 1):
        bounds = count_offsets[piece[0] : piece[-1] + 2]
        traced.append(
            trace_runs(counts[bounds[0] : bounds[-1]], bounds - bounds[0], shapes[piece, 0], shapes[piece, 1])
        )
    return _merge(polygons, traced, np.array(numbers, dtype=np.int64))


def _default_name(number: int) -> str:
    return f"segmentation {number}"


def _flatten(segmentations: Sequence[Any], name: Where) -> FlatLists:
    """Polygon lists, checked whole."""
    try:
        rings_of = [() if value is None else value for value in segmentations]
        ring_counts = np.fromiter(map(len, rings_of), dtype=np.int64, count=len(rings_of))
        rings = list(chain.from_iterable(rings_of))
        lengths = np.fromiter(map(len, rings), dtype=np.int64, count=len(rings))
        # array takes numbers only, where numpy would read strings and None too.
        numbers = np.frombuffer(array("d", chain.from_iterable(rings)), dtype=np.float64)
    except TypeError:
        raise _malformed_list(segmentations, name) from None
    lists = FlatLists(numbers, lengths, ring_counts)
    # The others have a length too: an empty string is no polygon.
    if {*map(type, rings_of), *map(type, rings)} - {list, tuple} or not lists.are_polygons():
        raise _malformed_list(segmentations, name)
    return lists


def _rings(lists: FlatLists) -> Arrays:
    """Each ring of a list is an outer ring; those without any area are left out."""
    points = lists.numbers.astype(np.float32).reshape(-1, 2)
    point_counts = lists.ring_lengths // 2
    starts = offsets_of(point_counts)[:-1]
    kept = point_counts >= 3
    # The first three points of most rings have a width and a height already.
    rings = np.flatnonzero(kept)
    first = points[starts[rings]]
    has_extent = (points[starts[rings] + 1] != first) | (points[starts[rings] + 2] != first)
    doubtful = rings[~has_extent.all(axis=1)]
    kept[doubtful] = [
        bool((points[start : start + count] != points[start]).any(axis=0).all())
        for start, count in zip(starts[doubtful].tolist(), point_counts[doubtful].tolist(), strict=True)
    ]
    instance = group_numbers(offsets_of(lists.ring_counts))[kept]
    if not kept.all():
        points = points[np.repeat(kept, point_counts)]
    return (
        points,
        offsets_of(point_counts[kept]),
        offsets_of(np.bincount(instance, minlength=len(lists.ring_counts))),
        np.zeros(int(kept.sum()), dtype=np.bool_),
    )


def _malformed_list(segmentations: Sequence[Any], name: Where) -> InputError:
    """The error for the first polygon list that cannot be read."""
    for number, value in enumerate(segmentations):
        if value is None:
            continue
        if not isinstance(value, (list, tuple)):
            return InputError(
                f"{name(number)}: segmentation is neither a list of polygons nor a run-length mask but {shorten(value)}"
            )
        for index, ring in enumerate(value):
            here = f"{name(number)}: polygon {index} of the segmentation"
            if not isinstance(ring, (list, tuple)):
                return InputError(f"{here} is not a list [x0, y0, x1, y1, ...] but {shorten(ring)}")
            for entry in ring:
                if not isinstance(entry, (int, float)) or not np.isfinite(entry):
                    return InputError(f"{here} holds {shorten(entry)} where a finite number was expected")
                if abs(entry) > LARGEST_COORDINATE:
                    return InputError(f"{here} holds {shorten(entry)}, which is beyond {LARGEST_COORDINATE:g}")
            if len(ring) % 2:
                return InputError(f"{here} has {len(ring)} coordinates; pairs of x and y were expected")
    return InputError("a segmentation cannot be read as polygons")


def read_run_lengths(
    segmentations: Mapping[int, Any], masks: list[int], expected: Ints | None, name: Where
) -> tuple[Ints, Ints, Ints]:
    """Run lengths of all masks (flat), their offsets, and their (n, 2) heights and widths; all checked."""
    shapes = np.zeros((len(masks), 2), dtype=np.int64)
    compressed: list[int] = []
    texts: list[bytes] = []
    plain: list[int] = []
    plain_counts: list[Sequence[int]] = []
    for index, number in enumerate(masks):
        value = segmentations[number]
        size, counts = value.get("size"), value.get("counts")
        if not _is_size(size):
            raise InputError(f"{name(number)}: run-length mask has size {shorten(size)}; [height, width] was expected")
        shapes[index] = size
        if expected is not None and (shapes[index] != expected[number]).any():
            height, width = expected[number].tolist()
            raise InputError(
                f"{name(number)}: run-length mask has [height, width] {list(size)}, its image [{height}, {width}]"
            )
        if isinstance(counts, (str, bytes)):
            compressed.append(index)
            # JSON can spell half of a surrogate pair: damaged like any other text, which the totals tell.
            texts.append(counts.encode("utf-8", "surrogatepass") if isinstance(counts, str) else counts)
        elif isinstance(counts, (list, tuple)):
            plain.append(index)
            plain_counts.append(counts)
        else:
            raise InputError(
                f"{name(number)}: run-length mask has counts {shorten(counts)}; a string or a list was expected"
            )
    numbers, lengths = _decompress(texts)
    if plain:
        try:
            flat = np.frombuffer(array("q", chain.from_iterable(plain_counts)), dtype=np.int64)
        except (TypeError, OverflowError):
            bad = next(index for index, entry in zip(plain, plain_counts, strict=True) if not _are_ints(entry))
            raise InputError(f"{name(masks[bad])}: run-length mask has counts that are not whole numbers") from None
        numbers = np.concatenate([numbers, flat])
        lengths = np.concatenate([lengths, np.fromiter(map(len, plain_counts), dtype=np.int64, count=len(plain))])
    # Back into the order of the masks.
    place = np.empty(len(masks), dtype=np.int64)
    place[np.array(compressed + plain, dtype=np.int64)] = np.arange(len(masks))
    counts_flat = numbers[ranges(offsets_of(lengths)[place], lengths[place])]
    count_offsets = offsets_of(lengths[place])
    _check_totals(counts_flat, count_offsets, shapes, lambda index: name(masks[index]))
    return counts_flat, count_offsets, shapes


def _check_totals(counts: Ints, offsets: Ints, shapes: Ints, name: Where) -> None:
    """Run lengths are not negative and fill the mask."""
    pixels = shapes.prod(axis=1)
    running = offsets_of(counts)
    totals = running[offsets[1:]] - running[offsets[:-1]]
    # One that is larger than the mask could make a sum that overflows look right.
    wrong = offsets_of(((counts < 0) | (counts > np.repeat(pixels, np.diff(offsets)))).astype(np.int64))
    bad = (totals != pixels) | (wrong[offsets[1:]] > wrong[offsets[:-1]])
    if bad.any():
        index = int(np.argmax(bad))
        height, width = shapes[index].tolist()
        raise InputError(
            f"{name(index)}: run lengths are damaged: they add up to {totals[index]} pixels, "
            f"the mask has {height} x {width} = {height * width}"
        )


def _decompress(texts: list[bytes]) -> tuple[Ints, Ints]:
    """COCO's compressed run lengths: numbers of all texts (flat), and how many each text holds.

    A character, counted from "0", holds 5 bits, the low ones first, and a flag that more follow; the last one's fifth
    bit is the sign. From the fourth number on, each is the difference to the one two before it.
    """
    data = np.frombuffer(b"".join(texts), dtype=np.uint8).astype(np.int64) - 48
    text_offsets = offsets_of(np.fromiter(map(len, texts), dtype=np.int64, count=len(texts)))
    if not len(data):
        return np.zeros(0, dtype=np.int64), np.zeros(len(texts), dtype=np.int64)
    final = (data & 0x20) == 0
    # A text that ends within a number is closed there: its total will not fit.
    ends = text_offsets[1:][np.diff(text_offsets) > 0] - 1
    final[ends] = True
    stop = np.flatnonzero(final)
    start = np.append(0, stop[:-1] + 1)
    shift = 5 * (np.arange(len(data)) - np.repeat(start, stop - start + 1))
    shift = np.minimum(shift, 55)  # longer ones overflow; damaged anyway
    values = np.add.reduceat((data & 0x1F) << shift, start)
    values -= np.where((data[stop] & 0x10) != 0, np.left_shift(1, np.minimum(shift[stop] + 5, 60)), 0)
    lengths = np.diff(np.searchsorted(stop, text_offsets))
    offsets = offsets_of(lengths)
    local = np.arange(len(values)) - offsets[group_numbers(offsets)]
    for parity in (1, 0):
        chosen = np.flatnonzero((local % 2 == parity) & (local > 0))
        if not len(chosen):
            continue
        running = np.cumsum(values[chosen])
        begins = local[chosen] == 2 - parity
        before = (running - values[chosen])[begins]
        values[chosen] = running - before[np.cumsum(begins) - 1]
    return values, lengths


def _merge(polygons: Arrays, traced: list[Arrays], masks: Ints) -> Arrays:
    """Instances read from lists (none for masks) and those traced, in the order of the file."""
    vertices = np.concatenate([arrays[0] for arrays in traced])
    vertex_counts = np.concatenate([np.diff(arrays[1]) for arrays in traced])
    mask_rings = np.concatenate([np.diff(arrays[2]) for arrays in traced])
    holes = np.concatenate([arrays[3] for arrays in traced])
    # Each mask is cut in before the ring, and the vertex, that the lists go on with.
    ring_cuts, mask_ring_cuts = polygons[2][masks], offsets_of(mask_rings)
    cuts, mask_cuts = polygons[1][ring_cuts], offsets_of(vertex_counts)[mask_ring_cuts]
    ring_counts = np.diff(polygons[2])
    ring_counts[masks] = mask_rings
    return (
        _cut_in(polygons[0], cuts, vertices, mask_cuts),
        offsets_of(_cut_in(np.diff(polygons[1]), ring_cuts, vertex_counts, mask_ring_cuts)),
        offsets_of(ring_counts),
        _cut_in(polygons[3], ring_cuts, holes, mask_ring_cuts),
    )


def _cut_in(array: NDArray[Any], cuts: Ints, inserted: NDArray[Any], offsets: Ints) -> NDArray[Any]:
    """``array`` with ``inserted[offsets[i]:offsets[i+1]]`` before its element ``cuts[i]``, for every i in order."""
    between = np.split(array, cuts)
    groups = np.split(inserted, offsets[1:-1])
    return np.concatenate([part for pair in zip(between, groups, strict=False) for part in pair] + between[-1:])


def _is_size(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and _are_ints(value) and min(value) > 0


def _are_ints(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int) and abs(value) < 2**31 for value in values)
