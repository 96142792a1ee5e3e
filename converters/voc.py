"""Pascal VOC to COCO JSON, with masks where the data set has them.

Output files: one per split, ``voc_<year>_<year>..._<split>.json``. A split of the same name in several years is joined
into one file, whose name lists those years: ``--years 2007,2012 --splits trainval`` writes
``voc_2007_2012_trainval.json``; where only VOC2007 has a test split, that becomes ``voc_2007_test.json``. A folder that
is not named after a year gives ``voc_<split>.json``. ``file_name`` is relative to the root:
``VOC2007/JPEGImages/000001.jpg``, or ``JPEGImages/000001.jpg`` where the root is the VOC2007 folder itself.

Categories are Pascal VOC's 20 in its own order where no other name occurs, else the names found, sorted; category ids
count from 1. Names are looked for in all annotation files of the chosen years, whichever splits are converted, so that
an id means the same class in files that were converted one split at a time. (Other years may have other names: files
that are used together should come from the same choice of years.)
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converters.coco_json import ImageRecord, make_document, summarize, writable_folder, write_json
from converters.errors import ConversionError
from converters.folders import checked_name, existing_root
from converters.images import image_size, is_shown_transposed, read_label_image
from converters.report import ConversionReport, counted
from converters.rle import encode_label_image
from converters.runner import OnError, map_files
from converters.signals import exit_on_sigterm
from converters.voc_classes import find_classes
from converters.voc_masks import match_masks
from converters.voc_splits import Split, VocImage, find_splits, find_years
from converters.voc_xml import VocAnnotation, VocObject, read_annotation

DEFAULT_ROOT = Path("data/VOCdevkit")
VOID = 255


@dataclass(frozen=True)
class Converted:
    """One image, and what had to be done to its boxes and masks.

    Attributes:
        record: The image and its annotations, with ``category`` (a name) in place of ``category_id``.
        clipped: Number of boxes that reached outside the image.
        maskless: Number of objects without a mask, in an image that has masks.
        unmatched: Number of masks that fit no object.
    """

    record: ImageRecord
    clipped: int
    maskless: int
    unmatched: int


def convert_voc(
    root: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    *,
    years: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
    box_origin: int = 1,
    nproc: int | None = None,
    on_error: OnError = "fail",
    show_progress: bool = False,
) -> ConversionReport:
    """Writes one COCO JSON for each split; see the module's text for names and categories.

    Nothing is written before every split has been converted.

    Args:
        root: The VOCdevkit folder, or one of its VOC20xx folders; by default ``data/VOCdevkit``.
        output: The folder to write into; by default ``annotations`` in the root.
        years: Which years; by default all.
        splits: Which files of ``ImageSets/Main``; by default all that have annotations.
        box_origin: The number that the data set gives to the first pixel, 1 (Pascal VOC) or 0.
        nproc: Number of processes; by default as many as there are cores. The files do not depend on it.
        on_error: ``"skip"`` leaves out images that cannot be converted, and lists them in the report.
        show_progress: Whether to show progress on stderr.

    Returns:
        What was written, what was left out, and what was clipped or could not be matched.

    Raises:
        ConversionError: No data, a named year or split is missing or has no annotations, an image, annotation or mask
            is missing, damaged or contradicts the others, or the output folder cannot be written into.
    """
    if box_origin not in (0, 1):
        raise ConversionError(f"the box origin is {box_origin}, expected 1 or 0")
    root = existing_root([(str(place), Path(place)) for place in (root or DEFAULT_ROOT,)], "Pascal VOC data set")
    folders = find_years(root, years)
    found, notes = find_splits(root, folders, splits)
    output = Path(output) if output is not None else root / "annotations"
    # An image is converted once, however many splits it is in (train and trainval, say).
    images = list(dict.fromkeys(image for split in found for image in split.images))
    with ExitStack() as stack:
        stack.enter_context(exit_on_sigterm())
        stack.enter_context(writable_folder(output, [split.file_name for split in found]))
        results, skipped = map_files(
            functools.partial(convert_image, root=root, box_origin=box_origin),
            images,
            name_of=lambda image: str(image.annotation),
            title="voc",
            nproc=nproc,
            on_error=on_error,
            show_progress=show_progress,
        )
        converted = {image: result for image, result in zip(images, results, strict=True) if result is not None}
        classes, unread = find_classes(
            folders,
            known={
                image.annotation: [annotation["category"] for annotation in result.record.annotations]
                for image, result in converted.items()
            },
            chosen={image.annotation for image in images},
            nproc=nproc,
            show_progress=show_progress,
        )
        documents = make_documents(root, found, converted, skipped, classes)
        for split in found:
            write_json(output / split.file_name, documents[split.name])
    summaries = [summarize(split.name, documents[split.name], output / split.file_name) for split in found]
    return ConversionReport(summaries, skipped, notes + unread + repairs(converted, box_origin))


def make_documents(
    root: Path,
    splits: Sequence[Split],
    converted: dict[VocImage, Converted],
    skipped: Sequence[str],
    classes: Sequence[str],
) -> dict[str, dict[str, Any]]:
    """Returns the COCO document of each split; their categories are the same.

    Raises:
        ConversionError: A split has no image that could be converted.
    """
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, 1)]
    ids = {category["name"]: category["id"] for category in categories}
    documents = {}
    for split in splits:
        records = []
        for image in split.images:
            if image not in converted:
                continue
            record = converted[image].record
            annotations = [
                {
                    "category_id": ids[annotation["category"]],
                    **{key: annotation[key] for key in annotation if key != "category"},
                }
                for annotation in record.annotations
            ]
            records.append(ImageRecord(record.image, annotations))
        if not records:
            raise ConversionError(
                f"{root}: no image of the split {split.name} could be converted; the first: {skipped[0]}"
            )
        documents[split.name] = make_document(records, categories, first_image_id=1)
    return documents


def repairs(converted: dict[VocImage, Converted], box_origin: int) -> list[str]:
    """Returns a line for each kind of thing that was changed or left over, with the first file it happened in."""
    lines = []
    hint = "; if the data set counts pixels from 0, say so with --box-origin 0" if box_origin == 1 else ""
    for attribute, one, several, rest in (
        (
            "clipped",
            "box reached outside its image and was clipped",
            "boxes reached outside their image and were clipped",
            hint,
        ),
        (
            "maskless",
            "object has no mask although its image has masks; it keeps its box only",
            "objects have no mask although their image has masks; they keep their box only",
            "",
        ),
        ("unmatched", "mask fits no object and was left out", "masks fit no object and were left out", ""),
    ):
        counts = {
            image: getattr(result, attribute) for image, result in converted.items() if getattr(result, attribute)
        }
        if counts:
            first = next(iter(counts)).annotation
            where = f"in {first}" if len(counts) == 1 else f"in {len(counts)} images, the first {first}"
            lines.append(f"{counted(sum(counts.values()), one, several)}{rest} ({where})")
    return lines


def convert_image(image: VocImage, *, root: Path, box_origin: int) -> Converted:
    """Converts one image.

    Raises:
        ConversionError: One of its files is missing, damaged, contradicts the others, or has a name that is not UTF-8.
    """
    annotation = read_annotation(image.annotation, box_origin=box_origin)
    if image.image is None:
        raise ConversionError(f"{image.annotation}: has no image in {image.annotation.parent.parent / 'JPEGImages'}")
    file_name = checked_name(image.image.relative_to(root).as_posix(), image.image)
    width, height = _checked_size(image.image, annotation, image.annotation)
    boxes = [
        _clipped(item, width, height, f"{image.annotation}: object {number} ({item.name})")
        for number, item in enumerate(annotation.objects, 1)
    ]
    masks = []
    if image.masks is not None:
        labels = read_label_image(image.masks)
        if labels.shape != (height, width):
            raise ConversionError(
                f"{image.masks}: is {labels.shape[1]}x{labels.shape[0]}, but its image is {width}x{height}"
            )
        masks = encode_label_image(labels, excluded=(VOID,))
    matched = match_masks(boxes, masks)

    annotations: list[dict[str, Any]] = []
    for item, box, mask in zip(annotation.objects, boxes, matched, strict=True):
        left, top, right, bottom = box
        entry: dict[str, Any] = {
            "category": item.name,
            "bbox": [left, top, right - left, bottom - top],
            "area": (right - left) * (bottom - top) if mask is None else mask.area,
            "iscrowd": 0,
            "ignore": int(item.difficult > 0),
            "difficult": item.difficult,
            "truncated": item.truncated,
            "occluded": item.occluded,
            "pose": item.pose,
        }
        if mask is not None:
            entry["segmentation"] = mask.segmentation()
        annotations.append(entry)
    record = ImageRecord({"file_name": file_name, "height": height, "width": width}, annotations)
    given = sum(mask is not None for mask in matched)
    return Converted(
        record,
        clipped=sum(item.box != box for item, box in zip(annotation.objects, boxes, strict=True)),
        maskless=len(boxes) - given if image.masks is not None else 0,
        unmatched=len(masks) - given,
    )


def _checked_size(image: Path, annotation: VocAnnotation, annotation_path: Path) -> tuple[int, int]:
    """Returns the image's width and height, as stored or as EXIF turns it, whichever the annotation was made for.

    Raises:
        ConversionError: The annotation was made for an image of another size, so its boxes mean something else.
    """
    width, height = image_size(image)
    if annotation.size is None or annotation.size == (width, height):
        return width, height
    if annotation.size == (height, width) and is_shown_transposed(image):
        return height, width
    written = f"{annotation.size[0]}x{annotation.size[1]}"
    raise ConversionError(f"{annotation_path}: <size> is {written}, but the image {image} is {width}x{height}")


def _clipped(item: VocObject, width: int, height: int, where: str) -> tuple[float, float, float, float]:
    left, top, right, bottom = item.box
    clipped = (max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height)))
    if clipped[0] >= clipped[2] or clipped[1] >= clipped[3]:
        raise ConversionError(f"{where}: its box lies outside the image ({width}x{height})")
    return clipped
