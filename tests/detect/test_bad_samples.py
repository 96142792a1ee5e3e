"""Training and evaluation where some images cannot be used, and epochs that go on with another batch size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load
from typer.testing import CliRunner

from detect import data
from detect.cli import app
from detect.data import check_val_images, train_index, usable_ids, val_index
from detect.evaluation import evaluate
from detect.metrics.evaluating import evaluate_results
from detect.running.logs import read_log
from detect.running.run import Run
from detect.running.state import WEIGHTS
from detect.training import train
from dpipe.errors import InputError

SKIP = ("data.on_bad_sample=skip", "train.eval_every=1", "train.epochs=2")


def spoil(path: Path) -> str:
    """Cuts an image, and returns its name."""
    path.write_bytes(path.read_bytes()[:200])
    return path.name


@pytest.fixture
def seen(monkeypatch) -> list[list[int]]:
    """The samples of each training step from now on."""
    steps: list[list[int]] = []
    original = Run.step

    def step(self, batch):
        steps.append([target.sample for target in batch.targets])
        return original(self, batch)

    monkeypatch.setattr(Run, "step", step)
    return steps


def test_a_run_leaves_bad_images_out_and_tells(shapes, tmp_path, capsys, seen, monkeypatch):
    def evaluated(results, index, kinds, options, ids):
        evaluated_ids.append(ids)
        return evaluate_results(results, index, kinds, options, ids)

    evaluated_ids: list[list[int]] = []
    monkeypatch.setattr("detect.running.validation.evaluate_results", evaluated)
    bad_train, bad_val = spoil(shapes.images[1]), spoil(shapes.images[5])
    train(shapes.config(*SKIP), tmp_path)
    assert [sorted(sample for step in epoch for sample in step) for epoch in (seen[:2], seen[2:])] == [[0, 2, 3]] * 2
    records = read_log(tmp_path / "train.jsonl")
    assert [record["kind"] for record in records].count("train") == 4
    told = [(record["set"], list(record["files"])) for record in records if record["kind"] == "skipped"]
    assert told == [("train", [bad_train]), ("val", [bad_val])]  # once each
    assert evaluated_ids == [[5], [5]]  # what is not seen is not missed
    assert {record["iteration"] for record in records if record["kind"] == "skipped"} == {2}
    printed = capsys.readouterr().out
    assert printed.count(f"evaluated without images that cannot be used: 1: {bad_val} (truncated PNG") == 2
    end = printed.splitlines()[-4:]  # the last one tells of the report
    assert [line.split(": ")[:2] for line in end[:2]] == [["skipped in train", bad_train], ["skipped in val", bad_val]]
    assert end[2].startswith("finished: ")


def test_a_resumed_run_knows_what_was_skipped_before(shapes, tmp_path, capsys):
    bad = spoil(shapes.images[1])
    train(shapes.config(*SKIP, "train.epochs=1"), tmp_path)
    capsys.readouterr()
    train(shapes.config(*SKIP), tmp_path, resume=True)
    assert f"skipped in train: {bad}: truncated PNG" in capsys.readouterr().out
    assert [record["kind"] for record in read_log(tmp_path / "train.jsonl")].count("skipped") == 1


class TestValidationImagesThatAreNotThere:
    @pytest.fixture(autouse=True)
    def separate(self, shapes):
        """Moves the validation images into folders of their own."""
        for number in (4, 5):
            image = shapes.root / "images" / f"{number:02d}.png"
            (shapes.root / "val" / f"part {number}").mkdir(parents=True)
            image.rename(shapes.root / "val" / f"part {number}" / image.name)

        def rename(content):
            for number, image in enumerate(content["images"]):
                image["file_name"] = f"part {4 + number}/{image['file_name']}"

        shapes.edit("val.json", rename)

    def options(self, shapes, *more: str) -> list[str]:
        return ["train.eval_every=1", "train.epochs=1", f"data.val.images={shapes.root / 'val'}", *more]

    def test_they_are_told_before_training(self, shapes, tiny, tmp_path, seen):
        config = shapes.config(tiny, *self.options(shapes))
        (shapes.root / "val" / "part 5" / "05.png").unlink()
        with pytest.raises(InputError) as caught:
            train(config, tmp_path / "run")
        path, of = shapes.root / "val" / "part 5" / "05.png", shapes.root / "val.json"
        assert str(caught.value) == f"{path}: no such image file; 1 of the 2 images of {of} are missing"
        with pytest.raises(InputError, match=r"nowhere: no such folder of images"):
            train(shapes.config(tiny, *self.options(shapes, "data.val.images=nowhere")), tmp_path / "run")
        assert seen == []
        assert not (tmp_path / "run").exists()

    def test_they_may_be_skipped_but_not_all(self, shapes, tiny, tmp_path, capsys):
        config = shapes.config(tiny, *self.options(shapes, "data.on_bad_sample=skip"))
        (shapes.root / "val" / "part 5" / "05.png").unlink()
        train(config, tmp_path / "run")
        assert "evaluated without images that cannot be used: 1: part 5/05.png" in capsys.readouterr().out
        (shapes.root / "val" / "part 4" / "04.png").unlink()
        with pytest.raises(InputError, match=r"04\.png: no such image file; 2 of the 2 images of "):
            train(config, tmp_path / "other")

    def test_nobody_asks_for_them_without_evaluations(self, shapes, tiny, tmp_path):
        train(shapes.config(tiny, "train.eval_every=0", "train.epochs=1", "data.val.images=nowhere"), tmp_path / "run")

    def test_names_that_are_not_listed_may_be_there(self, shapes, monkeypatch):
        def refused(path):
            raise PermissionError(path)

        config = shapes.config(*self.options(shapes))
        monkeypatch.setattr("os.listdir", refused)
        check_val_images(config, val_index(config, None))

    def test_a_folder_is_listed_once_and_no_file_asked_for(self, shapes, monkeypatch):
        listed = []
        names_in = data._names_in
        monkeypatch.setattr(data, "_names_in", lambda folder: listed.append(folder) or names_in(folder))
        monkeypatch.setattr("os.path.exists", lambda path: pytest.fail(path))
        check_val_images(shapes.config(), train_index(shapes.config()))
        assert len(listed) == 1


def test_a_set_without_a_usable_image_has_no_score(tmp_path):
    index: Any = SimpleNamespace(path="val.json", image_ids=np.array([3, 5]), file_names=["a.png", "b.png"])
    assert usable_ids(index, {}) is None
    assert usable_ids(index, {"a.png": "truncated"}) == [5]
    with pytest.raises(InputError, match=r"val\.json: none of its images can be used, such as a\.png: truncated"):
        usable_ids(index, {"a.png": "truncated", "b.png": "empty"})


def test_the_score_is_that_of_the_images_that_can_be_used(shapes, tmp_path):
    checkpoint = train(shapes.config("train.epochs=1", "train.eval_every=0"), tmp_path)
    bad = spoil(shapes.images[5])
    console = Console(width=1000, record=True)
    (without,) = evaluate(shapes.config("data.on_bad_sample=skip"), checkpoint, ["bbox"], console=console)
    assert f"evaluated without images that cannot be used: 1: {bad} (truncated PNG" in console.export_text()

    def leave_out(content):
        (id_,) = [image["id"] for image in content["images"] if image["file_name"] == bad]
        content["images"] = [image for image in content["images"] if image["id"] != id_]
        content["annotations"] = [row for row in content["annotations"] if row["image_id"] != id_]

    shapes.edit("val.json", leave_out)
    (expected,) = evaluate(shapes.config(), checkpoint, ["bbox"])
    assert without == expected


def test_images_that_do_not_count_are_no_misses(shapes):
    rows = json.loads((shapes.root / "val.json").read_text())["annotations"]
    perfect = [
        {"image_id": row["image_id"], "category_id": row["category_id"], "bbox": row["bbox"], "score": 0.9}
        for row in rows
        if row["image_id"] == 5
    ]
    (shapes.root / "perfect.json").write_text(json.dumps(perfect))
    files = shapes.root / "perfect.json", shapes.root / "val.json"
    for kind in ("bbox", "proposal", "proposal_fast", "voc"):
        (scores,) = evaluate_results(*files, [kind])
        assert scores.main < 0.99
        (scores,) = evaluate_results(*files, [kind], image_ids=[5])
        assert scores.main == pytest.approx(1)


def test_failing_is_the_default(shapes, tmp_path):
    spoil(shapes.images[1])
    with pytest.raises(InputError, match="truncated PNG"):
        train(shapes.config("train.epochs=1"), tmp_path)
    result = CliRunner().invoke(app, ["config", str(shapes.recipe), "data.on_bad_sample=ignore"])
    assert result.exit_code == 2
    assert "data.on_bad_sample" in result.stderr


def test_nothing_is_learned_from_a_batch_that_stands_in_for_another(shapes, tmp_path, monkeypatch):
    original = Run.step

    def step(self, batch):
        batch.stand_in = True
        losses = original(self, batch)
        assert losses["loss"] == 0
        return losses

    monkeypatch.setattr(Run, "step", step)
    weights = []
    for number, lr in enumerate((0.01, 1.0)):
        words = ("train.epochs=1", "train.eval_every=0", f"optimizer.lr={lr}", "optimizer.weight_decay=0")
        folder = train(shapes.config(*words, "schedule.warmup_iters=0"), tmp_path / str(number))
        weights.append(load((folder / WEIGHTS).read_bytes()))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_two_processes_stay_in_step_when_one_has_nothing_to_train_on(shapes, tmp_path):
    names = [spoil(shapes.images[number]) for number in (1, 5)]
    words = [
        *SKIP,
        "train.epochs=1",
        "data.batch_size=1",
        "--work-dir",
        tmp_path / "run",
        "--devices",
        "2",
        "--accelerator",
        "cpu",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "detect", "train", *map(str, [shapes.recipe, *words])],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    records = read_log(tmp_path / "run" / "train.jsonl")
    assert [record["iteration"] for record in records if record["kind"] == "train"] == [1, 2]
    # Whichever process came across it, the first one tells of it.
    assert [list(record["files"]) for record in records if record["kind"] == "skipped"] == [[name] for name in names]
    assert [record["kind"] for record in records].count("evaluation") == 1


def test_a_run_goes_on_with_another_batch_size_in_the_middle_of_an_epoch(shapes, tmp_path, seen, monkeypatch, capsys):
    words = ("data.train.repeat=2", "train.epochs=2", "train.eval_every=0", "train.checkpoint_every_iters=1")

    class Killed(Exception):  # noqa: N818
        pass

    save = Run.save

    def save_once(self):
        save(self)
        raise Killed

    monkeypatch.setattr(Run, "save", save_once)
    with pytest.raises(Killed):
        train(shapes.config(*words, "data.batch_size=3"), tmp_path)
    monkeypatch.setattr(Run, "save", save)
    train(shapes.config(*words, "data.batch_size=2"), tmp_path, resume=True)
    # Three of eight samples, then five in three batches, the last of which is filled up; then an epoch of four batches.
    assert [len(step) for step in seen] == [3, 2, 2, 2, 2, 2, 2, 2]
    first = [sample for step in seen[:4] for sample in step]
    assert sorted(first[:8]) == list(range(8))
    assert sorted(sample for step in seen[4:] for sample in step) == list(range(8))
    assert "iter 8/8" in capsys.readouterr().out
