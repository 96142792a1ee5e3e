"""Reads a COCO JSON without making a Python number of any coordinate.

msgspec decodes the records to typed objects and checks the JSON's grammar on the way, but leaves each ``segmentation``
as it is written. Polygon lists are joined, a piece at a time, and simdjson turns a piece into one array of numbers;
where its rings begin and end is counted in the text. Of a large file a second process takes half of this.

Whatever is not exactly as expected, even if it could be read, is declined: ``dpipe.index.coco_careful`` reads it, or
tells what is wrong with it.
"""

from __future__ import annotations

import codecs
import mmap
from array import array
from collections.abc import Iterable, Sequence
from itertools import chain, pairwise
from math import nan
from typing import Any

import msgspec
import numpy as np
import simdjson
from numpy.typing import NDArray

from dpipe.index.aside import computed_aside
from dpipe.index.coco_columns import Columns
from dpipe.outlines.polygon_coco import FlatLists, arrange
from dpipe.outlines.ragged import Ints, offsets_of
from dpipe.polygons import Polygons

# Text of polygon lists is parsed in pieces of about this size, which the processor's cache holds with all made from it.
PIECE_BYTES = 1 << 20
TWO_CORES_FROM_PIECES = 32
BYTES_A_VERTEX = 8
RECORDS = 4096
NOTHING = msgspec.Raw(b"null")
COMMA, OPENING, CLOSING = b",[]"
SPACES = b" \n\r\t"

Flag = int | float | bool | None


class DeclinedError(Exception):
    """The file holds something that is left to the careful reader."""


class _Image(msgspec.Struct):
    id: int
    width: int
    height: int
    file_name: str


class _Category(msgspec.Struct):
    id: int
    name: str


class _Annotation(msgspec.Struct, gc=False):
    id: int
    image_id: int
    category_id: int
    bbox: msgspec.Raw
    area: float | None = None
    iscrowd: Flag = None
    ignore: Flag = None
    difficult: Flag = None
    segmentation: msgspec.Raw = NOTHING


class _Document(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


def read_columns(data: bytes) -> Columns:
    """Reads the columns of a JSON.

    Args:
        data: Its content.

    Raises:
        DeclinedError: It has to be read with care. ``Columns.read_polygons`` raises it too.
    """
    try:
        # msgspec looks at no text that it skips.
        if not data.isascii():
            _check_encoding(data)
        document = msgspec.json.decode(data, type=_Document)
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError) as error:
        raise DeclinedError from error
    images, categories = document.images, document.categories
    values = _Values()
    for start in range(0, len(document.annotations), RECORDS):
        values.add(document.annotations[start : start + RECORDS])
    del document
    segmentations = values.segmentations

    def read_polygons(rows: Ints, sizes: Ints) -> Polygons:
        return _read_polygons([segmentations[row] for row in rows.tolist()], sizes)

    return Columns(
        class_names=tuple(record.name for record in categories),
        category_ids=_integers([record.id for record in categories]),
        image_ids=_integers([record.id for record in images]),
        heights=_integers([record.height for record in images]),
        widths=_integers([record.width for record in images]),
        file_names=[record.file_name for record in images],
        annotation_ids=np.frombuffer(values.ids, dtype=np.int64),
        image_ids_of=np.frombuffer(values.image_ids, dtype=np.int64),
        category_ids_of=np.frombuffer(values.category_ids, dtype=np.int64),
        boxes=np.frombuffer(values.boxes, dtype=np.float64).reshape(-1, 4),
        crowd=np.frombuffer(values.crowd, dtype=np.bool_),
        areas=np.frombuffer(values.areas, dtype=np.float64),
        read_polygons=read_polygons,
    )


