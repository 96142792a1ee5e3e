"""The values of a COCO JSON in columns, and how they become an index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from dpipe.coco import CocoIndex
from dpipe.errors import InputError
from dpipe.index.texts import Texts
from dpipe.outlines.polygon_coco import LARGEST_COORDINATE
from dpipe.outlines.ragged import Ints, offsets_of
from dpipe.polygons import Polygons

ReadPolygons = Callable[[Ints, Ints], Polygons]
"""Reads the masks of some rows of the annotations, given (m,) rows and (m, 2) heights and widths of their images."""


@dataclass(frozen=True, eq=False)
class Columns:
    """N images, M annotations and C categories, in the file's order; each value is of the right kind by itself.

    Attributes:
        class_names: C names.
        category_ids: (C,) int64.
        image_ids: (N,) int64.
        heights: (N,) int64.
        widths: (N,) int64.
        file_names: N names.
        annotation_ids: (M,) int64.
        image_ids_of: (M,) int64: the image of each annotation.
        category_ids_of: (M,) int64: its category.
        boxes: (M, 4) float64 x, y, width, height.
        crowd: (M,) bool.
        areas: (M,) float64; nan where there is none.
        read_polygons: Reads masks; kept for when it is known which, and in which order.
    """

    class_names: tuple[str, ...]
    category_ids: Ints
    image_ids: Ints
    heights: Ints
    widths: Ints
    file_names: Sequence[str]
    annotation_ids: Ints
    image_ids_of: Ints
    category_ids_of: Ints
    boxes: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    areas: NDArray[np.float64]
    read_polygons: ReadPolygons


def index_of(path: Path, columns: Columns) -> CocoIndex:
    """Checks the values against each other and orders them by image.

    Args:
        path: The file, for messages.
        columns: What it says.

    Raises:
        InputError: An id or a name occurs twice; an image has no size; an annotation points nowhere; a coordinate is
            too large; a segmentation is malformed.
    """
    return _Assembly(path, columns).index()


class _Assembly:
    """Makes one index; knows the path for messages."""

    def __init__(self, path: Path, columns: Columns) -> None:
        self.path = path
        self.columns = columns

    def index(self) -> CocoIndex:
        columns = self.columns
        names = columns.class_names
        if len(set(names)) < len(names):
            twice = max(names, key=names.count)
            self.fail(f"category name {twice!r} occurs {names.count(twice)} times; names must be unique")
        self.check_ids("category", columns.category_ids)
        self.check_ids("image", columns.image_ids)
        self.check_sizes("height", columns.heights)
        self.check_sizes("width", columns.widths)
        self.check_ids("annotation", columns.annotation_ids)
        image = self.lookup("image_id", columns.image_ids_of, "images", columns.image_ids)
        label = self.lookup("category_id", columns.category_ids_of, "categories", columns.category_ids)
        boxes = self.corners()
        size = np.stack([columns.heights, columns.widths], axis=1)[image]
        # Empty boxes and those without overlap, as the usual toolkits do.
        seen = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        seen &= (boxes[:, 2:] > 0).all(axis=1) & (boxes[:, :2] < size[:, ::-1]).all(axis=1)
        rows = np.flatnonzero(seen)
        rows = rows[np.argsort(image[rows], kind="stable")]
        boxes = boxes[rows]
        polygons = columns.read_polygons(rows, size[rows])
        return CocoIndex(
            path=self.path,
            class_names=names,
            category_ids=columns.category_ids,
            image_ids=columns.image_ids,
            widths=columns.widths.astype(np.int32),
            heights=columns.heights.astype(np.int32),
            file_names=Texts.of(columns.file_names),
            offsets=offsets_of(np.bincount(image[rows], minlength=len(columns.image_ids))),
            boxes=boxes.astype(np.float32),
            labels=label[rows],
            crowd=columns.crowd[rows],
            areas=_areas(columns.areas[rows], boxes, polygons),
            annotation_ids=columns.annotation_ids[rows],
            polygons=polygons,
            left_out=len(image) - len(rows),
        )

    def fail(self, problem: str) -> NoReturn:
        raise InputError(f"{self.path}: {problem}")

    def check_ids(self, kind: str, ids: Ints) -> None:
        unique, counts = np.unique(ids, return_counts=True)
        if len(unique) < len(ids):
            self.fail(f"{kind} id {unique[np.argmax(counts > 1)]} occurs {counts.max()} times; ids must be unique")

    def check_sizes(self, key: str, values: Ints) -> None:
        wrong = (values <= 0) | (values >= 2**31)
        if wrong.any():
            index = int(np.argmax(wrong))
            self.fail(
                f"image {self.columns.image_ids[index]}: {key!r} is {values[index]}; "
                "a positive number of pixels was expected"
            )

    def lookup(self, key: str, values: Ints, kind: str, ids: Ints) -> Ints:
        """(M,) the place in ``ids`` of each annotation's value."""
        order = np.argsort(ids)
        place = np.searchsorted(ids[order], values)
        found = place < len(ids)
        found[found] = ids[order][place[found]] == values[found]
        if not found.all():
            index = int(np.argmin(found))
            self.fail(
                f"annotation {self.columns.annotation_ids[index]}: {key!r} is {values[index]}, which is not in {kind!r}"
            )
        return order[place]

    def corners(self) -> NDArray[np.float64]:
        """(M, 4) xyxy boxes."""
        boxes = self.columns.boxes
        far = (np.abs(boxes) > LARGEST_COORDINATE).any(axis=1)
        if far.any():
            index = int(np.argmax(far))
            values = ", ".join(f"{value:g}" for value in boxes[index])
            self.fail(
                f"annotation {self.columns.annotation_ids[index]}: 'bbox' is [{values}]; "
                f"numbers up to {LARGEST_COORDINATE:g} were expected"
            )
        return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def _areas(given: NDArray[np.float64], boxes: NDArray[np.float64], polygons: Polygons) -> NDArray[np.float64]:
    """(m,) areas; see ``CocoIndex``."""
    missing = np.isnan(given)
    if not missing.any():
        return given
    box_areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    computed = np.where(np.diff(polygons.instance_offsets) > 0, polygons.areas(), box_areas)
    return np.where(missing, computed, given)
