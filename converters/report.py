"""What a conversion tells about its result."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


def counted(number: int, one: str, several: str | None = None) -> str:
    """Returns a number and what is counted: "1 image", "2 images".

    Args:
        number: How many.
        one: What follows the number 1.
        several: What follows any other number; by default ``one`` with an s.
    """
    return f"{number} {one if number == 1 else several or one + 's'}"


@dataclass(frozen=True)
class SplitSummary:
    """What one output file holds.

    Attributes:
        name: The split.
        images: Number of images.
        instances: Number of annotations, crowd regions included.
        crowd: Number of crowd regions.
        ignored: Number of annotations with ``ignore`` set (Pascal VOC's difficult objects).
        masks: Number of annotations with a segmentation.
        categories: Number of categories in the file.
        path: The file.
    """

    name: str
    images: int
    instances: int
    crowd: int
    ignored: int
    masks: int
    categories: int
    path: Path


@dataclass(frozen=True)
class Repair:
    """Something in a file that was put right or left out.

    Attributes:
        file: The file.
        kind: A word for what was done, such as "clipped".
        detail: Where in the file, and what stood there.
    """

    file: str
    kind: str
    detail: str


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion wrote and what it did not.

    Attributes:
        splits: One entry per file written.
        skipped: One line per image that was left out because of an error (``on_error="skip"``).
        notes: What else a user should know, one line each: splits without annotations, boxes that were clipped ...
        repairs: Everything that was put right or left out inside of the files, in the order of the files.
        planned: Whether this tells what would be done (``dry_run``) and nothing has been.
    """

    splits: list[SplitSummary]
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    repairs: list[Repair] = field(default_factory=list)
    planned: bool = False
