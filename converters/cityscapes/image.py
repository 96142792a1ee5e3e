"""One image of Cityscapes to the entries of a COCO file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy.typing as npt

from converters.cityscapes.labels import InstanceLabel, label_ids
from converters.cityscapes.layout import IMAGE_ENDING, ImagePair, Labels
from converters.cityscapes.polygons import IDS_PER_LABEL, paint_polygons
from converters.errors import ConversionError
from converters.reading.archives import Place
from converters.reading.folders import checked_name
from converters.reading.images import image_size, read_label_image
from converters.writing.coco_json import ImageRecord, encode_record
from converters.writing.rle import InstanceRLE, encode_label_image

Source = Literal["instance-ids", "polygons"]
Outline = Callable[[Sequence[dict[str, Any]]], Sequence[Any]]
"""Takes run-length masks, ``segmentation`` values of COCO, and returns what is to stand in their place."""

FIRST_LABEL_WITH_INSTANCES = 24


@dataclass(frozen=True)
class Choices:
    """What the user chose.

    Attributes:
        kind: Which labels.
        source: From which of their files.
        labels: The labels to convert.
        min_area: Pixels that an object must have; crowd regions may have fewer.
        outline: Makes outlines of the objects' masks; None keeps the masks.
    """

    kind: Labels
    source: Source
    labels: tuple[InstanceLabel, ...]
    min_area: int = 0
    outline: Outline | None = None


@dataclass(frozen=True)
class Converted:
    """One image.

    Attributes:
        record: Its entries.
        small: Number of objects left out for their area.
        masks_kept: Number of objects whose masks could not be outlined, having holes.
    """

    record: ImageRecord
    small: int = 0
    masks_kept: int = 0


def convert_pair(pair: ImagePair, *, choices: Choices) -> Converted:
    """Converts one image.

    Raises:
        ConversionError: A file is missing or damaged or has a name that is not UTF-8, the sizes differ, or an instance
            id has no label.
    """
    file_name = checked_name(f"{pair.key}{IMAGE_ENDING}", pair.file)
    for place, partner in ((pair.labels, pair.image), (pair.image, pair.labels)):
        if place is not None and not place.is_file():
            raise ConversionError(f"{place}: is missing, although there is {partner}")
    if pair.labels is None:
        width, height = image_size(pair.file)
        return Converted(encode_record({"file_name": file_name, "height": height, "width": width}, []))

    ids = paint_polygons(pair.labels) if choices.source == "polygons" else read_label_image(pair.labels)
    height, width = ids.shape
    if pair.image is not None and image_size(pair.image) != (width, height):
        other = "{}x{}".format(*image_size(pair.image))
        raise ConversionError(f"{pair.labels}: is {width}x{height}, but its image {pair.image} is {other}")
    objects, small = _objects(ids, choices, pair.labels)
    segmentations = [instance.segmentation() for _, instance in objects]
    outlined = [number for number, (_, instance) in enumerate(objects) if not _is_crowd(instance)]
    masks_kept = 0
    if choices.outline is not None and outlined:
        for number, value in zip(
            outlined, choices.outline([segmentations[number] for number in outlined]), strict=True
        ):
            masks_kept += isinstance(value, dict)
            segmentations[number] = value
    annotations = [
        {
            "iscrowd": int(_is_crowd(instance)),
            "category_id": label,
            "bbox": list(instance.bbox),
            "area": instance.area,
            "segmentation": segmentation,
        }
        for (label, instance), segmentation in zip(objects, segmentations, strict=True)
    ]
    image = {
        "file_name": file_name,
        "height": height,
        "width": width,
        "segm_file": f"{pair.key}_{choices.kind}_labelIds.png",
    }
    return Converted(encode_record(image, annotations), small, masks_kept)


def _objects(ids: npt.NDArray[Any], choices: Choices, path: Place) -> tuple[list[tuple[int, InstanceRLE]], int]:
    """Returns the objects and crowd regions of the chosen labels, with these, and how many were too small."""
    chosen = {label.id for label in choices.labels}
    known = set(label_ids().values())
    objects, small = [], 0
    for instance in encode_label_image(ids, minimum=FIRST_LABEL_WITH_INSTANCES):
        label = instance.id if _is_crowd(instance) else instance.id // IDS_PER_LABEL
        if label not in known:
            raise ConversionError(f"{path}: instance id {instance.id} has no label (Cityscapes has no label {label})")
        if label not in chosen:
            continue
        if instance.area < choices.min_area and not _is_crowd(instance):
            small += 1
        else:
            objects.append((label, instance))
    return objects, small


def _is_crowd(instance: InstanceRLE) -> bool:
    """Whether an id is a label's alone: several objects that could not be told apart."""
    return instance.id < IDS_PER_LABEL
