"""Weights of torchvision's detectors: the same raw outputs and detections in ours."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torchvision.models.detection import (
    MaskRCNN,
    MaskRCNN_ResNet50_FPN_Weights,
    fasterrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn,
)
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.ops.misc import FrozenBatchNorm2d

from detect.config import build_model, load_config
from detect.models.backbones import ResNet
from detect.models.boxes import boxes_to_rois
from detect.models.checkpoints import load_weights
from detect.models.dense_heads.rpn import RPNHead
from detect.models.detectors import TwoStageDetector
from detect.models.necks.fpn import FPN
from detect.models.roi_extractors import SingleRoIExtractor
from detect.models.roi_heads.bbox_head import Shared2FCBBoxHead
from detect.models.roi_heads.mask_head import FCNMaskHead
from detect.models.roi_heads.standard import StandardRoIHead
from detect.models.single_stage import RPN
from detect.models.torchvision_names import COCO_LABELS, from_torchvision
from dpipe.errors import InputError

STRIDES = (4, 8, 16, 32, 64)
SIZE = (128, 192)


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    """Mask R-CNN with ResNet-18, narrow layers behind the RoIs, and everything drawn at random."""
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5)
    options = {"box_score_thresh": 0.0, "rpn_post_nms_top_n_test": 60}
    model = MaskRCNN(backbone, num_classes=91, box_head=TwoMLPHead(256 * 49, 64), **options)
    model.roi_heads.box_predictor.cls_score = nn.Linear(64, 91)
    model.roi_heads.box_predictor.bbox_pred = nn.Linear(64, 364)
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.weight.uniform_(0.5, 1.5)
            module.bias.uniform_(-0.5, 0.5)
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 1.5)
    nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=2.0)
    for parameter in model.rpn.head.parameters():
        nn.init.normal_(parameter, std=0.02)
    return model.eval()


def parts() -> dict[str, nn.Module]:
    return {"backbone": ResNet(18), "neck": FPN((64, 128, 256, 512), 256), "rpn_head": RPNHead(256, STRIDES)}


def ours(num_classes: int) -> TwoStageDetector:
    extractors = [SingleRoIExtractor(side, STRIDES, sampling_ratio=2, alignment="unaligned") for side in (7, 14)]
    bbox_head = Shared2FCBBoxHead(256, num_classes, fc_out_channels=64)
    mask_head = FCNMaskHead(256, num_classes)
    roi_head = StandardRoIHead(extractors[0], bbox_head, extractors[1], mask_head, score_thr=0.0)
    return TwoStageDetector(**parts(), roi_head=roi_head).eval()


@torch.no_grad()
def assert_same(theirs: nn.Module, model: TwoStageDetector, labels: tuple[int, ...], make_target) -> None:
    """Compares features, raw outputs and detections. ``labels`` are torchvision's numbers of our classes."""

    def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * expected.abs().max().item())

    torch.manual_seed(1)
    images = torch.randn(1, 3, *SIZE)
    features = theirs.backbone(images)
    levels = list(features.values())
    pyramid = model.neck(model.backbone(images))
    for level, expected in zip(pyramid, levels, strict=True):
        assert_close(level, expected)

    logits, deltas = theirs.rpn.head(levels)
    outputs = model.rpn_head(pyramid)
    for level in range(len(STRIDES)):
        assert_close(outputs.logits[level], logits[level])
        assert_close(outputs.deltas[level], deltas[level])

    (proposals,), _ = theirs.rpn(ImageList(images, [SIZE]), features)
    assert len(proposals) > 50
    heads, roi_head = theirs.roi_heads, model.roi_head
    rois = boxes_to_rois([proposals])
    scores, boxes = heads.box_predictor(heads.box_head(heads.box_roi_pool(features, [proposals], [SIZE])))
    logits, deltas = roi_head.bbox_head(roi_head.bbox_roi_extractor(pyramid, rois))
    assert_close(logits, scores[:, [*labels, 0]])
    assert_close(deltas, boxes.unflatten(1, (-1, 4))[:, list(labels)].flatten(1))
    masks = heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(features, [proposals], [SIZE])))
    found = roi_head.mask_head(roi_head.mask_roi_extractor(pyramid, rois))
    assert_close(found, masks[:, list(labels)])

    if labels == tuple(range(1, 91)):
        (expected,), _ = heads(features, [proposals], [SIZE])
        target = make_target([], SIZE)
        (found,) = roi_head.predict(pyramid, [proposals], [target])
        assert len(found) == len(expected["boxes"]) == 100
        assert found.labels.tolist() == (expected["labels"] - 1).tolist()
        torch.testing.assert_close(found.scores, expected["scores"], rtol=0, atol=1e-4)
        torch.testing.assert_close(found.boxes / 2, expected["boxes"], rtol=0, atol=0.01)  # the target halves


@pytest.mark.parametrize("num_classes", [90, 80])
def test_raw_outputs_and_detections_are_torchvisions(theirs, tmp_path, make_target, num_classes):
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    model = ours(num_classes)
    report = load_weights(model, tmp_path / "theirs.pth", strict=True)
    assert (report.left_out, report.missing) == ([], [])
    assert_same(theirs, model, COCO_LABELS if num_classes == 80 else tuple(range(1, 91)), make_target)


