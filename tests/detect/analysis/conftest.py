"""Street-like scenes whose detections have the errors that a test asks for, and no others."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from detect.analysis.analyzing import Analysis, analyze
from dpipe.coco import CocoIndex

WIDTH, HEIGHT = 400, 300
CATEGORY_IDS = [7, 2, 30]  # not in order
NAMES = ["car", "person", "bus"]
Rows = list[dict[str, Any]]


def make_truth(images: int = 24, seed: int = 0) -> dict[str, Any]:
    """Objects on a grid, so that they are far from each other: in each image of each class a small, a medium and a
    large one."""
    rng = np.random.default_rng(seed)
    truth: dict[str, Any] = {
        "images": [
            {"id": 5 + number, "width": WIDTH, "height": HEIGHT, "file_name": f"{number}.jpg"}
            for number in range(images)
        ],
        "categories": [{"id": id_, "name": name} for id_, name in zip(CATEGORY_IDS, NAMES, strict=True)],
        "annotations": [],
    }
    for image in truth["images"]:
        for row, side in enumerate((20, 50, 98)):
            for column, category_id in enumerate(rng.permutation(CATEGORY_IDS).tolist()):
                box = [10.0 + 130 * column, 5.0 + 95 * row, side * 1.0, side * 0.99]
                truth["annotations"].append(annotation(len(truth["annotations"]) + 1, image["id"], category_id, box))
    return truth


def annotation(number: int, image_id: int, category_id: int, box: list[float], crowd: int = 0) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": crowd,
    }


def perfect(truth: dict[str, Any], seed: int = 1) -> Rows:
    """A detection of each object, as it is."""
    rng = np.random.default_rng(seed)
    return [
        {
            "image_id": row["image_id"],
            "category_id": row["category_id"],
            "bbox": list(row["bbox"]),
            "score": rng.uniform(0.5, 1),
        }
        for row in truth["annotations"]
        if not row["iscrowd"]
    ]


def with_masks(rows: Rows) -> Rows:
    """The same, with elliptic masks in the boxes."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    for row in rows:
        left, top, width, height = row["bbox"]
        inside = ((x - left) / width - 0.5) ** 2 + ((y - top) / height - 0.5) ** 2 <= 0.25
        rle: Any = mask_utils.encode(np.asfortranarray(inside.astype(np.uint8)))
        row["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}
    return rows


@dataclass
class Study:
    """Writes data sets and results into a folder, and analyses them."""

    folder: Path

    def write(self, truth: dict[str, Any], rows: Rows) -> tuple[Path, Path]:
        """The files of results and annotations."""
        paths = self.folder / "results.json", self.folder / "annotations.json"
        for path, content in zip(paths, (rows, truth), strict=True):
            path.write_text(json.dumps(content))
        return paths

    def index(self, truth: dict[str, Any]) -> CocoIndex:
        return CocoIndex.load(self.write(truth, [])[1])

    def __call__(self, truth: dict[str, Any], rows: Rows, **options: Any) -> Analysis:
        return analyze(*self.write(truth, rows), **options)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path)


@pytest.fixture
def truth() -> dict[str, Any]:
    return make_truth()


@pytest.fixture
def scenes() -> Callable[..., dict[str, Any]]:
    return make_truth


@pytest.fixture
def found() -> Callable[..., Rows]:
    """The function that detects all objects of a data set."""
    return perfect


@pytest.fixture
def masked() -> Callable[[Rows], Rows]:
    """The function that gives boxes masks."""
    return with_masks


@pytest.fixture
def made_object() -> Callable[..., dict[str, Any]]:
    """The function that makes an annotation."""
    return annotation
