"""The Python blocks of the documentation run as they stand, one after another."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

DOCS = Path(__file__).resolve().parent.parent / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def write_data_set(folder: Path) -> None:
    """Six small images with a polygon, a run-length mask with a hole and a crowd each."""
    rng = np.random.default_rng(0)
    height, width = 60, 80
    ring = np.zeros((height, width), dtype=np.uint8)
    ring[30:50, 40:60] = 1
    ring[36:44, 46:54] = 0
    rle = coco_mask.encode(np.asfortranarray(ring))
    rle["counts"] = rle["counts"].decode()
    segmentations = [
        ([[10, 10, 40, 12, 38, 35, 9, 30]], [9, 10, 31, 25], 0),
        (rle, [40, 30, 20, 20], 0),
        (rle, [40, 30, 20, 20], 1),
    ]
    images, annotations = [], []
    (folder / "images").mkdir()
    (folder / "annotations").mkdir()
    for number in range(1, 7):
        name = f"{number}.jpg"
        cv2.imwrite(str(folder / "images" / name), rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for segmentation, box, crowd in segmentations:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1 + crowd,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": crowd,
                    "segmentation": segmentation,
                }
            )
    categories = [{"id": 1, "name": "car"}, {"id": 2, "name": "person"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / "train.json").write_text(json.dumps(content))


def test_blocks_of_the_page_on_pipelines_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (DOCS / "pipelines.md").read_text()
    write_data_set(tmp_path)
    monkeypatch.chdir(tmp_path)
    blocks = list(BLOCK.finditer(page))
    assert len(blocks) > 10
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks:
        # Lines of a traceback are then those of the page.
        before = "\n" * page[: block.start(1)].count("\n")
        exec(compile(before + block[1], str(DOCS / "pipelines.md"), "exec"), names)


def test_the_page_names_every_transform() -> None:
    from dpipe.registry import TRANSFORMS

    page = (DOCS / "pipelines.md").read_text()
    missing = [name for name in TRANSFORMS.names() if f"`{name}" not in page]
    assert not missing


def test_the_table_names_every_argument_of_the_loader() -> None:
    from dpipe import DetectionLoader

    page = (DOCS / "pipelines.md").read_text()
    table = page.partition("## All arguments of the loader")[2].partition("## Speed")[0]
    missing = [name for name in inspect.signature(DetectionLoader).parameters if f"`{name}`" not in table]
    assert not missing
