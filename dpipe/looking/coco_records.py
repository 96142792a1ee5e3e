"""A COCO JSON as columns, however much of it is wrong.

``CocoIndex`` stops at the first mistake, as training has to; who looks at a file wants all of them, and numbers on the
rest. Here what cannot be used is set apart and named.
"""

from __future__ import annotations

import gc
import math
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from dpipe.building.problems import shorten
from dpipe.errors import InputError
from dpipe.outlines.polygon_coco import LARGEST_COORDINATE

Record = dict[str, Any]
LARGEST_NUMBER = 2**53 - 1
"""The largest whole number that every reader of JSON takes exactly (RFC 8259, section 6)."""
LARGEST_EDGE = 2**31 - 1
"""The longest edge of an image, in pixels, that an index takes."""
LISTS = ("images", "annotations", "categories")


@dataclass(frozen=True, eq=False)
class Flaw:
    """A record, or a value in it, that cannot be used.

    Attributes:
        list_name: ``images``, ``annotations`` or ``categories``.
        row: Of the record in that list's columns; None where the record has no row.
        detail: What is wrong with it.
    """

    list_name: str
    row: int | None
    detail: str


@dataclass(frozen=True, eq=False)
class Records:
    """Columns of a COCO JSON: N images, M annotations, C categories, in the file's order.

    Attributes:
        path: The file.
        images: N records.
        annotations: M records.
        categories: C records.
        image_ids: (N,) int64; -1 where there is none.
        widths: (N,) int64 pixels; 0 where there is none.
        heights: (N,) int64, as ``widths``.
        file_names: N names, None where there is none.
        category_ids: (C,) int64; -1 where there is none.
        category_names: C names, None where there is none.
        annotation_ids: (M,) int64; -1 where there is none.
        image_ids_of: (M,) int64 as the annotations give them; -1 where there is none.
        category_ids_of: (M,) int64, as ``image_ids_of``.
        image: (M,) row of the (first) image of that id, -1 where there is none.
        label: (M,) row of the (first) category of that id, -1 where there is none.
        boxes: (M, 4) float64 x, y, width, height; nan where there is no box of four finite numbers.
        areas: (M,) float64; nan where there is none.
        crowd: (M,) bool: ``iscrowd``.
        ignored: (M,) bool: ``ignore`` or ``difficult``, and no crowd.
        flaws: What cannot be used.
    """

    path: Path
    images: list[Record]
    annotations: list[Record]
    categories: list[Record]
    image_ids: NDArray[np.int64]
    widths: NDArray[np.int64]
    heights: NDArray[np.int64]
    file_names: list[str | None]
    category_ids: NDArray[np.int64]
    category_names: list[str | None]
    annotation_ids: NDArray[np.int64]
    image_ids_of: NDArray[np.int64]
    category_ids_of: NDArray[np.int64]
    image: NDArray[np.int64]
    label: NDArray[np.int64]
    boxes: NDArray[np.float64]
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    flaws: list[Flaw] = field(default_factory=list)

    def segmentations(self) -> Iterator[Any]:
        """Each annotation's ``segmentation``; None where there is none, and for an empty list."""
        values = (record.get("segmentation") for record in self.annotations)
        return (None if value == [] else value for value in values)

    def sizes_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n, 2) height and width of the images of annotations; 0 where there is no such image."""
        sizes = np.zeros((len(rows), 2), dtype=np.int64)
        known = self.image[rows] >= 0
        image = self.image[rows[known]]
        sizes[known, 0], sizes[known, 1] = self.heights[image], self.widths[image]
        return sizes

    def class_name(self, label: int) -> str:
        """A category's name, or its id where it has none."""
        return self.category_names[label] or f"category {self.category_ids[label]}"


