"""The recipe of a small RPN: its anchors, labels and learning rates, and that it learns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from detect.config import Config, build_model, load_config
from detect.models.boxes import pairwise_iou
from detect.running.logs import read_log
from detect.running.optim import make_optimizer
from detect.training import train

NAME = "rpn_r18_voc_256"
SIDE = 256


@pytest.fixture(scope="module")
def model():
    with torch.device("cpu"):
        return build_model(load_config(NAME, ["model.backbone.base_channels=16"]), 20)


def test_anchors_of_nine_shapes_in_the_middle_of_every_cell(model):
    (anchors,) = model.bbox_head.anchors.grids([(8, 8)])
    centers, sizes = (anchors[:, :2] + anchors[:, 2:]) / 2, anchors[:, 2:] - anchors[:, :2]
    cells = {(x + 16.0, y + 16.0) for x in range(0, SIDE, 32) for y in range(0, SIDE, 32)}
    assert {tuple(center) for center in centers.round(decimals=3).tolist()} == cells
    expected = {(s * r**0.5, s / r**0.5) for s in (0.85, 0.43, 0.21) for r in (1.0, 2.0, 0.5)}
    for x, y in cells:
        here = sizes[(centers - torch.tensor([x, y])).abs().amax(dim=1) < 1e-3] / SIDE
        assert sorted(map(tuple, here.tolist())) == [pytest.approx(shape) for shape in sorted(expected)]


def test_labels(model, make_target):
    head = model.bbox_head
    (anchors,) = head.anchors.grids([(8, 8)])
    target = make_target([(20, 20, 130, 130), (200, 10, 204, 13), (0, 0, 256, 256)], size=(SIDE, SIDE))
    ious = pairwise_iou(target.boxes, anchors)
    best = ious.amax(dim=0)
    positive = (best >= 0.7) | (ious == ious.amax(dim=1, keepdim=True)).any(dim=0)
    roles = head.assigner.assign(anchors, target.boxes, target.ignore_boxes).gt_indices
    assert ious.amax(dim=1)[1] > 0
    assert ious.amax(dim=1)[1] < 0.02
    assert torch.equal(roles >= 0, positive)
    assert torch.equal(roles == -1, (best < 0.3) & ~positive)
    assert (roles == -2).any()
    samples = head.sample_anchors(anchors, [(8, 8)], [target])[0]
    assert torch.equal(samples.positives, positive.nonzero().squeeze(1))
    assert len(samples.positives) + len(samples.negatives) == 32


def test_backbone_and_head_have_their_own_rates(model):
    config = load_config(NAME)
    head, backbone = make_optimizer(model, config.optimizer, config.recipe.where).param_groups
    assert {id(weight) for weight in backbone["params"]} == {id(weight) for weight in model.backbone.parameters()}
    assert {id(weight) for weight in head["params"]} == {id(weight) for weight in model.bbox_head.parameters()}
    assert (head["lr_mult"], backbone["lr_mult"]) == (1.0, 0.5)
    assert config.data.batch_size == config.optimizer.base_batch_size == 32


def small(root: Path, *overrides: str) -> Config:
    """The recipe, narrow, for the shapes in a folder."""
    options = [f"data.{split}.annotations={root / 'shapes.json'}" for split in ("train", "val")]
    options += [f"data.{split}.images={root}" for split in ("train", "val")]
    options += ["model.backbone.base_channels=16", "model.rpn_head.feat_channels=32", "data.batch_size=8"]
    return load_config(NAME, [*options, *overrides])


def test_it_learns(draw_shapes, tmp_path, capsys):
    folder = tmp_path / "shapes"
    folder.mkdir()
    (folder / "shapes.json").write_text(json.dumps(draw_shapes(folder, 16, 96, 64, 0)))
    options = ("train.epochs=24", "train.eval_every=12", "schedule.warmup_iters=5", "train.log_every=100")
    train(small(folder, *options), tmp_path / "run")
    records = read_log(tmp_path / "run" / "train.jsonl")
    epochs = [record for record in records if record["kind"] == "epoch"]
    recalls = [record["proposal"]["AR100"] for record in records if record["kind"] == "evaluation"]
    assert epochs[-1]["rpn_cls_error"] < 0.05 < epochs[0]["rpn_cls_error"]  # the positives' share is 0.078
    assert epochs[-1]["rpn_box_mae"] < 0.6 * epochs[0]["rpn_box_mae"]
    assert recalls[1] > recalls[0] + 0.05
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch 24/24 on average"))
    assert f"rpn_cls_error {epochs[-1]['rpn_cls_error']:.4f}  rpn_box_mae {epochs[-1]['rpn_box_mae']:.4f}" in line
