"""Where the training forward makes the host wait for a GPU: only where the shape of what follows depends on data."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import detect
from detect.models.backbones import ResNet
from detect.models.dense_heads.fcos import FCOSHead
from detect.models.dense_heads.rpn import RPNHead
from detect.models.detectors import TwoStageDetector, total_loss
from detect.models.necks.fpn import FPN
from detect.models.roi_extractors import SingleRoIExtractor
from detect.models.roi_heads.bbox_head import Shared2FCBBoxHead
from detect.models.roi_heads.cascade import CascadeRoIHead
from detect.models.roi_heads.mask_head import FCNMaskHead
from detect.models.roi_heads.standard import StandardRoIHead
from detect.models.single_stage import SingleStageDetector
from dpipe.polygons import Polygons
from dpipe.target import Target

STRIDES = (4, 8, 16, 32, 64)
PACKAGE = Path(detect.__file__).parent
WAITING = {"aten::nonzero", "aten::_local_scalar_dense", "aten::masked_select", "aten::_unique2", "aten::bincount"}
"""Operators whose result, or its shape, a CUDA device has to tell the host."""


class Waits(TorchDispatchMode):
    """Counts the calls that would wait, by the function of the package that makes them."""

    def __init__(self):
        super().__init__()
        self.places = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        picks_by_flags = name in ("aten::index.Tensor", "aten::index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        copies_a_list = name == "aten::lift_fresh" and args[0].dim() > 0
        if name in WAITING or picks_by_flags or copies_a_list:
            self.places[caller()] += 1
        return func(*args, **(kwargs or {}))


def caller():
    frame = sys._getframe(2)
    while frame is not None and PACKAGE not in Path(frame.f_code.co_filename).parents:
        frame = frame.f_back
    return None if frame is None else (Path(frame.f_code.co_filename).name, frame.f_code.co_name)


def some_target(boxes):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    x1, y1, x2, y2 = boxes.unbind(1)
    rings = torch.stack([x1, y1, x2, y1, x2, y2, x1, y2], dim=1).tolist()
    return Target(
        image_id=0,
        sample=0,
        file_name="image.png",
        size=(64, 96),
        original_size=(64, 96),
        matrix=np.eye(2, 3),
        boxes=boxes,
        labels=torch.arange(len(boxes)) % 3,
        masks=Polygons.from_coco([[ring] for ring in rings]),
        annotation_ids=torch.arange(len(boxes)),
        ignore_boxes=torch.zeros(0, 4),
    )


def some_model(kind):
    backbone, neck = ResNet(18, base_channels=4), FPN((4, 8, 16, 32), 8)
    if kind == "fcos":
        return SingleStageDetector(backbone, neck, FCOSHead(8, STRIDES, num_classes=3, feat_channels=8, num_groups=4))
    rpn = RPNHead(8, STRIDES, feat_channels=8, train_max_per_img=40)
    parts = [SingleRoIExtractor(7, STRIDES), None, SingleRoIExtractor(14, STRIDES), None]
    boxes = [Shared2FCBBoxHead(8, 3, fc_out_channels=16) for _ in range(3)]
    masks = [FCNMaskHead(8, 3, num_convs=1, conv_out_channels=8) for _ in range(3)]
    if kind == "mask_rcnn":
        return TwoStageDetector(backbone, neck, rpn, StandardRoIHead(parts[0], boxes[0], parts[2], masks[0]))
    return TwoStageDetector(backbone, neck, rpn, CascadeRoIHead(parts[0], boxes, parts[2], masks))


RPN_WAITS = {("rpn.py", "_assign"): 2, ("rpn.py", "_propose"): 2, ("assign.py", "positives_and_negatives"): 4}
EXPECTED = {
    "fcos": {("fcos.py", "_loss"): 1},
    "mask_rcnn": RPN_WAITS
    | {
        ("assign.py", "positives_and_negatives"): 8,
        ("roi_extractors.py", "forward"): 2,
        ("masks.py", "masked_positives"): 2,
    },
    "cascade": RPN_WAITS
    | {
        ("assign.py", "positives_and_negatives"): 16,
        ("roi_extractors.py", "forward"): 6,
        ("masks.py", "masked_positives"): 6,
        ("cascade.py", "_without_ground_truths"): 4,
    },
}
"""How often each place waits for a batch of two images: an image's numbers of anchors, RoIs and masks are shapes."""


@pytest.mark.parametrize("kind", EXPECTED)
def test_the_training_forward_waits_only_where_shapes_depend_on_data(kind, monkeypatch):
    # As on a GPU, but for what the suppression and the measuring of polygons do in there.
    for module in ("roi_align", "roi_extractors"):
        monkeypatch.setattr(f"detect.models.{module}.by_products", lambda feature: False)
    torch.manual_seed(0)
    model = some_model(kind).train()
    targets = [some_target([(10, 10, 50, 50), (40, 20, 90, 60)]), some_target([(5, 5, 30, 40)])]
    images = torch.randn(2, 3, 64, 96)
    with Waits() as waits:
        total_loss(model(images, targets))
    for place in (("boxes.py", "group_nms"), ("masks.py", "_polygon_coverage")):
        waits.places.pop(place, None)
    assert waits.places == EXPECTED[kind]
