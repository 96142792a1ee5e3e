"""Checks of records, ids and boxes. What hotcoco's health check looks for is left to it."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from hotcoco import COCO
from numpy.typing import NDArray

from dpipe.coco import image_path
from dpipe.errors import InputError
from dpipe.looking.check_findings import Findings
from dpipe.looking.coco_records import Records

BORDER_TOLERANCE = 1.0
"""Pixels that a box may reach out of its image: boxes are rounded, and counted from 0 or from 1."""

# hotcoco's codes for what it finds in images and categories, and in annotations that need no second look.
IMAGE_KINDS = {"duplicate_image_id": "duplicate_image_id", "near_duplicate_check_skipped": "near_duplicates_unknown"}
CATEGORY_KINDS = {
    "duplicate_category_id": "duplicate_category_id",
    "zero_instance_category": "unused_category",
    "low_instance_category": "rare_category",
}
ANNOTATION_KINDS = {
    "degenerate_bbox": "empty_box",
    "zero_area": "zero_area",
    "extreme_aspect_ratio": "extreme_aspect_ratio",
    "near_duplicate": "near_duplicate",
}


def check_records(records: Records, findings: Findings) -> None:
    """Looks for records that cannot be used and for ids and names that occur twice."""
    for flaw in records.flaws:
        if flaw.row is None or flaw.list_name == "categories":
            name = "" if flaw.row is None else f"{records.class_name(flaw.row)}: "
            findings.category("malformed_record", f"{flaw.list_name}: {name}{flaw.detail}")
        elif flaw.list_name == "images":
            findings.image("malformed_record", flaw.row, flaw.detail)
        else:
            findings.annotation("malformed_record", flaw.row, flaw.detail)

    for name, count in Counter(filter(None, records.category_names)).items():
        if count > 1:
            findings.category("duplicate_category_name", f"{name}: {count} times")
    known = records.annotation_ids[records.annotation_ids >= 0]
    ids, counts = np.unique(known, return_counts=True)
    repeated = np.isin(records.annotation_ids, ids[counts > 1])
    findings.annotations("duplicate_annotation_id", np.flatnonzero(repeated))


def check_file_names(records: Records, folder: Path, findings: Findings) -> dict[Path, int]:
    """Looks for names that leave the folder or occur twice.

    Returns:
        The files to look at, with the (first) image that names each.
    """
    rows: dict[Path, list[int]] = defaultdict(list)
    for row, name in enumerate(records.file_names):
        if name is None:
            continue
        try:
            rows[image_path(folder, name)].append(row)
        except InputError:
            findings.image("name_leaves_folder", row)
    for several in rows.values():
        if len(several) > 1:
            ids = ", ".join(str(records.image_ids[row]) for row in several)
            findings.image("repeated_file_name", several[0], f"image ids {ids}")
    return {path: several[0] for path, several in rows.items()}


def check_with_hotcoco(records: Records, findings: Findings) -> None:
    """Takes over what hotcoco's health check finds, but for boxes that are over the border by rounding."""
    usable = (records.image_ids_of >= 0) & (records.category_ids_of >= 0) & np.isfinite(records.boxes).all(axis=1)
    rows = np.flatnonzero(usable)
    boxes = records.boxes[rows]
    areas = records.areas[rows]
    # Numbered by row, an annotation's finding tells which it is even where ids occur twice.
    health = COCO.from_arrays(
        _image_list(records),
        [
            {"id": identity, "name": records.class_name(row)}
            for row, identity in enumerate(records.category_ids.tolist())
            if identity >= 0
        ],
        records.image_ids_of[rows],
        records.category_ids_of[rows],
        boxes,
        ids=rows,
        area=np.where(np.isfinite(areas), areas, boxes[:, 2] * boxes[:, 3]),
        iscrowd=records.crowd[rows],
    ).healthcheck()

    image_row = {identity: row for row, identity in reversed(list(enumerate(records.image_ids.tolist())))}
    category_row = {identity: row for row, identity in reversed(list(enumerate(records.category_ids.tolist())))}
    for found in (*health["errors"], *health["warnings"]):
        code, ids = found["code"], sorted(found["affected_ids"])
        if code == "orphan_image_id":
            for row in ids:
                findings.annotation("unknown_image", row, f"image id {records.image_ids_of[row]}")
        elif code == "orphan_category_id":
            for row in ids:
                findings.annotation("unknown_category", row, f"category id {records.category_ids_of[row]}")
        elif code in ANNOTATION_KINDS:
            findings.annotations(ANNOTATION_KINDS[code], ids)
        elif code == "bbox_out_of_bounds":
            _look_at_the_border(records, np.array(ids, dtype=np.int64), findings)
        elif code in IMAGE_KINDS:
            for identity in ids:
                count = int((records.image_ids == identity).sum())
                detail = f"id {identity}, {count} times" if code == "duplicate_image_id" else ""
                findings.image(IMAGE_KINDS[code], image_row[identity], detail)
        elif code in CATEGORY_KINDS:
            for identity in ids:
                findings.category(CATEGORY_KINDS[code], f"{records.class_name(category_row[identity])} (id {identity})")

    flawed = {flaw.row for flaw in records.flaws if flaw.list_name == "images"}
    for row in np.flatnonzero((records.widths == 0) | (records.heights == 0)).tolist():
        if row not in flawed:
            findings.image("image_without_size", row, f"{records.widths[row]}x{records.heights[row]}")


def _image_list(records: Records) -> list[dict[str, object]]:
    """The images that have an id, as hotcoco takes them."""
    columns = zip(
        records.image_ids.tolist(), records.file_names, records.widths.tolist(), records.heights.tolist(), strict=True
    )
    return [
        {"id": identity, "file_name": name or "", "width": width, "height": height}
        for identity, name, width, height in columns
        if identity >= 0
    ]


def _look_at_the_border(records: Records, rows: NDArray[np.int64], findings: Findings) -> None:
    """Tells boxes that are partly outside of their image from those that are wholly so."""
    size = records.sizes_of(rows)[:, ::-1]
    first, last = records.boxes[rows, :2], records.boxes[rows, :2] + records.boxes[rows, 2:]
    known = np.all(size > 0, axis=1) & np.all(last > first, axis=1)
    outside = np.any((last <= 0) | (first >= size), axis=1)
    beyond = np.maximum(-first, last - size).max(axis=1, initial=0)
    for row, far, gone in zip(rows[known].tolist(), beyond[known].tolist(), outside[known].tolist(), strict=True):
        if gone:
            findings.annotation("box_outside_image", row)
        elif far > BORDER_TOLERANCE:
            findings.annotation("box_beyond_border", row, f"by {far:.1f} pixels")
