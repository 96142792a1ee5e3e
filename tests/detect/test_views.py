"""Test-time augmentation: views, how they are merged, and what mirrored ones give."""

from __future__ import annotations

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from torch.testing import assert_close

import detect
from detect import evaluate
from detect.config import build_model
from detect.models.detections import Detections, to_original
from detect.models.masks import encode_masks
from detect.models.nms import NMS, SoftNMS
from detect.models.roi_heads.masks import with_masks
from detect.models.single_stage import pyramid
from detect.predicting.views import build_views, detect_in_views, merge
from detect.running.state import ModelInfo, save_checkpoint
from dpipe.errors import InputError

SCALES = "evaluation.tta.scales=[[96, 48], [192, 128]]"


@pytest.fixture
def checkpoint(shapes, tmp_path):
    """A checkpoint of a model that has learned nothing, which finds objects everywhere."""
    config = shapes.config()
    torch.manual_seed(0)
    info = ModelInfo(("box", "disc"), (4, 9), config.to_yaml(), 0, 0)
    return save_checkpoint(tmp_path, build_model(config, 2), {}, info)


def found(*rows, masks=False):
    """Detections of rows of x1, y1, x2, y2, score, label."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    named = [{"size": [9, 9], "counts": f"{number}"} for number in range(len(table))] if masks else None
    return Detections(table[:, :4], table[:, 4], table[:, 5].long(), named)


def plans(views, size=(64, 96)):
    return [view.draw(size, seed=0, epoch=0, sample=0) for view in views]


def test_without_it_there_is_one_view_as_the_recipe_has_it(shapes):
    (view,) = build_views(shapes.config(SCALES), tta=False)
    (plan,) = plans([view])
    assert plan.size == (64, 96)
    assert plan.resize_flips == (False, False)


def test_each_scale_comes_as_it_is_and_mirrored(shapes):
    made = plans(build_views(shapes.config(SCALES), tta=True))
    assert [plan.size for plan in made] == [(48, 72), (48, 72), (128, 192), (128, 192)]
    assert [plan.resize_flips for plan in made] == [(False, False), (True, False)] * 2
    made = plans(build_views(shapes.config(SCALES, "evaluation.tta.flip=false"), tta=True))
    assert [plan.size for plan in made] == [(48, 72), (128, 192)]


def test_by_default_the_recipes_scale_is_looked_at_twice(shapes):
    views = build_views(shapes.config(), tta=True)
    assert [(plan.size, plan.resize_flips) for plan in plans(views)] == [
        ((64, 96), (False, False)),
        ((64, 96), (True, False)),
    ]
    plain = build_views(shapes.config(), tta=False)[0]
    assert all(view.normalize == plain.normalize and view.size_divisor == 32 for view in views)


@pytest.mark.parametrize(("keep_ratio", "size"), [(True, (48, 72)), (False, (48, 96))])
def test_scales_keep_the_ratio_where_the_recipe_does(shapes, keep_ratio, size):
    def change(recipe):
        recipe["data"]["test_transforms"][0]["keep_ratio"] = keep_ratio

    shapes.edit("recipe.yaml", change)
    assert plans(build_views(shapes.config(SCALES), tta=True))[1].size == size


def test_scales_need_a_resize(shapes):
    bare = 'data.test_transforms=[{"type":"Normalize","mean":[0,0,0],"std":[1,1,1]}]'
    with pytest.raises(InputError, match=r"evaluation.tta.scales.*which have 0; expected one"):
        build_views(shapes.config(SCALES, bare), tta=True)
    assert len(build_views(shapes.config(bare), tta=True)) == 2


@pytest.mark.parametrize(
    "value", ["scales=[96, 48]", "scales=[[96]]", "scales=[[96, 0]]", "scales=[]", "flip=1", "x=1"]
)
def test_recipes_with_other_views_are_refused(shapes, value):
    with pytest.raises(InputError, match=f"evaluation.tta.{value.partition('=')[0]}"):
        shapes.config(f"evaluation.tta.{value}")


def test_merging_is_by_class_and_by_score():
    one = found((0, 0, 10, 10, 0.6, 0), (50, 50, 60, 60, 0.4, 0), masks=True)
    two = found((0, 0, 10, 11, 0.9, 0), (0, 0, 10, 10, 0.5, 1), masks=True)
    merged = merge([one, two], NMS(), 0.5, 100)
    assert merged.scores.tolist() == pytest.approx([0.9, 0.5, 0.4])
    assert merged.labels.tolist() == [0, 1, 0]
    assert merged.boxes[0].tolist() == [0, 0, 10, 11]
    assert merged.masks == [two.masks[0], two.masks[1], one.masks[1]]
    assert len(merge([one, two], NMS(), 0.5, 2)) == 2
    soft = merge([one, two], SoftNMS(), 0.5, 100)
    assert len(soft) == 4
    assert soft.scores[-1] < 0.1


def test_merging_what_found_nothing():
    assert len(merge([found(), found(masks=True)], NMS(), 0.5, 100)) == 0
    assert merge([found(masks=True)] * 2, NMS(), 0.5, 100).masks == []
    assert merge([found()] * 2, NMS(), 0.5, 100).masks is None


def test_boxes_of_mirrored_views_are_brought_back(make_target):
    target = make_target([], size=(64, 96))  # half of 128 x 192
    boxes = torch.tensor([[1.0, 2, 30, 40]])
    mirrored = {
        (-1, 1): [[132.0, 4, 190, 80]],
        (1, -1): [[2.0, 48, 60, 124]],
        (-1, -1): [[132.0, 48, 190, 124]],
    }
    for (x, y), expected in mirrored.items():
        shift_x, shift_y = 96 * (x < 0), 64 * (y < 0)
        matrix = np.array([[0.5 * x, 0, shift_x], [0, 0.5 * y, shift_y]])
        assert to_original(boxes, replace(target, matrix=matrix)).tolist() == expected


def test_masks_of_mirrored_views_are_mirrored_back(make_target):
    target = make_target([], size=(64, 96))
    probabilities = torch.zeros(1, 4, 4)
    probabilities[:, :, 0] = 1  # the leftmost quarter of the input's box, so the rightmost of the image's
    mirrored = replace(target, matrix=np.array([[-0.5, 0, 96], [0, 0.5, 0]]))
    (seen,) = with_masks([found((8, 8, 40, 40, 1, 0))], [probabilities], [mirrored], 0.5)
    assert seen.boxes.tolist() == [[112, 16, 176, 80]]
    rows, columns = np.nonzero(seen.bitmaps()[0])
    assert 158 <= columns.min() <= 162
    assert columns.max() == 175
    assert (rows.min(), rows.max()) == (16, 79)


STANDARD = (
    "model.roi_head={_delete_: true, type: StandardRoIHead,"
    " bbox_roi_extractor: {type: SingleRoIExtractor, output_size: 7, num_levels: 4},"
    " bbox_head: {type: Shared2FCBBoxHead, fc_out_channels: 16},"
    " mask_roi_extractor: {type: SingleRoIExtractor, output_size: 14, num_levels: 4},"
    " mask_head: {type: FCNMaskHead, num_convs: 1, conv_out_channels: 8}}"
)


class TestMeanMasks:
    """Masks of what is kept are predicted in all views, and averaged."""

    @pytest.mark.parametrize("kind", ["cascade", "standard"])
    def test_they_are_what_a_few_lines_make_by_hand(self, shapes, tmp_path, monkeypatch, kind):
        config = shapes.config(SCALES, *([STANDARD, "model.auxiliary_head=null"] if kind == "standard" else []))
        torch.manual_seed(0)
        info = ModelInfo(("box", "disc"), (4, 9), config.to_yaml(), 0, 0)
        predictor = detect.load(config, save_checkpoint(tmp_path, build_model(config, 2), {}, info), tta=True)
        pixels = cv2.imread(str(shapes.images[0]))[..., ::-1]  # 64 x 96
        predictor._model.roi_head.mask_thr = 0.45
        seen = []

        def encode(probabilities, *others):
            seen.append(probabilities)
            return encode_masks(probabilities, *others)

        monkeypatch.setattr("detect.predicting.views.encode_masks", encode)
        found = predictor.predict(np.ascontiguousarray(pixels))
        assert len(found) > 3
        head, probabilities = predictor._model.roi_head, []
        labels = torch.from_numpy(found.labels)
        for width, height, mirrored in ((72, 48, False), (72, 48, True), (192, 128, False), (192, 128, True)):
            resized = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.float32)
            resized = (resized - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375]
            image = torch.zeros(1, 3, -(-height // 32) * 32, -(-width // 32) * 32)
            image[0, :, :height, :width] = torch.from_numpy(resized[:, ::-1].copy() if mirrored else resized).permute(
                2, 0, 1
            )
            boxes = torch.from_numpy(found.boxes) * width / 96
            if mirrored:
                boxes = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], dim=1)
            with torch.inference_mode():
                features = pyramid(predictor._model, image)
                cut = head.mask_roi_extractor(features, torch.cat([torch.zeros(len(boxes), 1), boxes], dim=1))
                for mask_head in head.mask_head if kind == "cascade" else [head.mask_head]:
                    own = mask_head(cut).sigmoid()[range(len(labels)), labels]
                    probabilities.append(own.flip(2) if mirrored else own)
        assert_close(seen[0], torch.stack(probabilities).mean(dim=0), atol=1e-3, rtol=0)
        assert (seen[0] - probabilities[0]).abs().max() > 0.01
        assert found.masks == encode_masks(seen[0], torch.from_numpy(found.boxes), (64, 96), 0.45)

    def test_each_view_counts_alike_whatever_the_precision(self, shapes, checkpoint, monkeypatch):
        predictor = detect.load(shapes.config(SCALES), checkpoint, tta=True)
        values: list[float] = []

        def predict_masks(head, features, detections):
            value = values.pop(0)
            return [torch.full((len(found), 4, 4), value, dtype=torch.bfloat16) for found in detections]

        monkeypatch.setattr(type(predictor._model.roi_head), "predict_masks", predict_masks)
        for values, on in (([0.0, 1, 0.5, 0.53125], True), ([1, 0.99609375, 0, 0], False)):
            found = predictor.predict(shapes.images[0])
            assert values == []
            inside = found.bitmaps()[found.bitmaps().any(axis=(1, 2))]
            assert (len(inside) == len(found) > 0) if on else len(inside) == 0


class Stub(torch.nn.Module):
    """A detector that finds in each call what it was told."""

    def __init__(self, head, *calls):
        super().__init__()
        self.calls = list(calls)
        if head is not None:
            self.roi_head = torch.nn.Module()
            self.roi_head.__dict__.update(head)

    def forward(self, images, targets):
        return [self.calls.pop(0) for _ in targets]


def test_the_heads_own_suppression_merges_image_by_image():
    near, far = found((0, 0, 10, 10, 0.9, 0)), found((0, 0, 10, 14, 0.8, 0))
    views = [(None, [1, 2]), (None, [1, 2])]
    for iou, kept in ((0.8, 2), (0.5, 1)):
        model = Stub({"nms": NMS(), "nms_iou": iou, "max_per_img": 9}, near, near, far, near)
        assert [len(one) for one in detect_in_views(model, views)] == [kept, 1]


def test_masks_of_a_head_of_ones_own_are_those_of_the_view_whose_box_is_kept():
    one, other = found((0, 0, 10, 10, 0.6, 0), masks=True), found((0, 0, 10, 11, 0.9, 0), masks=True)
    other.masks[0]["counts"] = "other"
    model = Stub({"nms": NMS(), "nms_iou": 0.5, "max_per_img": 9, "mask_head": torch.nn.Identity()}, one, other)
    (kept,) = detect_in_views(model, [(None, [1]), (None, [1])])
    assert kept.masks == other.masks


def test_a_model_that_does_not_tell_how_is_refused_for_several_views_only():
    model = Stub({"nms": NMS(), "nms_iou": 0.5}, found(), found(), found())
    assert len(detect_in_views(model, [(None, [1])])) == 1
    with pytest.raises(InputError, match="Module has no 'max_per_img'"):
        detect_in_views(model, [(None, [1]), (None, [1])])
    with pytest.raises(InputError, match="Stub has no"):
        detect_in_views(Stub(None, found(), found()), [(None, [1]), (None, [1])])


def test_proposals_are_merged_by_the_thresholds_of_proposals():
    near, far = found((0, 0, 10, 10, 0.9, 0)), found((0, 0, 10, 14, 0.8, 0))
    views = [(None, [1]), (None, [1])]
    for head, kept in (({"nms_iou": 0.8}, 2), ({"nms_iou": 0.5}, 1), ({"nms_iou": 0.5, "proposal_nms_iou": 0.8}, 2)):
        model = Stub({**head, "test_max_per_img": 9}, near, far)
        model.proposes = True
        assert len(detect_in_views(model, views)[0]) == kept


def test_one_view_of_the_recipes_scale_evaluates_to_the_same(shapes, checkpoint, tmp_path):
    same = shapes.config("evaluation.tta.scales=[[96, 64]]", "evaluation.tta.flip=false")
    plain, one, two = (tmp_path / f"{name}.json" for name in ("plain", "one", "two"))
    scores = evaluate(shapes.config(), checkpoint, ["bbox", "segm"], out=plain)
    assert evaluate(same, checkpoint, ["bbox", "segm"], out=one, tta=True) == scores
    assert json.loads(one.read_text()) == json.loads(plain.read_text())
    evaluate(shapes.config(), checkpoint, ["bbox"], out=two, tta=True)
    assert json.loads(two.read_text()) != json.loads(plain.read_text())


def test_a_model_whose_views_cannot_be_merged_is_refused_before_the_work(shapes, tiny, tmp_path, monkeypatch):
    config = shapes.config(tiny)
    info = ModelInfo(("box", "disc"), (4, 9), config.to_yaml(), 0, 0)
    folder = save_checkpoint(tmp_path, build_model(config, 2), {}, info)
    monkeypatch.setattr("detect.evaluation.val_loader", lambda *_: pytest.fail("the work began"))
    with pytest.raises(InputError, match="Tiny has no"):
        evaluate(config, folder, ["bbox"], tta=True, accelerator="cpu")


def test_views_of_a_damaged_image_are_skipped_together(shapes, checkpoint, tmp_path):
    shapes.images[4].write_bytes(b"")
    config = shapes.config("data.on_bad_sample=skip", "data.batch_size=2")
    evaluate(config, checkpoint, ["bbox"], out=tmp_path / "results.json", tta=True)
    assert {row["image_id"] for row in json.loads((tmp_path / "results.json").read_text())} == {6}
