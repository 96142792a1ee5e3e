"""A COCO instances JSON as flat arrays."""

from __future__ import annotations

import math
import os
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PureWindowsPath
from typing import Any, NoReturn

import numpy as np
import orjson
from numpy.typing import NDArray

from dpipe.errors import InputError
from dpipe.polygon_coco import LARGEST_COORDINATE
from dpipe.polygons import Polygons
from dpipe.problems import shorten
from dpipe.ragged import offsets_of

Record = dict[str, Any]


@dataclass(frozen=True, eq=False)
class CocoIndex:
    """Images and instances of a COCO JSON.

    N images, in the file's order; M instances, ordered by image and within an image as in the file. Image i owns rows
    ``offsets[i]:offsets[i+1]`` of every per-instance array.

    Attributes:
        path: The JSON file.
        class_names: C names in the order of ``categories``; a label is a position in it.
        category_ids: (C,) int64, the file's ids in the same order.
        image_ids: (N,) int64.
        widths: (N,) int32 pixels.
        heights: (N,) int32 pixels.
        file_names: N names relative to the image root.
        offsets: (N+1,) int64.
        boxes: (M, 4) float32 xyxy as written in the file, not clipped.
        labels: (M,) int64 in 0..C-1.
        crowd: (M,) bool: ignore regions (``iscrowd``, ``ignore`` or ``difficult``), never positives.
        areas: (M,) float64 ``area`` of the file; where it is missing, that of the polygons, else of the box.
        annotation_ids: (M,) int64.
        polygons: M instances; no rings where the file has no segmentation.
        left_out: How many annotations have no row, because their box is empty or wholly outside of the image.
    """

    path: Path
    class_names: tuple[str, ...]
    category_ids: NDArray[np.int64]
    image_ids: NDArray[np.int64]
    widths: NDArray[np.int32]
    heights: NDArray[np.int32]
    file_names: Sequence[str]
    offsets: NDArray[np.int64]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    areas: NDArray[np.float64]
    annotation_ids: NDArray[np.int64]
    polygons: Polygons
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def has_masks(self) -> bool:
        """Whether any instance has a polygon."""
        return len(self.polygons.holes) > 0

    @property
    def left_out_note(self) -> str:
        """What a user is to be told of ``left_out``, in one line; empty where nothing was left out."""
        if not self.left_out:
            return ""
        return f"annotations left out, as their boxes are empty or outside of their images: {self.left_out}"

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, classes: Sequence[str] | None = None) -> CocoIndex:
        """Reads a COCO instances JSON and checks it whole.

        An annotation whose box has no width or no height, or lies wholly outside of its image, has nothing to learn
        from and gets no row (``left_out`` counts them). Everything else that is wrong is an error.

        Args:
            path: The JSON file.
            classes: The class names that are expected, in order.

        Raises:
            InputError: The file cannot be read or is not COCO JSON; a record lacks a key or holds a value of the wrong
                kind; an id or a category's name occurs twice; an annotation points to an image or category that is not
                there; a box has a negative width or height; a coordinate is too large for float32; a segmentation is
                malformed; the categories are not ``classes``.
        """
        return _Reader(Path(path)).read(classes)

    def aspect_groups(self) -> NDArray[np.int64]:
        """(N,) int64: 0 for portrait images (narrower than high), 1 for all others."""
        return (self.widths >= self.heights).astype(np.int64)

    def non_empty(self) -> NDArray[np.bool_]:
        """(N,) bool: the image has an instance that is not a crowd region."""
        before = offsets_of((~self.crowd).astype(np.int64))
        return before[self.offsets[1:]] > before[self.offsets[:-1]]


def image_path(root: str | os.PathLike[str], file_name: str) -> Path:
    """The path of an image, which has to stay below the image root.

    Names are judged as they are written; symbolic links inside the root are the user's own and are followed.

    Raises:
        InputError: The name is empty or absolute, or has ``..`` in it.
    """
    parts = file_name.replace("\\", "/").split("/")
    absolute = file_name.startswith(("/", "\\")) or PureWindowsPath(file_name).drive != ""
    if not file_name or absolute or ".." in parts or "\0" in file_name:
        raise InputError(
            f"image file name {file_name!r} leaves the image folder {root}: a relative path below it was expected"
        )
    return Path(root, file_name)


