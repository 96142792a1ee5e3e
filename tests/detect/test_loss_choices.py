"""Every loss where it fits: steps of a tiny detector, values by hand, and refusals where it does not fit."""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from detect import MODELS, weighted_loss
from detect.config import build_model, load_config
from detect.models.assign import RandomSampler, Samples
from detect.models.boxes import DeltaCoder
from detect.models.dense_heads.rpn import RPNHead
from detect.models.detectors import total_loss
from detect.models.losses import CIoULoss, GIoULoss, IoULoss, L1Loss
from detect.models.roi_heads.bbox_head import Shared2FCBBoxHead
from detect.models.roi_heads.boxes import box_losses, class_deltas
from dpipe.errors import InputError
from dpipe.polygons import Polygons

CLASSES = 3
BY_SIGMOID = [
    {"type": "CrossEntropyLoss", "use_sigmoid": True, "class_weight": [2.0]},
    {"type": "FocalLoss"},
    {"type": "GHMC", "momentum": 0.75},
]
OF_BOXES = [
    *({"type": "IoULoss", "mode": mode} for mode in ("linear", "square", "log")),
    *({"type": name} for name in ("GIoULoss", "DIoULoss", "CIoULoss", "L1Loss", "SmoothL1Loss", "BalancedL1Loss")),
    {"type": "GHMR", "momentum": 0.75},
]
RPN, ROI, AUX = "model.rpn_head", "model.roi_head", "model.auxiliary_head"


def with_masks(target):
    """The target with its boxes as masks."""
    x1, y1, x2, y2 = target.boxes.unbind(1)
    rings = torch.stack([x1, y1, x2, y1, x2, y2, x1, y2], dim=1).tolist()
    return replace(target, masks=Polygons.from_coco([[ring] for ring in rings]), has_mask=None)


def named(part):
    """A name of a loss for the report of the tests."""
    return part["type"] + part.get("mode", "")


def check_dense_head(head, make_target, always_above_0):
    """Losses and gradients of an image with objects, and of a batch without any."""
    features = [torch.randn(2, 8, max(8 >> level, 1), max(12 >> level, 1)) for level in range(5)]
    for objects in ([(10, 10, 50, 50), (40, 20, 90, 60)], []):
        losses = head.loss(features, [make_target(objects), make_target([])])
        head.zero_grad()
        total_loss(losses).backward()
        assert all(parameter.grad.isfinite().all() for parameter in head.parameters())
        for name, value in losses.items():
            assert (value > 0) == (bool(objects) or name in always_above_0), name


def tiny_detector(by_sigmoid, of_boxes):
    """All places of losses but the cascade's, whose stages are as the one stage here."""
    torch.manual_seed(0)
    by_softmax = {"type": "CrossEntropyLoss", "class_weight": [1.0, 2.0, 3.0, 0.5]}
    bbox_head = {"type": "Shared2FCBBoxHead", "fc_out_channels": 16, "loss_cls": by_softmax, "loss_bbox": of_boxes}
    mask_head = {"type": "FCNMaskHead", "num_convs": 1, "conv_out_channels": 8, "loss_mask": by_sigmoid}
    node = {
        "type": "TwoStageDetector",
        "backbone": {"type": "ResNet", "depth": 18, "base_channels": 4, "frozen_stages": -1},
        "neck": {"type": "AugFPN", "out_channels": 8},
        "rpn_head": {
            "type": "RPNHead",
            "feat_channels": 8,
            "train_max_per_img": 20,
            "loss_cls": by_sigmoid,
            "loss_bbox": of_boxes,
        },
        "roi_head": {
            "type": "StandardRoIHead",
            "bbox_roi_extractor": {"type": "SingleRoIExtractor", "output_size": 7},
            "bbox_head": bbox_head,
            "mask_roi_extractor": {"type": "SingleRoIExtractor", "output_size": 14},
            "mask_head": mask_head,
        },
        "auxiliary_head": {"type": "AuxiliaryHead", "bbox_head": bbox_head, "mask_head": mask_head},
    }
    return MODELS.build(node, {"num_classes": CLASSES})


