"""Writes an annotation file of the size and the shape of COCO's instances_train2017.json, without its images.

    python benchmarks/coco_train2017_like.py big.json
    python benchmarks/coco_train2017_like.py small.json --images 1000

118 287 images and 860 001 annotations of 80 classes, 35 vertices an annotation on average (a tenth of them in two or
three parts), two decimals, and 1% crowd regions as uncompressed run lengths: 556 MB.
The same seed and sizes give the same bytes.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson
from numpy.typing import NDArray

IMAGES = 118_287
ANNOTATIONS_AN_IMAGE = 860_001 / IMAGES
CLASSES = 80
VERTICES = 35.0
CROWD_SHARE = 0.01
SPLIT_SHARE = 0.1
SIZES = ((480, 640), (640, 480), (427, 640), (640, 427), (425, 640), (333, 500), (612, 612))
IMAGES_A_PIECE = 2000


def write(path: Path, images: int = IMAGES, seed: int = 0) -> None:
    """Writes the file.

    Args:
        path: Replaced if it exists.
        images: How many; annotations follow in COCO's proportion.
        seed: Of everything that is drawn.
    """
    rng = np.random.default_rng(seed)
    heights, widths = np.array(SIZES)[rng.integers(0, len(SIZES), images)].T
    ids = np.sort(rng.choice(600_000, images, replace=False)) if images <= 600_000 else np.arange(images)
    owners = np.sort(rng.integers(0, images, round(images * ANNOTATIONS_AN_IMAGE)))
    with path.open("wb") as file:
        file.write(b'{"info":{"description":"Drawn by chance, in the shape of COCO 2017","year":2017},"licenses":[],')
        file.write(b'"images":[')
        _write_list(
            file, [_image(*numbers) for numbers in zip(ids.tolist(), heights.tolist(), widths.tolist(), strict=True)]
        )
        file.write(b'],"annotations":[')
        first = 0
        for start in range(0, images, IMAGES_A_PIECE):
            end = int(np.searchsorted(owners, start + IMAGES_A_PIECE))
            owned = owners[first:end]
            sizes = np.stack([heights[owned], widths[owned]], axis=1)
            file.write(b"," if first and end > first else b"")
            _write_list(file, annotations(rng, ids[owned], sizes, first + 1))
            first = end
        file.write(b'],"categories":[')
        _write_list(
            file, [{"supercategory": "thing", "id": number + 1, "name": f"class {number}"} for number in range(CLASSES)]
        )
        file.write(b"]}")


def annotations(
    rng: np.random.Generator, image_ids: NDArray[np.int64], sizes: NDArray[np.int64], first_id: int
) -> list[dict[str, Any]]:
    """Annotation records of some images.

    Args:
        rng: What they are drawn from.
        image_ids: (n,) the image of each.
        sizes: (n, 2) its height and width.
        first_id: Ids count from here.
    """
    n = len(image_ids)
    # Log-normal, as COCO's are: many small contours, some of hundreds of vertices.
    spread = 0.75
    counts = np.maximum(4, rng.lognormal(np.log(VERTICES) - spread**2 / 2, spread, n).round().astype(np.int64))
    extent = np.exp(rng.uniform(np.log(0.02), np.log(0.45), (n, 2)))  # half axes, as a share of the image
    centre = rng.uniform(extent, 1 - extent)
    crowd = rng.random(n) < CROWD_SHARE
    split = (rng.random(n) < SPLIT_SHARE) & (counts >= 12)
    labels = rng.integers(1, CLASSES + 1, n)
    offsets = np.append(0, np.cumsum(counts))
    owner = np.repeat(np.arange(n), counts)
    angle = 2 * np.pi * (np.arange(offsets[-1]) - offsets[owner]) / counts[owner]
    radius = rng.uniform(0.75, 1.0, offsets[-1])
    ray = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    points = ((centre[owner] + extent[owner] * ray) * sizes[owner, ::-1]).round(2)
    low = np.minimum.reduceat(points, offsets[:-1])
    high = np.maximum.reduceat(points, offsets[:-1])
    boxes = np.concatenate([low, high - low], axis=1).round(2)
    areas = (boxes[:, 2] * boxes[:, 3] * 0.6).round(4)
    coordinates = points.reshape(-1).tolist()
    records = []
    for number in range(n):
        begin, end = 2 * int(offsets[number]), 2 * int(offsets[number + 1])
        flat = coordinates[begin:end]
        segmentation: Any = [flat]
        if crowd[number]:
            segmentation = _run_lengths(sizes[number], low[number], high[number], flat)
        elif split[number]:
            parts = 2 + number % 2
            cuts = [2 * (len(flat) // 2 * part // parts) for part in range(parts + 1)]
            segmentation = [flat[start:stop] for start, stop in pairwise(cuts)]
        records.append(
            {
                "segmentation": segmentation,
                "area": float(areas[number]),
                "iscrowd": int(crowd[number]),
                "image_id": int(image_ids[number]),
                "bbox": boxes[number].tolist(),
                "category_id": int(labels[number]),
                "id": first_id + number,
            }
        )
    return records


def _image(identity: int, height: int, width: int) -> dict[str, Any]:
    name = f"{identity:012d}.jpg"
    return {
        "license": 3,
        "file_name": name,
        "coco_url": f"http://images.cocodataset.org/train2017/{name}",
        "height": height,
        "width": width,
        "date_captured": "2013-11-14 16:28:13",
        "flickr_url": f"http://farm7.staticflickr.com/6116/{name}",
        "id": identity,
    }


def _run_lengths(
    size: NDArray[np.int64], low: NDArray[np.float64], high: NDArray[np.float64], noise: list[float]
) -> dict[str, Any]:
    """A mask within a box, with one run in each of its columns."""
    height, width = (int(value) for value in size)
    left, top = (int(value) for value in low)
    right, bottom = min(width, int(high[0]) + 1), min(height, int(high[1]) + 1)
    quarter = max(1, (bottom - top) // 4)
    counts: list[int] = []
    painted = 0
    for column in range(left, right):
        begin = column * height + top + int(noise[column % len(noise)]) % quarter
        end = column * height + bottom - int(noise[(3 * column + 1) % len(noise)]) % quarter
        counts += [begin - painted, end - begin]
        painted = end
    return {"counts": [*counts, height * width - painted], "size": [height, width]}


def _write_list(file: BinaryIO, records: list[dict[str, Any]]) -> None:
    """The records of a list, without its brackets."""
    file.write(orjson.dumps(records)[1:-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="file to write")
    parser.add_argument("--images", type=int, default=IMAGES, help="number of images (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    arguments = parser.parse_args()
    write(arguments.path, arguments.images, arguments.seed)
    print(f"{arguments.path}: {arguments.path.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
