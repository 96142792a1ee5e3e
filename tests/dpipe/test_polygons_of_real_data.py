"""Every real instance against pycocotools, and to polygons and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from converters import convert_cityscapes, convert_voc
from dpipe.polygons import Polygons

pytestmark = pytest.mark.realdata

SOURCES = ["coco_mini", "coco_streets", "pennfudan_voc"]
FIELDS = ("vertices", "ring_offsets", "instance_offsets", "holes")


@pytest.fixture(scope="module", params=SOURCES)
def images(
    request: pytest.FixtureRequest, data_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[tuple[int, int], list[Any]]]:
    """Height and width, and the segmentations, of each image of a data set."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "coco_mini":
        folder = data_root / "coco_mini" / "annotations"
    else:
        convert = convert_cityscapes if request.param == "coco_streets" else convert_voc
        convert(data_root / request.param, folder)
    found: dict[Any, tuple[tuple[int, int], list[Any]]] = {}
    for path in sorted(folder.rglob("*.json")):
        if "trainval" in path.name:
            continue
        document = json.loads(path.read_text())
        for image in document["images"]:
            found[path, image["id"]] = (image["height"], image["width"]), []
        for annotation in document["annotations"]:
            found[path, annotation["image_id"]][1].append(annotation["segmentation"])
    assert sum(len(segmentations) for _, segmentations in found.values()) > 400
    return list(found.values())


def reference(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """The bitmap that pycocotools makes of it, as its ``annToMask`` does."""
    coded = segmentation
    if isinstance(segmentation, list):
        coded = coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))
    elif isinstance(segmentation["counts"], list):
        coded = coco_mask.frPyObjects(segmentation, *size)
    return coco_mask.decode(coded)


def test_bitmaps_are_those_of_pycocotools(images: list[tuple[tuple[int, int], list[Any]]]) -> None:
    large = 0
    for size, segmentations in images:
        bitmaps = Polygons.from_coco(segmentations).to_bitmaps(*size)
        for segmentation, bitmap in zip(segmentations, bitmaps, strict=True):
            expected = reference(segmentation, size)
            if isinstance(segmentation, dict):
                np.testing.assert_array_equal(bitmap, expected)
            if expected.sum() > 32 * 32:
                assert (bitmap & expected).sum() / (bitmap | expected).sum() > 0.99
                large += 1
    assert large > 200


def test_run_lengths_come_back_as_they_were(images: list[tuple[tuple[int, int], list[Any]]]) -> None:
    """Those of the data, and those that pycocotools makes of the polygons."""
    for size, segmentations in images:
        coded = [
            value if isinstance(value, dict) else coco_mask.encode(reference(value, size)) for value in segmentations
        ]
        polygons = Polygons.from_coco(coded)
        by_form = {form: polygons.to_rle(*size, compressed=form is str) for form in (str, list)}
        for number, value in enumerate(coded):
            if isinstance(value["counts"], bytes):
                value["counts"] = value["counts"].decode("ascii")
            assert by_form[type(value["counts"])][number] == value


def test_polygons_come_back_as_they_were(images: list[tuple[tuple[int, int], list[Any]]]) -> None:
    for size, segmentations in images:
        polygons = Polygons.from_coco(segmentations)
        written = polygons.to_coco(size)
        again = Polygons.from_coco(written)
        for field in FIELDS:
            np.testing.assert_array_equal(getattr(again, field), getattr(polygons, field))
        for before, after in zip(segmentations, written, strict=True):
            if isinstance(before, list):
                assert after == before
