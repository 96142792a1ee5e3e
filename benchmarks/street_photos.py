"""Input for the benchmarks: photo-like street images with some twenty outlined objects each, in several formats.

Real photos are enlarged, put side by side and given a camera's grain where a folder of them is at hand; drawn streets
stand in for them otherwise. What matters to the time of a pipeline is kept: the size of the files (JPEG of quality 95:
0.6 to 1 MB, PNG: 2 to 2.6 MB at 2048x1024), the number of objects, and the number of vertices of an outline.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
PHOTOS = "coco_streets/leftImg8bit"  # in the folder that DPIPE_TEST_DATA names
GRAIN = 2.0  # standard deviation in grey levels
WIDE = 1_000_000  # pixels of what counts as a street image; others are taken for COCO's
FORMATS = {
    "jpeg": (".jpg", [cv2.IMWRITE_JPEG_QUALITY, 95]),
    "jp2": (".jp2", [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000]),  # lossless
    "png": (".png", [cv2.IMWRITE_PNG_COMPRESSION, 6, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_DEFAULT]),
}


@dataclass(frozen=True)
class Streets:
    """A generated data set.

    Attributes:
        images: Folder of the images.
        annotations: COCO JSON.
        source: ``photos`` or ``drawn``.
        megabytes: Mean size of an image file.
    """

    images: Path
    annotations: Path
    source: str
    megabytes: float


def make_streets(folder: Path, width: int, height: int, count: int, image_format: str) -> Streets:
    """Writes the data set, or finds it where an earlier run has left it.

    Args:
        folder: Cache of all benchmarks.
        width: Of each image, in pixels.
        height: Of each image, in pixels.
        count: Number of images.
        image_format: ``jpeg``, ``jp2`` or ``png``; all encode the same pixels.
    """
    photos = _photo_files()
    source = "photos" if photos else "drawn"
    root = folder / f"{source}_{width}x{height}_{count}" / image_format
    annotations = root / "annotations.json"
    suffix, parameters = FORMATS[image_format]
    if not annotations.is_file():
        root.mkdir(parents=True, exist_ok=True)
        pictures = _mosaics(photos, width, height) if photos else _drawings(width, height)
        for number, picture in zip(range(count), pictures, strict=False):
            cv2.imwrite(str(root / f"{number:04d}{suffix}"), picture, parameters)
        # Last, so that a run that was cut off leaves nothing that looks complete.
        annotations.write_text(json.dumps(_annotations(width, height, count, suffix)))
    size = sum(path.stat().st_size for path in root.glob(f"*{suffix}"))
    return Streets(root, annotations, source, size / count / 1e6)


def _photo_files() -> list[Path]:
    root = os.environ.get("DPIPE_TEST_DATA")
    return sorted((Path(root) / PHOTOS).rglob("*.png")) if root else []


def _mosaics(photos: list[Path], width: int, height: int) -> Iterator[np.ndarray]:
    """Yields (height, width, 3) uint8 BGR: photos next to each other, each enlarged or reduced to fill its part."""
    panels = max(1, round(width / height / 1.25))
    edges = np.linspace(0, width, panels + 1).astype(int)
    rng = np.random.default_rng(0)
    number = 0
    while True:
        parts = []
        for panel_width in np.diff(edges):
            photo = cv2.imread(str(photos[number % len(photos)]), cv2.IMREAD_COLOR)
            number += 1
            factor = max(panel_width / photo.shape[1], height / photo.shape[0])
            size = (max(int(photo.shape[1] * factor + 1), panel_width), max(int(photo.shape[0] * factor + 1), height))
            enlarged = cv2.resize(photo, size, interpolation=cv2.INTER_CUBIC if factor > 1 else cv2.INTER_AREA)
            parts.append(enlarged[:height, :panel_width])
        mosaic = np.concatenate(parts, axis=1)
        yield _as_from_a_car(mosaic, rng) if width * height > WIDE else mosaic


def _drawings(width: int, height: int) -> Iterator[np.ndarray]:
    """Yields (height, width, 3) uint8 BGR: the drawn streets of the examples, which have noise of their own."""
    sys.path.insert(0, str(EXAMPLES))
    from street_scenes import draw_scene

    number = 0
    while True:
        rng = np.random.default_rng([1, number])
        picture, _ = draw_scene(rng, width, height)
        yield _as_from_a_car(picture, rng)
        number += 1


def _as_from_a_car(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gives a picture the muted colours and the fine grain that cameras behind a windscreen leave in their files."""
    smooth = cv2.GaussianBlur(picture, (0, 0), 0.6).astype(np.float32)
    grey = cv2.cvtColor(smooth, cv2.COLOR_BGR2GRAY)[..., None]
    noise = cv2.GaussianBlur(rng.normal(0, 1, picture.shape[:2]), (0, 0), 0.7)[..., None]
    colour = np.rint(0.4 * cv2.GaussianBlur(smooth - grey, (0, 0), 1.5))
    return np.clip(np.rint(grey + GRAIN / noise.std() * noise) + colour, 0, 255).astype(np.uint8)


def _annotations(width: int, height: int, count: int, suffix: str) -> dict[str, object]:
    """Outlined objects: about 20 of 60 vertices on a wide street, 7 of 35 on an image of COCO's size."""
    wide = width * height > WIDE
    objects, vertices = (20, 60) if wide else (7, 35)
    rng = np.random.default_rng(2)
    annotations = []
    for image in range(count):
        for _ in range(objects):
            # Many small ones and few large ones, some of them cut by the border.
            radius = float(np.clip(rng.lognormal(np.log(height * 0.06), 0.7), 6, height * 0.4))
            centre = rng.uniform((0, 0.3 * height), (width, 0.9 * height))
            angles = np.sort(rng.uniform(0, 2 * np.pi, vertices))
            radii = radius * rng.uniform(0.7, 1.0, vertices)
            aspect = rng.uniform(0.5, 1.8)
            points = centre + radii[:, None] * np.stack([aspect * np.cos(angles), np.sin(angles)], axis=1)
            points = np.clip(points, 0, (width, height)).round(2)
            (x1, y1), (x2, y2) = points.min(axis=0), points.max(axis=0)
            x, y = points.T
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image + 1,
                    "category_id": int(rng.integers(1, 9)),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2),
                    "iscrowd": 0,
                    "segmentation": [points.ravel().tolist()],
                }
            )
    images = [
        {"id": number + 1, "file_name": f"{number:04d}{suffix}", "width": width, "height": height}
        for number in range(count)
    ]
    categories = [{"id": number, "name": f"class {number}"} for number in range(1, 9)]
    return {"images": images, "annotations": annotations, "categories": categories}
