"""What the converter of Pascal VOC puts right or leaves out, by kind, and how that is told."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from converters.report import Repair, counted


class Kind(NamedTuple):
    """How repairs of a kind are counted in a line.

    Attributes:
        one: What follows the number 1.
        several: What follows any other number.
    """

    one: str
    several: str


KINDS = {
    "size": Kind(
        "annotation file tells no size, or zero; that of its image was taken",
        "annotation files tell no size, or zero; those of their images were taken",
    ),
    "filename": Kind(
        "annotation file names another file than the image of its own name, which was taken",
        "annotation files name other files than the images of their own name, which were taken",
    ),
    "other_name": Kind(
        "annotation file has no image of its own name; the one that it names was taken",
        "annotation files have no image of their own name; those that they name were taken",
    ),
    "corners": Kind("box had its corners exchanged", "boxes had their corners exchanged"),
    "flag": Kind(
        "flag (difficult, truncated, occluded) tells neither 0 nor 1; it was taken as 0",
        "flags (difficult, truncated, occluded) tell neither 0 nor 1; they were taken as 0",
    ),
    "clipped": Kind(
        "box reached outside its image and was clipped", "boxes reached outside their image and were clipped"
    ),
    "outside": Kind(
        "object was left out, as its box lies outside the image",
        "objects were left out, as their boxes lie outside the image",
    ),
    "mask": Kind("mask fits no object and was left out", "masks fit no object and were left out"),
}
BOX_ORIGIN_HINT = "; if the data set counts pixels from 0, say so with --box-origin 0"


def lines_of(repairs: Iterable[Repair], *, box_origin: int) -> list[str]:
    """Returns a line for each kind of repair, with the number, and the first file it happened in."""
    by_kind: dict[str, list[Repair]] = {}
    for repair in repairs:
        by_kind.setdefault(repair.kind, []).append(repair)
    lines = []
    for kind, (one, several) in KINDS.items():
        if kind not in by_kind:
            continue
        files = dict.fromkeys(repair.file for repair in by_kind[kind])
        hint = BOX_ORIGIN_HINT if kind == "clipped" and box_origin == 1 else ""
        lines.append(f"{counted(len(by_kind[kind]), one, several)}{hint} ({where(list(files))})")
    return lines


def where(files: list[str]) -> str:
    """Returns where something happened: in a file, or in how many images and the first of them."""
    return f"in {files[0]}" if len(files) == 1 else f"in {len(files)} images, the first {files[0]}"
