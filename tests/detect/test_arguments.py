"""Values that no part can work with: refused with one line, in the recipe where they can be, else where parts meet."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from detect.config import build_model, load_config
from detect.models.anchors import AnchorGenerator
from detect.models.assign import RandomSampler
from detect.models.roi_heads.bbox_head import Shared2FCBBoxHead
from dpipe.errors import InputError

DEMO = "demo_streets"
RPN, ROI, AUX = "model.rpn_head", "model.roi_head", "model.auxiliary_head"
NO_ROIS = (
    "type: TwoStageDetector, backbone: {type: ResNet}, neck: {type: FPN}, rpn_head: {type: RPNHead}, "
    "roi_head: {type: own_parts.Boxless}"
)
HEAD, MASK_HEAD = f"{ROI}.bbox_head.1", f"{ROI}.mask_head.0"


class EverySecond(RandomSampler):
    """A sampler of a user's own, by inheritance."""


class FirstFew:
    """A sampler of a user's own, with nothing in common but the method."""

    add_gt_as_proposals = True

    def __init__(self, num: int = 5) -> None:
        self.num = num

    def choose(self, assignment):
        indices = assignment.gt_indices
        return (indices >= 0).nonzero().squeeze(1)[: self.num], (indices == -1).nonzero().squeeze(1)[: self.num]


class Boxless(nn.Module):
    """Something that is no head at all."""


@pytest.fixture(autouse=True)
def own_parts(monkeypatch):
    """Makes this file's classes importable under a name that a recipe can say."""
    import sys

    monkeypatch.setitem(
        sys.modules, "own_parts", SimpleNamespace(FirstFew=FirstFew, EverySecond=EverySecond, Boxless=Boxless)
    )


