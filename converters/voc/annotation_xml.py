"""One Pascal VOC annotation file, read safely and fast.

What is wrong in a way that leaves no doubt about what was meant is put right, and told.

Python's parser, expat in C, is fast as long as nothing of it comes back to Python before the end. The checks of
``defusedxml`` do. They are about what a document type declares, so a file without one, as nearly all are, needs none.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from converters.errors import ConversionError
from converters.voc.files import File, read_annotation_file
from converters.voc.objects import DEFAULT_POSE, VocAnnotation, VocObject, number
from converters.voc.plain_xml import read_plain

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

LARGEST_NUMBER = 1 << 31
"""Of flags and sizes: what does not fit in 31 bits is neither."""
LONGEST_SHOWN = 60
LONGEST_REASON = 100
YES, NO = ("true", "yes"), ("false", "no")
# Every encoding that expat takes writes these as ASCII does, but for UTF-16, which is full of zeros.
DECLARES = re.compile(rb"<!DOCTYPE|\0")


def read_annotation(file: File, *, box_origin: int = 1) -> VocAnnotation:
    """Reads an annotation file.

    Args:
        file: The XML file.
        box_origin: The number that the data set gives to the first pixel: 1 in Pascal VOC, 0 in some others.

    Raises:
        ConversionError: The file is missing, cannot be read, does not parse, declares entities, or an object
            lacks its name or box or has a coordinate that is no number.
    """
    data = read_annotation_file(file)
    return read_plain(data, box_origin=box_origin) or parse_annotation(data, file, box_origin=box_origin)


def parse_annotation(data: bytes, file: File, *, box_origin: int) -> VocAnnotation:
    """Reads an annotation by an XML parser; see ``read_annotation``."""
    filename = ""
    size = None
    objects: list[VocObject] = []
    repairs: list[tuple[str, str]] = []
    for element in _root(data, file):
        tag = element.tag
        if tag == "object":
            objects.append(_object(element, f"object {len(objects) + 1}", file, box_origin, repairs))
        elif tag == "size" and size is None:
            size = _size(element, file)
        elif tag == "filename":
            filename = filename or (element.text or "").strip()
    if size is None or not all(size):
        size = None
        repairs.append(("size", "<size> is missing or zero"))
    return VocAnnotation(filename, size, tuple(objects), tuple(repairs))


def read_names(file: File) -> frozenset[str]:
    """Reads no more than the classes of an annotation file's objects.

    Raises:
        ConversionError: The file is missing, cannot be read, does not parse, or declares entities.
    """
    data = read_annotation_file(file)
    if (plain := read_plain(data, box_origin=1)) is not None:
        return frozenset(item.name for item in plain.objects)
    root = _root(data, file)
    names = ((element.findtext("name") or "").strip() for element in root.findall("object"))
    return frozenset(name for name in names if name)


def _root(data: bytes, file: File) -> Element:
    try:
        root = _parse_with_care(data, file) if DECLARES.search(data) else ElementTree.fromstring(data)
    except (SyntaxError, ValueError, LookupError) as error:  # ParseError is a SyntaxError; the others: its encoding
        reason = " ".join(str(error).split())[:LONGEST_REASON]
        raise ConversionError(f"{file}: is not well-formed XML ({reason})") from error
    if b"xmlns" in data:
        for element in root.iter():
            if isinstance(element.tag, str):
                element.tag = element.tag.rpartition("}")[2]
    if root.tag != "annotation":
        raise ConversionError(f"{file}: begins with {shown(root.tag)}, expected 'annotation'")
    return root


def _parse_with_care(data: bytes, file: File) -> Element:
    import defusedxml.ElementTree
    from defusedxml.common import DefusedXmlException

    try:
        return defusedxml.ElementTree.fromstring(data)
    except DefusedXmlException:
        raise ConversionError(f"{file}: declares XML entities, which annotations do not need; refused") from None


def _size(element: Element, file: File) -> tuple[int, int]:
    found = {leaf.tag: leaf.text for leaf in element}
    sides = []
    for tag in ("width", "height"):
        text = (found.get(tag) or "0").strip()
        side = _whole_number(text)
        if side is None:
            raise ConversionError(f"{file}: size: <{tag}> is {shown(text)}, expected a whole number")
        sides.append(side)
    return sides[0], sides[1]


def _object(element: Element, which: str, file: File, box_origin: int, repairs: list[tuple[str, str]]) -> VocObject:
    leaves = {leaf.tag: leaf for leaf in reversed(element[:])}  # of tags that occur twice, the first counts
    name = ((leaves["name"].text if "name" in leaves else None) or "").strip()
    if not name:
        raise ConversionError(f"{file}: {which}: has no <name>")
    which = f"{which} ({name if len(name) < LONGEST_SHOWN and name.isprintable() else shown(name)})"
    if "bndbox" not in leaves:
        raise ConversionError(f"{file}: {which}: has no <bndbox>")
    corners = {leaf.tag: leaf.text for leaf in reversed(leaves["bndbox"][:])}
    try:
        left, top, right, bottom = (number(corners[tag] or "") for tag in ("xmin", "ymin", "xmax", "ymax"))
    except (KeyError, ValueError):
        raise _bad_corner(corners, f"{file}: {which}") from None
    if not math.isfinite(left + top + right + bottom):
        raise _bad_corner(corners, f"{file}: {which}")
    if right < left or bottom < top:
        repairs.append(("corners", f"{which}: xmin ymin xmax ymax are {left:g} {top:g} {right:g} {bottom:g}"))
        left, right = min(left, right), max(left, right)
        top, bottom = min(top, bottom), max(top, bottom)
    flags = []
    for tag in ("truncated", "difficult", "occluded"):
        text = leaves[tag].text if tag in leaves else None
        if text is None or text == "0":
            flags.append(0)
        elif text == "1":
            flags.append(1)
        else:
            flags.append(_flag(text.strip(), tag, which, repairs))
    pose = ((leaves["pose"].text if "pose" in leaves else None) or "").strip() or DEFAULT_POSE
    return VocObject(
        name,
        (left - box_origin, top - box_origin, right - box_origin + 1, bottom - box_origin + 1),
        pose,
        *flags,
    )


def shown(text: str) -> str:
    """Quotes a text of a file for a line of a message: what does not belong there is escaped, what is long is cut."""
    return repr(text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "...")


def _flag(text: str, tag: str, where: str, repairs: list[tuple[str, str]]) -> int:
    """Reads a flag that is not simply 0 or 1; one that tells nothing is 0."""
    if text.lower() in YES:
        return 1
    if text.lower() in NO:
        return 0
    value = _whole_number(text or "0")
    if value is None:
        repairs.append(("flag", f"{where}: <{tag}> is {shown(text)}"))
    return value or 0


def _whole_number(text: str) -> int | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return int(value) if value.is_integer() and 0 <= value < LARGEST_NUMBER else None


def _bad_corner(corners: dict[str, str | None], where: str) -> ConversionError:
    for tag in ("xmin", "ymin", "xmax", "ymax"):
        if tag not in corners:
            return ConversionError(f"{where}: <bndbox> has no <{tag}>")
        text = (corners[tag] or "").strip()
        try:
            good = math.isfinite(float(text))
        except ValueError:
            good = False
        if not good:
            return ConversionError(f"{where}: <{tag}> is {shown(text)}, expected a number")
    return ConversionError(f"{where}: the box is too large for any image")
