"""What a check of a data set can find, and where it found it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dpipe.looking.coco_records import Records

Severity: TypeAlias = Literal["error", "warning"]

ERRORS: Mapping[str, str] = {
    "malformed_record": "lacks a value, or holds one that cannot be used",
    "duplicate_image_id": "several images have the same id",
    "duplicate_annotation_id": "several annotations have the same id",
    "duplicate_category_id": "several categories have the same id",
    "duplicate_category_name": "several categories have the same name",
    "unknown_image": "the annotation's image is not in the list of images",
    "unknown_category": "the annotation's category is not in the list of categories",
    "image_without_size": "width or height is 0",
    "name_leaves_folder": "the file name is no relative path below the image folder",
    "repeated_file_name": "several images name the same file: each lacks the others' objects",
    "missing_image": "there is no such image file",
    "corrupt_image": "the image file cannot be read to its end",
    "image_size_differs": "the image file has another size than the JSON says",
    "empty_box": "the box has no width or no height",
    "box_outside_image": "the box lies wholly outside of the image",
    "malformed_mask": "the segmentation cannot be read, or does not fit its image",
    "empty_mask": "the segmentation has no area",
    "box_contradicts_mask": "box and mask hardly meet (IoU of the box and the mask's extent below 0.25)",
}
"""What makes a loader fail, or teaches a detector something wrong."""

WARNINGS: Mapping[str, str] = {
    "same_content": "several image files hold the same bytes",
    "box_beyond_border": "the box reaches out of the image by more than a pixel",
    "box_off_mask": "the box is not tight on the mask: a side is off by more than 3 pixels and a 20th of the box",
    "degenerate_polygon": "a polygon has fewer than three corners or no area",
    "self_intersecting_polygon": "a polygon crosses itself",
    "area_differs": "the area is neither the mask's nor, without a mask, the box's",
    "zero_area": "the area is 0",
    "near_duplicate": "another object of the same class lies in the same place (IoU above 0.95)",
    "near_duplicates_unknown": "has over 100 objects of one class, so that near duplicates were not looked for",
    "extreme_aspect_ratio": "the box is more than 20 times as long as it is wide",
    "unused_category": "no object has the category",
    "rare_category": "fewer than 10 objects have the category",
}
"""What may well be meant, or what training gets over."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        kind: A key of ``ERRORS`` or ``WARNINGS``.
        image: File name of the image, where there is one.
        annotation: Id of the annotation, where there is one.
        detail: What is known beyond the kind; may be empty.
    """

    kind: str
    image: str | None = None
    annotation: int | None = None
    detail: str = ""

    @property
    def severity(self) -> Severity:
        """``error`` or ``warning``."""
        return "error" if self.kind in ERRORS else "warning"


class Findings:
    """Collects findings; knows the records, to name them."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self.found: list[Finding] = []

    def image(self, kind: str, row: int, detail: str = "") -> None:
        """Adds a finding about an image."""
        name = self.records.file_names[row] or f"image {self.records.image_ids[row]}"
        self.found.append(Finding(kind, name, None, detail))

    def annotation(self, kind: str, row: int, detail: str = "") -> None:
        """Adds a finding about an annotation."""
        image, identity = int(self.records.image[row]), int(self.records.annotation_ids[row])
        name = self.records.file_names[image] if image >= 0 else None
        self.found.append(Finding(kind, name, identity if identity >= 0 else None, detail))

    def annotations(self, kind: str, rows: Iterable[int] | NDArray[np.int64]) -> None:
        """Adds findings about several annotations of which there is no more to say."""
        for row in rows:
            self.annotation(kind, int(row))

    def category(self, kind: str, detail: str) -> None:
        """Adds a finding about a category, or about a whole list."""
        self.found.append(Finding(kind, detail=detail))

    def counts(self) -> dict[str, int]:
        """How many findings there are of each kind: errors first, then in the order of the kinds."""
        counted = Counter(finding.kind for finding in self.found)
        return {kind: counted[kind] for kind in (*ERRORS, *WARNINGS) if counted[kind]}
