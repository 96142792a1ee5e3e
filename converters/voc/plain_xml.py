"""Annotation files that look as Pascal VOC's own and labelImg's do, read by regular expressions.

Nearly all files do, and this takes a third of the time of Python's parser in C. The expressions fit nothing but whole
documents of printable ASCII without attributes, comments, references and declarations, whose elements are those of VOC
at the places where they belong; such a document is well-formed by its form. Everything else, and every value that is
not as it mostly is, is left to the parser (``converters.voc.annotation_xml``), which reads these files to the same
result: the tests compare the two.
"""

from __future__ import annotations

import re

from converters.voc.objects import DEFAULT_POSE, VocAnnotation, VocObject, number

# "&" begins a reference, and "]]>" may not stand in a text; a carriage return is read as the end of a line.
USUAL_BYTES = bytes(set(b"\t\n" + bytes(range(0x20, 0x7F))) - set(b"&]"))
TEXT = "[^<]*"
"""Of the usual bytes, what may stand in an element; between elements it means nothing."""
FLAGS = {"": 0, "0": 0, "1": 1}
NUMBER = r"[0-9]{1,9}(?:\.[0-9]{1,9})?"


def _leaf(tag: str, value: str = TEXT) -> str:
    return f"<{tag}>{value}</{tag}>{TEXT}"


def _anything(tag: str) -> str:
    """An element with leaves whose names do not matter."""
    return rf"<{tag}>{TEXT}(?:<(?P<{tag}>[a-z]+)>{TEXT}</(?P={tag})>{TEXT})*</{tag}>{TEXT}"


HEAD = re.compile(
    rf'(?:<\?xml version="1\.0"(?: encoding="(?i:utf-8)")?\?>)?[ \t\n]*<annotation>{TEXT}'
    rf"(?:{_leaf('folder')})?<filename>(?P<filename>{TEXT})</filename>{TEXT}(?:{_leaf('path')})?"
    rf"(?:{_anything('source')})?(?:{_anything('owner')})?"
    rf"<size>{TEXT}{_leaf('width', '(?P<width>[1-9][0-9]{0,8})')}{_leaf('height', '(?P<height>[1-9][0-9]{0,8})')}"
    rf"(?:{_leaf('depth')})?</size>{TEXT}(?:{_leaf('segmented')})?"
)
# What is found begins where the one before it ended: an object, the end, or a tag that is neither.
REST = re.compile(
    rf"<object>{TEXT}<name>({TEXT})</name>{TEXT}(?:<pose>({TEXT})</pose>{TEXT})?"
    rf"(?:{_leaf('truncated', '([01])')})?(?:{_leaf('occluded', '([01])')})?(?:{_leaf('difficult', '([01])')})?"
    rf"<bndbox>{TEXT}{_leaf('xmin', f'({NUMBER})')}{_leaf('ymin', f'({NUMBER})')}"
    rf"{_leaf('xmax', f'({NUMBER})')}{_leaf('ymax', f'({NUMBER})')}</bndbox>{TEXT}"
    rf"(?:{_leaf('difficult', '([01])')})?</object>{TEXT}|(</annotation>)[ \t\n]*\Z|<"
)


def read_plain(data: bytes, *, box_origin: int) -> VocAnnotation | None:
    """Reads an annotation of the usual form.

    Args:
        data: The file.
        box_origin: The number that the data set gives to the first pixel, 1 or 0.

    Returns:
        What it tells; None where the file, or a value in it, is not as usual.
    """
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")  # XML 1.0, 2.11
    if data.translate(None, USUAL_BYTES):
        return None
    text = data.decode("ascii")
    head = HEAD.match(text)
    if head is None:
        return None
    found = REST.findall(text, head.end())
    if not found or not found.pop()[10]:
        return None
    objects = []
    for name, pose, truncated, occluded, difficult, xmin, ymin, xmax, ymax, late, _ in found:
        corners: tuple[float, float, float, float]
        try:
            corners = int(xmin), int(ymin), int(xmax), int(ymax)
        except ValueError:
            if not xmin:  # no object
                return None
            corners = number(xmin), number(ymin), number(xmax), number(ymax)
        left, top, right, bottom = corners
        name = name.strip()
        if not name or right < left or bottom < top or (difficult and late):
            return None
        if box_origin:
            left, top = left - 1, top - 1
        else:
            right, bottom = right + 1, bottom + 1
        flags = FLAGS[truncated], FLAGS[difficult or late], FLAGS[occluded]
        objects.append(VocObject(name, (left, top, right, bottom), pose.strip() or DEFAULT_POSE, *flags))
    filename, width, height = head.group("filename", "width", "height")
    return VocAnnotation(filename.strip(), (int(width), int(height)), tuple(objects), ())
