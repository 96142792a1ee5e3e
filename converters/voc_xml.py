"""One Pascal VOC annotation file, read safely.

VOC counts pixels from 1 and both corners of a box belong to it; here boxes are continuous edges, so that the box of a
single pixel in the top left corner, 1 1 1 1, becomes 0 0 1 1. Tags that are missing take the values that VOC gives
them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import defusedxml.ElementTree
from defusedxml.common import DefusedXmlException

from converters.errors import ConversionError
from converters.folders import unreadable

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

DEFAULT_POSE = "Unspecified"


@dataclass(frozen=True)
class VocObject:
    """One object of an annotation file.

    Attributes:
        name: The class.
        box: Left, top, right, bottom edges in pixels, as written: it may reach outside the image.
        pose: Free text.
        truncated: 1 where the object goes on outside the box.
        difficult: 1 where it is not to be counted in evaluation.
        occluded: 1 where something covers a part of it.
    """

    name: str
    box: tuple[float, float, float, float]
    pose: str
    truncated: int
    difficult: int
    occluded: int


@dataclass(frozen=True)
class VocAnnotation:
    """One annotation file.

    Attributes:
        size: Width and height in pixels; None where the file does not tell, or tells zero as some tools do.
        objects: The objects in the file's order.
    """

    size: tuple[int, int] | None
    objects: tuple[VocObject, ...]


def read_annotation(path: Path, *, box_origin: int = 1) -> VocAnnotation:
    """Reads an annotation file.

    Args:
        path: The XML file.
        box_origin: The number that the data set gives to the first pixel: 1 in Pascal VOC, 0 in some others.

    Raises:
        ConversionError: The file is missing, cannot be read, does not parse, declares entities, or an object
            lacks its name or box or has a value that cannot be.
    """
    root = _root(path)
    objects = tuple(
        _object(element, f"{path}: object {number}", box_origin)
        for number, element in enumerate(root.findall("object"), 1)
    )
    return VocAnnotation(_size(root, path), objects)


def read_names(path: Path) -> frozenset[str]:
    """Reads no more than the classes of an annotation file's objects.

    Raises:
        ConversionError: The file is missing, cannot be read, does not parse, or declares entities.
    """
    names = ((element.findtext("name") or "").strip() for element in _root(path).findall("object"))
    return frozenset(name for name in names if name)


def _root(path: Path) -> Element:
    try:
        root = defusedxml.ElementTree.parse(path).getroot()
    except FileNotFoundError:
        raise ConversionError(f"{path}: is missing") from None
    except OSError as error:
        raise unreadable(path, error) from error
    except DefusedXmlException:
        raise ConversionError(f"{path}: declares XML entities, which annotations do not need; refused") from None
    except (
        SyntaxError,
        ValueError,
        LookupError,
    ) as error:  # ParseError is a SyntaxError; the others come from its encoding
        raise ConversionError(f"{path}: is not well-formed XML ({error})") from error
    if root is None or root.tag != "annotation":
        tag = "nothing" if root is None else f"<{root.tag}>"
        raise ConversionError(f"{path}: begins with {tag}, expected <annotation>")
    return root


def _size(root: Element, path: Path) -> tuple[int, int] | None:
    element = root.find("size")
    if element is None:
        return None
    width, height = (_flag_or_count(element, tag, f"{path}: size") for tag in ("width", "height"))
    return (width, height) if width and height else None


def _object(element: Element, where: str, box_origin: int) -> VocObject:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise ConversionError(f"{where}: has no <name>")
    where = f"{where} ({name})"
    box = element.find("bndbox")
    if box is None:
        raise ConversionError(f"{where}: has no <bndbox>")
    left, top, right, bottom = (_coordinate(box, tag, where) for tag in ("xmin", "ymin", "xmax", "ymax"))
    if right < left or bottom < top:
        raise ConversionError(
            f"{where}: box {left:g} {top:g} {right:g} {bottom:g} ends before it begins (xmin ymin xmax ymax)"
        )
    return VocObject(
        name=name,
        box=(left - box_origin, top - box_origin, right - box_origin + 1, bottom - box_origin + 1),
        pose=(element.findtext("pose") or "").strip() or DEFAULT_POSE,
        truncated=_flag_or_count(element, "truncated", where),
        difficult=_flag_or_count(element, "difficult", where),
        occluded=_flag_or_count(element, "occluded", where),
    )


def _flag_or_count(element: Element, tag: str, where: str) -> int:
    """Reads a whole number that is 0 where its tag is missing or empty."""
    text = (element.findtext(tag) or "").strip()
    try:
        value = float(text or "0")
    except ValueError:
        value = math.nan
    if not (value.is_integer() and value >= 0):
        raise ConversionError(f"{where}: <{tag}> is {text!r}, expected a whole number")
    return int(value)


def _coordinate(box: Element, tag: str, where: str) -> float:
    text = box.findtext(tag)
    if text is None:
        raise ConversionError(f"{where}: <bndbox> has no <{tag}>")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConversionError(f"{where}: <{tag}> is {text.strip()!r}, expected a number")
    return value