@pytest.mark.parametrize(
    ("key", "values"),
    [
        (f"{RPN}.scales", ("[]", "[.nan]", "[0]")),
        (f"{RPN}.ratios", ("[]", "[-1]", "[.inf]")),
        (f"{RPN}.target_stds", ("[0.1]", "[0, 0, 0, 0]")),
        (f"{RPN}.nms_iou", ("7", ".nan", "-0.1")),
        (f"{RPN}.min_size", ("-1", ".inf")),
        (f"{RPN}.strides", ("[]", "[4, 8, 16, 32, 0]")),
        *((f"{RPN}.{name}_{what}", ("0", "-5")) for name in ("train", "test") for what in ("nms_pre", "max_per_img")),
        (f"{RPN}.pad_divisor", ("0",)),
        (f"{RPN}.feat_channels", ("0", "-1")),
        (f"{RPN}.sampler.num", ("0", "-3")),
        (f"{RPN}.sampler.pos_fraction", ("7", "-1")),
        (f"{RPN}.assigner.pos_iou_thr", ("-1", "1.5")),
        (f"{RPN}.assigner.min_pos_iou", (".nan",)),
        (f"{RPN}.assigner.ignore_iof_thr", ("2",)),
        (f"{RPN}.loss_bbox.beta", ("-1",)),
        (f"{RPN}.loss_cls.loss_weight", (".inf", "-1")),
        (f"{HEAD}.fc_out_channels", ("0",)),
        (f"{HEAD}.roi_feat_size", ("0",)),
        (f"{HEAD}.num_classes", ("0",)),
        (f"{HEAD}.target_stds", ("[0.1, 0.1]",)),
        (f"{MASK_HEAD}.num_convs", ("-1",)),
        (f"{MASK_HEAD}.conv_out_channels", ("0",)),
        (f"{ROI}.bbox_roi_extractor.output_size", ("0",)),
        (f"{ROI}.bbox_roi_extractor.num_levels", ("0",)),
        (f"{ROI}.bbox_roi_extractor.sampling_ratio", ("-4",)),
        (f"{ROI}.max_per_img", ("0", "-1")),
        (f"{ROI}.mask_thr", ("3",)),
        (f"{ROI}.score_thr", ("-1",)),
        (f"{ROI}.nms_iou", ("1.1",)),
        (f"{ROI}.stage_loss_weights", ("[1, 1, -1]",)),
        (f"{AUX}.loss_weight", ("-1",)),
        (f"{AUX}.mask_size", ("0",)),
        ("model.backbone.base_channels", ("0",)),
        ("model.neck.out_channels", ("0",)),
        ("model.neck.num_outs", ("0",)),
    ],
)
def test_values_out_of_range_are_told_with_their_key(key, values):
    for value in values:
        with pytest.raises(InputError, match=rf"command line: {key}.*: expected .*, got"):
            load_config(DEMO, [f"{key}={value}"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "model.neck.in_channels=[8,8,8,8]",
            "neck has the in_channels [8, 8, 8, 8], but the backbone's levels have [32, 64, 128, 256]",
        ),
        (
            "model.neck.strides=[8,16,32,64]",
            "neck has the strides [8, 16, 32, 64], but the backbone's levels have [4, 8, 16, 32]",
        ),
        (f"{RPN}.strides=[4]", "rpn_head has the strides [4], but the neck's are [4, 8, 16, 32, 64]"),
        (f"{RPN}.strides=[8,16,32,64,128]", "rpn_head has the strides [8, 16, 32, 64, 128]"),
        (f"{ROI}.bbox_roi_extractor.strides=[8,16,32,64]", "roi_head.bbox_roi_extractor has the strides [8, 16, 32"),
        (f"{ROI}.bbox_roi_extractor.num_levels=9", "SoftRoIExtractor: num_levels is 9, but there are 5 levels"),
        (
            f"{ROI}.mask_roi_extractor={{type: SingleRoIExtractor, num_levels: 6}}",
            "SingleRoIExtractor: num_levels is 6, but there are 5 levels",
        ),
        (f"{AUX}.strides=[4]", "auxiliary_head has the strides [4]"),
        (f"{RPN}.in_channels=7", "rpn_head has in_channels 7, but the neck's levels have [64, 64, 64, 64, 64]"),
        (f"{RPN}.assigner.pos_iou_thr=0.2", "MaxIoUAssigner: neg_iou_thr 0.3 is above pos_iou_thr 0.2"),
        (f"{RPN}.loss_cls={{use_sigmoid: false, class_weight: [1]}}", "needs a class_weight of 2 numbers, got 1"),
        (f"{RPN}.loss_bbox={{_delete_: true, type: CrossEntropyLoss}}", "RPNHead: loss_bbox cannot be a Cross"),
        (f"{RPN}.loss_cls={{_delete_: true, type: ResNet}}", "ResNet, whose forward has no avg_factor"),
        (f"{HEAD}.loss_cls={{type: torch.nn.CrossEntropyLoss}}", "Shared2FCBBoxHead: loss_cls cannot be a Cross"),
        (f"{HEAD}.loss_cls={{type: CrossEntropyLoss, use_sigmoid: true}}", "loss_cls needs use_sigmoid false"),
        (f"{MASK_HEAD}.loss_mask={{type: CrossEntropyLoss}}", "FCNMaskHead: loss_mask needs use_sigmoid true"),
        (f"{HEAD}.roi_feat_size=6", "bbox_roi_extractor has output_size 7, but the bbox_head's roi_feat_size is 6"),
        (f"{HEAD}={{_delete_: true, type: FCNMaskHead}}", "bbox_head cannot be a FCNMaskHead, which has no reg_class"),
        (f"{ROI}.bbox_roi_extractor={{_delete_: true, type: RPNHead}}", "cannot be a RPNHead, which has no output_"),
        (f"{ROI}.mask_head.2={{type: L1Loss}}", "CascadeRoIHead: mask_head cannot be a L1Loss, which has no loss_mask"),
        (f"{HEAD}.num_classes=5", "CascadeRoIHead: all heads need the same num_classes, got [3, 5, 3, 3, 3, 3]"),
        (
            f"{AUX}.bbox_head={{type: Shared2FCBBoxHead, num_classes: 5}}",
            "AuxiliaryHead: all heads need the same num_classes, got [5, 3]",
        ),
        (f"{AUX}.bbox_size=14", "AuxiliaryHead: bbox_size is 14, but the bbox_head's roi_feat_size is 7"),
        (f"{RPN}={{_delete_: true, type: own_parts.Boxless}}", "rpn_head cannot be a Boxless, which has no loss, prop"),
        ("model.neck={_delete_: true, type: FPN}", "auxiliary_head needs raw laterals, which FPN does not hand out"),
        (f"model={{_delete_: true, {NO_ROIS}}}", "roi_head cannot be a Boxless, which has no sample, l"),
    ],
)
def test_parts_that_do_not_fit_each_other(override, message):
    config = load_config(DEMO, [override])
    with pytest.raises(InputError) as error:
        build_model(config, 3)
    assert message in str(error.value)
    assert "command line: model" in str(error.value)
    assert "\n" not in str(error.value)


