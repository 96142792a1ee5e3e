"""The drawn street data set: its layout, its ids, and that a seed gives the same pictures."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from street_scenes import write_streets

INSTANCE_LABELS = {24, 26, 27, 28, 33}


def test_writes_the_layout_of_cityscapes(tmp_path: Path) -> None:
    write_streets(tmp_path, {"train": 2, "val": 1}, width=160, height=80)
    pictures = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))
    assert pictures == [
        "gtFine/train/trainville/trainville_000000_000019_gtFine_instanceIds.png",
        "gtFine/train/trainville/trainville_000001_000019_gtFine_instanceIds.png",
        "gtFine/val/valville/valville_000000_000019_gtFine_instanceIds.png",
        "leftImg8bit/train/trainville/trainville_000000_000019_leftImg8bit.png",
        "leftImg8bit/train/trainville/trainville_000001_000019_leftImg8bit.png",
        "leftImg8bit/val/valville/valville_000000_000019_leftImg8bit.png",
    ]


def test_objects_have_ids_of_labels_with_instances(tmp_path: Path) -> None:
    write_streets(tmp_path, {"train": 4}, width=160, height=80)
    for path in tmp_path.rglob("*_instanceIds.png"):
        ids = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert ids.dtype == np.uint16
        assert ids.shape == (80, 160)
        objects = np.unique(ids[ids >= 1000])
        assert len(objects) >= 1
        assert set((objects // 1000).tolist()) <= INSTANCE_LABELS


def test_same_seed_same_pictures(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_streets(tmp_path / name, {"train": 1}, width=160, height=80, seed=seed)
    first, again, other = (next((tmp_path / name).rglob("*_leftImg8bit.png")).read_bytes() for name in "abc")
    assert first == again
    assert first != other
