"""Variants of all detectors against the reference: losses, the gradient of every weight, detections and masks.

Weights are drawn here as they were for the reference (tests/data/README.md); images are those of other cases. Each
variant is trained on both images, of different sizes, with objects in both, in the first alone and in none.
"""

from __future__ import annotations

import copy
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from detect.models.detectors import total_loss
from detect.registry import MODELS

EVERYTHING = 1_000_000  # no draw is random where all are taken
SCENARIOS = {"train": (), "train_img1_empty": (1,), "train_both_empty": (0, 1)}

L1, SOFTMAX, SIGMOID = (
    {"type": "L1Loss"},
    {"type": "CrossEntropyLoss"},
    {"type": "CrossEntropyLoss", "use_sigmoid": True},
)
STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))
C4 = {"num_stages": 3, "out_indices": [2]}
COARSE = {"start_level": 1, "add_extra_convs": "on_output"}
IMPROVED_FCOS = {"center_sampling": True, "centerness_on_reg": True}


def resnet(depth=18, **options):
    return {"type": "ResNet", "depth": depth, "base_channels": 8, "frozen_stages": 1, **options}


def caffe_resnet():
    return resnet(50, style="caffe", norm_frozen=True)


def fpn(type_="FPN", **options):
    return {"type": type_, "out_channels": 16, "num_outs": 5, **options}


def fcos_fpn():
    return fpn(**COARSE, relu_before_extra_convs=True)


def assigner(iou, *, negative=None, least=None, low_quality=False, ignore=-1.0):
    return {
        "type": "MaxIoUAssigner",
        "pos_iou_thr": iou,
        "neg_iou_thr": iou if negative is None else negative,
        "min_pos_iou": iou if least is None else least,
        "match_low_quality": low_quality,
        "ignore_iof_thr": ignore,
    }


def sampler(type_="RandomSampler", num=EVERYTHING, share=0.5, gt=True):
    return {"type": type_, "num": num, "pos_fraction": share, "add_gt_as_proposals": gt}


PROPOSALS = {"train_nms_pre": 80, "train_max_per_img": 60, "test_nms_pre": 60, "test_max_per_img": 45}


def rpn(loss_cls=SIGMOID, loss_bbox=L1, ignore=-1.0, **options):
    return {
        "type": "RPNHead",
        "feat_channels": 16,
        "assigner": assigner(0.7, negative=0.3, least=0.3, low_quality=True, ignore=ignore),
        "sampler": sampler(gt=False),
        "loss_cls": loss_cls,
        "loss_bbox": loss_bbox,
        **PROPOSALS,
        **options,
    }


def c4_rpn(**options):
    return rpn(SOFTMAX, scales=[2, 4, 8], **options)


def fcos(**options):
    return {"type": "FCOSHead", "feat_channels": 16, "stacked_convs": 2, "num_groups": 4, **PROPOSALS, **options}


def bbox_head(loss_bbox=L1, type_="Shared2FCBBoxHead", **options):
    return {"type": type_, "fc_out_channels": 32, "loss_cls": SOFTMAX, "loss_bbox": loss_bbox, **options}


def extractor(size=7, levels=4):
    return {"type": "SingleRoIExtractor", "output_size": size, "num_levels": levels}


def masks(num_convs):
    head = {"type": "FCNMaskHead", "num_convs": num_convs, "conv_out_channels": 16}
    return {"mask_roi_extractor": extractor(14), "mask_head": head}


def roi_head(head=None, levels=4, **options):
    return {
        "type": "StandardRoIHead",
        "bbox_roi_extractor": extractor(levels=levels),
        "bbox_head": head or bbox_head(),
        "assigner": assigner(0.5),
        "sampler": sampler(),
        "max_per_img": 20,
        **options,
    }


def cascade(ignore=-1.0, **options):
    """Three stages; the options are of their heads."""
    smooth = {"type": "SmoothL1Loss", "beta": 1.0}
    return {
        "type": "CascadeRoIHead",
        "bbox_roi_extractor": extractor(),
        "bbox_head": [bbox_head(smooth, target_stds=stds, **options) for stds in STDS],
        "assigner": [assigner(iou, ignore=ignore) for iou in (0.5, 0.6, 0.7)],
        "sampler": sampler(),
        "max_per_img": 20,
    }