def _check_encoding(data: bytes) -> None:
    """Decodes all of it, a piece at a time."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(data), PIECE_BYTES):
        decoder.decode(data[start : start + PIECE_BYTES])
    decoder.decode(b"", final=True)


class _Values:
    """What the annotations say, in columns.

    Filled from groups of records that the processor's cache holds, as every column looks at each of them.
    """

    def __init__(self) -> None:
        self.ids = array("q")
        self.image_ids = array("q")
        self.category_ids = array("q")
        self.boxes = array("d")
        self.areas = array("d")
        self.crowd = array("b")
        self.segmentations: list[msgspec.Raw] = []
        self._parser = simdjson.Parser()

    def add(self, records: Sequence[_Annotation]) -> None:
        """Adds some records."""
        try:
            self.ids.extend([record.id for record in records])
            self.image_ids.extend([record.image_id for record in records])
            self.category_ids.extend([record.category_id for record in records])
        except OverflowError as error:
            raise DeclinedError from error
        self.boxes.frombytes(_boxes([record.bbox for record in records], self._parser).tobytes())
        self.areas.extend([nan if record.area is None else record.area for record in records])
        for flags in (
            [record.iscrowd for record in records],
            [record.ignore for record in records],
            [record.difficult for record in records],
        ):
            if set(flags) - {0, 1, None}:
                raise DeclinedError
        self.crowd.extend([bool(record.iscrowd or record.ignore or record.difficult) for record in records])
        self.segmentations += [record.segmentation for record in records]


def _integers(values: list[int]) -> Ints:
    try:
        return np.array(array("q", values), dtype=np.int64)
    except OverflowError as error:
        raise DeclinedError from error


def _boxes(texts: Sequence[msgspec.Raw], parser: simdjson.Parser) -> NDArray[np.float64]:
    """(n, 4) x, y, width, height."""
    lists = _flat_lists(b"[[" + b",".join(texts) + b"]]", 1, parser)
    boxes = lists.numbers.reshape(-1, 4) if (lists.ring_lengths == 4).all() else None
    if boxes is None or len(boxes) != len(texts) or (boxes[:, 2:] < 0).any():
        raise DeclinedError
    return boxes


def _read_polygons(segmentations: Sequence[msgspec.Raw], sizes: Ints) -> Polygons:
    """The masks of annotations, given each one's ``segmentation`` as it is written."""
    lengths = np.fromiter(map(len, segmentations), dtype=np.int64, count=len(segmentations))
    last = np.flatnonzero(np.diff(np.cumsum(lengths) // PIECE_BYTES))
    bounds = [0, *(last + 1).tolist(), len(segmentations)] if len(lengths) else []
    parser = simdjson.Parser()

    def read(bounds: Sequence[int]) -> Polygons:
        return _joined((read_piece(start, end) for start, end in pairwise(bounds)), capacity)

    def read_piece(start: int, end: int) -> Polygons:
        text, masks = _set_masks_apart(b",".join(segmentations[start:end]), offsets_of(lengths[start:end] + 1))
        lists = _flat_lists(text, end - start, parser)
        arrays = arrange(lists, masks, sizes[start:end], lambda number: f"segmentation {number}")
        return Polygons(*arrays)

    capacity = int(lengths.sum()) // BYTES_A_VERTEX
    if len(bounds) < TWO_CORES_FROM_PIECES:
        return read(bounds)
    middle = len(bounds) * 8 // 15  # the other process has its result to hand over as well
    with computed_aside(lambda: _arrays_of(read(bounds[middle:]))) as other_half:
        own = (read_piece(start, end) for start, end in pairwise(bounds[: middle + 1]))
        others = (Polygons(*half()) for half in [other_half])  # asked for when its turn comes
        return _joined(chain(own, others), capacity)


def _room(vertices: int) -> NDArray[np.float32]:
    """(vertices, 2) of memory in small pages.

    NumPy asks for huge ones, and a machine whose memory is in pieces takes three times as long to find them.
    """
    memory = mmap.mmap(-1, max(8 * vertices, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(memory, dtype=np.float32, count=2 * vertices).reshape(-1, 2)


def _arrays_of(polygons: Polygons) -> Sequence[NDArray[Any]]:
    return [polygons.vertices, polygons.ring_offsets, polygons.instance_offsets, polygons.holes]


def _joined(pieces: Iterable[Polygons], capacity: int) -> Polygons:
    """The instances of all, each piece of which is dropped as soon as it is copied.

    Args:
        pieces: In their order.
        capacity: How many vertices are expected; memory that is not needed costs nothing.
    """
    vertices = _room(capacity)
    count = 0
    vertex_counts, ring_counts, holes = [], [], []
    for piece in pieces:
        end = count + len(piece.vertices)
        if end > len(vertices):
            larger = _room(2 * end)
            larger[:count] = vertices[:count]
            vertices = larger
        vertices[count:end] = piece.vertices
        count = end
        vertex_counts.append(np.diff(piece.ring_offsets))
        ring_counts.append(np.diff(piece.instance_offsets))
        holes.append(piece.holes)
    if not ring_counts:
        return Polygons.empty()
    return Polygons(
        vertices=vertices[:count],
        ring_offsets=offsets_of(np.concatenate(vertex_counts)),
        instance_offsets=offsets_of(np.concatenate(ring_counts)),
        holes=np.concatenate(holes),
    )


def _set_masks_apart(text: bytes, starts: Ints) -> tuple[bytes, dict[int, Any]]:
    """A JSON list of segmentations with an empty list in the place of each mask, and the masks by their places.

    Args:
        text: Segmentations with a comma between them.
        starts: (n+1,) where each begins; the last is one beyond the comma that would follow.
    """
    parts, masks = [b"["], {}
    done = 0
    for number in np.flatnonzero(np.frombuffer(text, dtype=np.uint8)[starts[:-1]] != OPENING).tolist():
        start, end = int(starts[number]), int(starts[number + 1]) - 1
        if text[start:end] != b"null":
            masks[number] = _mask(text[start:end])
        parts += [text[done:start], b"[]"]
        done = end
    return b"".join([*parts, text[done:], b"]"]), masks


def _mask(text: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:  # a number beyond float64, or lists too deep
        raise DeclinedError from error
    if not isinstance(value, dict):
        raise DeclinedError
    return value


def _flat_lists(text: bytes, count: int, parser: simdjson.Parser) -> FlatLists:
    """The numbers of a JSON list, each of whose elements has to be a list of lists of numbers.

    Args:
        text: The list; its grammar has been checked.
        count: How many elements it has.
        parser: Used again and again, as it keeps its memory.
    """
    if any(space in text for space in SPACES):
        text = text.translate(None, SPACES)
    try:
        # Flattens lists of any depth, and refuses whatever is no number.
        parsed: Any = parser.parse(text)
        numbers = np.frombuffer(parsed.as_buffer(of_type="d"), dtype=np.float64)
        del parsed  # the parser cannot be used again before
    except (ValueError, TypeError, RuntimeError) as error:
        raise DeclinedError from error
    characters = np.frombuffer(text, dtype=np.uint8)
    brackets = np.flatnonzero((characters == OPENING) | (characters == CLOSING))
    opens = characters[brackets] == OPENING
    depth = np.cumsum(np.where(opens, 1, -1))
    if depth.max() > 3:
        raise DeclinedError
    # Depth 1 is the list of all, 2 a segmentation, 3 a ring: nothing opens in it, so the next bracket closes it.
    ring = np.flatnonzero(opens & (depth == 3))
    # 32 bits: four times as fast as 64, and more than a piece has characters.
    commas = np.add.reduceat((characters == COMMA).view(np.uint8), brackets, dtype=np.int32)[ring].astype(np.int64)
    lengths = np.where(brackets[ring + 1] > brackets[ring] + 1, commas + 1, 0)
    if lengths.sum() != len(numbers):  # some are in no ring
        raise DeclinedError
    owner = np.cumsum(opens & (depth == 2))[ring] - 1
    lists = FlatLists(numbers, lengths, np.bincount(owner, minlength=count))
    if not lists.are_polygons():
        raise DeclinedError
    return lists
