"""Detections of a whole data set as flat arrays, and COCO's results format, which they are written in and read from."""

from __future__ import annotations

import codecs
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from dpipe.building.problems import shorten
from dpipe.errors import InputError
from dpipe.outlines.polygon_coco import read_run_lengths

if TYPE_CHECKING:
    from detect.models.detections import Detections, RunLengths
    from dpipe.coco import CocoIndex

BLOCK = 1 << 18
"""Masks are decompressed by so many characters at a time, as each becomes some hundred bytes on the way."""


@dataclass(frozen=True, eq=False)
class Results:
    """D detections of a data set, in the data set's terms.

    Attributes:
        image_ids: (D,) int64, the JSON's.
        category_ids: (D,) int64, the JSON's.
        boxes: (D, 4) float64: x, y, width and height in pixels of the original image.
        scores: (D,) float64.
        masks: D masks as compressed run lengths, or None where there are none.
    """

    image_ids: NDArray[np.int64]
    category_ids: NDArray[np.int64]
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    masks: list[RunLengths] | None = None

    def __len__(self) -> int:
        return len(self.image_ids)

    @classmethod
    def of_image(cls, detections: Detections, image_id: int, category_ids: Sequence[int]) -> Results:
        """One image's detections.

        Args:
            detections: In the coordinates of the original image.
            image_id: The JSON's id of the image.
            category_ids: The JSON's id of each label.
        """
        boxes = detections.boxes.detach().cpu().double().numpy()
        return cls(
            np.full(len(boxes), image_id, np.int64),
            np.asarray(category_ids, np.int64)[detections.labels.cpu().numpy()],
            np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1),
            detections.scores.detach().cpu().double().numpy(),
            detections.masks,
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Results]) -> Results:
        """All detections of several parts, ordered by image id; within an image they stay in order.

        They have masks if all detections do; without any detection, if a part says so by an empty list.
        """
        have_masks = any(part.masks is not None for part in parts)
        have_masks &= not any(part.masks is None and len(part) for part in parts)
        parts = [EMPTY, *parts]
        image_ids = np.concatenate([part.image_ids for part in parts])
        order = np.argsort(image_ids, kind="stable")
        masks: list[RunLengths] | None = None
        if have_masks:
            flat = [mask for part in parts for mask in part.masks or ()]
            masks = [flat[place] for place in order.tolist()]
        return cls(
            image_ids[order],
            np.concatenate([part.category_ids for part in parts])[order],
            np.concatenate([part.boxes for part in parts])[order],
            np.concatenate([part.scores for part in parts])[order],
            masks,
        )

    def to_coco(self) -> list[dict[str, Any]]:
        """The detections in COCO's results format.

        Returns:
            A dict for each detection: ``image_id``, ``category_id``, ``bbox`` (x, y, width, height), ``score``, and
            with masks ``segmentation`` (compressed run lengths).
        """
        rows = zip(
            self.image_ids.tolist(), self.category_ids.tolist(), self.boxes.tolist(), self.scores.tolist(), strict=True
        )
        results = [
            {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}
            for image_id, category_id, box, score in rows
        ]
        if self.masks is not None:
            for result, mask in zip(results, self.masks, strict=True):
                result["segmentation"] = mask
        return results


EMPTY = Results(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0))


def read_results(path: str | Path, index: CocoIndex) -> Results:
    """Reads a file in COCO's results format, whoever wrote it.

    Args:
        path: A JSON list of detections: ``image_id``, ``category_id``, ``score``, and ``bbox`` or ``segmentation``
            (run lengths) or both. Boxes that are missing are those of the masks.
        index: The data set that they belong to.

    Raises:
        InputError: If ``path`` is none, or the file cannot be read or is not JSON in UTF-8. Or naming the first
            detection that is wrong: not a mapping, a key is missing, an id is not in the data set, a value is no finite
            number, a box has a negative side, a mask is damaged or not of its image's size.
    """
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"results: expected the path of a JSON file, or detect.Results, got {shorten(path)}")
    return results_of(read_rows(path), index, lambda number: f"{path}: detection {number}")


def read_rows(path: str | Path) -> list[Any]:
    """The entries of a file in COCO's results format, not looked at yet.

    Raises:
        InputError: If the file is no JSON list in UTF-8, or holds NaN or infinity, naming the detection.
    """
    try:
        content = Path(path).read_bytes().removeprefix(codecs.BOM_UTF8)
        rows = orjson.loads(content)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except orjson.JSONDecodeError as error:
        raise InputError(f"{path}: {_what_is_wrong(content, error)}") from None
    if not isinstance(rows, list):
        hint = ", as of a data set" if isinstance(rows, dict) and "images" in rows else ""
        raise InputError(f"{path}: holds a {type(rows).__name__}{hint}; COCO results are a list of detections")
    return rows


def _what_is_wrong(content: bytes, error: orjson.JSONDecodeError) -> str:
    """Why a file's content is not JSON; numbers that JSON has not are named by their detection."""
    if not content.strip():
        return "is empty; COCO results are a list of detections"
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return "is not UTF-8"
    if "\0" in text:  # as in the ASCII letters of UTF-16 and UTF-32
        return "is not UTF-8"
    try:
        rows = json.loads(text)  # takes NaN and infinity, which many programs write
    except (ValueError, RecursionError):
        rows = None
    for number, row in enumerate(rows if isinstance(rows, list) else ()):
        for key, value in row.items() if isinstance(row, dict) else ():
            if not _is_finite(value):
                return f"detection {number}: {key} is {shorten(value)}; NaN and Infinity are no numbers in JSON"
    return f"is not JSON: {error}"


