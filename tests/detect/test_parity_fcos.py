"""FCOS against the reference cases: raw outputs, detections, targets, losses and gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from detect.models.assign import RandomSampler
from detect.models.backbones import ResNet
from detect.models.dense_heads.fcos import FCOSHead
from detect.models.detectors import TwoStageDetector, total_loss
from detect.models.losses import GIoULoss, L1Loss
from detect.models.necks.fpn import FPN
from detect.models.roi_extractors import SingleRoIExtractor
from detect.models.roi_heads.bbox_head import Shared2FCBBoxHead
from detect.models.roi_heads.standard import StandardRoIHead
from detect.models.single_stage import SingleStageDetector

STRIDES = (8, 16, 32, 64, 128)


def backbone():
    return ResNet(50, base_channels=8, style="caffe", frozen_stages=1, norm_frozen=True)


def neck():
    return FPN((32, 64, 128, 256), 32, start_level=1, add_extra_convs="on_output", relu_before_extra_convs=True)


@pytest.fixture(scope="module")
def reference(parity):
    case = parity("fcos_r50_caffe_fpn_gn_head")
    head = FCOSHead(32, STRIDES, 6, feat_channels=32, nms_pre=100, max_per_img=30)
    model = SingleStageDetector(backbone(), neck(), head)
    model.load_state_dict(case.weights)
    return model, case


def close(ours, reference, *, atol=1e-4, rtol=1e-4, msg=None):
    torch.testing.assert_close(ours.detach(), reference, atol=atol, rtol=rtol, msg=msg)


def test_features_and_raw_outputs(reference):
    model, case = reference
    model.eval()
    with torch.no_grad():
        levels = model.backbone(case.inputs["inputs"])
        features = model.neck(levels)
        outputs = model.bbox_head(features)
    for ours, name in ((levels, "backbone"), (features, "neck")):
        for level, theirs in zip(ours, case.levels(f"eval/{name}"), strict=True):
            close(level, theirs)
    for ours, name in ((outputs.logits, "cls"), (outputs.distances, "reg"), (outputs.centerness, "centerness")):
        for level, theirs in zip(ours, case.levels(f"eval/dense/{name}"), strict=True):
            close(level, theirs)


@pytest.mark.parametrize("rescale", [False, True])
def test_detections(reference, rescale):
    model, case = reference
    with torch.no_grad():
        found = model.eval()(case.inputs["inputs"], case.targets(rescale=rescale))
    for i, detections in enumerate(found):
        name = f"eval/det_rescaled/{i}" if rescale else f"eval/det/{i}"
        assert detections.labels.tolist() == case.expected[f"{name}/labels"].tolist()
        close(detections.scores, case.expected[f"{name}/scores"], rtol=0)
        close(detections.boxes, case.expected[f"{name}/boxes"], atol=1e-2, rtol=0)


def test_training_targets(reference):
    model, case = reference
    sizes = [tuple(level.shape[-2:]) for level in case.levels("eval/dense/cls")]
    _, labels, _ = model.bbox_head.point_targets(sizes, case.targets())
    by_level = labels.split([height * width for height, width in sizes], dim=1)
    for ours, theirs in zip(by_level, case.levels("train/dense/target_labels"), strict=True):
        assert torch.equal(ours.flatten(), theirs.long())


SCENARIOS = {"train": (), "train_img1_empty": (1,)}


def check_gradients(model, theirs):
    """Compares the norm of every trained tensor's gradient."""
    norms = {name: p.grad.norm().item() for name, p in model.named_parameters() if p.requires_grad}
    assert set(norms) == set(theirs)
    for name, norm in norms.items():
        assert norm == pytest.approx(theirs[name], rel=1e-3, abs=1e-6), name
    return np.sqrt(sum(norm**2 for norm in norms.values()))


def check_losses(losses, expected, prefix):
    assert {prefix + name for name in losses} == {name for name in expected if name.startswith(prefix)}
    for name, value in losses.items():
        close(value, expected[prefix + name].squeeze(), atol=1e-7, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_losses_and_gradients(reference, scenario):
    model, case = reference
    model.train().zero_grad()
    losses = model(case.inputs["inputs"], case.targets(without_objects=SCENARIOS[scenario]))
    check_losses(losses, case.expected, f"{scenario}/loss/")
    total = total_loss(losses)
    close(total, case.expected[f"{scenario}/loss_total"].squeeze())
    total.backward()
    overall = check_gradients(model, case.json("grad_norms")[scenario])
    assert overall == pytest.approx(case.expected[f"{scenario}/grad_norm_global"].item(), rel=1e-3)


def improved():
    """All that came after the paper: centre sampling, distances in strides, centerness from the boxes, GIoU."""
    options = {"center_sampling": True, "norm_on_bbox": True, "centerness_on_reg": True, "conv_bias": True}
    head = FCOSHead(32, STRIDES, 6, feat_channels=32, nms_pre=100, max_per_img=30, loss_bbox=GIoULoss(), **options)
    return SingleStageDetector(backbone(), neck(), head)


def fcos_rpn():
    """FCOS proposes for a second stage that samples everything."""
    head = FCOSHead(
        32, STRIDES, 1, feat_channels=32, train_nms_pre=80, train_max_per_img=60, test_nms_pre=60, test_max_per_img=45
    )
    roi_head = StandardRoIHead(
        SingleRoIExtractor(7, STRIDES, num_levels=5),
        Shared2FCBBoxHead(32, 6, fc_out_channels=32, loss_bbox=L1Loss()),
        sampler=RandomSampler(1_000_000, 0.5),
        max_per_img=20,
    )
    return TwoStageDetector(backbone(), neck(), head, roi_head)


@pytest.fixture(scope="module", params=[improved, fcos_rpn])
def choice(request, parity):
    """A model with the weights of the case above where their shapes are the same, and with its own otherwise."""
    case, choices = parity("fcos_r50_caffe_fpn_gn_head"), parity("fcos_choices")
    model, name = request.param(), request.param.__name__
    model.load_state_dict(
        {
            key: choices.weights.get(f"{name}/{key}", case.weights.get(key.replace("rpn_head.", "bbox_head.")))
            for key in model.state_dict()
        }
    )
    return model, name, case, choices


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_losses_and_gradients_of_other_choices(choice, scenario):
    model, name, case, choices = choice
    model.train().zero_grad()
    losses = model(case.inputs["inputs"], case.targets(without_objects=SCENARIOS[scenario]))
    check_losses(losses, choices.expected, f"{name}/{scenario}/loss/")
    total_loss(losses).backward()
    check_gradients(model, choices.json("grad_norms")[f"{name}/{scenario}"])


def test_detections_of_other_choices(choice):
    model, name, case, choices = choice
    with torch.no_grad():
        found = model.eval()(case.inputs["inputs"], case.targets())
    for i, detections in enumerate(found):
        folder = f"{name}/eval/det_rescaled/{i}"
        assert detections.labels.tolist() == choices.expected[f"{folder}/labels"].tolist()
        close(detections.scores, choices.expected[f"{folder}/scores"], rtol=0)
        close(detections.boxes, choices.expected[f"{folder}/boxes"], atol=1e-2, rtol=0)
