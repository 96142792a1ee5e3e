"""Two-stage detectors where there is little to learn, consistent supervision, names of full-size models."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from detect.models.assign import MaxIoUAssigner, RandomSampler
from detect.models.backbones import ResNet
from detect.models.dense_heads.rpn import RPNHead
from detect.models.detections import Detections
from detect.models.detectors import TwoStageDetector, total_loss
from detect.models.masks import mask_targets
from detect.models.necks.augfpn import AugFPN
from detect.models.necks.fpn import FPN
from detect.models.roi_extractors import SingleRoIExtractor, SoftRoIExtractor, extract_all_levels
from detect.models.roi_heads.auxiliary import AuxiliaryHead
from detect.models.roi_heads.bbox_head import Shared2FCBBoxHead
from detect.models.roi_heads.boxes import box_losses, refine_rois
from detect.models.roi_heads.cascade import CascadeRoIHead
from detect.models.roi_heads.mask_head import FCNMaskHead
from detect.models.roi_heads.standard import StandardRoIHead
from dpipe.errors import InputError
from dpipe.polygons import Polygons
from dpipe.target import Target

STRIDES = (4, 8, 16, 32, 64)
CLASSES = 3
STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))


def make_target(boxes, size=(64, 96)):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    x1, y1, x2, y2 = boxes.unbind(1)
    rings = torch.stack([x1, y1, x2, y1, x2, y2, x1, y2], dim=1).tolist()
    return Target(
        image_id=0,
        sample=0,
        file_name="image.png",
        size=size,
        original_size=(size[0] * 2, size[1] * 2),
        matrix=np.array([[0.5, 0, 0], [0, 0.5, 0]]),
        boxes=boxes,
        labels=torch.arange(len(boxes)) % CLASSES,
        masks=Polygons.from_coco([[ring] for ring in rings]),
        annotation_ids=torch.arange(len(boxes)),
        ignore_boxes=torch.zeros(0, 4),
    )


def bbox_head(**options):
    return Shared2FCBBoxHead(8, CLASSES, fc_out_channels=16, **options)


def mask_head():
    return FCNMaskHead(8, CLASSES, num_convs=1, conv_out_channels=8)


def build(kind, rpn_min_size=0.0):
    torch.manual_seed(0)
    backbone = ResNet(18, base_channels=4)
    rpn = RPNHead((8,) * 5, STRIDES, feat_channels=8, train_max_per_img=40, test_max_per_img=40, min_size=rpn_min_size)
    if kind == "mask_rcnn":
        roi_head = StandardRoIHead(
            SingleRoIExtractor(7, STRIDES), bbox_head(), SingleRoIExtractor(14, STRIDES), mask_head(), score_thr=0.0
        )
        return TwoStageDetector(backbone, FPN((4, 8, 16, 32), 8), rpn, roi_head)
    roi_head = CascadeRoIHead(
        SoftRoIExtractor(7, STRIDES, 8),
        [
            bbox_head(reg_class_agnostic=agnostic, target_stds=s)
            for s, agnostic in zip(STDS, (True, False, True), strict=True)
        ],
        SoftRoIExtractor(14, STRIDES, 8),
        [mask_head() for _ in STDS],
        score_thr=0.0,
    )
    neck, auxiliary = AugFPN((4, 8, 16, 32), 8), AuxiliaryHead(STRIDES, bbox_head(), mask_head())
    return TwoStageDetector(backbone, neck, rpn, roi_head, auxiliary)


def check_step(model, images, targets):
    """Losses are finite, and every trained parameter has a finite gradient, as data-parallel training needs."""
    model.train()
    losses = model(images, targets)
    assert all(value.shape == () for value in losses.values())
    assert all(value.isfinite() for value in losses.values()), losses
    assert not any(value.requires_grad for name, value in losses.items() if "loss" not in name)
    model.zero_grad()
    total_loss(losses).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    return losses


OBJECTS = [(10, 10, 50, 50), (40, 20, 90, 60)]


@pytest.mark.parametrize("kind", ["mask_rcnn", "cascade"])
@pytest.mark.parametrize(
    "objects", [[OBJECTS], [OBJECTS, []], [[], []], [[(0, 0, 96, 64)]]], ids=["one", "mixed", "empty", "whole"]
)
def test_training_step(kind, objects):
    losses = check_step(build(kind), torch.randn(len(objects), 3, 64, 96), [make_target(boxes) for boxes in objects])
    expected = {"loss_rpn_cls", "loss_rpn_bbox"}
    names = ("loss_cls", "loss_bbox", "acc", "loss_mask")
    if kind == "mask_rcnn":
        expected.update(names)
    else:
        expected.update(f"s{stage}.{name}" for stage in range(3) for name in names)
        expected.update(("loss_aux_cls", "loss_aux_bbox", "loss_aux_mask"))
    assert set(losses) == expected
    has_objects = any(objects)
    for name, value in losses.items():
        if name.endswith(("loss_bbox", "loss_mask", "aux_mask", "aux_bbox")) and not has_objects:
            assert value.item() == 0


def mask_losses(losses):
    return {name: value for name, value in losses.items() if "mask" in name}


@pytest.mark.parametrize("kind", ["mask_rcnn", "cascade"])
def test_objects_without_a_mask_do_not_train_the_mask_heads(kind):
    """Whatever shape such an object is given, the losses of masks are those of the others."""
    images = torch.randn(2, 3, 64, 96)
    objects = [[(10, 10, 50, 50), (60, 20, 90, 60)], [(5, 5, 40, 40)]]
    found = []
    for shape in ("none", "whole", "corner"):
        targets = [make_target(boxes) for boxes in objects]
        first = targets[0]
        if shape == "none":
            first.masks = Polygons.concatenate([first.masks.select([0]), Polygons.empty(1)])
        elif shape == "corner":
            tip = Polygons.from_coco([[[60.0, 20.0, 64.0, 20.0, 60.0, 24.0]]])
            first.masks = Polygons.concatenate([first.masks.select([0]), tip])
        first.has_mask = torch.tensor([True, False])
        found.append(mask_losses(check_step(build(kind), images, targets)))
    assert len(found[0]) == (1 if kind == "mask_rcnn" else 4)
    assert found[0] == found[1] == found[2]
    targets[0].has_mask = torch.tensor([True, True])
    assert mask_losses(check_step(build(kind), images, targets)) != found[0]


@pytest.mark.parametrize("kind", ["mask_rcnn", "cascade"])
def test_training_step_where_no_object_has_a_mask(kind):
    """The mask heads keep their place in the graph, as data-parallel training needs."""
    target = make_target(OBJECTS)
    target = replace(target, masks=Polygons.empty(len(OBJECTS)), has_mask=None)
    losses = check_step(build(kind), torch.randn(1, 3, 64, 96), [target])
    assert all(value.item() == 0 for value in mask_losses(losses).values())
    assert losses["loss_bbox" if kind == "mask_rcnn" else "s0.loss_bbox"] > 0


@pytest.mark.parametrize("kind", ["mask_rcnn", "cascade"])
def test_training_step_without_any_roi(kind):
    """No proposal is 1000 pixels wide, and there is no ground truth to take its place."""
    losses = check_step(build(kind, rpn_min_size=1000), torch.randn(2, 3, 64, 96), [make_target([]), make_target([])])
    assert all(value.item() == 0 for name, value in losses.items() if "rpn" not in name)


def test_training_step_without_usable_anchor():
    """Every anchor reaches beyond an image of this size, and none may."""
    model = build("mask_rcnn")
    model.rpn_head.allowed_border = 0.0
    with pytest.warns(UserWarning, match="the image is 16x20 px and the smallest anchor "):
        losses = check_step(model, torch.randn(1, 3, 32, 32), [make_target([(2, 2, 20, 20)], size=(16, 20))])
    assert losses["loss_rpn_cls"].item() == losses["loss_rpn_bbox"].item() == 0


@pytest.mark.parametrize("kind", ["mask_rcnn", "cascade"])
def test_evaluation(kind):
    model = build(kind).eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        found = model(images, [make_target([]), make_target([], size=(50, 60))])
    assert all(isinstance(d, Detections) for d in found)
    for detections, (height, width) in zip(found, ((128, 192), (100, 120)), strict=True):
        assert 0 < len(detections) <= 100
        assert detections.boxes.min() >= 0
        assert detections.boxes[:, [0, 2]].max() <= width
        assert detections.boxes[:, [1, 3]].max() <= height
        assert detections.scores.tolist() == sorted(detections.scores.tolist(), reverse=True)
        assert {tuple(mask["size"]) for mask in detections.masks} == {(height, width)}
    with torch.no_grad():
        alone = model(images[:1], [make_target([])])[0]
    torch.testing.assert_close(alone.boxes, found[0].boxes, atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", ["mask_rcnn", "cascade"])
@pytest.mark.parametrize("cause", ["proposals", "scores"])
def test_evaluation_that_finds_nothing(kind, cause):
    model = build(kind, rpn_min_size=1000 if cause == "proposals" else 0).eval()
    model.roi_head.score_thr = 1.0 if cause == "scores" else 0.0
    with torch.no_grad():
        for detections in model(torch.randn(2, 3, 64, 96), [make_target([]), make_target([])]):
            assert detections.boxes.shape == (0, 4)
            assert detections.scores.shape == detections.labels.shape == (0,)
            assert detections.masks == []


def test_bfloat16_leaves_losses_and_boxes_in_float32():
    model, images, targets = build("cascade"), torch.randn(2, 3, 64, 96), [make_target(OBJECTS), make_target([])]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = check_step(model, images, targets)
        with torch.no_grad():
            detections = model.eval()(images, targets)[0]
    assert {value.dtype for value in losses.values()} == {torch.float32}
    assert detections.boxes.dtype == detections.scores.dtype == torch.float32


def test_training_repeats_with_the_seed():
    targets = [make_target(OBJECTS)]
    images = torch.randn(1, 3, 64, 96)
    totals = []
    for _ in range(2):
        model = build("cascade").train()
        torch.manual_seed(3)
        totals.append(total_loss(model(images, targets)).item())
    assert totals[0] == totals[1]


def test_boxes_without_mask_heads_are_scaled_before_suppression():
    """Scaling the axes differently changes no IoU, so both orders give one result; masks only add themselves."""
    model = build("mask_rcnn").eval()
    images, targets = torch.randn(1, 3, 64, 96), [make_target([])]
    with torch.no_grad():
        with_masks = model(images, targets)[0]
        model.roi_head.mask_head = model.roi_head.mask_roi_extractor = None
        without = model(images, targets)[0]
    assert without.masks is None
    torch.testing.assert_close(without.boxes, with_masks.boxes, atol=1e-3, rtol=0)


def test_anchors_in_the_padding_of_the_batch_are_not_trained():
    """The first image's own padded size is 32 x 32; the batch's is 64 x 96."""
    head = RPNHead(8, STRIDES, sampler=RandomSampler(100_000, 0.5, add_gt_as_proposals=False))
    sizes = [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
    targets = [make_target([], size=(20, 30)), make_target([], size=(64, 96))]
    small, large = head.sample_anchors(torch.cat(head.anchors.grids(sizes)), sizes, targets)
    assert len(small.negatives) == 3 * (8 * 8 + 4 * 4 + 2 * 2 + 1 + 1)
    assert len(large.negatives) == 3 * sum(h * w for h, w in sizes)


@pytest.mark.parametrize("num_levels", [3, 4])
def test_auxiliary_losses_are_the_sum_over_levels(num_levels):
    model = build("cascade")
    head = model.auxiliary_head
    targets = [make_target(OBJECTS), make_target(OBJECTS[:1])]
    proposals = [torch.tensor([[12.0, 8.0, 48.0, 52.0], [60.0, 5.0, 80.0, 30.0]])] * 2
    samples = model.roi_head.sample([], proposals, targets)
    laterals = [torch.randn(2, 8, 64 // s, 96 // s) for s in STRIDES[:num_levels]]
    losses = head.loss(laterals, samples, targets)
    rois = torch.cat([torch.cat([torch.full((len(s.boxes), 1), float(i)), s.boxes], 1) for i, s in enumerate(samples)])
    pooled = extract_all_levels(laterals, rois, STRIDES[:num_levels], 7, 2)
    levels = [box_losses(head.bbox_head, *head.bbox_head(pooled[:, level]), samples) for level in range(num_levels)]
    for ours, name in (("loss_aux_cls", "loss_cls"), ("loss_aux_bbox", "loss_bbox")):
        torch.testing.assert_close(losses[ours], 0.25 * sum(level[name] for level in levels))


def test_consistent_supervision_trains_laterals_and_is_absent_in_evaluation():
    model = build("cascade").train()
    targets = [make_target(OBJECTS)]
    losses = model(torch.randn(1, 3, 64, 96), targets)
    weights = [conv.conv.weight for conv in model.neck.lateral_convs]
    supervised = losses["loss_aux_cls"] + losses["loss_aux_bbox"] + losses["loss_aux_mask"]
    assert all(grad.norm() > 0 for grad in torch.autograd.grad(supervised, weights))
    called = []
    model.auxiliary_head.bbox_head.register_forward_hook(lambda *_: called.append(1))
    with torch.no_grad():
        model.eval()(torch.randn(1, 3, 64, 96), targets)
    assert not called


def test_auxiliary_head_needs_a_neck_with_laterals():
    model = build("mask_rcnn")
    with pytest.raises(InputError, match="auxiliary_head needs raw laterals, which FPN does not hand out"):
        TwoStageDetector(
            model.backbone, model.neck, model.rpn_head, model.roi_head, AuxiliaryHead(STRIDES, bbox_head())
        )


def test_heads_say_what_does_not_fit():
    extractor = SingleRoIExtractor(7, STRIDES)
    with pytest.raises(InputError, match="bbox_head has 2, assigner has 3, stage_loss_weights has 3"):
        CascadeRoIHead(extractor, [bbox_head(), bbox_head()])
    with pytest.raises(InputError, match="CascadeRoIHead: mask_head and mask_roi_extractor come together"):
        CascadeRoIHead(extractor, [bbox_head()] * 3, mask_head=[mask_head()] * 3)
    with pytest.raises(InputError, match="StandardRoIHead: mask_head and mask_roi_extractor come together"):
        StandardRoIHead(extractor, bbox_head(), mask_roi_extractor=extractor)


def test_losses_of_a_dense_head_get_a_prefix_where_they_would_collide():
    class Bare(RPNHead):
        def loss_and_propose(self, features, targets):
            losses, proposals = super().loss_and_propose(features, targets)
            return {"loss_cls": losses["loss_rpn_cls"], "loss_bbox": losses["loss_rpn_bbox"]}, proposals

    model = build("mask_rcnn").train()
    model.rpn_head = Bare((8,) * 5, STRIDES, feat_channels=8)
    assert {"rpn_loss_cls", "rpn_loss_bbox", "loss_cls"} <= set(
        model(torch.randn(1, 3, 64, 96), [make_target(OBJECTS)])
    )


def test_total_loss_leaves_accuracies_out():
    losses = {"loss_cls": torch.tensor(1.0), "acc": torch.tensor(90.0), "s0.loss_mask": torch.tensor(0.5)}
    assert total_loss(losses).item() == 1.5


def test_full_size_names_and_shapes(parity):
    keys = parity("full_size_keys").json("cascade-mask-rcnn_r50_fpn_1x_cityscapes-like-8classes")
    with torch.device("meta"):
        model = TwoStageDetector(
            ResNet(50),
            FPN((256, 512, 1024, 2048)),
            RPNHead((256,) * 5, STRIDES),
            CascadeRoIHead(
                SingleRoIExtractor(7, STRIDES),
                [Shared2FCBBoxHead(256, 8, reg_class_agnostic=True, target_stds=s) for s in STDS],
                SingleRoIExtractor(14, STRIDES),
                [FCNMaskHead(256, 8) for _ in STDS],
            ),
        )
    assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == keys


@pytest.mark.parametrize(
    ("name", "classes", "masks"), [("faster-rcnn_r50_fpn_1x_coco", 80, False), ("mask-rcnn_r50_fpn_1x_coco", 80, True)]
)
def test_full_size_names_of_a_standard_head(parity, name, classes, masks):
    keys = parity("full_size_keys").json(name)
    with torch.device("meta"):
        head = StandardRoIHead(
            SingleRoIExtractor(7, STRIDES),
            Shared2FCBBoxHead(256, classes),
            SingleRoIExtractor(14, STRIDES) if masks else None,
            FCNMaskHead(256, classes) if masks else None,
            MaxIoUAssigner(0.5, 0.5, 0.5),
        )
    expected = {key.removeprefix("roi_head."): shape for key, shape in keys.items() if key.startswith("roi_head.")}
    assert {key: list(tensor.shape) for key, tensor in head.state_dict().items()} == expected


class Calls(TorchDispatchMode):
    """Notes the names of operators."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name() != "aten::lift_fresh" or args[0].dim():  # torchvision's own NMS makes numbers into tensors
            self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def test_proposing_copies_no_list_to_the_device(monkeypatch):
    """Each such copy waits until a GPU has done all before it. Anchors are made once for losses and proposals."""
    model, targets = build("cascade").train(), [make_target(OBJECTS), make_target([], size=(50, 60))]
    features = [torch.randn(2, 8, 64 // s, 96 // s) for s in STRIDES]
    model.rpn_head.allowed_border = 0.0
    grids, made = model.rpn_head.anchors.grids, []
    monkeypatch.setattr(model.rpn_head.anchors, "grids", lambda sizes: made.append(sizes) or grids(sizes))
    with Calls() as calls:
        model.rpn_head.loss_and_propose(features, targets)
    assert len(made) == 1
    assert "aten::convolution" in calls.names
    assert "aten::lift_fresh" not in calls.names


@pytest.mark.parametrize("way", ["products", "operator"])
@pytest.mark.parametrize("kind", ["mask_rcnn", "cascade"])
def test_levels_are_laid_out_once_for_all_rois(kind, way, monkeypatch):
    model, targets = build(kind), [make_target(OBJECTS)]
    if way == "operator":
        for module in ("roi_align", "roi_extractors"):
            monkeypatch.setattr(f"detect.models.{module}.by_products", lambda feature: False)
        unlike, wanted = torch.channels_last, torch.contiguous_format
    else:
        unlike, wanted = torch.contiguous_format, torch.channels_last
    read = []
    for extractor in (model.roi_head.bbox_roi_extractor, model.roi_head.mask_roi_extractor):
        extractor.register_forward_pre_hook(lambda _, inputs: read.extend(inputs[0][:4]))
    images = torch.randn(1, 3, 64, 96).contiguous(memory_format=unlike)
    assert not model.neck(model.backbone(images))[0].is_contiguous(memory_format=wanted)
    for mode in (True, False):
        read.clear()
        model.train(mode)(images, targets)
        assert read
        assert all(level.is_contiguous(memory_format=wanted) for level in read)
        assert len({level.data_ptr() for level in read}) == 4


def test_anchors_and_deviations_go_with_the_model_and_not_into_checkpoints():
    model = build("cascade").to("meta")
    assert model.rpn_head.anchors.base_anchors.device.type == "meta"
    assert model.roi_head.bbox_head[1].coder.stds.device.type == "meta"
    assert not [name for name in model.state_dict() if "anchors" in name or "coder" in name]


def test_the_divisor_of_padding_decides_which_anchors_are_the_images_own():
    sizes = [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
    everything = RandomSampler(100_000, 0.5, add_gt_as_proposals=False)
    counts = {}
    for divisor in (1, 16, 32):
        head = RPNHead(8, STRIDES, sampler=everything, pad_divisor=divisor)
        anchors = torch.cat(head.anchors.grids(sizes))
        (sample,) = head.sample_anchors(anchors, sizes, [make_target([], size=(20, 33))])
        counts[divisor] = len(sample.negatives)
    assert counts == {
        1: 3 * (5 * 9 + 3 * 5 + 2 * 3 + 1 * 2 + 1),
        16: 3 * (8 * 12 + 4 * 6 + 2 * 3 + 1 * 2 + 1),
        32: 3 * (8 * 16 + 4 * 8 + 2 * 4 + 1 * 2 + 1),
    }


def test_rois_of_the_next_stage_move_with_their_best_object_class():
    """Deltas of each class differ; the background's logit is the greatest, and it has no deltas."""
    head = Shared2FCBBoxHead(8, 3, fc_out_channels=4, target_stds=(1, 1, 1, 1))
    rois = torch.tensor([[0, 10, 10, 20, 20], [0, 10, 10, 20, 20], [0, 10, 10, 20, 20.0]])
    logits = torch.tensor([[1.0, 3.0, 2.0, 9.0], [5.0, 3.0, 2.0, 9.0], [1.0, 2.0, 4.0, 0.0]])
    shifts = torch.tensor([0.1, 0.2, 0.3])  # of the classes, in widths
    deltas = torch.zeros(3, 3, 4)
    deltas[:, :, 0] = shifts
    bounds = torch.tensor([[100.0, 50.0]])
    refined = refine_rois(head, rois, logits, deltas.flatten(1), bounds)
    torch.testing.assert_close(refined[:, 1], torch.tensor([12.0, 11.0, 13.0]))
    torch.testing.assert_close(refined[:, [2, 4]], rois[:, [2, 4]])
    # In training the ground truth's class decides, but for the background's RoIs (label 3).
    trained = refine_rois(head, rois, logits, deltas.flatten(1), bounds, torch.tensor([2, 3, 0]))
    torch.testing.assert_close(trained[:, 1], torch.tensor([13.0, 11.0, 11.0]))


def test_a_cascade_refines_by_the_labels_in_training():
    """The second stage sees the RoIs where the first one's deltas for their own classes take them."""
    torch.manual_seed(0)
    heads = [bbox_head(target_stds=(1.0, 1.0, 1.0, 1.0)) for _ in range(2)]
    for head in heads:
        torch.nn.init.zeros_(head.fc_reg.weight)
        head.fc_reg.bias.data = torch.tensor([0.0, 0.1, 0.2])[:, None].mul(torch.tensor([1.0, 0, 0, 0])).flatten()
        torch.nn.init.zeros_(head.fc_cls.weight)
        head.fc_cls.bias.data = torch.tensor([3.0, 2.0, 1.0, 9.0])  # the background, else class 0
    assigner = MaxIoUAssigner(0.5, 0.5, match_low_quality=False)
    roi_head = CascadeRoIHead(
        SingleRoIExtractor(7, STRIDES),
        heads,
        assigner=[assigner, assigner],
        sampler=RandomSampler(10, 1.0, add_gt_as_proposals=False),
        stage_loss_weights=(1, 1),
    )
    objects = [(10, 10, 30, 30), (40, 10, 60, 30), (10, 40, 30, 60)]
    target = make_target(objects)
    seen = []
    roi_head.bbox_roi_extractor.register_forward_hook(lambda _, inputs, out: seen.append(inputs[1]))
    features = [torch.randn(1, 8, 64 // s, 96 // s) for s in STRIDES]
    roi_head.loss(features, roi_head.sample(features, [target.boxes], [target]), [target])
    moved = target.boxes + 20 * torch.tensor([[0.0], [0.1], [0.2]]) * torch.tensor([1.0, 0, 1, 0])
    torch.testing.assert_close(seen[0][:, 1:], target.boxes)
    torch.testing.assert_close(seen[1][:, 1:], moved)


def test_mask_targets_are_computed_once_for_heads_of_the_same_rois(monkeypatch):
    """Three stages and the auxiliary head, trained on the first stage's RoIs: three times, all images together."""
    computed = []

    def count(samples, targets, size):
        computed.append(size)
        return mask_targets(samples, targets, size)

    monkeypatch.setattr("detect.models.roi_heads.masks.mask_targets", count)
    model, targets = build("cascade").train(), [make_target(OBJECTS), make_target([])]
    model(torch.randn(2, 3, 64, 96), targets)
    assert computed == [28] * 3
    model(torch.randn(2, 3, 64, 96), targets)
    assert len(computed) == 6


def test_consistent_supervision_weighs_a_quarter():
    model, targets = build("cascade"), [make_target(OBJECTS)]
    proposals = [torch.tensor([[12.0, 8.0, 48.0, 52.0]])]
    samples = model.roi_head.sample([], proposals, targets)
    laterals = [torch.randn(1, 8, 64 // s, 96 // s) for s in STRIDES[:4]]
    found = model.auxiliary_head.loss(laterals, samples, targets)
    plain = AuxiliaryHead(STRIDES, model.auxiliary_head.bbox_head, model.auxiliary_head.mask_head, loss_weight=1.0)
    whole = plain.loss(laterals, samples, targets)
    assert set(found) == {"loss_aux_cls", "loss_aux_bbox", "loss_aux_mask"}
    for name, value in found.items():
        torch.testing.assert_close(value, 0.25 * whole[name])
        assert value > 0