def _is_finite(value: Any) -> bool:
    """Whether all numbers in a value of JSON are finite."""
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def results_of(rows: Sequence[Any], index: CocoIndex, where: Where, *, with_masks: bool = True) -> Results:
    """Detections of the entries of COCO's results format.

    Args:
        rows: See :func:`read_rows`.
        index: The data set that they belong to.
        where: Names an entry, for messages.
        with_masks: Whether masks are read and checked, which takes most of the time; without, they are only where an
            entry has no box.

    Raises:
        InputError: See :func:`read_results`.
    """
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise InputError(f"{where(number)} is {shorten(row)}; expected a mapping with image_id, category_id, score")
    image_ids = _ids(rows, "image_id", index.image_ids, where, index)
    category_ids = _ids(rows, "category_id", index.category_ids, where, index)
    scores = _numbers(rows, "score", 1, where)[:, 0]
    masks = None
    if with_masks or not all("bbox" in row for row in rows):
        masks = _masks(rows, image_ids, where, index)
    boxes = _boxes(rows, masks, where)
    return Results(image_ids, category_ids, boxes, scores, masks)


def check_ids(results: Results, index: CocoIndex) -> None:
    """Checks that detections are of a data set's images and classes.

    Raises:
        InputError: Naming the first id that the data set does not have.
    """
    for key, ids, known in (
        ("image_id", results.image_ids, index.image_ids),
        ("category_id", results.category_ids, index.category_ids),
    ):
        strange = ~np.isin(ids, known)
        if strange.any():
            number = int(strange.argmax())
            raise InputError(f"the results' detection {number}: {key} {ids[number]} is not in {index.path}")


Where = Callable[[int], str]


def _values(rows: Sequence[Mapping[str, Any]], key: str, where: Where) -> list[Any]:
    """The values of a key that every row needs."""
    try:
        return [row[key] for row in rows]
    except KeyError:
        number = next(number for number, row in enumerate(rows) if key not in row)
        raise InputError(f"{where(number)} has no {key}") from None


def _ids(
    rows: Sequence[Mapping[str, Any]], key: str, known: NDArray[np.int64], where: Where, index: CocoIndex
) -> NDArray[np.int64]:
    """Ids that are all among those of the data set."""
    values = _values(rows, key, where)
    allowed = set(known.tolist())
    for number, value in enumerate(values):
        if type(value) is not int or value not in allowed:
            raise InputError(f"{where(number)}: {key} {shorten(value)} is not in {index.path}")
    return np.array(values, np.int64)


def _numbers(rows: Sequence[Mapping[str, Any]], key: str, width: int, where: Where) -> NDArray[np.float64]:
    """(D, width) numbers, finite as all in JSON; where the width is 1, the values are numbers themselves, no lists."""
    values = _values(rows, key, where)
    lists = [[value] for value in values] if width == 1 else values
    for number, parts in enumerate(lists):
        if not isinstance(parts, list) or len(parts) != width or any(type(part) not in (int, float) for part in parts):
            wanted = "a number" if width == 1 else f"{width} numbers"
            raise InputError(f"{where(number)}: {key} is {shorten(values[number])}; expected {wanted}")
    return np.array(lists, np.float64).reshape(-1, width)


def _boxes(rows: Sequence[Mapping[str, Any]], masks: Sequence[RunLengths] | None, where: Where) -> NDArray[np.float64]:
    """(D, 4) boxes; those that are missing are those of the masks."""
    given = list(rows)
    if masks is not None:
        bare = [number for number, row in enumerate(rows) if "bbox" not in row]
        for number, box in zip(bare, coco_mask.toBbox([masks[number] for number in bare]), strict=True):
            given[number] = {"bbox": box.tolist()}
    boxes = _numbers(given, "bbox", 4, where)
    negative = (boxes[:, 2:] < 0).any(axis=1)
    if negative.any():
        number = int(negative.argmax())
        box = shorten(rows[number]["bbox"])
        raise InputError(f"{where(number)}: bbox {box} has a negative side; expected x, y, width, height")
    return boxes


def _masks(
    rows: Sequence[Mapping[str, Any]], image_ids: NDArray[np.int64], where: Where, index: CocoIndex
) -> list[RunLengths] | None:
    """The masks as compressed run lengths, checked; None where no row has one."""
    if not any("segmentation" in row for row in rows):
        return None
    masks = _values(rows, "segmentation", where)
    for number, mask in enumerate(masks):
        if not isinstance(mask, dict):
            raise InputError(
                f"{where(number)}: segmentation is {shorten(mask)}; results have masks as run lengths (size, counts)"
            )
    order = np.argsort(index.image_ids)
    places = order[np.searchsorted(index.image_ids, image_ids, sorter=order)]
    sizes = np.stack([index.heights, index.widths], axis=1).astype(np.int64)[places]
    by_number = dict(enumerate(masks))
    for block in _blocks(masks):
        read_run_lengths(by_number, list(block), sizes, where)  # to check them: the numbers are dropped
    return [mask if isinstance(mask["counts"], str) else _compressed(mask) for mask in masks]


def _blocks(masks: Sequence[Mapping[str, Any]]) -> Iterator[range]:
    """Ranges of masks, in order, of about ``BLOCK`` characters or numbers together."""
    start = held = 0
    for number, mask in enumerate(masks):
        counts = mask.get("counts")
        held += len(counts) if isinstance(counts, (str, list)) else 0
        if held >= BLOCK:
            yield range(start, number + 1)
            start, held = number + 1, 0
    if start < len(masks):
        yield range(start, len(masks))


def _compressed(mask: RunLengths) -> RunLengths:
    """A mask whose counts are a list, with the text that COCO makes of them."""
    rle = coco_mask.frPyObjects(mask, *mask["size"])
    return {"size": mask["size"], "counts": rle["counts"].decode()}
