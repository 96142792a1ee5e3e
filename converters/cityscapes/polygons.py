"""Cityscapes' own annotations, ``*_polygons.json``: painted into the image of instance ids that belongs to them.

Objects are listed from far to near, and each is painted over those before it. Objects are numbered label by label; a
label that ends in ``group`` (``persongroup``) marks a region of several objects, which is painted with the label's id
alone. This is what cityscapesscripts does (``preparation/json2instanceImg.py``), with the same drawing function of
Pillow, so that the pixels are the same.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from PIL import Image, ImageDraw

from converters.cityscapes.labels import instance_labels, label_ids
from converters.errors import ConversionError
from converters.reading.archives import Place
from converters.reading.folders import unreadable

IDS_PER_LABEL = 1000
GROUP = "group"
LARGEST_COORDINATE = 1 << 20
"""Pixels; Pillow draws with 32 bits, in which the product of two larger coordinates would not fit its edges."""
MOST_PIXELS = 1 << 26
LARGEST_JSON = 1 << 26
"""Bytes. Pillow and the JSON parser take several times as much memory."""


def paint_polygons(path: Place) -> npt.NDArray[Any]:
    """Reads an annotation file and paints its objects.

    Args:
        path: The file.

    Returns:
        (H, W) int32 instance ids: 0 where nothing is painted, ``1000 * label + n`` for the n-th object of a label whose
        objects are told apart, and the label for any other.

    Raises:
        ConversionError: The file is missing, cannot be read, is not such a file, or holds a value that cannot be.
    """
    document = _read(path)
    height, width = (_size(document, key, path) for key in ("imgHeight", "imgWidth"))
    if height * width > MOST_PIXELS:
        raise ConversionError(f"{path}: its image has {width}x{height} pixels, expected at most {MOST_PIXELS}")
    objects = document.get("objects")
    if not isinstance(objects, list):
        raise ConversionError(f"{path}: has no list of objects")

    numbered = {label.id for label in instance_labels()}
    counts: Counter[int] = Counter()
    canvas = Image.new("I", (width, height), 0)
    draw = ImageDraw.Draw(canvas)
    for number, item in enumerate(objects, 1):
        where = f"{path}: object {number}"
        if not isinstance(item, dict):
            raise ConversionError(f"{where}: is {_shown(item)}, expected a label and a polygon")
        if item.get("deleted"):
            continue
        label, grouped = _label(item.get("label"), where)
        value = label
        if label in numbered and not grouped:
            value = label * IDS_PER_LABEL + counts[label]
            counts[label] += 1
            if counts[label] > IDS_PER_LABEL:
                raise ConversionError(f"{where}: is the {counts[label]}th of its label, but ids tell {IDS_PER_LABEL}")
        if value >= 0:
            draw.polygon(_points(item.get("polygon"), where), fill=value)
    return np.asarray(canvas)


def _read(path: Place) -> dict[str, Any]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ConversionError(f"{path}: is missing") from None
    except OSError as error:
        raise unreadable(path, error) from error
    if len(data) > LARGEST_JSON:
        raise ConversionError(f"{path}: has {len(data)} bytes, expected at most {LARGEST_JSON >> 20} MiB")
    try:
        document = orjson.loads(data.removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError as error:
        raise ConversionError(f"{path}: is not JSON ({error})") from None
    if not isinstance(document, dict):
        raise ConversionError(f"{path}: is {_shown(document)}, expected imgWidth, imgHeight and objects")
    return document


def _size(document: dict[str, Any], key: str, path: Place) -> int:
    value = document.get(key)
    if type(value) is not int or value < 1:
        raise ConversionError(f"{path}: {key} is {_shown(value)}, expected a number of pixels")
    return value


def _label(name: Any, where: str) -> tuple[int, bool]:
    """Returns a label's id and whether the object is a group of several."""
    ids = label_ids()
    if isinstance(name, str):
        if name in ids:
            return ids[name], False
        if name.endswith(GROUP) and name.removesuffix(GROUP) in ids:
            return ids[name.removesuffix(GROUP)], True
    raise ConversionError(f"{where}: has the label {_shown(name)}, which is none of Cityscapes'")


def _points(polygon: Any, where: str) -> list[tuple[float, float]]:
    if not isinstance(polygon, list) or len(polygon) < 2:
        raise ConversionError(f"{where}: its polygon is {_shown(polygon)}, expected a list of at least 2 points")
    for point in polygon:
        if not (isinstance(point, list) and len(point) == 2 and all(map(_is_coordinate, point))):
            raise ConversionError(f"{where}: a point of its polygon is {_shown(point)}, expected x and y in pixels")
    return [(x, y) for x, y in polygon]


def _is_coordinate(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) <= LARGEST_COORDINATE


def _shown(value: Any) -> str:
    """Returns a value as it may stand in a line of text."""
    text = repr(value)
    return "missing" if value is None else text if len(text) <= 40 else f"{text[:37]}..."
