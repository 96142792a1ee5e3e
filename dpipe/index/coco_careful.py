"""Reads a COCO JSON of any layout, and finds the first mistake in it."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import orjson
from numpy.typing import NDArray

from dpipe.building.problems import shorten
from dpipe.errors import InputError
from dpipe.index.coco_columns import Columns
from dpipe.outlines.ragged import Ints
from dpipe.polygons import Polygons

Record = dict[str, Any]


def read_columns(path: Path, data: bytes) -> Columns:
    """Reads the columns of a JSON.

    Args:
        path: The file, for messages.
        data: Its content.

    Raises:
        InputError: It is not COCO JSON; a record lacks a key or holds a value of the wrong kind.
    """
    return _Reader(path).read(data)


class _Reader:
    """Reads one JSON; knows its path for messages."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, data: bytes) -> Columns:
        images, annotations, categories = self.records(data)
        annotation_ids = self.integers(annotations, "annotation", "id")

        def read_polygons(rows: Ints, sizes: Ints) -> Polygons:
            return Polygons.from_coco(
                [annotations[row].get("segmentation") for row in rows.tolist()],
                sizes,
                where=lambda number: f"{self.path}: annotation {annotation_ids[rows[number]]}",
            )

        return Columns(
            class_names=self.strings(categories, "category", "name"),
            category_ids=self.integers(categories, "category", "id"),
            image_ids=self.integers(images, "image", "id"),
            heights=self.integers(images, "image", "height"),
            widths=self.integers(images, "image", "width"),
            file_names=self.strings(images, "image", "file_name"),
            annotation_ids=annotation_ids,
            image_ids_of=self.integers(annotations, "annotation", "image_id"),
            category_ids_of=self.integers(annotations, "annotation", "category_id"),
            boxes=self.boxes(annotations),
            crowd=self.crowd(annotations),
            areas=self.areas(annotations),
            read_polygons=read_polygons,
        )

    def fail(self, problem: str) -> NoReturn:
        raise InputError(f"{self.path}: {problem}")

    def records(self, content: bytes) -> tuple[list[Record], list[Record], list[Record]]:
        """The three lists of the file: images, annotations, categories."""
        try:
            data = orjson.loads(content)
        except orjson.JSONDecodeError as error:
            for word in ("NaN", "Infinity"):  # which Python's json writes all the same
                if error.doc.startswith(word, error.pos):
                    self.fail(
                        f"is not valid JSON: {word} in line {error.lineno}, column {error.colno} is no number of JSON"
                    )
            self.fail(f"is not valid JSON: {error}")
        if not isinstance(data, dict):
            self.fail(f"holds a {type(data).__name__}; an object with images, annotations and categories was expected")
        lists = []
        for key in ("images", "annotations", "categories"):
            if key not in data:
                self.fail(f"has no key {key!r}; COCO JSON has images, annotations and categories")
            if not isinstance(data[key], list):
                self.fail(f"{key!r} is a {type(data[key]).__name__}; a list was expected")
            for index, record in enumerate(data[key]):
                if not isinstance(record, dict):
                    self.fail(f"entry {index} of {key!r} is a {type(record).__name__}; an object was expected")
            lists.append(data[key])
        return lists[0], lists[1], lists[2]

    def name(self, kind: str, records: list[Record], index: int) -> str:
        """A record for a message: by its id where it has one."""
        identity = records[index].get("id")
        return f"{kind} {identity}" if identity is not None else f"entry {index} of the {kind} list"

    def column(self, records: list[Record], kind: str, key: str, fits: Callable[[Any], bool], wanted: str) -> list[Any]:
        """One value of each record; the first that is missing or does not fit is an error."""
        for index, record in enumerate(records):
            if key not in record:
                self.fail(f"{self.name(kind, records, index)} has no {key!r}")
            if not fits(record[key]):
                self.fail(
                    f"{self.name(kind, records, index)}: {key!r} is {shorten(record[key])}; {wanted} was expected"
                )
        return [record[key] for record in records]

    def strings(self, records: list[Record], kind: str, key: str) -> tuple[str, ...]:
        """A text of each record."""
        values = [record.get(key) for record in records]
        if set(map(type, values)) - {str}:
            self.column(records, kind, key, lambda value: isinstance(value, str), "a string")
        return tuple(values)  # type: ignore[arg-type]

    def integers(self, records: list[Record], kind: str, key: str) -> NDArray[np.int64]:
        """(n,) a whole number of each record."""
        try:
            # array is as fast as numpy and takes nothing but integers.
            return np.array(array("q", [record[key] for record in records]), dtype=np.int64)
        except (KeyError, TypeError, OverflowError):
            self.column(records, kind, key, _is_int64, "a whole number")
            raise

    def boxes(self, annotations: list[Record]) -> NDArray[np.float64]:
        """(n, 4) x, y, width, height."""
        wanted = "[x, y, width, height] of finite numbers, width and height not negative,"
        try:
            values = [record["bbox"] for record in annotations]
            boxes = np.array(array("d", chain.from_iterable(values)), dtype=np.float64)
            well_formed = all(len(value) == 4 for value in values)
        except (KeyError, TypeError, OverflowError):
            well_formed = False
        if not well_formed or not np.isfinite(boxes).all() or (boxes.reshape(-1, 4)[:, 2:] < 0).any():
            self.column(annotations, "annotation", "bbox", _is_box, wanted)
        return boxes.reshape(-1, 4)

    def crowd(self, annotations: list[Record]) -> NDArray[np.bool_]:
        """(n,) whether an annotation is an ignore region."""
        crowd = np.zeros(len(annotations), dtype=np.bool_)
        for key in ("iscrowd", "ignore", "difficult"):
            values = [record.get(key) for record in annotations]
            # By type first: a list has no hash.
            if set(map(type, values)) - {int, bool, float, type(None)} or set(values) - {0, 1, None}:
                self.column(
                    [record for record in annotations if record.get(key) is not None],
                    "annotation",
                    key,
                    lambda value: isinstance(value, (int, float)) and value in (0, 1),
                    "0 or 1",
                )
            crowd |= np.array([bool(value) for value in values], dtype=np.bool_)
        return crowd

    def areas(self, annotations: list[Record]) -> NDArray[np.float64]:
        """(n,) areas; nan where there is none."""
        given = [record.get("area") for record in annotations]
        if set(map(type, given)) - {int, float, type(None)}:
            stated = [record for record in annotations if record.get("area") is not None]
            self.column(stated, "annotation", "area", _is_number, "a number")
        return np.array(given, dtype=np.float64)  # None reads as nan


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _is_int64(value: Any) -> bool:
    return isinstance(value, int) and -(2**63) <= value < 2**63


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value)) and min(value[2:]) >= 0
