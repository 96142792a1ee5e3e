"""Annotation files that look exactly as Pascal VOC's own and labelImg's do, read by regular expressions.

Nearly all files do, and this takes a quarter of the time of Python's parser in C. The expressions fit nothing but whole
documents of plain ASCII without attributes, comments, references and declarations, whose elements are those of VOC at
the places where they belong; such a document is well-formed by its form. Everything else, and every value that is not
as it mostly is, is left to the parser (``converters.voc.annotation_xml``), which reads these files to the same result:
the tests compare the two.
"""

from __future__ import annotations

import re

from converters.voc.objects import DEFAULT_POSE, VocAnnotation, VocObject

SPACE = r"[ \t\r\n]*"
# Of a line's characters neither "<" and "&", which begin something, nor ">", which must not follow "]]".
TEXT = r"[ -%'-;=?-~]*"
NUMBER = r"[0-9]{1,9}(?:\.[0-9]{1,9})?"


def _leaf(tag: str, value: str = TEXT) -> str:
    return f"<{tag}>{value}</{tag}>{SPACE}"


def _anything(tag: str) -> str:
    """An element with leaves whose names do not matter."""
    return rf"<{tag}>{SPACE}(?:<(?P<{tag}>[a-z]+)>{TEXT}</(?P={tag})>{SPACE})*</{tag}>{SPACE}"


HEAD = re.compile(
    rf'(?:<\?xml version="1\.0"(?: encoding="(?i:utf-8)")?\?>)?{SPACE}<annotation>{SPACE}'
    rf"(?:{_leaf('folder')})?<filename>(?P<filename>{TEXT})</filename>{SPACE}(?:{_leaf('path')})?"
    rf"(?:{_anything('source')})?(?:{_anything('owner')})?"
    rf"<size>{SPACE}{_leaf('width', '(?P<width>[1-9][0-9]{0,8})')}{_leaf('height', '(?P<height>[1-9][0-9]{0,8})')}"
    rf"(?:{_leaf('depth')})?</size>{SPACE}(?:{_leaf('segmented')})?"
)
OBJECT = re.compile(
    rf"<object>{SPACE}<name>({TEXT})</name>{SPACE}(?:<pose>({TEXT})</pose>{SPACE})?"
    rf"(?:{_leaf('truncated', '([01])')})?(?:{_leaf('occluded', '([01])')})?(?:{_leaf('difficult', '([01])')})?"
    rf"<bndbox>{SPACE}{_leaf('xmin', f'({NUMBER})')}{_leaf('ymin', f'({NUMBER})')}"
    rf"{_leaf('xmax', f'({NUMBER})')}{_leaf('ymax', f'({NUMBER})')}</bndbox>{SPACE}"
    rf"(?:{_leaf('difficult', '([01])')})?</object>{SPACE}"
)
END = re.compile(rf"</annotation>{SPACE}")


def read_plain(data: bytes, *, box_origin: int) -> VocAnnotation | None:
    """Reads an annotation of the usual form.

    Args:
        data: The file.
        box_origin: The number that the data set gives to the first pixel, 1 or 0.

    Returns:
        What it tells; None where the file, or a value in it, is not as usual.
    """
    if not data.isascii():
        return None
    text = data.decode("ascii")
    head = HEAD.match(text)
    if head is None:
        return None
    at = head.end()
    objects = []
    while found := OBJECT.match(text, at):
        name, pose, truncated, occluded, difficult, xmin, ymin, xmax, ymax, late = found.groups("")
        name, left, top, right, bottom = name.strip(), float(xmin), float(ymin), float(xmax), float(ymax)
        if not name or right < left or bottom < top or (difficult and late):
            return None
        box = (left - box_origin, top - box_origin, right - box_origin + 1, bottom - box_origin + 1)
        flags = (int(truncated == "1"), int((difficult or late) == "1"), int(occluded == "1"))
        objects.append(VocObject(name, box, pose.strip() or DEFAULT_POSE, *flags))
        at = found.end()
    if END.fullmatch(text, at) is None:
        return None
    filename, width, height = head.group("filename", "width", "height")
    return VocAnnotation(filename.strip(), (int(width), int(height)), tuple(objects), ())