def old_name(name: str) -> str:
    """The name of a tensor in the layout before torchvision 0.13."""
    name = re.sub(r"(inner_blocks|layer_blocks)\.(\d)\.0\.", r"\1.\2.", name)
    name = name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
    return re.sub(r"mask_head\.(\d)\.0\.", lambda match: f"mask_head.mask_fcn{int(match[1]) + 1}.", name)


def test_published_files_have_older_names_and_no_epsilon(theirs, tmp_path, make_target):
    overwrite_eps(theirs, 0.0)
    norm = theirs.backbone.body.layer2[0].bn1
    kept = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    try:
        norm.running_var[:8] *= 1e-4
        norm.weight[:8] *= 1e-2
        state = {old_name(name): tensor for name, tensor in theirs.state_dict().items()}
        assert not set(state) & {"rpn.head.conv.0.0.weight", "backbone.fpn.layer_blocks.3.0.weight"}
        torch.save({"model": state, "optimizer": {}}, tmp_path / "theirs.pth")
        model = ours(90)
        load_weights(model, tmp_path / "theirs.pth", strict=True)
        assert_same(theirs, model, tuple(range(1, 91)), make_target)
    finally:
        overwrite_eps(theirs, 1e-5)
        norm.load_state_dict(kept)


def test_proposals_alone_of_a_whole_detector(theirs, tmp_path):
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    model = RPN(**parts())
    report = load_weights(model, tmp_path / "theirs.pth", strict=True)
    assert torch.equal(model.bbox_head.rpn_cls.bias, theirs.rpn.head.cls_logits.bias)
    assert {reason for _, reason in report.left_out} == {
        "the model has no roi_head.mask_head",
        "the model has no roi_head",
    }


def test_other_classes_are_left_out(theirs, tmp_path):
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    report = load_weights(ours(20), tmp_path / "theirs.pth")
    assert report.missing == []
    assert sorted({name.rpartition(".")[0] for name, _ in report.left_out}) == [
        "roi_head.bbox_head.fc_cls",
        "roi_head.bbox_head.fc_reg",
        "roi_head.mask_head.conv_logits",
    ]


@pytest.mark.parametrize(
    ("make", "recipe"),
    [(fasterrcnn_resnet50_fpn, "faster_rcnn_r50_fpn_coco"), (maskrcnn_resnet50_fpn, "mask_rcnn_r50_fpn_coco")],
)
def test_full_size_weights_are_those_of_the_recipes(make, recipe):
    with torch.device("meta"):
        state = from_torchvision(make(weights=None, weights_backbone=None).state_dict(), 80)
        model = build_model(load_config(recipe), 80, pretrained=False)
    assert {name: t.shape for name, t in state.items()} == {name: t.shape for name, t in model.state_dict().items()}


def test_labels_of_coco_are_those_that_torchvision_names():
    names = MaskRCNN_ResNet50_FPN_Weights.DEFAULT.meta["categories"]
    assert tuple(i for i, name in enumerate(names) if name not in ("__background__", "N/A")) == COCO_LABELS


def test_channels_that_never_vary_keep_their_scale():
    layer = "backbone.body.layer1.0.bn1"
    state = {
        "backbone.body.conv1.weight": torch.ones(1),
        "backbone.fpn.inner_blocks.0.weight": torch.ones(1),
        f"{layer}.weight": torch.tensor([2.0, 3.0]),
        f"{layer}.running_var": torch.tensor([0.0, 1e-5]),
    }
    scales = from_torchvision(state, None)["backbone.layer1.0.bn1.weight"]
    torch.testing.assert_close(scales, torch.tensor([2.0, 3.0 * 2**0.5]))


@pytest.mark.parametrize(
    ("name", "shape"), [("cls_score.bias", ()), ("bbox_pred.weight", (8, 5)), ("bbox_pred.weight", (7, 5))]
)
def test_heads_of_other_shapes_are_told(tmp_path, name, shape):
    predictor = "roi_heads.box_predictor"
    state = {
        "backbone.body.conv1.weight": torch.ones(1),
        "backbone.fpn.inner_blocks.0.0.weight": torch.ones(1),
        f"{predictor}.cls_score.bias": torch.ones(91),
        f"{predictor}.{name}": torch.ones(shape),
    }
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(InputError, match=r"odd.pth: is named as torchvision's detectors, but not shaped so: ") as info:
        load_weights(nn.Linear(1, 1), tmp_path / "odd.pth")
    assert "\n" not in str(info.value)


def test_second_versions_are_refused(tmp_path):
    state = {"backbone.body.conv1.weight": torch.ones(1), "backbone.fpn.inner_blocks.0.1.weight": torch.ones(1)}
    torch.save(state, tmp_path / "v2.pth")
    with pytest.raises(InputError, match=r"v2.pth: has torchvision's FPN of version 2, with BatchNorm"):
        load_weights(nn.Linear(1, 1), tmp_path / "v2.pth")
