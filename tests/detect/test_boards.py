"""Weights & Biases, with a package in its place that writes down what it is told."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from detect.cli import app
from detect.running.boards import WANDB_NAME
from detect.running.logs import read_log
from detect.running.run import Run
from detect.training import train
from dpipe.errors import InputError

FAKE = """
import json, os
from pathlib import Path

TOLD = Path(__file__).with_name("told.jsonl")

def tell(**what):
    with TOLD.open("a") as file:
        file.write(json.dumps(what) + "\\n")

class Run:
    def __init__(self, id):
        self.id = id

    def define_metric(self, name, step_metric=None):
        tell(metric=name, step=step_metric)

    def log(self, values):
        tell(log=values)

    def finish(self, exit_code):
        tell(finish=exit_code)

def init(*, project, entity, name, id, resume, config, dir):
    if project == "forbidden":
        raise RuntimeError("permission denied\\nand more")
    tell(init=project, entity=entity, name=name, id=id, resume=resume, config=config, dir=dir)
    return Run(id or "made-up")
"""
QUIET = ("train.epochs=1", "train.eval_every=1")
WANDB = "train.wandb={project: shapes, name: first}"


@pytest.fixture
def told(tmp_path, monkeypatch):
    """A function that returns what the package was told since the last call."""
    folder = tmp_path / "packages"
    folder.mkdir()
    (folder / "wandb.py").write_text(FAKE)
    monkeypatch.setattr("sys.path", [str(folder), *sys.path])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    importlib.invalidate_caches()

    def read() -> list[dict]:
        path = folder / "told.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]

    yield read
    sys.modules.pop("wandb", None)


def test_a_run_tells_its_curves_and_goes_on_with_the_same(shapes, tiny, tmp_path, told):
    work_dir = tmp_path / "run"
    config = shapes.config(tiny, *QUIET, WANDB)
    train(config, work_dir)
    first, *rest = told()
    assert {key: first[key] for key in ("init", "name", "entity", "id", "dir")} == {
        "init": "shapes",
        "name": "first",
        "entity": None,
        "id": None,
        "dir": str(work_dir),
    }
    assert first["config"] == config.model_dump(mode="json")
    assert {"metric": "*", "step": "iteration"} in rest
    assert rest[-1] == {"finish": 0}
    logged = [line["log"] for line in rest if "log" in line]
    records = read_log(work_dir / "train.jsonl")
    for record in records:
        (found,) = [
            values
            for values in logged
            if values["iteration"] == record["iteration"]
            and any(name.startswith({"evaluation": "val/bbox"}.get(record["kind"], record["kind"])) for name in values)
        ]
        if record["kind"] == "evaluation":
            assert found["val/bbox_AP"] == record["bbox"]["AP"]
        else:
            assert found[f"{record['kind']}/loss"] == record["loss"]

    train(shapes.config(tiny, "train.epochs=2", WANDB), work_dir, resume=True)
    assert told()[0]["id"] == "made-up"
    train(shapes.config(tiny, "train.epochs=3", "train.wandb={project: other}"), work_dir, resume=True)
    assert told()[0]["id"] is None
    (work_dir / WANDB_NAME).write_text("damaged")
    train(shapes.config(tiny, "train.epochs=3", "train.wandb={project: other}"), work_dir, resume=True)
    assert told()[0]["id"] is None


def test_a_run_that_fails_is_told_as_such(shapes, tiny, tmp_path, told, monkeypatch):
    def fail(self, batch):
        raise InputError("no")

    monkeypatch.setattr(Run, "step", fail)
    with pytest.raises(InputError, match=r"^no$"):
        train(shapes.config(tiny, *QUIET, WANDB), tmp_path / "run")
    assert told()[-1] == {"finish": 1}


def test_where_it_is_not_asked_for_it_is_left_alone(shapes, tiny, tmp_path, told):
    train(shapes.config(tiny, "train.epochs=1", "train.eval_every=0"), tmp_path / "run")
    assert told() == []
    assert "wandb" not in sys.modules
    assert not (tmp_path / "run" / WANDB_NAME).exists()


def test_a_refusal_is_told_in_one_line(shapes, tmp_path, told):
    work_dir = tmp_path / "run"
    words = ["train", str(shapes.recipe), "train.wandb={project: forbidden}", "--work-dir", str(work_dir)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert result.stderr == (
        "error: train.wandb: Weights & Biases cannot be used: permission denied; log in with `wandb login`, or set "
        "WANDB_MODE=offline\n"
    )


def test_where_it_is_missing_it_is_told_before_anything_is_written(shapes, tmp_path, monkeypatch):
    original = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else original(name))
    with pytest.raises(InputError, match=r"^train\.wandb: the package wandb is not installed; `pip install wandb`"):
        train(shapes.config(WANDB), tmp_path / "run")
    assert not Path(tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.wandb={}", "train.wandb: the key 'project' is missing"),
        ('train.wandb={project: ""}', "train.wandb.project: expected a string that is not empty"),
        ("train.wandb={project: a, mode: online}", "train.wandb.mode: unknown key"),
    ],
)
def test_mistakes_are_told_in_one_line(shapes, override, message):
    with pytest.raises(InputError) as caught:
        shapes.config(override)
    (line,) = str(caught.value).splitlines()
    assert message in line
