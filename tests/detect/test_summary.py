"""Summaries of models: parameters, shapes and operations, without the work and without weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from detect.cli import app
from detect.config import build_model, load_config
from detect.looking.dry_run import dry_run, landscape_size
from detect.looking.summary import _grid, summarize
from dpipe.operations.geometric import Resize
from dpipe.policy import Augment
from dpipe.recipes import shipped_recipes


def run(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_dry_run_counts_what_a_real_run_does():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, groups=1),
        nn.ConvTranspose2d(8, 4, 2, stride=2),
        nn.Flatten(),
        nn.Sequential(nn.LazyLinear(5), nn.ReLU()),
    ).eval()
    images = torch.rand(2, 3, 9, 7)
    model(images)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        expected = model(images)
    with dry_run(model) as dry:
        output = model(images)
    assert output.shape == expected.shape
    assert not output.any()
    assert sum(dry.flops.values()) == counter.get_total_flops()
    assert dry.flops["3.0"] == 2 * 2 * 4 * 10 * 8 * 5
    assert model(images).equal(expected)  # nothing stays behind


def test_summary_of_a_whole_model(parity):
    told = summarize(load_config("mask_rcnn_r50_fpn_coco", ["model.backbone.pretrained=null"]), size=(64, 96))
    rows = {row.name: row for row in told.rows}
    assert (told.size, told.padded, told.num_classes, told.num_proposals) == ((64, 96), (64, 96), 80, 1000)
    listed = parity("full_size_keys").json("mask-rcnn_r50_fpn_1x_coco")
    learned = [shape for name, shape in listed.items() if not name.endswith(("_mean", "_var", "_tracked"))]
    assert rows[""].parameters == sum(torch.Size(shape).numel() for shape in learned)
    assert rows["backbone"].parameters - rows["backbone"].trainable == 9_408 + 128 + 215_808
    assert rows["roi_head.bbox_head"].flops == 2 * 1000 * (256 * 49 * 1024 + 1024 * 1024 + 1024 * (81 + 320))
    convs = 4 * 256 * 256 * 9 * 14 * 14
    assert rows["roi_head.mask_head"].flops == 2 * 100 * (convs + 256 * 256 * 28 * 28 + 256 * 80 * 28 * 28)
    assert rows["roi_head.mask_head"].output == "100x80x28x28"
    assert rows["neck"].output == "1x256x16x24 .. 1x256x1x2"
    assert rows["rpn_head.rpn_cls"].output == "1x3x16x24 (5 calls)"
    parts = sum(rows[name].flops for name in ("backbone", "neck", "rpn_head", "roi_head"))
    assert parts <= rows[""].flops < 1.001 * parts  # masks are brought to their boxes by products too
    assert [row.name.count(".") for row in told.rows if row.name.count(".") > 1] == []


def test_modules_of_ten_and_more_are_counted_apart():
    told = summarize(load_config("faster_rcnn_mobilenetv3_voc"), size=(64, 96), depth=3)
    flops = {row.name: row.flops for row in told.rows}
    blocks = [count for name, count in flops.items() if name.startswith("backbone.features.")]
    assert len(blocks) == 17
    assert sum(blocks) == flops["backbone.features"] == flops["backbone"]


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_shipped_recipes_have_a_summary(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # holds no weights
    result = run("summary", name, "--size", "96x64", "--depth", "1")
    assert result.exit_code == 0, result.output
    assert "One image of 96x64 pixels" in result.stdout
    assert "  backbone " in result.stdout
    assert float(result.stdout.splitlines()[1].split()[-1]) > 0.1


def test_size_of_a_recipe():
    assert landscape_size(Augment([Resize((1333, 800))])) == (800, 1333)
    assert landscape_size(Augment([Resize((256, 300), keep_ratio=False)])) == (300, 256)
    assert landscape_size(Augment([])) is None


def test_classes_are_the_datas(shapes):
    told = summarize(shapes.config("data.classes=null"), depth=0)
    assert told.num_classes == 2
    assert told.classes_from == f"of {shapes.root / 'train.json'}"
    assert len(told.rows) == 1
    assert told.rows[0].parameters == sum(w.numel() for w in build_model(shapes.config(), 2).parameters())
    told = summarize(shapes.config("data.classes=[disc]"), depth=2)
    assert (told.num_classes, told.classes_from) == (1, "named by the recipe")
    assert all(row.parameters or row.flops for row in told.rows)


@pytest.mark.parametrize("content", ["{", "[]", '{"images": []}', '{"categories": 3}'])
def test_data_that_tells_no_classes(shapes, tmp_path, content):
    (tmp_path / "train.json").write_text(content)
    result = run("summary", shapes.recipe, "data.classes=null", f"data.train.annotations={tmp_path / 'train.json'}")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "train.json: is no COCO JSON that tells its categories: " in result.stderr


def test_mistakes_are_one_line(shapes):
    without = ["data.test_transforms=[{type: Normalize, mean: [0, 0, 0], std: [1, 1, 1]}]"]
    for arguments, told in (
        ([*without], "data.test_transforms has no Resize"),
        (["--size", "12"], "--size: expected WIDTHxHEIGHT"),
        (["--size", "0x3"], "--size: expected WIDTHxHEIGHT"),
        (["model.backbone.depth=50.5"], "model.backbone.depth"),
    ):
        result = run("summary", shapes.recipe, *arguments)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.output
        assert told in result.stderr
    assert run("summary", shapes.recipe, *without, "--size", "96x64").exit_code == 0


def test_grid_of_proposals():
    boxes = _grid(1000, (64, 96))
    assert boxes.shape == (1000, 4)
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert boxes.max(dim=0).values.tolist()[2:] == pytest.approx([96, 64], rel=0.05)
    assert len(boxes.unique(dim=0)) == 1000
