"""hotcoco's ``coco`` command works on from the files that the converters write, as docs/converters.md tells."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from converters import convert_voc


@pytest.fixture
def files(write_voc, voc_object_xml, tmp_path):
    images = {
        f"i{number}": voc_object_xml("dog", (3, 5, 12, 24)) + voc_object_xml("cat", (1, 1, 40, 30))
        for number in range(10)
    }
    root = write_voc(images, {"train": list(images)[:6], "val": list(images)[6:]})
    convert_voc(root, tmp_path / "out", nproc=1)
    return [tmp_path / "out" / f"voc_2012_{split}.json" for split in ("train", "val")]


def coco(*arguments: object) -> None:
    command = Path(sys.executable).parent / "coco"
    subprocess.run([command, *map(str, arguments)], check=True, capture_output=True, timeout=60)


def test_merge_filter_split_and_sample(files, tmp_path):
    coco("merge", *files, "-o", tmp_path / "all.json")
    everything = orjson.loads((tmp_path / "all.json").read_bytes())
    assert (len(everything["images"]), len(everything["annotations"])) == (10, 20)

    dog = next(category["id"] for category in everything["categories"] if category["name"] == "dog")
    coco("filter", tmp_path / "all.json", "-o", tmp_path / "dogs.json", "--cat-ids", dog)
    dogs = orjson.loads((tmp_path / "dogs.json").read_bytes())
    assert {tuple(annotation["bbox"]) for annotation in dogs["annotations"]} == {(2, 4, 10, 20)}

    coco("split", tmp_path / "all.json", "-o", tmp_path / "part", "--val-frac", "0.3")
    parts = [orjson.loads((tmp_path / f"part_{name}.json").read_bytes()) for name in ("train", "val")]
    assert [len(part["images"]) for part in parts] == [7, 3]

    coco("sample", tmp_path / "all.json", "-o", tmp_path / "few.json", "--n", "4")
    assert len(orjson.loads((tmp_path / "few.json").read_bytes())["images"]) == 4


def test_yolo_and_cvat(files, tmp_path):
    coco("convert", "--from", "coco", "--to", "yolo", "--input", files[0], "--output", tmp_path / "yolo")
    rows = (tmp_path / "yolo/i0.txt").read_text().split("\n")
    boxes = sorted(tuple(map(float, row.split()[1:])) for row in rows if row)
    assert boxes == [pytest.approx((7 / 40, 14 / 30, 10 / 40, 20 / 30), abs=1e-5), (0.5, 0.5, 1, 1)]

    coco("convert", "--from", "coco", "--to", "cvat", "--input", files[0], "--output", tmp_path / "cvat.xml")
    assert (tmp_path / "cvat.xml").read_text().count("<box ") == 12
