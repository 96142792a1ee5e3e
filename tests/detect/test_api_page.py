"""The page on the Python interface: it has every command, the command calls the function, and the Python runs."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import detect
from detect.cli import app

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
TABLE = dict(re.findall(r"^\| `detect ([\w-]+)` \| `detect\.(\w+)` \|", PAGE, re.MULTILINE))
RECIPE = "faster_rcnn_r50_fpn_coco"
WORDS = {
    "train": [RECIPE],
    "test": [RECIPE, "weights.pth"],
    "eval": ["results.json", "annotations.json"],
    "analyze": ["results.json", "annotations.json", "-o", "out"],
    "predict": [RECIPE, "weights.pth", "image.png", "-o", "out"],
    "export": [RECIPE, "weights.pth", "-o", "model.onnx"],
    "report": ["runs/mine"],
    "config": [RECIPE],
    "convert-checkpoint": ["weights.pth", "weights.safetensors"],
    "list": [],
    "describe": ["FPN"],
    "summary": [RECIPE],
    "draw-anchors": [RECIPE, "image.png", "-o", "out"],
}
"""What each command needs to get to its function."""


class CalledError(Exception):
    """The function was called."""


def test_the_table_has_every_command_and_the_functions_are_documented():
    assert set(TABLE) == set(typer.main.get_command(app).commands)
    for name in TABLE.values():
        assert name in detect.__all__
        described = getattr(detect, name).__doc__
        assert all(f"{part}:\n" in described for part in ("Args", "Raises")), name


@pytest.mark.parametrize("command", TABLE)
def test_the_command_calls_the_function(command, monkeypatch, tmp_path):
    def called(*_, **__):
        raise CalledError

    monkeypatch.chdir(tmp_path)
    (tmp_path / "annotations.json").write_text('{"images": [], "annotations": [], "categories": []}')
    function = getattr(detect, TABLE[command])
    monkeypatch.setattr(importlib.import_module(function.__module__), function.__name__, called)
    done = CliRunner().invoke(app, [command, *WORDS[command]])
    assert isinstance(done.exception, CalledError), done.output


def test_the_blocks_run(shapes, monkeypatch, capsys):
    shapes.recipe.rename(shapes.root / "my_recipe.yaml")
    cv2.imwrite(str(shapes.root / "images" / "1.jpg"), np.zeros((60, 80, 3), np.uint8))
    monkeypatch.chdir(shapes.root)
    names: dict = {}
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, names)
    assert isinstance(names["found"], detect.Predictions)
    assert "[" in capsys.readouterr().out
