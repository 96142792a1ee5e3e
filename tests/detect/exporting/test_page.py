"""The page on exporting: its commands and its Python run, the files are as it tells, and it names what there is."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
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
    made, folder = case("cascade"), tmp_path_factory.mktemp("page")
    (folder / "runs").mkdir()
    (folder / "runs" / "mine").symlink_to(made.checkpoint)
    recipe = made.config.to_yaml().replace("scale: [480, 240]", "scale: [200, 150]")
    (folder / "my_recipe.yaml").write_text(recipe)
    cv2.imwrite(str(folder / "street.png"), cv2.resize(_pattern(), (180, 250)))
    return folder


@pytest.fixture(scope="module")
def told(setting):
    """The lines that the page's command tells of model.pt2, which is written where the page has it."""
    files = [str(setting / name) for name in ("my_recipe.yaml", "runs/mine", "model.pt2")]
    result = CliRunner().invoke(app, ["export", *files[:2], "-o", files[2]])
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


@pytest.fixture(scope="module")
def blocks():
    """The page's Python."""
    page = PAGE.read_text()
    lines = [("\n" * page[: block.start(1)].count("\n"), block[1]) for block in BLOCK.finditer(page)]
    assert len(lines) == 4
    return [compile(before + code, str(PAGE), "exec") for before, code in lines]


@pytest.fixture(scope="module")
def exported(setting, blocks):
    """What the page's last block gives: it writes model.onnx."""
    names: dict[str, object] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(setting)
        exec(blocks[3], names)
    return names["exported"]


def test_python_runs_and_finds_what_the_model_finds(setting, told, exported, blocks, monkeypatch, capsys):
    monkeypatch.chdir(setting)
    with_onnxruntime, paste, with_pytorch, _ = blocks
    names: dict[str, object] = {}
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
    assert "any number of images of any size from 9 px" in told[-3]
    line = r"image\(s\) of \d+x\d+ px, \d+ detections: largest differences scores .* boxes .* px, masks "
    assert all(re.search(line, one) for one in told[-2:])


def test_the_onnx_file_takes_and_gives_what_the_page_tells(setting, exported):
    assert exported.path == Path("model.onnx")
    assert [agreement.shape[0] for agreement in exported.agreements] == [1, 2]
    session = onnxruntime.InferenceSession(str(setting / "model.onnx"))
    (taken,) = session.get_inputs()
    assert (taken.name, taken.shape, taken.type) == ("images", ["batch", 3, "height", "width"], "tensor(float)")
    given = {output.name: output.shape for output in session.get_outputs()}
    assert given == {
        "counts": ["batch"],
        "boxes": ["batch", 40, 4],
        "scores": ["batch", 40],
        "labels": ["batch", 40],
        "masks": ["batch", 40, 28, 28],
    }
    told = session.get_modelmeta().custom_metadata_map
    assert "RGB" in told.pop("input")
    assert {key: json.loads(value) for key, value in told.items()} == {
        "class_names": ["cat", "dog", "horse"],
        "category_ids": [7, 8, 9],
        "mean": [123.675, 116.28, 103.53],
        "std": [58.395, 57.12, 57.375],
        "bgr": False,
        "size_divisor": 32,
        "transforms": [{"type": "Resize", "scale": [200, 150], "keep_ratio": True}],
        "mask_thr": 0.5,
    }


def test_the_onnx_file_has_the_operators_of_the_opset_and_no_weights_of_training(setting, exported):
    model = onnx.load(setting / "model.onnx")
    assert [(one.domain, one.version) for one in model.opset_import] == [("", 18)]
    assert {"NonMaxSuppression", "RoiAlign"} <= {node.op_type for node in model.graph.node}
    assert {node.domain for node in model.graph.node} == {""}
    assert not [weight.name for weight in model.graph.initializer if "auxiliary" in weight.name]


@pytest.mark.realdata
def test_the_onnx_file_finds_what_the_detector_finds(setting, exported, case, photos):
    session = onnxruntime.InferenceSession(str(setting / "model.onnx"))
    for images in (photos(3, (150, 203)), photos(1, (240, 320))):
        outputs = session.run(None, {"images": images.numpy()})
        assert case("cascade").check(outputs, images) >= 24 * len(images)


@pytest.mark.realdata
def test_an_exported_program_finds_what_the_detector_finds(setting, told, case, photos):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.export.load(setting / "model.pt2").module()
    for images in (photos(3, (150, 203)), photos(1, (240, 320))):
        with torch.no_grad():
            assert case("cascade").check(module(images), images) >= 24 * len(images)


def test_it_names_what_there_is():
    page = PAGE.read_text()
    rows = re.findall(r"^\| (`[^|]+`) \|", page, re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert named[1:6] == list(Outputs._fields)
    assert f"{OPSETS[0]} to {OPSETS[1]}" in page
