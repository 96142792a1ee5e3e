"""Small data sets for the tests of dpipe."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from dpipe.coco import CocoIndex

WriteDataset = Callable[..., tuple[CocoIndex, Path]]


@pytest.fixture
def write_dataset(tmp_path: Path) -> WriteDataset:
    """Writes images and a COCO JSON, and loads it: ``write(images, annotations=...) -> index, image folder``."""

    def write(images: Sequence[np.ndarray], annotations: Sequence[dict[str, Any]] = ()) -> tuple[CocoIndex, Path]:
        folder = tmp_path / "images"
        folder.mkdir()
        records = []
        for number, image in enumerate(images):
            name = f"{number:03d}.png"
            cv2.imwrite(str(folder / name), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
            records.append({"id": number, "file_name": name, "height": image.shape[0], "width": image.shape[1]})
        rows = [
            {"id": 100 + number, "iscrowd": 0, "area": row["bbox"][2] * row["bbox"][3], "category_id": 1, **row}
            for number, row in enumerate(annotations)
        ]
        categories = [{"id": 1, "name": "box"}, {"id": 7, "name": "disc"}]
        path = tmp_path / "instances.json"
        path.write_text(json.dumps({"images": records, "annotations": rows, "categories": categories}))
        return CocoIndex.load(path), folder

    return write


@pytest.fixture
def noise_images() -> list[np.ndarray]:
    """Eleven images of several sizes, landscape and portrait, each told by its red level at every pixel."""
    rng = np.random.default_rng(5)
    sizes = [
        (40, 60),
        (60, 40),
        (50, 70),
        (70, 50),
        (48, 64),
        (64, 48),
        (33, 57),
        (57, 33),
        (40, 60),
        (41, 61),
        (80, 30),
    ]
    images = [rng.integers(0, 256, (*size, 3)).astype(np.uint8) for size in sizes]
    for number, image in enumerate(images):
        image[..., 0] = number
    return images