def double_head():
    losses = {"loss_cls": {**SOFTMAX, "loss_weight": 2.0}, "loss_bbox": {"type": "SmoothL1Loss", "loss_weight": 2.0}}
    widths = {"num_convs": 2, "num_fcs": 2, "conv_out_channels": 16, "fc_out_channels": 16}
    return {"type": "DoubleConvFCBBoxHead", **widths, **losses}


def alone(rpn_head, backbone=None, neck=fpn()):
    return {"type": "RPN", "backbone": backbone or resnet(), "neck": neck, "rpn_head": rpn_head}


def two_stages(roi=None, rpn_head=None, backbone=None, neck=fpn()):
    parts = {"backbone": backbone or resnet(), "neck": neck, "rpn_head": rpn_head or rpn()}
    return {"type": "TwoStageDetector", **parts, "roi_head": roi or roi_head()}


VARIANTS = {
    "rpn_ignoring": alone(rpn(ignore=0.5)),
    "rpn_fpn_softmax": alone(rpn({**SOFTMAX, "class_weight": [2.0, 1.0]}, {"type": "SmoothL1Loss", "beta": 1 / 9})),
    "rpn_c4_softmax": alone(c4_rpn(allowed_border=0, min_size=16, test_nms_pre=300), resnet(50, **C4), None),
    "fcos_rpn": alone(fcos(), neck=fcos_fpn()),
    "fcos_centre_sampling": {
        "type": "SingleStageDetector",
        "backbone": caffe_resnet(),
        "neck": fcos_fpn(),
        "bbox_head": fcos(**IMPROVED_FCOS, center_sample_radius=0.7, norm_on_bbox=True, nms_pre=100, max_per_img=30),
    },
    "faster_rcnn_fcos_rpn": two_stages(
        roi_head(levels=5),
        fcos(**IMPROVED_FCOS, conv_bias=True, loss_bbox={"type": "GIoULoss"}),
        neck=fcos_fpn(),
    ),
    "faster_rcnn_c4": two_stages(roi_head(levels=1), c4_rpn(), resnet(**C4), None),
    "faster_rcnn_caffe_ignoring": two_stages(
        roi_head(assigner=assigner(0.5, ignore=0.5)), rpn(ignore=0.5), caffe_resnet()
    ),
    "giou_and_soft_nms": two_stages(
        roi_head(bbox_head({"type": "GIoULoss"}, reg_class_agnostic=True), nms={"type": "SoftNMS", "min_score": 0.05}),
        rpn(loss_bbox={"type": "IoULoss"}),
    ),
    "ciou_and_nms_across_classes": two_stages(
        roi_head(bbox_head({"type": "CIoULoss"}), nms={"type": "NMS", "class_agnostic": True}),
        rpn(loss_bbox={"type": "DIoULoss"}),
    ),
    "pafpn_focal_rpn_balanced_l1": two_stages(
        roi_head(bbox_head({"type": "BalancedL1Loss", "alpha": 0.5, "gamma": 1.5, "beta": 1.0}), levels=5),
        rpn({"type": "FocalLoss", "gamma": 2.0, "alpha": 0.25}),
        neck=fpn("PAFPN", **COARSE),
    ),
    "double_head_ignoring": two_stages(roi_head(double_head(), reg_roi_scale_factor=1.3), rpn(ignore=0.5)),
    "cascade_rcnn": two_stages(
        cascade(reg_class_agnostic=True), rpn(loss_bbox={"type": "SmoothL1Loss", "beta": 1 / 9})
    ),
    "cascade_rcnn_by_class_and_soft_nms": two_stages(
        {
            **cascade(ignore=0.5),
            "nms_iou": 0.4,
            "nms": {"type": "SoftNMS", "method": "gaussian", "sigma": 0.4, "min_score": 0.02},
        }
    ),
    "mask_rcnn": two_stages(roi_head(**masks(2), assigner=assigner(0.5, low_quality=True))),
    "mask_rcnn_ohem": two_stages(
        roi_head(
            bbox_head(type_="Shared4Conv1FCBBoxHead", conv_out_channels=16),
            **masks(1),
            sampler=sampler("OHEMSampler", 24, 0.25),
        )
    ),
}

