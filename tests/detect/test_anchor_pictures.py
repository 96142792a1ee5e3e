"""What anchors and points become, told by the heads themselves, and the pictures of it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from detect.cli import app
from detect.config import load_config
from detect.looking.anchor_pictures import (
    NEGATIVE_COLOUR,
    PANEL_WIDTH,
    POSITIVE_COLOUR,
    _draw_level,
    _picture,
    count_roles,
    draw_anchors,
)
from detect.models.assign import MaxIoUAssigner, RandomSampler
from detect.models.dense_heads.fcos import FCOSHead
from detect.models.dense_heads.rpn import RPNHead
from detect.models.prior_roles import IGNORED, NEGATIVE_ROLE, OUTSIDE, POSITIVE_ROLE, PriorRoles
from dpipe.errors import InputError

SIZES = [(8, 12), (4, 6)]


def run(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def rpn_head(**arguments: object) -> RPNHead:
    return RPNHead(8, [8, 16], feat_channels=8, scales=(2.0,), ratios=(0.5, 1.0, 2.0), **arguments)


def test_roles_of_anchors_are_those_of_the_loss(make_target):
    head = rpn_head(sampler=RandomSampler(32, 0.25, add_gt_as_proposals=False))
    target = make_target([[8, 8, 25, 26], [40, 20, 70, 60]])
    torch.manual_seed(3)
    roles = head.prior_roles(SIZES, target)
    torch.manual_seed(3)
    anchors = torch.cat(head.anchors.grids(SIZES))
    (samples,) = head.sample_anchors(anchors, SIZES, [target])
    assert roles.priors.equal(anchors)
    assert (roles.sampled & (roles.roles == POSITIVE_ROLE)).nonzero().squeeze(1).equal(samples.positives)
    assert (roles.sampled & (roles.roles == NEGATIVE_ROLE)).nonzero().squeeze(1).equal(samples.negatives)
    assert roles.gt_indices[samples.positives].equal(samples.gt_indices)
    assert roles.levels.bincount().tolist() == [8 * 12 * 3, 4 * 6 * 3]
    counts = count_roles(roles)
    assert counts.positive_sampled == min(counts.positive, 8) > 0
    assert counts.negative_sampled == 32 - counts.positive_sampled < counts.negative
    assert counts.ignored == (roles.roles == IGNORED).sum() > 0
    assert counts.outside == 0
    assert sum(vars(count_roles(roles, level))["ignored"] for level in (0, 1)) == counts.ignored


def test_anchors_beyond_the_border_and_in_ignore_regions(make_target):
    assigner = MaxIoUAssigner(0.7, 0.3, min_pos_iou=0.3, ignore_iof_thr=0.5)
    target = make_target([])
    target.ignore_boxes = torch.tensor([[0.0, 0.0, 96.0, 32.0]])
    roles = rpn_head(allowed_border=0, assigner=assigner).prior_roles(SIZES, target)
    outside = (roles.priors[:, :2] < 0).any(1) | (roles.priors[:, 2:] >= torch.tensor([96, 64])).any(1)
    assert roles.roles.eq(OUTSIDE).equal(outside)
    inside = roles.priors[~outside]
    covered = (32 - inside[:, 1]).clamp(min=0) / (inside[:, 3] - inside[:, 1])
    assert roles.roles[~outside].eq(IGNORED).equal(covered > 0.5)
    assert not roles.sampled[outside].any()


def test_roles_of_points(make_target):
    head = FCOSHead(8, [8, 16], 1, feat_channels=8, num_groups=2, regress_ranges=((-1, 16), (16, 1e8)))
    target = make_target([[4, 4, 24, 24], [30, 10, 90, 60]])
    roles = head.prior_roles(SIZES, target)
    expected = torch.full((len(roles.priors),), NEGATIVE_ROLE)
    for row, ((x, y), level) in enumerate(zip(roles.priors.tolist(), roles.levels.tolist(), strict=True)):
        for x1, y1, x2, y2 in target.boxes.tolist():
            edges = (x - x1, y - y1, x2 - x, y2 - y)
            if min(edges) > 0 and (max(edges) <= 16 if level == 0 else max(edges) >= 16):
                expected[row] = POSITIVE_ROLE
    assert roles.roles.equal(expected)
    assert roles.sampled.all()
    assert roles.gt_indices[expected == POSITIVE_ROLE].unique().tolist() == [0, 1]


@pytest.mark.parametrize("head", ["rpn", "fcos"])
def test_pictures(shapes, tmp_path, head):
    recipe = shapes.recipe
    if head == "fcos":
        recipe = tmp_path / "fcos.yaml"
        recipe.write_text(
            f"_base_: {shapes.recipe}\n"
            "model:\n  rpn_head: {_delete_: true, type: FCOSHead, feat_channels: 8, num_groups: 2,\n"
            "    regress_ranges: [[-1, 16], [16, 32], [32, 64], [64, 128], [128, 1.0e8]]}\n"
        )
    levels = 5 if head == "fcos" else None
    images = shapes.images[:2]
    result = run("draw-anchors", recipe, *images, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == [str(image) for image in images]
    assert all(" positive" in line and "objects have no positive ->" in line for line in lines)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [image.name for image in images]
    picture = cv2.cvtColor(cv2.imread(str(tmp_path / "out" / images[0].name)), cv2.COLOR_BGR2RGB)
    assert (np.abs(picture.astype(int) - POSITIVE_COLOUR).sum(2) < 30).any()
    assert (np.abs(picture.astype(int) - NEGATIVE_COLOUR).sum(2) < 120).any()
    assert levels is None or ", 0 ignored;" in lines[0]


def drawn(roles: PriorRoles, level: int, make_target) -> np.ndarray:
    """A level drawn on black, in twice the size, with an object in the lower right."""
    canvas = np.zeros((128, 192, 3), np.uint8)
    return _draw_level(canvas, make_target([60, 30, 90, 60]), roles, level, np.array([2.0, 2.0]))


def anchors(*rows: tuple[tuple[float, ...], int, int, bool]) -> PriorRoles:
    """Boxes or points, each with its level and role and whether it is sampled."""
    priors, levels, roles, sampled = (torch.tensor(column) for column in zip(*rows, strict=True))
    return PriorRoles(priors, levels, roles, sampled, torch.zeros(len(rows), dtype=torch.int64))


def test_what_is_drawn_of_a_level(make_target):
    positive, pale, negative, unseen, other, ignored = (
        (10.0, 10.0, 20.0, 20.0),
        (10.0, 30.0, 20.0, 40.0),
        (30.0, 10.0, 40.0, 20.0),
        (30.0, 30.0, 40.0, 40.0),
        (50.0, 10.0, 60.0, 20.0),
        (70.0, 10.0, 80.0, 20.0),
    )
    picture = drawn(
        anchors(
            (positive, 1, POSITIVE_ROLE, True),
            (pale, 1, POSITIVE_ROLE, False),
            (negative, 1, NEGATIVE_ROLE, True),
            (unseen, 1, NEGATIVE_ROLE, False),
            (other, 0, POSITIVE_ROLE, True),
            (ignored, 1, IGNORED, False),
        ),
        1,
        make_target,
    )
    colours = {box: picture[int(2 * box[1] + 6), int(2 * box[0])].astype(int) for box in (positive, pale, negative)}
    assert colours[positive].tolist() == list(POSITIVE_COLOUR)
    assert np.abs(colours[pale] - 0.4 * np.array(POSITIVE_COLOUR)).max() < 2
    assert np.abs(colours[negative] - 0.9 * np.array(NEGATIVE_COLOUR)).max() < 2
    for box, centre_only in ((unseen, False), (other, False), (ignored, True)):
        x1, y1, x2, y2 = (int(2 * edge) for edge in box)
        assert not picture[y1, x1:x2].any()
        assert picture[(y1 + y2) // 2, (x1 + x2) // 2].any() == centre_only
    assert (picture[60, 120:181] == 255).all()  # the object's upper edge
    assert not picture[61:119, 121:180].any()


def test_objects_stay_visible_beneath_what_lies_on_them(make_target):
    picture = drawn(anchors(((60.0, 30.0, 90.0, 60.0), 0, POSITIVE_ROLE, True)), 0, make_target)
    assert (picture[60, 120:181] == 255).all()
    assert (picture == POSITIVE_COLOUR).all(axis=2).any()


def test_points_are_dots(make_target):
    picture = drawn(
        anchors(((20.0, 10.0), 0, POSITIVE_ROLE, True), ((40.0, 10.0), 0, NEGATIVE_ROLE, True)), 0, make_target
    )
    assert picture[20, 40].tolist() == list(POSITIVE_COLOUR)
    assert picture[20, 80].any()
    assert not picture[:, 100:119].any()


@pytest.mark.parametrize(
    ("size", "sides"), [((64, 96), (427, 640)), ((2000, 1000), (640, 320)), ((256, 256), (640, 640))]
)
def test_images_of_any_size_fill_their_panel(size, sides, make_target):
    head = rpn_head()
    target = make_target([1, 1, 40, 40], size)
    roles = head.prior_roles(SIZES, target)
    picture = _picture(np.full((*size, 3), 200, np.uint8), target, roles, 2, ["thing"] * 3, "")
    bright = (picture > 150).all(axis=2)[:, : PANEL_WIDTH + 1]
    assert (bright[:, PANEL_WIDTH // 2].argmin(), bright[sides[0] * 3 // 4].sum()) == sides


def test_images_of_different_sizes_have_anchors_of_their_own(shapes, tmp_path):
    image = cv2.imread(str(shapes.images[1]))
    cv2.imwrite(str(shapes.images[1]), np.ascontiguousarray(image.transpose(1, 0, 2)))

    def turn(content):
        row = content["images"][1]
        row["width"], row["height"] = row["height"], row["width"]
        for annotation in content["annotations"]:
            if annotation["image_id"] == row["id"]:
                x, y, width, height = annotation["bbox"]
                annotation.update(bbox=[y, x, height, width], segmentation=[])

    shapes.edit("train.json", turn)
    together = draw_anchors(shapes.config(), shapes.images[:2], tmp_path / "together")
    alone = [draw_anchors(shapes.config(), [image], tmp_path / image.stem)[0] for image in shapes.images[:2]]
    assert together == alone


def test_pictures_are_the_same_each_time(shapes, tmp_path):
    counts = draw_anchors(shapes.config(), shapes.images[:1], tmp_path / "a", annotations=shapes.root / "train.json")
    torch.rand(5)
    assert counts == draw_anchors(shapes.config(), shapes.images[:1], tmp_path / "b")
    (first,), (second,) = (list((tmp_path / name).iterdir()) for name in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_mistakes_are_one_line(shapes, tmp_path):
    foreign = tmp_path / "foreign.png"
    cv2.imwrite(str(foreign), np.zeros((8, 8, 3), np.uint8))
    image, out = shapes.images[0], tmp_path / "out"
    for arguments, told in (
        ([foreign, "-o", out], "has no image of that name"),
        ([tmp_path / "none.png", "-o", out], "no such image file"),
        (["train.epochs=1", "-o", out], "no image was given"),
        ([image, "-o", shapes.root / "images"], "would replace the image"),
        ([image, "-o", image], "is a file, expected a folder"),
        ([image, "-o", out, "--annotations", tmp_path / "none.json"], "none.json"),
    ):
        result = run("draw-anchors", shapes.recipe, *arguments)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.output
        assert told in result.stderr
    assert not out.exists() or not list(out.iterdir())


def test_heads_that_do_not_tell(shapes, tmp_path, monkeypatch):
    class Mute(nn.Module):
        pass

    model = nn.Module()
    model.rpn_head = Mute()
    monkeypatch.setattr("detect.looking.anchor_pictures.build_model", lambda *_, **__: model)
    with pytest.raises(InputError, match="a Mute does not tell what its anchors become"):
        draw_anchors(shapes.config(), shapes.images[:1], tmp_path / "out")


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["fcos_r50_caffe_fpn_gn_coco", "faster_rcnn_r50_fpn_coco"])
def test_shipped_recipes_on_real_images(name, data_root, tmp_path):
    folder = data_root / "coco_mini"
    (counts,) = draw_anchors(
        load_config(name),
        [folder / "train" / "000000000009.jpg"],
        tmp_path,
        annotations=folder / "annotations" / "instances_train.json",
    )
    assert counts.positive > 8
    assert (counts.ignored > 0) == (name == "faster_rcnn_r50_fpn_coco")
