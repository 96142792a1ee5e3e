"""Cityscapes: label images of 2048x1024 with about 25 objects each, against OpenMMLab's way and bare decoders."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as coco_mask
from cityscapesscripts.helpers.labels import id2label, labels
from PIL import Image

from converters import convert_cityscapes

WIDTH, HEIGHT = 2048, 1024
DISTINCT = 40
"""Label images that are drawn; a larger set has each of them several times, as links."""
NAME = "instancesonly_filtered_gtFine_train.json"


def make_set(folder: Path, count: int) -> Path:
    """Writes a data set in the layout of Cityscapes, or finds it where an earlier run has left it.

    Args:
        folder: Cache of all benchmarks.
        count: Number of images.

    Returns:
        Its root.
    """
    drawn = folder / "cityscapes_labels"
    drawn.mkdir(parents=True, exist_ok=True)
    for number in range(DISTINCT):
        path = drawn / f"{number:03d}.png"
        if not path.is_file():
            temporary = path.with_suffix(".tmp")
            Image.fromarray(_draw_labels(number)).save(temporary, format="PNG")
            temporary.rename(path)
    picture = drawn / "picture.png"
    if not picture.is_file():
        Image.new("RGB", (WIDTH, HEIGHT), (90, 110, 100)).save(picture)

    root = folder / f"cityscapes_{count}"
    for number in range(count):
        key = f"train/town/town_{number:06d}_000019"
        for part, ending, source in (
            ("gtFine", "_gtFine_instanceIds.png", drawn / f"{number % DISTINCT:03d}.png"),
            ("leftImg8bit", "_leftImg8bit.png", picture),
        ):
            path = root / part / f"{key}{ending}"
            if not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                os.link(source, path)
    return root


def _draw_labels(number: int) -> np.ndarray:
    """Four drawn streets side by side, (1024, 2048) uint16; their objects are counted on from one to the next."""
    from street_scenes import draw_scene  # in examples/

    rng = np.random.default_rng([11, number])
    canvas = np.zeros((HEIGHT, WIDTH), np.uint16)
    taken: dict[int, int] = {}
    for top in (0, HEIGHT // 2):
        for left in (0, WIDTH // 2):
            part = canvas[top : top + HEIGHT // 2, left : left + WIDTH // 2]
            _, ids = draw_scene(rng, WIDTH // 2, HEIGHT // 2)
            part[:] = ids
            for value in np.unique(ids[ids >= 1000]).tolist():
                label = value // 1000
                part[ids == value] = 1000 * label + taken.get(label, 0)
                taken[label] = taken.get(label, 0) + 1
    return canvas


def label_files(root: Path) -> list[Path]:
    return sorted((root / "gtFine/train").glob("*/*_instanceIds.png"))


def ours(root: Path, output: Path, nproc: int = 1) -> Path:
    """The whole conversion, from listing the folders to the file on the disk."""
    return convert_cityscapes(root, output, nproc=nproc).splits[0].path


def openmmlab_way(files: Sequence[Path], path: Path) -> Path:
    """The steps of ``tools/dataset_converters/cityscapes.py`` of mmdetection 3.3, without its toolbox's overhead.

    Each object is drawn as a mask of its own, which pycocotools encodes; everything is kept, and written by
    ``json.dump``.
    """
    document: dict[str, list[dict[str, Any]]] = {"images": [], "categories": [], "annotations": []}
    for number, file in enumerate(files):
        ids = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
        for value in np.unique(ids[ids >= 24]):
            label = id2label[int(value // 1000 if value >= 1000 else value)]
            if label.ignoreInEval or not label.hasInstances:
                continue
            rle = coco_mask.encode(np.asfortranarray(ids == value, np.uint8))
            document["annotations"].append(
                {
                    "iscrowd": int(value < 1000),
                    "category_id": label.id,
                    "bbox": coco_mask.toBbox(rle).tolist(),
                    "area": int(coco_mask.area(rle)),
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                    "image_id": number,
                    "id": len(document["annotations"]),
                }
            )
        stem = f"{file.parent.name}/{file.name.removesuffix('_gtFine_instanceIds.png')}"
        document["images"].append(
            {
                "file_name": f"{stem}_leftImg8bit.png",
                "height": ids.shape[0],
                "width": ids.shape[1],
                "segm_file": f"{stem}_gtFine_labelIds.png",
                "id": number,
            }
        )
    document["categories"] = [
        {"id": label.id, "name": label.name} for label in labels if label.hasInstances and not label.ignoreInEval
    ]
    with path.open("w") as out:
        json.dump(document, out)
    return path


def decode_with_pillow(files: Sequence[Path]) -> None:
    """Our decoder and nothing else."""
    for file in files:
        with Image.open(file) as image:
            np.asarray(image)


def decode_with_opencv(files: Sequence[Path]) -> None:
    for file in files:
        cv2.imread(str(file), cv2.IMREAD_UNCHANGED)


def check_equal(our_file: Path, their_file: Path) -> int:
    """Compares all that both files hold; only our ids of annotations begin at 1.

    Returns:
        How many annotations there are.
    """
    our, their = json.loads(our_file.read_bytes()), json.loads(their_file.read_bytes())
    for annotation in our["annotations"]:
        annotation["id"] -= 1
    assert our == their, "the files differ"
    return len(our["annotations"])


def contenders(files: Sequence[Path], root: Path, output: Path) -> dict[str, Callable[[], object]]:
    """What runs on one core, by name; the first is ours."""
    return {
        "dpipe convert cityscapes": lambda: ours(root, output),
        "OpenMMLab's way": lambda: openmmlab_way(files, output / "theirs.json"),
        "decoding alone, Pillow (ours)": lambda: decode_with_pillow(files),
        "decoding alone, OpenCV": lambda: decode_with_opencv(files),
    }
