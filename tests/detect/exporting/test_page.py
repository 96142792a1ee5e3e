"""The page on exporting: its commands and its Python run, and it names what there is."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import detect
from detect.cli import app
from detect.exporting.export import OPSETS, _pattern
from detect.exporting.graph import Outputs

PAGE = Path(__file__).parents[3] / "docs" / "export.md"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def setting(case, tmp_path_factory):
    """A folder with the recipe, the checkpoint and the picture of the page, whose model draws masks."""
    made, folder = case("mask"), tmp_path_factory.mktemp("page")
    (folder / "runs").mkdir()
    (folder / "runs" / "mine").symlink_to(made.checkpoint)
    recipe = made.config.to_yaml().replace("[1333, 800]", "[200, 150]")
    (folder / "my_recipe.yaml").write_text(recipe)
    cv2.imwrite(str(folder / "street.png"), cv2.resize(_pattern(), (180, 250)))
    return folder


@pytest.fixture(scope="module")
def told(setting):
    """The lines that the command of the page tells of model.pt2, which is written where the page has it."""
    files = [str(setting / name) for name in ("my_recipe.yaml", "runs/mine", "model.pt2")]
    result = CliRunner().invoke(app, ["export", *files[:2], "-o", files[2]])
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


@pytest.fixture
def blocks(setting, monkeypatch):
    """The page's Python, which the setting is the current folder for."""
    monkeypatch.chdir(setting)
    page = PAGE.read_text()
    lines = [("\n" * page[: block.start(1)].count("\n"), block[1]) for block in BLOCK.finditer(page)]
    assert len(lines) == 4
    return [compile(before + code, str(PAGE), "exec") for before, code in lines]


def test_python_runs_and_finds_what_the_model_finds(told, blocks, capsys):
    with_onnxruntime, paste, with_pytorch, from_python = blocks
    names: dict[str, object] = {}
    exec(from_python, names)
    assert names["exported"].path == Path("model.onnx")
    capsys.readouterr()
    exec(with_onnxruntime, names)
    exec(paste, names)
    expected = detect.load("my_recipe.yaml", "runs/mine", accelerator="cpu").predict("street.png")
    assert len(expected) == len(names["scores"]) >= 20
    assert len(capsys.readouterr().out.splitlines()) == len(expected)
    # The picture is resized by another function, whose pixels differ by a grey level.
    assert names["labels"].tolist() == expected.labels.tolist()
    np.testing.assert_allclose(names["scores"], expected.scores, atol=0.02)
    np.testing.assert_allclose(names["boxes"], expected.boxes, atol=1)
    bitmaps = expected.bitmaps()
    assert (np.array(names["bitmaps"]) != bitmaps).mean() < 0.01 * bitmaps.mean()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own, of what it reads with
        exec(with_pytorch, names)
    assert names["class_names"] == ["cat", "dog", "horse"]
    np.testing.assert_allclose(names["scores"][0, : len(expected)].detach(), expected.scores, atol=0.02)


def test_the_command_tells_what_was_compared(told):
    assert "any number of images of any size from 17 px" in told[-3]
    line = r"image\(s\) of \d+x\d+ px, \d+ detections: largest differences scores .* boxes .* px, masks "
    assert all(re.search(line, one) for one in told[-2:])


@pytest.mark.realdata
def test_an_exported_program_finds_what_the_detector_finds(setting, told, case, photos):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.export.load(setting / "model.pt2").module()
    for images in (photos(3, (150, 203)), photos(1, (240, 320))):
        with torch.no_grad():
            assert case("mask").check(module(images), images) >= 24 * len(images)


def test_it_names_what_there_is():
    page = PAGE.read_text()
    rows = re.findall(r"^\| (`[^|]+`) \|", page, re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert named[1:6] == list(Outputs._fields)
    assert f"{OPSETS[0]} to {OPSETS[1]}" in page
