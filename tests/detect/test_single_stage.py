"""Detectors of one stage, proposals alone, dense heads as RPNs, and weights that move between them."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from detect.models.backbones import ResNet
from detect.models.checkpoints import load_weights
from detect.models.dense_heads.fcos import FCOSHead
from detect.models.dense_heads.rpn import RPNHead
from detect.models.detectors import TwoStageDetector, total_loss
from detect.models.necks.fpn import FPN
from detect.models.roi_extractors import SingleRoIExtractor
from detect.models.roi_heads.bbox_head import Shared2FCBBoxHead
from detect.models.roi_heads.standard import StandardRoIHead
from detect.models.single_stage import RPN, SingleStageDetector
from detect.registry import MODELS
from dpipe.errors import InputError

OBJECTS = [(10, 10, 50, 50), (40, 20, 90, 60)]
FINE, COARSE = (4, 8, 16, 32, 64), (8, 16, 32, 64, 128)


def backbone():
    return ResNet(18, base_channels=4)


def coarse_fpn():
    return FPN((4, 8, 16, 32), 8, start_level=1, add_extra_convs="on_output", relu_before_extra_convs=True)


def fcos_head(num_classes, **options):
    return FCOSHead(8, COARSE, num_classes, feat_channels=8, stacked_convs=1, num_groups=4, **options)


def roi_head(strides=COARSE):
    return StandardRoIHead(
        SingleRoIExtractor(7, strides), Shared2FCBBoxHead(8, 3, fc_out_channels=16), score_thr=0.0, max_per_img=20
    )


def build(kind):
    torch.manual_seed(0)
    if kind == "fcos":
        return SingleStageDetector(backbone(), coarse_fpn(), fcos_head(3, score_thr=0.0))
    if kind == "rpn":
        return RPN(backbone(), FPN((4, 8, 16, 32), 8), RPNHead(8, FINE, feat_channels=8, test_max_per_img=20))
    if kind == "fcos_rpn":
        return RPN(backbone(), coarse_fpn(), fcos_head(1, test_max_per_img=20))
    if kind == "two_stage_rpn":
        head = RPNHead(8, FINE, feat_channels=8, test_max_per_img=20)
        return TwoStageDetector(backbone(), FPN((4, 8, 16, 32), 8), head, roi_head(FINE))
    return TwoStageDetector(backbone(), coarse_fpn(), fcos_head(1, train_max_per_img=30), roi_head())


LOSSES = {
    "fcos": {"loss_cls", "loss_bbox", "loss_centerness"},
    "rpn": {"loss_rpn_cls", "loss_rpn_bbox"},
    "fcos_rpn": {"loss_cls", "loss_bbox", "loss_centerness"},
    "two_stage": {"rpn_loss_cls", "rpn_loss_bbox", "rpn_loss_centerness", "loss_cls", "loss_bbox", "acc"},
}


@pytest.mark.parametrize("kind", list(LOSSES))
@pytest.mark.parametrize("objects", [[OBJECTS, []], [[], []]], ids=["mixed", "empty"])
def test_training_step(kind, objects, make_target):
    model = build(kind).train()
    losses = model(torch.randn(2, 3, 64, 96), [make_target(boxes) for boxes in objects])
    assert set(losses) == LOSSES[kind]
    total_loss(losses).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("kind", list(LOSSES))
def test_evaluation(kind, make_target):
    with torch.no_grad():
        found = build(kind).eval()(torch.randn(2, 3, 64, 96), [make_target([]), make_target([], size=(50, 60))])
    for detections, (height, width) in zip(found, ((128, 192), (100, 120)), strict=True):
        assert 0 < len(detections) <= 100
        assert detections.boxes.min() >= 0
        assert detections.boxes[:, 2].max() <= width
        assert detections.boxes[:, 3].max() <= height
        assert detections.scores.tolist() == sorted(detections.scores.tolist(), reverse=True)
        assert detections.labels.dtype == torch.int64
        assert detections.masks is None
        if "rpn" in kind:
            assert len(detections) == 20
            assert not detections.labels.any()


@pytest.mark.parametrize("kind", [*LOSSES, "two_stage_rpn"])
def test_what_proposes_tells_so(kind):
    assert getattr(build(kind), "proposes", False) == (kind in ("rpn", "fcos_rpn"))


@pytest.mark.parametrize("kind", ["rpn", "fcos_rpn"])
def test_proposals_are_the_heads_in_the_original_image(kind, make_target):
    model, images, target = build(kind).eval(), torch.randn(1, 3, 64, 96), make_target([])
    with torch.no_grad():
        (found,) = model(images, [target])
        ((boxes, scores),) = model.bbox_head.propose(model.neck(model.backbone(images)), [target])
    torch.testing.assert_close(found.boxes, 2 * boxes)
    assert torch.equal(found.scores, scores)


def test_a_head_that_proposes_sees_objects_of_one_class(make_target):
    """Labels 1 and 2 would be background to a head of one class."""
    for kind, prefix in (("fcos_rpn", ""), ("two_stage", "rpn_")):
        model, images, target = build(kind).train(), torch.randn(1, 3, 64, 96), make_target(OBJECTS)
        target.labels = torch.tensor([1, 2])
        others = model(images, [target])
        target.labels = torch.tensor([0, 0])
        zeros = model(images, [target])
        assert others[f"{prefix}loss_bbox"] > 0
        for name in ("loss_cls", "loss_bbox", "loss_centerness"):
            assert torch.equal(others[prefix + name], zeros[prefix + name])


class TwoMethods(torch.nn.Module):
    """A dense head with no more than it needs: a proposal for the whole image, and a loss."""

    def __init__(self):
        super().__init__()
        self.score = torch.nn.Parameter(torch.tensor(0.5))

    def loss(self, features, targets):
        return {"loss_score": (1 - self.score).square()}

    def propose(self, features, targets):
        whole = [torch.tensor([[0.0, 0, t.size[1], t.size[0]]]) for t in targets]
        return [(boxes, self.score.detach()[None]) for boxes in whole]


def test_any_dense_head_proposes_for_two_stages(make_target):
    model = TwoStageDetector(backbone(), coarse_fpn(), TwoMethods(), roi_head())
    losses = model.train()(torch.randn(1, 3, 64, 96), [make_target(OBJECTS)])
    assert set(losses) == {"rpn_loss_score", "loss_cls", "loss_bbox", "acc"}
    with torch.no_grad():
        (found,) = model.eval()(torch.randn(1, 3, 64, 96), [make_target([])])
    assert len(found) == 3
    alone = RPN(backbone(), coarse_fpn(), TwoMethods()).eval()
    assert alone(torch.randn(1, 3, 64, 96), [make_target([])])[0].boxes.tolist() == [[0, 0, 192, 128]]


def test_a_recipe_gives_the_rpn_one_class_whatever_it_says():
    fcos = {"type": "FCOSHead", "feat_channels": 8, "num_groups": 4}
    parts = {
        "backbone": {"type": "ResNet", "depth": 18, "base_channels": 4},
        "neck": {"type": "FPN", "out_channels": 8, "start_level": 1, "add_extra_convs": "on_output"},
    }
    head = {"type": "Shared2FCBBoxHead", "fc_out_channels": 8}
    roi = {"type": "StandardRoIHead", "bbox_roi_extractor": {"type": "SingleRoIExtractor", "output_size": 7}}
    for written in ({}, {"num_classes": 80}):
        two = {
            "type": "TwoStageDetector",
            **parts,
            "rpn_head": {**fcos, **written},
            "roi_head": {**roi, "bbox_head": head},
        }
        model = MODELS.build(two, {"num_classes": 5})
        assert (model.rpn_head.num_classes, model.roi_head.num_classes) == (1, 5)
        model = MODELS.build({"type": "RPN", **parts, "rpn_head": {**fcos, **written}}, {"num_classes": 5})
        assert model.bbox_head.num_classes == 1
    model = MODELS.build({"type": "SingleStageDetector", **parts, "bbox_head": fcos}, {"num_classes": 5})
    assert model.num_classes == model.bbox_head.num_classes == 5
    assert model.bbox_head.level_strides == COARSE


def test_what_does_not_fit():
    with pytest.raises(
        InputError, match="TwoStageDetector: rpn_head has num_classes 3, but a head that proposes has 1"
    ):
        TwoStageDetector(backbone(), coarse_fpn(), fcos_head(3), roi_head())
    with pytest.raises(InputError, match="RPN: rpn_head has num_classes 3"):
        RPN(backbone(), coarse_fpn(), fcos_head(3))
    with pytest.raises(InputError, match="RPN: rpn_head cannot be a Linear, which has no loss, propose"):
        RPN(backbone(), coarse_fpn(), torch.nn.Linear(1, 1))
    with pytest.raises(InputError, match="SingleStageDetector: bbox_head cannot be a RPNHead, which has no predict"):
        SingleStageDetector(backbone(), FPN((4, 8, 16, 32), 8), RPNHead(8, FINE))
    with pytest.raises(InputError, match=r"SingleStageDetector: bbox_head has the strides \[8, .*neck's are \[4, 8"):
        SingleStageDetector(backbone(), FPN((4, 8, 16, 32), 8), fcos_head(3))
    with pytest.raises(InputError, match=r"RPN: bbox_head has the strides \[4, 8\], but the neck's are \[4, 8, 16"):
        RPN(backbone(), FPN((4, 8, 16, 32), 8), RPNHead(8, (4, 8)))
    with pytest.raises(InputError, match=r"RPN: bbox_head has in_channels 8, but the neck's levels have \[4, 4"):
        RPN(backbone(), FPN((4, 8, 16, 32), 4), RPNHead(8, FINE))


class TestWeightsThatMove:
    def load(self, stored, model, tmp_path):
        save_file(stored, tmp_path / "stored.safetensors")
        return load_weights(model, tmp_path / "stored.safetensors")

    def test_from_one_stage_into_the_rpn_of_two(self, tmp_path):
        """FCOS's three classes do not fit the one class of a head that proposes."""
        stored, model = build("fcos").state_dict(), build("two_stage")
        classes = model.rpn_head.conv_cls.weight.detach().clone()
        report = self.load(stored, model, tmp_path)
        assert dict(report.left_out) == {
            "rpn_head.conv_cls.weight": "shape [3, 8, 3, 3], the model's is [1, 8, 3, 3]",
            "rpn_head.conv_cls.bias": "shape [3], the model's is [1]",
        }
        assert all(name.startswith("roi_head.") for name in report.missing)
        assert torch.equal(model.rpn_head.conv_reg.weight, stored["bbox_head.conv_reg.weight"])
        assert torch.equal(model.rpn_head.scales[2].scale, stored["bbox_head.scales.2.scale"])
        assert torch.equal(model.rpn_head.conv_cls.weight, classes)

    @pytest.mark.parametrize(("alone", "full"), [("fcos_rpn", "two_stage"), ("rpn", "two_stage_rpn")])
    def test_proposals_from_a_detector_of_two_stages_and_back(self, alone, full, tmp_path):
        torch.manual_seed(5)
        two, one = build(full), build(alone)
        for weight in two.parameters():
            torch.nn.init.normal_(weight)
        report = self.load(two.state_dict(), one, tmp_path)
        assert report.missing == []
        assert {name.split(".")[0] for name, _ in report.left_out} == {"roi_head"}
        for name, weight in one.bbox_head.named_parameters():
            assert torch.equal(weight, two.get_parameter(f"rpn_head.{name}"))
        again = build(full)
        report = self.load(one.state_dict(), again, tmp_path)
        assert report.left_out == []
        assert {name.split(".")[0] for name in report.missing} == {"roi_head"}
        for name, weight in again.rpn_head.named_parameters():
            assert torch.equal(weight, two.get_parameter(f"rpn_head.{name}"))

    def test_heads_of_one_name_stay_where_they_are(self, tmp_path):
        stored = build("two_stage").state_dict()
        stored["bbox_head.conv_reg.weight"] = stored["rpn_head.conv_reg.weight"] + 1
        for kind, place in (("two_stage", "rpn_head"), ("fcos", "bbox_head")):
            model = build(kind)
            self.load(stored, model, tmp_path)
            loaded = model.get_parameter(f"{place}.conv_reg.weight")
            assert torch.equal(loaded, stored[f"{place}.conv_reg.weight"])

    def test_fcos_of_early_checkpoints(self, tmp_path):
        stored = build("fcos").state_dict()
        early = {name.replace("bbox_head.conv_", "bbox_head.fcos_"): weight for name, weight in stored.items()}
        assert "bbox_head.fcos_centerness.bias" in early
        report = self.load(early, build("fcos"), tmp_path)
        assert report.left_out == report.missing == []


def fcos_full_size(head):
    return (
        ResNet(50, style="caffe"),
        FPN((256, 512, 1024, 2048), start_level=1, add_extra_convs="on_output", relu_before_extra_convs=True),
        head,
    )


@pytest.mark.parametrize(
    ("name", "make"),
    [
        (
            "fcos_r50-caffe_fpn_gn-head_1x_coco",
            lambda: SingleStageDetector(*fcos_full_size(FCOSHead(256, COARSE, 80))),
        ),
        (
            "faster-rcnn_r50_fpn_fcos-rpn_1x_coco",
            lambda: TwoStageDetector(
                *fcos_full_size(FCOSHead(256, COARSE, 1)),
                StandardRoIHead(SingleRoIExtractor(7, COARSE), Shared2FCBBoxHead(256, 80)),
            ),
        ),
        (
            "rpn_r50_fpn_1x_coco",
            lambda: RPN(ResNet(50), FPN((256, 512, 1024, 2048)), RPNHead((256,) * 5, FINE)),
        ),
    ],
)
def test_full_size_names_and_shapes(name, make, parity):
    with torch.device("meta"):
        model = make()
    shapes = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    assert shapes == parity("full_size_keys").json(name)
