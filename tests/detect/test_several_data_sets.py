"""Training on several data sets: ``data.train.further``."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from lightning_fabric import Fabric
from typer.testing import CliRunner

from detect.cli import app
from detect.data import train_index, train_loader
from dpipe.coco import CocoIndex
from dpipe.errors import InputError


@pytest.fixture
def also(shapes, make_shapes, tmp_path):
    """The data set and recipe of ``shapes``, and as an override one more data set, whose images lie elsewhere."""
    more = make_shapes(tmp_path / "more" / "of them")
    entry = {"annotations": str(more.root / "train.json"), "images": str(more.root / "images")}
    return more, f"data.train.further={json.dumps([entry])}"


def test_an_epoch_has_the_images_and_objects_of_all(shapes, also, tmp_path):
    more, override = also
    config = shapes.config(override, "data.train.repeat=2", "data.train_transforms.1.prob=0")
    index = train_index(config)
    seen = {}
    fabric = Fabric(accelerator="cpu", devices=1)
    for batch in train_loader(config, index, fabric):
        for target in batch.targets:
            assert (tmp_path / target.file_name).is_file()
            seen.setdefault(target.file_name, []).append(target.boxes.tolist())
    expected = {}
    for each in (shapes, more):
        alone = CocoIndex.load(each.root / "train.json")
        for place, name in enumerate(alone.file_names):
            rows = slice(alone.offsets[place], alone.offsets[place + 1])
            expected[str((each.root / "images" / name).relative_to(tmp_path))] = rows.stop - rows.start
    assert {name: [len(boxes) for boxes in of_both] for name, of_both in seen.items()} == {
        name: [count] * 2 for name, count in expected.items()
    }
    assert len(expected) == 8


def test_a_run_learns_from_all(shapes, also, tmp_path, monkeypatch):
    _, override = also
    monkeypatch.chdir(tmp_path)  # paths are relative to the current folder
    words = [override.replace(f"{tmp_path}{os.sep}", ""), "train.epochs=1", "train.eval_every=1"]
    ended = CliRunner().invoke(app, ["train", str(shapes.recipe), "--work-dir", "run", *words])
    assert ended.exit_code == 0, ended.output
    last = json.loads(Path("run/train.jsonl").read_text().splitlines()[-1])
    assert last["iteration"] == 4  # batches of two of eight images
    again = CliRunner().invoke(app, ["train", "run/config.yaml", "--work-dir", "run", "--resume", "train.epochs=2"])
    assert again.exit_code == 0, again.output
    fewer = ["train", str(shapes.recipe), "--work-dir", "run", "--resume", "train.epochs=3"]
    refused = CliRunner().invoke(app, fewer)
    assert refused.exit_code == 2
    assert "has not the images that the loader's state was saved with" in refused.stderr


def test_what_cannot_be_learned_from_together(shapes, also, tmp_path, monkeypatch):
    more, override = also
    more.edit("train.json", lambda content: content["categories"].reverse())
    with pytest.raises(InputError, match=r"of them/train.json: has the classes \['disc', 'box'\], expected were"):
        train_index(shapes.config(override))
    more.edit("train.json", lambda content: content["categories"].reverse())
    with pytest.raises(InputError, match="no such folder of images"):
        train_index(shapes.config(override.replace("of them/images", "of them/pictures")))
    images = str(shapes.root / "images")
    with pytest.raises(InputError, match=r"of them/train.json: image \S+ is in .*shapes/train.json as well"):
        train_index(shapes.config(override.replace(str(more.root / "images"), images)))
    with pytest.raises(InputError, match=r"data.train.further.0: the key 'images' is missing"):
        shapes.config("data.train.further=[{annotations: a.json}]")

    def no_common_path(paths):
        raise ValueError("Paths don't have the same drive")

    monkeypatch.setattr(os.path, "commonpath", no_common_path)
    with pytest.raises(InputError, match=r"data.train: expected image folders on one drive, got "):
        train_index(shapes.config(override))
