"""What an annotation file of Pascal VOC tells.

VOC counts pixels from 1 and both corners of a box belong to it; here boxes are continuous edges, so that the box of a
single pixel in the top left corner, 1 1 1 1, becomes 0 0 1 1. Tags that are missing take the values that VOC gives
them.
"""

from __future__ import annotations

from typing import NamedTuple

DEFAULT_POSE = "Unspecified"
LONGEST_WHOLE_NUMBER = 9
"""Digits."""


def number(text: str) -> float:
    """Reads a coordinate; one that is written as a whole number remains one, and takes half the bytes in the JSON.

    Raises:
        ValueError: The text is no number.
    """
    text = text.strip()
    return int(text) if text.isdecimal() and len(text) <= LONGEST_WHOLE_NUMBER else float(text)


class VocObject(NamedTuple):
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


class VocAnnotation(NamedTuple):
    """One annotation file.

    Attributes:
        filename: The image's name as the file tells it, which may be wrong; empty where it tells none.
        size: Width and height in pixels; None where the file does not tell, or tells zero as some tools do.
        objects: The objects in the file's order.
        repairs: What was put right: its kind (see ``converters.voc.repairs``) and where and what.
    """

    filename: str
    size: tuple[int, int] | None
    objects: tuple[VocObject, ...]
    repairs: tuple[tuple[str, str], ...]
