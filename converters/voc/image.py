"""One image of a Pascal VOC data set, from its annotation, its image and its masks to a record of the JSON.

What only some images need (NumPy and Pillow, for masks and unusual images) is imported where it is needed: a worker for
annotations alone starts in a third of the time.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

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
Repairs = list[tuple[str, str]]

VOID = 255
ENTRY = (
    b'{"bbox":[%a,%a,%a,%a],"area":%a,"iscrowd":0,"ignore":%d,"difficult":%d,"truncated":%d,"occluded":%d,"pose":%b}'
)


class Converted(NamedTuple):
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
    objects: Sequence[VocObject] = annotation.objects
    for item in objects:
        left, top, right, bottom = item.box
        if left < 0 or top < 0 or right > width or bottom > height:
            objects = _within(objects, width, height, repairs)
            break
    matched = _masks(image.masks, objects, width, height, repairs) if image.masks is not None else None
    if strict and repairs:
        kind, detail = repairs[0]
        more = f", and {len(repairs) - 1} more" if len(repairs) > 1 else ""
        raise ConversionError(f"{image.annotation}: {detail} ({kind}{more}); refused, as --strict is set")
    if matched is None:
        entries = [_entry(item) for item in objects]
        maskless = masks = 0
    else:
        entries = [_entry_with_mask(item, mask, outline) for item, mask in zip(objects, matched, strict=True)]
        maskless = matched.count(None)
        masks = len(objects) - maskless
    record = ImageRecord(
        b'{"file_name":%b,"height":%d,"width":%d}' % (orjson.dumps(file_name), height, width),
        tuple(entries),
        tuple([sys.intern(item.name) for item in objects]),
        ignored=sum([item.difficult > 0 for item in objects]),
        masks=masks,
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


def _within(objects: Sequence[VocObject], width: int, height: int, repairs: Repairs) -> list[VocObject]:
    """Returns the objects with their boxes clipped to the image, without those whose boxes lie outside."""
    kept = []
    for number, item in enumerate(objects, 1):
        left, top, right, bottom = item.box
        box = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
        outside = box[0] >= box[2] or box[1] >= box[3]
        if box != item.box:
            edges = f"{left:g} {top:g} {right:g} {bottom:g}"
            detail = f"object {number} ({shown(item.name)}): edges {edges}, image {width}x{height}"
            repairs.append(("outside" if outside else "clipped", detail))
        if not outside:
            kept.append(item._replace(box=box))
    return kept


def _masks(
    file: File, objects: Sequence[VocObject], width: int, height: int, repairs: Repairs
) -> list[InstanceRLE | None]:
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
    matched = match_masks([item.box for item in objects], found)
    used = {mask.id for mask in matched if mask is not None}
    repairs += [("mask", f"mask {mask.id} of {file}") for mask in found if mask.id not in used]
    return matched


def _entry(item: VocObject, area: float | None = None) -> bytes:
    """Writes an annotation: by a format, as ``orjson`` leaves most of a page unused behind every small text."""
    _, (left, top, right, bottom), pose, truncated, difficult, occluded = item
    width, height = right - left, bottom - top
    if area is None:
        area = width * height
    return ENTRY % (left, top, width, height, area, difficult > 0, difficult, truncated, occluded, _quoted(pose))


def _entry_with_mask(item: VocObject, mask: InstanceRLE | None, outline: Outline | None) -> bytes:
    if mask is None:
        return _entry(item)
    segmentation: Any = mask.segmentation()
    if outline is not None:
        segmentation = outline([segmentation])[0]
    return b'%b,"segmentation":%b}' % (_entry(item, mask.area)[:-1], orjson.dumps(segmentation))


@functools.lru_cache(maxsize=64)
def _quoted(text: str) -> bytes:
    return orjson.dumps(text)
