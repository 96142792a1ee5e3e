"""Necks, bbox heads and samplers of other detectors against reference losses, gradients and detections.

The images, and the weights that are not a choice's own, are those of the Faster R-CNN case.
"""

from __future__ import annotations

import pytest
import torch

from detect.models.assign import MaxIoUAssigner, RandomSampler
from detect.models.backbones import ResNet
from detect.models.dense_heads.rpn import RPNHead
from detect.models.detectors import TwoStageDetector, total_loss
from detect.models.losses import CrossEntropyLoss, L1Loss, SmoothL1Loss
from detect.models.necks.fpn import FPN
from detect.models.necks.pafpn import PAFPN
from detect.models.roi_extractors import SingleRoIExtractor
from detect.models.roi_heads.bbox_head import Shared2FCBBoxHead, Shared4Conv1FCBBoxHead
from detect.models.roi_heads.cascade import CascadeRoIHead
from detect.models.roi_heads.double_head import DoubleConvFCBBoxHead
from detect.models.roi_heads.standard import StandardRoIHead
from detect.models.samplers import OHEMSampler

STRIDES = (4, 8, 16, 32, 64)
EVERYTHING = 1_000_000  # no draw is random where all are taken


def two_stage(roi_head, neck=FPN):
    proposals = {"train_nms_pre": 80, "train_max_per_img": 60, "test_nms_pre": 60, "test_max_per_img": 45}
    sampler = RandomSampler(EVERYTHING, 0.5, add_gt_as_proposals=False)
    return TwoStageDetector(
        ResNet(18, base_channels=8, frozen_stages=1),
        neck((8, 16, 32, 64), 16),
        RPNHead(16, STRIDES, feat_channels=16, sampler=sampler, loss_bbox=L1Loss(), **proposals),
        roi_head,
    )


def standard(bbox_head, sampler=None, **options):
    sampler = sampler or RandomSampler(EVERYTHING, 0.5)
    return StandardRoIHead(SingleRoIExtractor(7, STRIDES), bbox_head, sampler=sampler, max_per_img=20, **options)


def pafpn():
    return two_stage(standard(Shared2FCBBoxHead(16, 5, fc_out_channels=32, loss_bbox=L1Loss())), PAFPN)


def double_head():
    losses = {"loss_cls": CrossEntropyLoss(loss_weight=2.0), "loss_bbox": SmoothL1Loss(loss_weight=2.0)}
    head = DoubleConvFCBBoxHead(16, 5, 2, 2, conv_out_channels=16, fc_out_channels=16, **losses)
    return two_stage(standard(head, reg_roi_scale_factor=1.3))


def ohem():
    head = Shared4Conv1FCBBoxHead(16, 5, conv_out_channels=16, fc_out_channels=16, loss_bbox=L1Loss())
    return two_stage(standard(head, OHEMSampler(24, 0.25)))


def ohem_cascade():
    heads = [Shared2FCBBoxHead(16, 5, 7, 16, reg_class_agnostic=True, loss_bbox=L1Loss()) for _ in range(2)]
    roi_head = CascadeRoIHead(
        SingleRoIExtractor(7, STRIDES),
        heads,
        assigner=[MaxIoUAssigner(0.5, 0.5, min_pos_iou=0.5, match_low_quality=False) for _ in heads],
        sampler=OHEMSampler(24, 0.25),
        stage_loss_weights=(1, 0.5),
        max_per_img=20,
    )
    return two_stage(roi_head)


FOLDERS = {pafpn: "pafpn", double_head: "double_head", ohem: "ohem", ohem_cascade: "ohem"}
SCENARIOS = {"train": (), "train_img1_empty": (1,)}


@pytest.fixture(params=list(FOLDERS), ids=lambda build: build.__name__)
def choice(request, parity):
    case, choices = parity("faster_rcnn_r18_fpn"), parity(FOLDERS[request.param])
    model, name = request.param(), request.param.__name__
    weights = {key: choices.weights.get(f"{name}/{key}", case.weights.get(key)) for key in model.state_dict()}
    model.load_state_dict(weights)
    return model, name, case, choices


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_losses_and_gradients(choice, scenario):
    model, name, case, choices = choice
    losses = model.train()(case.inputs["inputs"], case.targets(without_objects=SCENARIOS[scenario]))
    prefix = f"{name}/{scenario}/loss/"
    assert {prefix + key for key in losses} == {key for key in choices.expected if key.startswith(prefix)}
    for key, value in losses.items():
        torch.testing.assert_close(value.detach(), choices.expected[prefix + key].squeeze(), atol=1e-7, rtol=1e-4)
    total_loss(losses).backward()
    norms = {key: p.grad.norm().item() for key, p in model.named_parameters() if p.requires_grad}
    assert norms == pytest.approx(choices.json("grad_norms")[f"{name}/{scenario}"], rel=1e-3, abs=1e-6)


def test_detections(choice):
    model, name, case, choices = choice
    with torch.no_grad():
        found = model.eval()(case.inputs["inputs"], case.targets())
    for i, detections in enumerate(found):
        expected = {
            key: choices.expected[f"{name}/eval/det_rescaled/{i}/{key}"] for key in ("boxes", "scores", "labels")
        }
        assert detections.labels.tolist() == expected["labels"].tolist()
        torch.testing.assert_close(detections.scores, expected["scores"], atol=1e-4, rtol=0)
        torch.testing.assert_close(detections.boxes, expected["boxes"], atol=1e-2, rtol=0)