@pytest.mark.parametrize(
    ("by_sigmoid", "of_boxes"),
    list(zip(itertools.cycle(BY_SIGMOID), OF_BOXES)),
    ids=named,
)
def test_training_steps(by_sigmoid, of_boxes, make_target):
    model = tiny_detector(by_sigmoid, of_boxes).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    images = torch.randn(2, 3, 64, 96)
    for objects in ([(10, 10, 50, 50), (40, 20, 90, 60)], []):
        losses = model(images, [with_masks(make_target(objects)), with_masks(make_target([]))])
        optimizer.zero_grad()
        total_loss(losses).backward()
        named = dict(model.named_parameters())
        for name, parameter in named.items():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
        for name, value in losses.items():
            assert value.shape == (), name
            if "loss" in name:
                assert value == 0 if not objects and name.endswith(("bbox", "mask")) else value > 0, name
        for name in ("rpn_head.rpn_reg", "roi_head.bbox_head.fc_reg", "auxiliary_head.bbox_head.fc_reg"):
            assert (named[f"{name}.weight"].grad.abs().sum() > 0) == bool(objects), name
        optimizer.step()


@pytest.mark.parametrize("of_boxes", OF_BOXES, ids=named)
@pytest.mark.parametrize("by_sigmoid", BY_SIGMOID, ids=named)
def test_fcos(by_sigmoid, of_boxes, make_target):
    """Every combination; its boxes are decoded whatever the loss."""
    torch.manual_seed(0)
    losses = {"loss_cls": {**by_sigmoid}, "loss_bbox": of_boxes, "loss_centerness": by_sigmoid}
    if "class_weight" in by_sigmoid:
        losses["loss_cls"]["class_weight"] = [1.0, 2.0, 0.5]
    part = {"type": "FCOSHead", "in_channels": 8, "strides": [8, 16, 32, 64, 128], "feat_channels": 8}
    part.update(stacked_convs=1, num_groups=4, **losses)
    head = MODELS.build(part, {"num_classes": CLASSES})
    check_dense_head(head, make_target, always_above_0=("loss_cls",))


@pytest.mark.parametrize("of_boxes", OF_BOXES, ids=named)
@pytest.mark.parametrize("by_sigmoid", BY_SIGMOID, ids=named)
def test_rpn(by_sigmoid, of_boxes, make_target):
    """Every combination."""
    torch.manual_seed(0)
    part = {"type": "RPNHead", "in_channels": 8, "strides": [8, 16, 32, 64, 128], "feat_channels": 8}
    head = MODELS.build({**part, "loss_cls": by_sigmoid, "loss_bbox": of_boxes})
    check_dense_head(head, make_target, always_above_0=("loss_rpn_cls",))


@pytest.mark.parametrize("agnostic", [True, False])
@pytest.mark.parametrize("loss", [IoULoss(), GIoULoss(), CIoULoss(), L1Loss()])
def test_bbox_heads_compare_boxes_or_deltas(loss, agnostic):
    torch.manual_seed(0)
    head = Shared2FCBBoxHead(8, CLASSES, fc_out_channels=4, reg_class_agnostic=agnostic, loss_bbox=loss)
    boxes = torch.tensor([[0.0, 0, 20, 30], [10, 5, 40, 45], [50, 50, 60, 60]])
    gt_boxes = torch.tensor([[2.0, 1, 25, 28], [8, 8, 36, 50]])
    labels = torch.tensor([2, 0])
    whole = Samples(boxes, torch.tensor([0, 1]), gt_boxes, labels, torch.zeros(2, dtype=torch.bool))
    empty = Samples(boxes, labels[:0], gt_boxes[:0], labels[:0], torch.zeros(0, dtype=torch.bool))
    deltas = torch.randn(6, 4 if agnostic else 4 * CLASSES)
    found = box_losses(head, torch.randn(6, CLASSES + 1), deltas, [empty, whole])["loss_bbox"]
    own = class_deltas(head, deltas, torch.tensor([3, 4]), labels)
    coder = DeltaCoder((0.1, 0.1, 0.2, 0.2))
    if loss.takes_boxes:
        expected = loss(coder.decode(boxes[:2], own), gt_boxes, avg_factor=6)
    else:
        expected = loss(own, coder.encode(boxes[:2], gt_boxes), avg_factor=6)
    torch.testing.assert_close(found, expected)


