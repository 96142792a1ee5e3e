"""Pictures of the masks themselves, through the whole loader: wherever pixels go, masks and boxes go too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from dpipe.coco import CocoIndex
from dpipe.loader import DetectionLoader
from dpipe.operations.cropping import LargeScaleJitter, MinIoURandomCrop, RandomCrop
from dpipe.operations.geometric import RandomFlip, Resize, Rotate, Shear, Translate
from dpipe.policy import AutoAugment, RandAugment
from dpipe.polygons import Polygons

SIZES = [(170, 230), (240, 160), (201, 133)]
POLICIES = [
    [Rotate(10, prob=1, max_rotate_angle=180, img_fill_val=0)],
    [Rotate(10, prob=1, scale=0.4, center=(31, 7.5), img_fill_val=0), RandomCrop((120, 110))],
    [Translate(6, prob=1, max_translate_offset=90, img_fill_val=0), RandomFlip(1.0, "vertical")],
    [Shear(10, prob=1, img_fill_val=0), Shear(7, prob=1, direction="vertical", img_fill_val=0)],
    [Resize((120, 260), keep_ratio=False), Rotate(7, prob=1, img_fill_val=0), RandomFlip(1.0, "diagonal")],
    [MinIoURandomCrop(), Resize((90, 90))],
    [LargeScaleJitter((150, 140), 0.3, 2.0, img_fill_val=0)],
    [RandomCrop((0.4, 0.5), "relative_range"), Resize((300, 300))],
    [RandAugment(8, num_ops=3, operations=[Rotate(0, img_fill_val=0), Shear(0, img_fill_val=0)])],
    [],
]


@pytest.fixture
def data(tmp_path: Path) -> tuple[CocoIndex, Path]:
    """Three pictures of an object each, white on black: a polygon of two parts, and run lengths with a hole."""
    angles = np.linspace(0, 2 * np.pi, 23, endpoint=False)
    images, annotations = [], []
    for number, (height, width) in enumerate(SIZES):
        picture = np.zeros((height, width), np.uint8)
        blob = np.stack([0.3 * width * np.cos(angles), 0.25 * height * np.sin(angles) + 7 * np.cos(2 * angles)], axis=1)
        size = np.array([width, height])
        parts = [blob + (0.55, 0.6) * size, 0.3 * blob + (0.15, 0.12) * size]
        cv2.fillPoly(picture, [np.rint(part).astype(np.int32) for part in parts], 255)
        if number:
            cv2.circle(picture, (round(0.55 * width), round(0.6 * height)), 14, 0, -1)
        runs = np.flatnonzero(np.diff(picture.T.reshape(-1).astype(int), prepend=0, append=0))
        counts = np.diff(runs, prepend=0, append=picture.size).tolist()
        segmentation: Any = {"size": [height, width], "counts": counts}
        if not number:
            segmentation = Polygons.from_coco([segmentation]).to_coco()[0]
        cv2.imwrite(str(tmp_path / f"{number}.png"), picture)
        images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
        record = {"id": number, "image_id": number, "category_id": 1, "bbox": [0, 0, width, height]}
        annotations.append(record | {"segmentation": segmentation})
    path = tmp_path / "annotations.json"
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "blob"}]}
    path.write_text(json.dumps(content))
    return CocoIndex.load(path), tmp_path


@pytest.mark.parametrize("backend", ["opencv", "dali"])
def test_masks_and_boxes_lie_on_what_is_white(data: tuple[CocoIndex, Path], backend: Any) -> None:
    if backend == "dali":
        pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")
    loader = DetectionLoader(
        *data,
        augment=[AutoAugment(POLICIES), RandomFlip(0.5)],
        backend=backend,
        batch_size=4,
        repeat=25,
        min_size=0,
        seed=3,
        threads=1,
    )
    square = np.ones((3, 3), np.uint8)
    compared = 0
    for batch in loader:
        for image, target in zip(batch.images, batch.targets, strict=True):
            height, width = target.size
            white = (image[0, :height, :width] > 127).numpy()
            assert target.masks is not None
            masks = target.masks.to_bitmaps(height, width)
            mask = masks.any(axis=0).astype(np.uint8)
            # Pixels on the border may be one or the other.
            wrong = (white & (cv2.dilate(mask, square) == 0)) | (~white & (cv2.erode(mask, square, borderValue=1) == 1))
            assert wrong.sum() <= 1, (target.file_name, target.matrix)
            if white.sum() > 50:
                compared += 1
                rows, columns = np.flatnonzero(white.any(axis=1)), np.flatnonzero(white.any(axis=0))
                seen = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
                np.testing.assert_allclose(target.boxes[0], seen, atol=2.5)  # thin tips are not seen
    loader.close()
    assert compared > 60
