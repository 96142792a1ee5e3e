"""One image of a Pascal VOC data set, from its annotation, its image and its masks to a record of the JSON.

What only some images need (NumPy and Pillow, for masks and unusual images) is imported where it is needed: a worker for
annotations alone starts in a third of the time.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from converters.errors import ConversionError
from converters.reading.archives import ArchivePath
from converters.reading.folders import checked_name
from converters.reading.image_headers import TAIL, quick_size, size_from_bytes
from converters.voc.annotation_xml import read_annotation, shown
from converters.voc.files import File
from converters.voc.layout import IMAGE_ENDINGS, VocImage
from converters.voc.objects import VocAnnotation, VocObject
from converters.writing.coco_json import ImageRecord

if TYPE_CHECKING:
    from pathlib import Path

    from converters.writing.rle import InstanceRLE

Outline = Callable[[Sequence[dict[str, Any]]], list[Any]]
Box = tuple[float, float, float, float]
Repairs = list[tuple[str, str]]

VOID = 255
ENTRY = (
    b'{"bbox":[%a,%a,%a,%a],"area":%a,"iscrowd":0,"ignore":%d,"difficult":%d,"truncated":%d,"occluded":%d,"pose":%b}'
)


@dataclass(frozen=True, slots=True)
class Converted:
    """One image, and what had to be done to it.

    Attributes:
        record: The image and its annotations.
        repairs: What was put right or left out: its kind, and where and what.
        maskless: Number of objects without a mask, in an image that has masks.
    """

    record: ImageRecord
    repairs: tuple[tuple[str, str], ...] = ()
    maskless: int = 0


def convert_image(
    image: VocImage, *, box_origin: int, outline: Outline | None = None, strict: bool = False
) -> Converted:
    """Converts one image.

    Args:
        image: Its files.
        box_origin: The number that the data set gives to the first pixel, 1 (Pascal VOC) or 0.
        outline: Makes polygons of masks: takes run lengths, returns what is to be their ``segmentation``.
        strict: Whether to refuse what would be put right or left out.

    Raises:
        ConversionError: One of its files is missing, damaged, contradicts the others, or has a name that is not UTF-8;
            or, if strict, something would be put right or left out.
    """
    annotation = read_annotation(image.annotation, box_origin=box_origin)
    repairs = list(annotation.repairs)
    file, file_name = _find_image(image, annotation.filename, repairs)
    if not file_name.isascii():
        checked_name(file_name, _place(file))
    width, height = _checked_size(file, annotation, image.annotation)
    objects, boxes = [], []
    for number, item in enumerate(annotation.objects, 1):
        box = _clipped(item, number, width, height, repairs)
        if box is not None:
            objects.append(item)
            boxes.append(box)
    matched: list[InstanceRLE | None] = [None] * len(boxes)
    maskless = 0
    if image.masks is not None:
        matched = _masks(image.masks, boxes, width, height, repairs)
        maskless = matched.count(None)
    if strict and repairs:
        kind, detail = repairs[0]
        more = f", and {len(repairs) - 1} more" if len(repairs) > 1 else ""
        raise ConversionError(f"{image.annotation}: {detail} ({kind}{more}); refused, as --strict is set")
    segmentations: list[Any] = [None if mask is None else mask.segmentation() for mask in matched]
    if outline is not None:
        segmentations = [None if mask is None else outline([mask])[0] for mask in segmentations]
    record = ImageRecord(
        b'{"file_name":%b,"height":%d,"width":%d}' % (orjson.dumps(file_name), height, width),
        tuple([_entry(*values) for values in zip(objects, boxes, matched, segmentations, strict=True)]),
        tuple([sys.intern(item.name) for item in objects]),
        ignored=sum([item.difficult > 0 for item in objects]),
        masks=len(objects) - matched.count(None),
    )
    return Converted(record, tuple(repairs), maskless)


def _find_image(image: VocImage, filename: str, repairs: Repairs) -> tuple[File, str]:
    """Returns the image's file and its name for the JSON.

    The file that the annotation names is taken only where no image has the annotation's own name; and of what it names
    no more than the last part, in the folder of the images.
    """
    if image.image is not None and image.file_name.endswith(f"/{filename}"):
        return image.image, image.file_name
    named = filename.replace("\\", "/").rpartition("/")[2]
    if image.image is not None:
        actual = image.file_name.rpartition("/")[2]
        if named not in ("", actual, os.path.splitext(actual)[0]):
            repairs.append(("filename", f"<filename> is {shown(filename)}, the image is {actual}"))
        return image.image, image.file_name
    assert image.folder is not None
    stem = os.path.splitext(named)[0]
    for name in (named, *(stem + ending for ending in IMAGE_ENDINGS)):
        if stem.strip(".") and "\0" not in name and name.lower().endswith(IMAGE_ENDINGS):
            place = image.folder / name
            if place.is_file():
                repairs.append(("other_name", f"<filename> is {shown(filename)}"))
                return place if isinstance(place, ArchivePath) else str(place), image.file_name + name
    raise ConversionError(f"{image.annotation}: has no image in {image.folder}")


def _checked_size(file: File, annotation: VocAnnotation, annotation_file: File) -> tuple[int, int]:
    """Returns the image's width and height, as stored or as EXIF turns it, whichever the annotation was made for.

    Raises:
        ConversionError: The annotation was made for an image of another size, so its boxes mean something else.
    """
    size = _quick_size(file)
    if size is None:
        from converters.reading.images import image_size

        size = image_size(_place(file))
    width, height = size
    if annotation.size is None or annotation.size == size:
        return size
    if annotation.size == (height, width):
        from converters.reading.images import is_shown_transposed

        if is_shown_transposed(_place(file)):
            return height, width
    written = f"{annotation.size[0]}x{annotation.size[1]}"
    raise ConversionError(f"{annotation_file}: <size> is {written}, but the image {file} is {width}x{height}")


def _quick_size(file: File) -> tuple[int, int] | None:
    if isinstance(file, str):
        return quick_size(file)
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return None
    return size_from_bytes(data, data[-TAIL:])


def _place(file: File) -> Path | ArchivePath:
    from pathlib import Path

    return file if isinstance(file, ArchivePath) else Path(file)


def _clipped(item: VocObject, number: int, width: int, height: int, repairs: Repairs) -> Box | None:
    """Returns the part of a box that lies in the image; None where there is none."""
    left, top, right, bottom = item.box
    if left >= 0 and top >= 0 and right <= width and bottom <= height:
        return item.box
    clipped = (max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height)))
    outside = clipped[0] >= clipped[2] or clipped[1] >= clipped[3]
    detail = (
        f"object {number} ({shown(item.name)}): edges {left:g} {top:g} {right:g} {bottom:g}, image {width}x{height}"
    )
    repairs.append(("outside" if outside else "clipped", detail))
    return None if outside else clipped


def _masks(file: File, boxes: list[Box], width: int, height: int, repairs: Repairs) -> list[InstanceRLE | None]:
    """Reads the masks and finds each object's.

    Raises:
        ConversionError: The file is missing, damaged, or of another size than the image.
    """
    from converters.reading.images import read_label_image
    from converters.voc.masks import match_masks
    from converters.writing.rle import encode_label_image

    labels = read_label_image(_place(file))
    if labels.shape != (height, width):
        raise ConversionError(f"{file}: is {labels.shape[1]}x{labels.shape[0]}, but its image is {width}x{height}")
    found = encode_label_image(labels, excluded=(VOID,))
    matched = match_masks(boxes, found)
    used = {mask.id for mask in matched if mask is not None}
    repairs += [("mask", f"mask {mask.id} of {file}") for mask in found if mask.id not in used]
    return matched


def _entry(item: VocObject, box: Box, mask: InstanceRLE | None, segmentation: Any) -> bytes:
    """Writes an annotation: by a format, as ``orjson`` leaves most of a page unused behind every small text."""
    _, _, pose, truncated, difficult, occluded = item
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    area = width * height if mask is None else mask.area
    entry = ENTRY % (left, top, width, height, area, difficult > 0, difficult, truncated, occluded, _quoted(pose))
    if mask is None:
        return entry
    return b'%b,"segmentation":%b}' % (entry[:-1], orjson.dumps(segmentation))


@functools.lru_cache(maxsize=64)
def _quoted(text: str) -> bytes:
    return orjson.dumps(text)