def test_decoded_boxes_are_not_clipped():
    """A box that reaches beyond its image still learns from the part outside."""
    head = Shared2FCBBoxHead(8, 1, fc_out_channels=4, reg_class_agnostic=True, loss_bbox=IoULoss(mode="linear"))
    box = torch.tensor([[0.0, 0, 10, 10]])
    sample = Samples(box, torch.tensor([0]), box, torch.tensor([0]), torch.zeros(1, dtype=torch.bool))
    deltas = torch.tensor([[-5.0, 0, 0, 0]])  # half a width to the left
    loss = box_losses(head, torch.zeros(1, 2), deltas, [sample])["loss_bbox"]
    assert loss.item() == pytest.approx(1 - 50 / 150)


@pytest.mark.parametrize("loss", [GIoULoss(loss_weight=2.0), L1Loss(loss_weight=2.0)])
def test_an_rpn_compares_boxes_or_deltas(loss, make_target):
    torch.manual_seed(0)
    everything = RandomSampler(100_000, 0.5, add_gt_as_proposals=False)
    head = RPNHead(8, (8, 16), feat_channels=8, target_stds=(0.5, 0.5, 1, 1), sampler=everything, loss_bbox=loss)
    torch.nn.init.normal_(head.rpn_reg.weight, std=0.3)
    features = [torch.randn(2, 8, 8, 12), torch.randn(2, 8, 4, 6)]
    targets = [make_target([(3, 3, 61, 60), (30, 2, 90, 61)]), make_target([(20, 10, 80, 50)])]
    found = head.loss(features, targets)["loss_rpn_bbox"]

    outputs = head(features)
    anchors, deltas = torch.cat(head.anchors.grids(outputs.sizes)), torch.cat(outputs.flat_deltas(), dim=1)
    samples = head.sample_anchors(anchors, outputs.sizes, targets)
    assert sum(len(sample.positives) for sample in samples) > 3
    expected = torch.zeros(())
    for sample, target, image_deltas in zip(samples, targets, deltas, strict=True):
        priors, gt_boxes = anchors[sample.positives], target.boxes[sample.gt_indices]
        if loss.takes_boxes:
            pred, goal = head.coder.decode(priors, image_deltas[sample.positives]), gt_boxes
        else:
            pred, goal = image_deltas[sample.positives], head.coder.encode(priors, gt_boxes)
        expected = expected + loss(pred, goal, reduction_override="sum")
    torch.testing.assert_close(found, expected / sum(sample.avg_factor for sample in samples))


@weighted_loss
def huber_or_distance(pred, target, *, delta=1.0):
    """A loss of each element that a user might write."""
    difference = (pred - target).abs()
    return torch.where(difference < delta, 0.5 * difference**2, delta * (difference - 0.5 * delta))


