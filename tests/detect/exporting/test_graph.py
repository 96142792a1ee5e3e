"""A detector as one graph gives what the detector gives, before it is exported."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from detect.config import build_augment
from detect.exporting.export import _images, _pattern
from detect.exporting.selection import EMPTY, best_of, suppress
from detect.models.necks.context_pooling import pool_and_resize
from dpipe.backends.base import padded_size
from dpipe.backends.opencv import OpenCVBackend
from dpipe.images.memory import Scratch

FAMILIES = ("cascade", "mask", "fcos_rpn", "fcos", "rpn", "double_head", "fcos_alone", "legacy")


@pytest.mark.realdata
@pytest.mark.parametrize("family", FAMILIES)
def test_it_finds_what_the_detector_finds(family, case, photos):
    made = case(family)
    for images in (photos(2, (150, 203)), photos(1, (240, 320))):
        with torch.no_grad():
            assert made.check(made.graph(images), images) >= 24 * len(images)


@pytest.mark.parametrize(("family", "bgr"), [("mask", False), ("fcos", True)])
def test_it_prepares_pictures_as_the_pipeline_does(family, bgr, case):
    made = case(family)
    augment = build_augment(made.config, train=False)
    assert augment.normalize.bgr is bgr
    plan = augment.draw((750, 1000), seed=0, epoch=0, sample=0)
    expected = np.empty((*padded_size([plan], augment.size_divisor), 3), np.float32)
    pixels = np.random.default_rng(0).integers(0, 256, (750, 1000, 3), dtype=np.uint8)
    OpenCVBackend((), augment).finish(pixels, plan, expected, Scratch())
    resized = cv2.resize(pixels, plan.size[::-1])
    prepared = made.graph.prepare(torch.from_numpy(resized).permute(2, 0, 1)[None].float())[0]
    difference = np.abs(prepared.permute(1, 2, 0).numpy() - expected)
    assert difference.max() < 1.01 / augment.normalize.std[0]  # of a grey level, as the two resize with other roundings
    height, width = plan.size
    assert not difference[height:].any()
    assert not difference[:, width:].any()


@pytest.mark.parametrize(
    ("family", "part", "name", "value"),
    [
        ("cascade", "roi_head", "score_thr", 1.0),
        ("mask", "rpn_head", "min_size", 10000.0),  # no proposals
        ("fcos", "bbox_head", "score_thr", 1.0),
        ("rpn", "bbox_head", "min_size", 10000.0),
    ],
)
def test_it_finds_nothing_where_there_is_nothing(family, part, name, value, case, monkeypatch):
    made = case(family)
    monkeypatch.setattr(getattr(made.model, part), name, value)
    images = torch.full((2, 3, 70, 90), 100.0)
    with torch.no_grad():
        outputs = made.graph(images)
    assert made.check(outputs, images) == 0


@pytest.mark.parametrize(
    ("family", "part", "values"),
    [
        ("rpn", "bbox_head", {"test_max_per_img": 1000}),  # all of them, however unlikely
        ("mask", "rpn_head", {"nms_iou": 0.01}),  # of which levels keep their own
    ],
)
def test_it_finds_what_the_detector_finds_in_the_pattern(family, part, values, case, monkeypatch):
    made = case(family)
    for name, value in values.items():
        monkeypatch.setattr(getattr(made.model, part), name, value)
    images = _images(_pattern(), 2, (70, 90))
    with torch.no_grad():
        assert made.check(made.graph(images), images) >= 24


@pytest.mark.parametrize(("size", "ratio"), [((7, 10), 0.1), ((32, 19), 0.3), ((1, 5), 0.2), ((20, 30), 1.0)])
def test_pooling_by_matrices_is_adaptive_pooling_and_resizing(size, ratio):
    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    pooled = F.adaptive_avg_pool2d(x, [max(1, int(side * ratio)) for side in size])
    expected = F.interpolate(pooled, size=size, mode="bilinear", align_corners=True)
    torch.testing.assert_close(pool_and_resize(x, ratio), expected, atol=1e-6, rtol=1e-5)


def test_more_places_than_candidates_stay_empty():
    scores, order = best_of(torch.tensor([[0.2, EMPTY, 0.7]]), 4)
    torch.testing.assert_close(scores, torch.tensor([[0.7, 0.2, EMPTY, EMPTY]]))
    assert order[0, :2].tolist() == [2, 0]
    assert order.max() < 3


def test_boxes_suppress_each_other_within_a_group_of_an_image_only():
    box = torch.tensor([0.0, 0.0, 20.0, 10.0])
    boxes = box.expand(2, 5, 4)
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6, EMPTY]]).expand(2, -1)
    groups = torch.tensor([[0, 0, 6, 1, 1]]).expand(2, -1)
    kept = suppress(boxes, scores, groups, 7, torch.tensor([20.0, 10.0]), 0.5)
    torch.testing.assert_close(kept, torch.tensor([[0.9, EMPTY, 0.7, 0.6, EMPTY]]).expand(2, -1))
