"""FCOS against the reference case: raw outputs, detections, targets, losses and gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from detect.models.backbones import ResNet
from detect.models.dense_heads.fcos import FCOSHead
from detect.models.detectors import total_loss
from detect.models.necks.fpn import FPN
from detect.models.single_stage import SingleStageDetector

STRIDES = (8, 16, 32, 64, 128)


@pytest.fixture(scope="module")
def reference(parity):
    case = parity("fcos_r50_caffe_fpn_gn_head")
    model = SingleStageDetector(
        ResNet(50, base_channels=8, style="caffe", frozen_stages=1, norm_frozen=True),
        FPN((32, 64, 128, 256), 32, start_level=1, add_extra_convs="on_output", relu_before_extra_convs=True),
        FCOSHead(32, STRIDES, 6, feat_channels=32, nms_pre=100, max_per_img=30),
    )
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


@pytest.mark.parametrize(("scenario", "without_objects"), [("train", ()), ("train_img1_empty", (1,))])
def test_losses_and_gradients(reference, scenario, without_objects):
    model, case = reference
    model.train().zero_grad()
    losses = model(case.inputs["inputs"], case.targets(without_objects=without_objects))
    prefix = f"{scenario}/loss/"
    assert {prefix + name for name in losses} == {name for name in case.expected if name.startswith(prefix)}
    for name, value in losses.items():
        close(value, case.expected[prefix + name].squeeze(), atol=1e-7, msg=lambda m, name=name: f"{name}: {m}")
    total = total_loss(losses)
    close(total, case.expected[f"{scenario}/loss_total"].squeeze())

    total.backward()
    norms = {name: p.grad.norm().item() for name, p in model.named_parameters() if p.requires_grad}
    theirs = case.json("grad_norms")[scenario]
    assert set(norms) == set(theirs)
    for name, norm in norms.items():
        assert norm == pytest.approx(theirs[name], rel=1e-3, abs=1e-6), name
    overall = np.sqrt(sum(n**2 for n in norms.values()))
    assert overall == pytest.approx(case.expected[f"{scenario}/grad_norm_global"].item(), rel=1e-3)