def test_classes_that_contradict_the_data():
    heads = [f"{ROI}.{kind}_head.{stage}.num_classes=5" for kind in ("bbox", "mask") for stage in range(3)]
    config = load_config(DEMO, heads)
    assert build_model(config, 5) is not None
    with pytest.raises(InputError, match=r"model\.roi_head: has num_classes 5, but the data has 3 classes$"):
        build_model(config, 3)


@pytest.mark.parametrize("name", ["strides", "scales", "ratios"])
@pytest.mark.parametrize("values", [(), (0,), (-1.0,), (float("nan"),)])
def test_anchors_need_shapes(name, values):
    with pytest.raises(InputError, match=f"anchors need {name} above 0"):
        AnchorGenerator(**{"strides": (4,), "scales": (8.0,), "ratios": (1.0,), name: values})


@pytest.mark.parametrize("own", ["FirstFew", "EverySecond"])
def test_samplers_of_ones_own_are_accepted(own):
    extra = ", pos_fraction: 0.5" if own == "EverySecond" else ""
    sampler = f"{{_delete_: true, type: own_parts.{own}, num: 3{extra}}}"
    model = build_model(load_config(DEMO, [f"{RPN}.sampler={sampler}", f"{ROI}.sampler={sampler}"]), 3)
    assert type(model.rpn_head.sampler).__name__ == type(model.roi_head.sampler).__name__ == own
    with pytest.raises(InputError, match=r"rpn_head\.sampler: expected a part \(Sampler\) or null, got a own_parts\."):
        load_config(DEMO, [f"{RPN}.sampler={{_delete_: true, type: own_parts.Boxless}}"])


@pytest.mark.parametrize(("transforms", "divisor"), [("[{type: Pad, size_divisor: 64}]", 64), ("[{type: Pad}]", 32)])
def test_the_divisor_of_padding_comes_from_the_recipe(transforms, divisor):
    normalize = "{type: Normalize, mean: [1, 1, 1], std: [1, 1, 1]}"
    override = f"data.train_transforms={transforms.replace('[', f'[{normalize}, ', 1)}"
    assert build_model(load_config(DEMO, [override]), 3).rpn_head.pad_divisor == divisor
    without = load_config(DEMO, [f"data.train_transforms=[{normalize}]"])
    assert build_model(without, 3).rpn_head.pad_divisor == 1
    assert build_model(load_config(DEMO, [override, f"{RPN}.pad_divisor=16"]), 3).rpn_head.pad_divisor == 16


def test_heads_of_code_are_checked_as_well():
    with pytest.raises(InputError, match="loss_bbox cannot be a MSELoss"):
        Shared2FCBBoxHead(8, 3, loss_bbox=nn.MSELoss())
    assert Shared2FCBBoxHead(8, 3, roi_feat_size=2)(torch.zeros(1, 8, 2, 2))[0].shape == (1, 4)