def read_records(path: Path) -> Records:
    """Reads a COCO JSON.

    Raises:
        InputError: If the file cannot be read, is not JSON, or has none of COCO's lists.
    """
    flaws: list[Flaw] = []
    images, annotations, categories = (_objects(name, value, flaws) for name, value in _lists(path).items())
    image_ids = _whole_numbers("images", images, "id", flaws)
    category_ids = _whole_numbers("categories", categories, "id", flaws)
    image_ids_of = _whole_numbers("annotations", annotations, "image_id", flaws)
    category_ids_of = _whole_numbers("annotations", annotations, "category_id", flaws)
    crowd = _flags(annotations, "iscrowd", flaws)
    return Records(
        path=path,
        images=images,
        annotations=annotations,
        categories=categories,
        image_ids=image_ids,
        widths=np.maximum(_whole_numbers("images", images, "width", flaws, LARGEST_EDGE), 0),
        heights=np.maximum(_whole_numbers("images", images, "height", flaws, LARGEST_EDGE), 0),
        file_names=_texts("images", images, "file_name", flaws),
        category_ids=category_ids,
        category_names=_texts("categories", categories, "name", flaws),
        annotation_ids=_whole_numbers("annotations", annotations, "id", flaws),
        image_ids_of=image_ids_of,
        category_ids_of=category_ids_of,
        image=_places(image_ids_of, image_ids),
        label=_places(category_ids_of, category_ids),
        boxes=_boxes(annotations, flaws),
        areas=_areas(annotations, flaws),
        crowd=crowd,
        ignored=(_flags(annotations, "ignore", flaws) | _flags(annotations, "difficult", flaws)) & ~crowd,
        flaws=flaws,
    )


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Millions of lists make the collector run over all of them again and again, for nothing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _lists(path: Path) -> dict[str, Any]:
    try:
        with no_garbage_collection():
            content = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise InputError(f"{path}: is not valid JSON: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not isinstance(content, dict) or not any(name in content for name in LISTS):
        raise InputError(f"{path}: is no COCO JSON: an object with images, annotations and categories was expected")
    return {name: content.get(name) for name in LISTS}


def _objects(name: str, value: Any, flaws: list[Flaw]) -> list[Record]:
    """The objects of one of the three lists."""
    if not isinstance(value, list):
        flaws.append(Flaw(name, None, f"{name!r} is {shorten(value)}; a list was expected"))
        return []
    if all(type(record) is dict for record in value):
        return value
    for place, record in enumerate(value):
        if not isinstance(record, dict):
            flaws.append(Flaw(name, None, f"entry {place} is {shorten(record)}; an object was expected"))
    return [record for record in value if isinstance(record, dict)]


def _column(
    name: str,
    records: Sequence[Record],
    key: str,
    fits: Callable[[Any], bool],
    expected: str,
    otherwise: Any,
    flaws: list[Flaw],
) -> list[Any]:
    """One value of each record, ``otherwise`` where it does not fit."""
    values = []
    for row, record in enumerate(records):
        value = record.get(key)
        if not fits(value):
            found = f"is {shorten(value)}" if key in record else "is missing"
            flaws.append(Flaw(name, row, f"{key!r} {found}; {expected} was expected"))
            value = otherwise
        values.append(value)
    return values


def _whole_numbers(
    name: str, records: Sequence[Record], key: str, flaws: list[Flaw], most: int = LARGEST_NUMBER
) -> NDArray[np.int64]:
    """(n,) ids or sizes; -1 where there is none."""
    try:
        numbers = np.array(array("q", [record[key] for record in records]), dtype=np.int64)
        if ((numbers >= 0) & (numbers <= most)).all():
            return numbers
    except (KeyError, TypeError, OverflowError):
        pass

    def fits(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most

    expected = f"a whole number in 0..{most}"
    return np.array(_column(name, records, key, fits, expected, -1, flaws), dtype=np.int64)


def _texts(name: str, records: Sequence[Record], key: str, flaws: list[Flaw]) -> list[str | None]:
    return _column(name, records, key, lambda value: isinstance(value, str) and value != "", "a text", None, flaws)


def _boxes(annotations: Sequence[Record], flaws: list[Flaw]) -> NDArray[np.float64]:
    """(M, 4)."""
    try:
        values = [record["bbox"] for record in annotations]
        if all(type(value) is list and len(value) == 4 for value in values):
            boxes = np.array(array("d", chain.from_iterable(values)), dtype=np.float64).reshape(-1, 4)
            if (np.abs(boxes) <= LARGEST_COORDINATE).all():
                return boxes
    except (KeyError, TypeError, OverflowError):
        pass
    nothing = [math.nan] * 4
    expected = "[x, y, width, height] of finite numbers"
    values = _column("annotations", annotations, "bbox", _is_box, expected, nothing, flaws)
    return np.array(values, dtype=np.float64).reshape(-1, 4)


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) <= LARGEST_COORDINATE


def _areas(annotations: Sequence[Record], flaws: list[Flaw]) -> NDArray[np.float64]:
    """(M,)."""
    values = [record.get("area") for record in annotations]
    if set(map(type, values)) - {int, float, type(None)}:
        values = _column("annotations", annotations, "area", _is_number_or_none, "a number", None, flaws)
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def _is_number_or_none(value: Any) -> bool:
    return value is None or _is_number(value)


def _flags(annotations: Sequence[Record], key: str, flaws: list[Flaw]) -> NDArray[np.bool_]:
    """(M,) whether a value is 1."""
    values = [record.get(key) for record in annotations]
    # By type first: a list has no hash.
    if set(map(type, values)) - {int, bool, float, type(None)} or set(values) - {0, 1, None}:
        values = _column("annotations", annotations, key, _is_flag, "0 or 1", 0, flaws)
    return np.array([bool(value) for value in values], dtype=np.bool_)


def _is_flag(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and value in (0, 1))


def _places(values: NDArray[np.int64], ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first place of each value in ``ids``; -1 where it is not there."""
    if not len(ids):
        return np.full(len(values), -1, dtype=np.int64)
    order = np.argsort(ids, kind="stable")
    place = np.minimum(np.searchsorted(ids[order], values), len(ids) - 1)
    found = (ids[order[place]] == values) & (values >= 0)
    return np.where(found, order[place], -1)