PREDICTORS = {"rpn_cls", "rpn_reg", "fc_cls", "fc_reg", "conv_cls", "conv_reg", "conv_centerness", "conv_logits"}


def drawn(case, name, shape):
    """A tensor of a model: uniform numbers by its name, scaled so that activations neither vanish nor explode."""
    seed = zlib.crc32(f"{case}/{name}".encode())
    uniform = torch.as_tensor(np.random.default_rng(seed).random(shape) * 2 - 1)
    layer, kind = name.split(".")[-2:]
    if kind == "num_batches_tracked":
        return torch.zeros(shape, dtype=torch.int64)
    if kind == "running_var":
        uniform = 1 + uniform / 2
    elif kind == "scale":
        uniform = 1 + uniform / 5
    elif len(shape) > 1:
        gain = 0.5 if layer in PREDICTORS or name.startswith("neck") else 1.0
        uniform = uniform * (6 / np.prod(shape[1:])) ** 0.5 * gain
    elif kind == "weight":
        in_branch = layer in ("bn2", "bn3") and name.startswith("backbone")
        uniform = (1 + uniform / 2) * (0.3 if in_branch else 1.0)
    else:
        uniform = uniform / 5
    return uniform.float()


@pytest.fixture(params=list(VARIANTS))
def variant(request, parity):
    """A model, its images and targets, and what the reference gives."""
    name, reference = request.param, parity("detectors")
    meta = reference.json("meta")[name]
    context = {"num_classes": meta["num_classes"], "pad_divisor": 32}
    model = MODELS.build(copy.deepcopy(VARIANTS[name]), context)
    model.load_state_dict({key: drawn(meta["weights"], key, tuple(t.shape)) for key, t in model.state_dict().items()})
    expected = {key.removeprefix(f"{name}/"): t for key, t in reference.expected.items() if key.startswith(f"{name}/")}
    return model, parity(meta["images"]), meta["rescale"], expected, reference.json("masks").get(name)


def without_objects(targets, numbers):
    """The same targets with neither objects nor ignore regions in some."""
    return [replace(t, ignore_boxes=t.ignore_boxes[:0]) if i in numbers else t for i, t in enumerate(targets)]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_losses_and_gradients(variant, scenario):
    model, case, _, expected, _ = variant
    empty = SCENARIOS[scenario]
    losses = model.train()(case.inputs["inputs"], without_objects(case.targets(without_objects=empty), empty))
    prefix = f"{scenario}/loss/"
    assert {prefix + name for name in losses} == {name for name in expected if name.startswith(prefix)}
    for name, value in losses.items():
        torch.testing.assert_close(value.detach(), expected[prefix + name].squeeze(), atol=1e-7, rtol=1e-4, msg=name)
    total_loss(losses).backward()
    norms = expected[f"{scenario}/grad_norms"].tolist()
    for (name, weight), norm in zip(sorted(model.named_parameters()), norms, strict=True):
        if np.isnan(norm):  # which the reference does not train, or not from nothing
            assert weight.grad is None or not weight.grad.any(), name
        else:
            assert weight.grad.norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-6), name


def test_detections(variant):
    model, case, rescale, expected, expected_masks = variant
    with torch.no_grad():
        found = model.eval()(case.inputs["inputs"], case.targets(rescale=rescale))
    for i, detections in enumerate(found):
        assert detections.labels.tolist() == expected[f"eval/{i}/labels"].tolist()
        torch.testing.assert_close(detections.scores, expected[f"eval/{i}/scores"], atol=1e-4, rtol=0)
        torch.testing.assert_close(detections.boxes, expected[f"eval/{i}/boxes"], atol=1e-2, rtol=0)
        assert (detections.masks is None) == (expected_masks is None)
        for ours, theirs in zip(detections.masks or [], expected_masks[i] if expected_masks else [], strict=True):
            empty = coco_mask.area(ours) == coco_mask.area(theirs) == 0
            assert empty or coco_mask.iou([ours], [theirs], [0])[0, 0] >= 1 - 1e-3