class OwnLoss(nn.Module):
    """The least that a user's loss has to have."""

    takes_boxes = False

    def __init__(self, delta: float = 1.0, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.delta = delta
        self.loss_weight = loss_weight

    def forward(self, pred, target, weight=None, avg_factor=None, reduction_override="mean"):
        options = {"avg_factor": avg_factor, "delta": self.delta}
        return self.loss_weight * huber_or_distance(pred, target, weight, reduction_override, **options)


class OwnBoxLoss(OwnLoss):
    """The same of boxes in pixels."""

    takes_boxes = True


@pytest.mark.parametrize("name", ["OwnLoss", "OwnBoxLoss"])
def test_losses_of_ones_own_train(name, make_target, monkeypatch):
    monkeypatch.setitem(sys.modules, "own_losses", SimpleNamespace(OwnLoss=OwnLoss, OwnBoxLoss=OwnBoxLoss))
    part = {"type": f"own_losses.{name}", "delta": 0.5, "loss_weight": 2.0}
    model = tiny_detector(BY_SIGMOID[0], part).train()
    seen = []
    model.roi_head.bbox_head.loss_bbox.register_forward_hook(lambda _, inputs, out: seen.append(inputs[1]))
    losses = model(torch.randn(1, 3, 64, 96), [with_masks(make_target([(10, 10, 50, 50)]))])
    total_loss(losses).backward()
    assert losses["loss_bbox"] > 0
    is_box = torch.equal(seen[0], torch.tensor([[10.0, 10, 50, 50]]).expand_as(seen[0]))
    assert is_box == (name == "OwnBoxLoss")


@pytest.mark.parametrize(
    ("place", "part", "message"),
    [
        (f"{RPN}.loss_cls", "{type: GIoULoss}", "RPNHead: loss_cls cannot be a GIoULoss, which is a loss of boxes"),
        (f"{RPN}.loss_cls", "{type: L1Loss}", "RPNHead: loss_cls cannot be a L1Loss, which is a loss of boxes"),
        (f"{RPN}.loss_cls", "{type: GHMR}", "RPNHead: loss_cls cannot be a GHMR, which is a loss of boxes"),
        (f"{RPN}.loss_bbox", "{type: FocalLoss}", "RPNHead: loss_bbox cannot be a FocalLoss, which is a loss of cl"),
        (f"{RPN}.loss_bbox", "{type: GHMC}", "RPNHead: loss_bbox cannot be a GHMC, which is a loss of classes"),
        (
            f"{RPN}.loss_bbox",
            "{type: DIoULoss, reduction: sum}",
            "RPNHead: loss_bbox needs the reduction mean, got sum",
        ),
        (
            f"{RPN}.loss_cls",
            "{type: CrossEntropyLoss, use_sigmoid: true, class_weight: [1, 1]}",
            "RPNHead: loss_cls needs a class_weight of 1 numbers, got 2",
        ),
        (f"{ROI}.bbox_head.1.loss_cls", "{type: IoULoss}", "Shared2FCBBoxHead: loss_cls cannot be a IoULoss"),
        (f"{ROI}.bbox_head.1.loss_cls", "{type: FocalLoss}", "loss_cls needs use_sigmoid false, got true"),
        (
            f"{ROI}.bbox_head.1.loss_cls",
            "{type: CrossEntropyLoss, class_weight: [1, 1, 1]}",
            "Shared2FCBBoxHead: loss_cls needs a class_weight of 4 numbers, got 3",
        ),
        (f"{ROI}.bbox_head.1.loss_bbox", "{type: GHMC}", "Shared2FCBBoxHead: loss_bbox cannot be a GHMC"),
        (f"{ROI}.mask_head.1.loss_mask", "{type: CIoULoss}", "FCNMaskHead: loss_mask cannot be a CIoULoss, which is a"),
        (f"{ROI}.mask_head.1.loss_mask", "{type: FocalLoss, reduction: none}", "loss_mask needs the reduction mean"),
        (f"{AUX}.bbox_head", "{type: Shared2FCBBoxHead, loss_cls: {type: GIoULoss}}", "loss_cls cannot be a GIoULoss"),
    ],
)
def test_losses_that_do_not_fit(place, part, message):
    config = load_config("demo_streets", [f"{place}={{_delete_: true, {part[1:]}"])
    with pytest.raises(InputError) as error:
        build_model(config, CLASSES)
    assert message in str(error.value)
    assert f": {place.rpartition('.')[0]}" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("mode", ["linear", "harmonized"])
def test_consistent_supervision_is_the_sum_of_its_levels(mode, make_target):
    """Also for losses that are no sums over rows: each level has a histogram of its own."""
    harmonized = mode == "harmonized"
    by_sigmoid = {"type": "GHMC"} if harmonized else {"type": "CrossEntropyLoss", "use_sigmoid": True}
    model = tiny_detector(by_sigmoid, {"type": "GHMR" if harmonized else "L1Loss"})
    head = model.auxiliary_head
    targets = [with_masks(make_target([box])) for box in ((10, 10, 50, 50), (5, 8, 40, 60))]
    samples = model.roi_head.sample([], [torch.tensor([[12.0, 8.0, 48.0, 52.0], [60, 5, 80, 30]])] * 2, targets)
    laterals = [(1 + level) * torch.randn(2, 8, 64 // s, 96 // s) for level, s in enumerate((4, 8, 16))]
    together = head.loss(laterals, samples, targets)
    alone = []
    for level, lateral in enumerate(laterals):
        head.level_strides = ((4, 8, 16)[level],)
        alone.append(head.loss([lateral], samples, targets))
    for name, value in together.items():
        torch.testing.assert_close(value, sum(losses[name] for losses in alone))
        assert len({losses[name].item() for losses in alone}) == 3
