"""A random data set with results that overlap it, and ways to bring both to the metrics."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from detect.metrics.results import Results, read_results
from dpipe.coco import CocoIndex

HEIGHT, WIDTH = 120, 200
Case = tuple[dict[str, Any], list[dict[str, Any]]]


def make_random_case(seed: int, *, images: int = 25, classes: int = 5) -> Case:
    """A data set and results that overlap it: crowds, classes and images without objects, all three area ranges."""
    rng = np.random.default_rng(seed)
    category_ids = [3, 7, 8, 20, 21][:classes]
    truth: dict[str, Any] = {
        "images": [{"id": 10 + i, "width": WIDTH, "height": HEIGHT, "file_name": f"{i}.jpg"} for i in range(images)],
        "categories": [{"id": id_, "name": f"class {id_}"} for id_ in category_ids],
        "annotations": [],
    }
    results = []
    for image in truth["images"]:
        if image["id"] % 6 == 0:  # no objects, yet some results
            results += [detection(rng, image["id"], category_ids, random_box(rng)) for _ in range(3)]
            continue
        for _ in range(rng.integers(1, 12)):
            box = random_box(rng)
            category = int(rng.choice(category_ids[:-1]))  # the last class has no object at all
            crowd = bool(rng.random() < 0.15)
            rle = ellipse(box)
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": image["id"],
                    "category_id": category,
                    "iscrowd": int(crowd),
                    "bbox": mask_utils.toBbox(rle).tolist(),
                    "area": float(mask_utils.area(rle)),
                    "segmentation": json_rle(rle),
                }
            )
            for _ in range(rng.integers(0, 4)):
                results.append(detection(rng, image["id"], category_ids, box + rng.normal(0, 2, 4), category))
        if image["id"] % 5 == 0:  # more than the metric counts
            results += [detection(rng, image["id"], category_ids, random_box(rng)) for _ in range(120)]
    return truth, results


def random_box(rng: np.random.Generator) -> np.ndarray:
    size = rng.choice([12, 40, 110])
    x, y = rng.uniform(0, WIDTH - 20), rng.uniform(0, HEIGHT - 20)
    return np.array([x, y, size * rng.uniform(0.5, 1.5), size * rng.uniform(0.5, 1.5)])


def ellipse(box: np.ndarray) -> dict[str, Any]:
    x, y, width, height = box
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    inside = ((columns - x - width / 2) / (width / 2)) ** 2 + ((rows - y - height / 2) / (height / 2)) ** 2 <= 1
    inside[int(np.clip(y, 0, HEIGHT - 1)), int(np.clip(x, 0, WIDTH - 1))] = True  # never empty
    rle: dict[str, Any] = mask_utils.encode(np.asfortranarray(inside.astype(np.uint8)))
    return rle


def json_rle(rle: dict[str, Any]) -> dict[str, Any]:
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def detection(
    rng: np.random.Generator, image_id: int, category_ids: list[int], box: np.ndarray, category: int | None = None
) -> dict[str, Any]:
    box[2:] = np.maximum(box[2:], 2)
    return {
        "image_id": image_id,
        "category_id": category if category and rng.random() < 0.9 else int(rng.choice(category_ids)),
        "bbox": box.tolist(),
        "score": float(np.float32(rng.choice([rng.random(), 0.5]))),  # ties as well
        "segmentation": json_rle(ellipse(box)),
    }


@pytest.fixture(scope="session")
def random_case() -> Callable[..., Case]:
    """The function that makes a random data set and results."""
    return make_random_case


@pytest.fixture
def save(tmp_path: Path) -> Callable[[dict[str, Any]], CocoIndex]:
    """A function that writes a data set and reads it as an index."""

    def write(truth: dict[str, Any]) -> CocoIndex:
        path = tmp_path / "annotations" / "truth.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(truth))
        return CocoIndex.load(path)

    return write


@pytest.fixture
def load(tmp_path: Path) -> Callable[[list[dict[str, Any]], CocoIndex], Results]:
    """A function that writes results and reads them."""

    def write(results: list[dict[str, Any]], index: CocoIndex) -> Results:
        path = tmp_path / "results.json"
        path.write_text(json.dumps(results))
        return read_results(path, index)

    return write