class _Reader:
    """Reads one JSON; knows its path for messages."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, classes: Sequence[str] | None) -> CocoIndex:
        images, annotations, categories = self.records()
        names = self.strings(categories, "category", "name")
        if len(set(names)) < len(names):
            twice = max(names, key=names.count)
            self.fail(f"category name {twice!r} occurs {names.count(twice)} times; names must be unique")
        if classes is not None and tuple(classes) != names:
            self.fail(f"has the classes {list(names)}, expected were {list(classes)}, in this order")
        category_ids = self.ids(categories, "category")
        image_ids = self.ids(images, "image")
        sizes = np.stack([self.sizes(images, "height"), self.sizes(images, "width")], axis=1)
        file_names = self.strings(images, "image", "file_name")

        annotation_ids = self.ids(annotations, "annotation")
        image = self.lookup(annotations, "image_id", image_ids)
        label = self.lookup(annotations, "category_id", category_ids)
        boxes = self.boxes(annotations)
        crowd = self.crowd(annotations)
        size = sizes[image]
        # Empty boxes and those without overlap, as the usual toolkits do.
        seen = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        seen &= (boxes[:, 2:] > 0).all(axis=1) & (boxes[:, :2] < size[:, ::-1]).all(axis=1)
        rows = np.flatnonzero(seen)
        rows = rows[np.argsort(image[rows], kind="stable")]
        ids = annotation_ids[rows]
        chosen = [annotations[row] for row in rows.tolist()]
        polygons = Polygons.from_coco(
            [record.get("segmentation") for record in chosen],
            size[rows],
            where=lambda number: f"{self.path}: annotation {ids[number]}",
        )
        boxes = boxes[rows]
        return CocoIndex(
            path=self.path,
            class_names=names,
            category_ids=category_ids,
            image_ids=image_ids,
            widths=sizes[:, 1].astype(np.int32),
            heights=sizes[:, 0].astype(np.int32),
            file_names=file_names,
            offsets=offsets_of(np.bincount(image[rows], minlength=len(images))),
            boxes=boxes.astype(np.float32),
            labels=label[rows],
            crowd=crowd[rows],
            areas=self.areas(chosen, boxes, polygons),
            annotation_ids=ids,
            polygons=polygons,
            left_out=len(annotations) - len(rows),
        )

    def fail(self, problem: str) -> NoReturn:
        raise InputError(f"{self.path}: {problem}")

    def records(self) -> tuple[list[Record], list[Record], list[Record]]:
        """The three lists of the file: images, annotations, categories."""
        try:
            data = orjson.loads(self.path.read_bytes())
        except orjson.JSONDecodeError as error:
            self.fail(f"is not valid JSON: {error}")
        except OSError as error:
            self.fail(f"cannot be read: {error.strerror or error}")
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

    def ids(self, records: list[Record], kind: str) -> NDArray[np.int64]:
        """(n,) the ids, each of which occurs once."""
        ids = self.integers(records, kind, "id")
        unique, counts = np.unique(ids, return_counts=True)
        if len(unique) < len(ids):
            self.fail(f"{kind} id {unique[np.argmax(counts > 1)]} occurs {counts.max()} times; ids must be unique")
        return ids

    def sizes(self, images: list[Record], key: str) -> NDArray[np.int64]:
        """(N,) heights or widths."""
        values = self.integers(images, "image", key)
        if (values <= 0).any() or (values >= 2**31).any():
            index = int(np.argmax((values <= 0) | (values >= 2**31)))
            self.fail(
                f"image {images[index]['id']}: {key!r} is {values[index]}; a positive number of pixels was expected"
            )
        return values

    def lookup(self, annotations: list[Record], key: str, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n,) the place in ``ids`` that each annotation's ``key`` points to."""
        values = self.integers(annotations, "annotation", key)
        order = np.argsort(ids)
        place = np.searchsorted(ids[order], values)
        found = place < len(ids)
        found[found] = ids[order][place[found]] == values[found]
        if not found.all():
            index = int(np.argmin(found))
            kind = "images" if key == "image_id" else "categories"
            self.fail(f"annotation {annotations[index]['id']}: {key!r} is {values[index]}, which is not in {kind!r}")
        return order[place]

    def boxes(self, annotations: list[Record]) -> NDArray[np.float64]:
        """(n, 4) xyxy boxes."""
        wanted = "[x, y, width, height] of finite numbers, width and height not negative,"
        try:
            values = [record["bbox"] for record in annotations]
            boxes = np.array(array("d", chain.from_iterable(values)), dtype=np.float64)
            well_formed = all(len(value) == 4 for value in values)
        except (KeyError, TypeError, OverflowError):
            well_formed = False
        if not well_formed or not np.isfinite(boxes).all() or (boxes.reshape(-1, 4)[:, 2:] < 0).any():
            self.column(annotations, "annotation", "bbox", _is_box, wanted)
        boxes = boxes.reshape(-1, 4)
        if (np.abs(boxes) > LARGEST_COORDINATE).any():
            index = int(np.argmax((np.abs(boxes) > LARGEST_COORDINATE).any(axis=1)))
            self.fail(
                f"annotation {annotations[index]['id']}: 'bbox' is {shorten(annotations[index]['bbox'])}; "
                f"numbers up to {LARGEST_COORDINATE:g} were expected"
            )
        boxes[:, 2:] += boxes[:, :2]
        return boxes

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

    def areas(self, annotations: list[Record], boxes: NDArray[np.float64], polygons: Polygons) -> NDArray[np.float64]:
        """(M,) areas; see ``CocoIndex``."""
        given = [record.get("area") for record in annotations]
        if set(map(type, given)) - {int, float, type(None)}:
            stated = [record for record in annotations if record.get("area") is not None]
            self.column(stated, "annotation", "area", _is_number, "a number")
        areas = np.array(given, dtype=np.float64)  # None reads as nan
        missing = np.isnan(areas)
        if missing.any():
            traced = polygons.areas()
            box_areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
            areas[missing] = np.where(np.diff(polygons.instance_offsets) > 0, traced, box_areas)[missing]
        return areas


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _is_int64(value: Any) -> bool:
    return isinstance(value, int) and -(2**63) <= value < 2**63


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value)) and min(value[2:]) >= 0
