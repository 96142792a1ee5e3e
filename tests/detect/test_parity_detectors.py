"""Whole detectors against the reference cases: every number from raw outputs to masks, losses and gradients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from detect.models.assign import MaxIoUAssigner, RandomSampler
from detect.models.backbones import ResNet
from detect.models.dense_heads.rpn import RPNHead
from detect.models.detectors import TwoStageDetector, total_loss
from detect.models.losses import L1Loss, SmoothL1Loss
from detect.models.necks.fpn import FPN
from detect.models.roi_extractors import SingleRoIExtractor
from detect.models.roi_heads.bbox_head import Shared2FCBBoxHead
from detect.models.roi_heads.cascade import CascadeRoIHead
from detect.models.roi_heads.mask_head import FCNMaskHead
from detect.models.roi_heads.standard import StandardRoIHead

STRIDES = (4, 8, 16, 32, 64)
EVERYTHING = 1_000_000  # the reference cases sample all positives and all negatives


def rpn_head(**options):
    return RPNHead(
        in_channels=(16,) * 5,
        strides=STRIDES,
        feat_channels=16,
        sampler=RandomSampler(EVERYTHING, 0.5, add_gt_as_proposals=False),
        train_nms_pre=80,
        train_max_per_img=60,
        test_nms_pre=60,
        test_max_per_img=45,
        **options,
    )


def cascade_mask_rcnn():
    stds = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))
    return TwoStageDetector(
        ResNet(50, base_channels=8, frozen_stages=1),
        FPN((32, 64, 128, 256), 16),
        rpn_head(allowed_border=0.0),
        CascadeRoIHead(
            SingleRoIExtractor(7, STRIDES),
            [Shared2FCBBoxHead(16, 8, fc_out_channels=32, reg_class_agnostic=True, target_stds=s) for s in stds],
            SingleRoIExtractor(14, STRIDES),
            [FCNMaskHead(16, 8, conv_out_channels=16) for _ in stds],
            sampler=RandomSampler(EVERYTHING, 0.5),
        ),
    )


def faster_rcnn():
    return TwoStageDetector(
        ResNet(18, base_channels=8, frozen_stages=1),
        FPN((8, 16, 32, 64), 16),
        rpn_head(loss_bbox=L1Loss()),
        StandardRoIHead(
            SingleRoIExtractor(7, STRIDES),
            Shared2FCBBoxHead(16, 5, fc_out_channels=32, loss_bbox=L1Loss()),
            sampler=RandomSampler(EVERYTHING, 0.5),
            max_per_img=20,
        ),
    )


MODELS = {"cascade_mask_rcnn_r50_fpn": cascade_mask_rcnn, "faster_rcnn_r18_fpn": faster_rcnn}
STAGES = {"cascade_mask_rcnn_r50_fpn": ["s0", "s1", "s2"], "faster_rcnn_r18_fpn": [""]}


def make_targets(case, gt="gt", *, without_objects=(), rescale=True):
    return case.targets(gt, without_objects=without_objects, rescale=rescale)


class Recorder:
    """Collects the inputs and outputs of modules of a model by their names."""

    def __init__(self, model):
        self.inputs, self.outputs = {}, {}
        self.hooks = [module.register_forward_hook(self.hook(name)) for name, module in model.named_modules()]

    def stop(self):
        for hook in self.hooks:
            hook.remove()

    def hook(self, name):
        def record(module, inputs, output):
            self.inputs.setdefault(name, []).append(inputs)
            self.outputs.setdefault(name, []).append(output)

        return record


@pytest.fixture(scope="module", params=list(MODELS))
def reference(request, parity):
    case = parity(request.param)
    model = MODELS[request.param]()
    model.load_state_dict(case.weights)
    return model, case, STAGES[request.param]


@pytest.fixture(scope="module")
def evaluated(reference):
    model, case, _ = reference
    recorder = Recorder(model.eval())
    with torch.no_grad():
        detections = model(case.inputs["inputs"], make_targets(case))
    recorder.stop()
    return recorder, detections


def close(ours, reference, *, atol=1e-4, rtol=1e-4, msg=None):
    torch.testing.assert_close(ours.detach(), reference, atol=atol, rtol=rtol, msg=msg)


def test_features_and_raw_proposals(reference, evaluated):
    _, case, _ = reference
    recorder, _ = evaluated
    for ours, theirs in zip(recorder.outputs["neck"][0], case.levels("eval/neck"), strict=True):
        close(ours, theirs)
    outputs = recorder.outputs["rpn_head"][0]
    for ours, theirs in zip(outputs.logits, case.levels("eval/rpn/cls"), strict=True):
        close(ours, theirs)
    for ours, theirs in zip(outputs.deltas, case.levels("eval/rpn/reg"), strict=True):
        close(ours, theirs)


def test_proposals(reference, evaluated):
    model, case, _ = reference
    recorder, _ = evaluated
    with torch.no_grad():
        proposals = model.eval().rpn_head.propose(recorder.outputs["neck"][0], make_targets(case))
    for i, (boxes, scores) in enumerate(proposals):
        close(boxes, case.expected[f"eval/proposals/{i}/boxes"], atol=1e-2, rtol=0)
        close(scores, case.expected[f"eval/proposals/{i}/scores"], rtol=0)


def test_stages(reference, evaluated):
    _, case, stages = reference
    recorder, _ = evaluated
    for k, stage in enumerate(stages):
        name, folder = (
            ("roi_head.bbox_head." + str(k), f"eval/roi/{stage}") if stage else ("roi_head.bbox_head", "eval/roi")
        )
        close(recorder.inputs["roi_head.bbox_roi_extractor"][k][1], case.expected[f"{folder}/rois"], atol=1e-2, rtol=0)
        logits, deltas = recorder.outputs[name][0]
        close(logits, case.expected[f"{folder}/cls_score"], atol=1e-3, rtol=1e-4)
        close(deltas, case.expected[f"{folder}/bbox_pred"], atol=1e-3, rtol=1e-4)
        if k == 0:
            close(recorder.inputs[name][0][0][:16], case.expected[f"{folder}/feats_first16"])


@pytest.mark.parametrize("rescale", [False, True])
def test_detections(reference, evaluated, rescale):
    model, case, _ = reference
    name = "eval/det_rescaled" if rescale else "eval/det"
    _, detections = evaluated
    if not rescale:
        with torch.no_grad():
            detections = model.eval()(case.inputs["inputs"], make_targets(case, rescale=False))
    for i, found in enumerate(detections):
        assert found.labels.tolist() == case.expected[f"{name}/{i}/labels"].tolist()
        close(found.scores, case.expected[f"{name}/{i}/scores"], rtol=0)
        close(found.boxes, case.expected[f"{name}/{i}/boxes"], atol=1e-2, rtol=0)
        if f"{name.replace('det', 'masks')}/{i}" in case.expected:
            check_masks(case, found, f"masks{'_rescaled' * rescale}/{i}")


def check_masks(case, found, name):
    shape = tuple(case.json("meta")["mask_shapes"][f"{name}/shape"])
    packed = case.expected[f"eval/{name}"].numpy()
    bits = np.unpackbits(packed, axis=1, count=shape[1] * shape[2]).reshape(shape).astype(bool)
    ours = found.bitmaps()
    assert ours.shape == shape
    assert (ours != bits).mean() <= 1e-3
    ious = (ours & bits).sum((1, 2)) / np.maximum((ours | bits).sum((1, 2)), 1)
    assert ious.min() >= 1 - 1e-3 or (ours != bits).sum((1, 2)).max() <= 2


@pytest.mark.parametrize("reference", ["cascade_mask_rcnn_r50_fpn"], indirect=True)
def test_mask_logits(reference, evaluated):
    _, case, _ = reference
    recorder, _ = evaluated
    counts = [len(case.expected[f"eval/det/{i}/labels"]) for i in range(2)]
    labels = torch.cat([case.expected[f"eval/det/{i}/labels"] for i in range(2)])
    rois = recorder.inputs["roi_head.mask_roi_extractor"][0][1].split(counts)
    mean = torch.zeros(len(labels), 28, 28)
    for k in range(3):
        logits = recorder.outputs[f"roi_head.mask_head.{k}"][0]
        own = logits[torch.arange(len(labels)), labels]
        mean += own.sigmoid() / 3
        for i, (image_own, image_logits) in enumerate(zip(own.split(counts), logits.split(counts), strict=True)):
            close(rois[i], case.expected[f"eval/mask_rois/s{k}/{i}"], atol=1e-2, rtol=0)
            close(image_own, case.expected[f"eval/mask_logits/s{k}/{i}"], atol=5e-3, rtol=1e-3)
            first = case.expected[f"eval/mask_logits_all_classes_first5/s{k}/{i}"]
            close(image_logits[:5], first, atol=5e-3, rtol=1e-3)
    for i, probabilities in enumerate(mean.split(counts)):
        close(probabilities, case.expected[f"eval/mask_prob/{i}"], atol=1e-3, rtol=0)


SCENARIOS = {"train": {}, "train_img1_empty": {"without_objects": (1,)}, "train_lowq": {"gt": "gt_lowq"}}


@pytest.mark.parametrize(
    ("reference", "scenario"),
    [(name, scenario) for name in MODELS for scenario in SCENARIOS if (name[0], scenario) != ("c", "train_lowq")],
    indirect=["reference"],
)
def test_losses_and_gradients(reference, scenario):
    model, case, _ = reference
    targets = make_targets(case, **SCENARIOS[scenario])
    model.train().zero_grad()
    losses = model(case.inputs["inputs"], targets)
    names = {
        n.removeprefix(f"{scenario}/loss/").partition("/")[0]
        for n in case.expected
        if n.startswith(f"{scenario}/loss/")
    }
    assert set(losses) == names
    for name, value in losses.items():
        parts = [t for n, t in case.expected.items() if n.rpartition("/")[0] == f"{scenario}/loss/{name}"]
        theirs = sum(parts) if parts else case.expected[f"{scenario}/loss/{name}"]
        close(value, theirs.squeeze(), atol=1e-7, msg=lambda m, name=name: f"{name}: {m}")
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


def test_training_targets(reference):
    model, case, stages = reference
    targets = make_targets(case)
    recorder = Recorder(model.train())
    model(case.inputs["inputs"], targets)
    recorder.stop()

    # Anchors: labels (0 object, 1 background) and weights, level by level.
    sizes = recorder.outputs["rpn_head"][0].sizes
    anchors = torch.cat(model.rpn_head.anchors.grids(sizes))
    samples = model.rpn_head.sample_anchors(anchors, sizes, targets)
    labels = torch.ones(2, len(anchors), dtype=torch.int64)
    weights = torch.zeros(2, len(anchors))
    for i, sample in enumerate(samples):
        labels[i, sample.positives] = 0
        weights[i, sample.positives] = weights[i, sample.negatives] = 1
    assert torch.equal(labels, torch.cat(case.levels("train/rpn/target_labels"), dim=1).long())
    assert torch.equal(weights, torch.cat(case.levels("train/rpn/target_label_weights"), dim=1))
    assert sum(s.avg_factor for s in samples) == case.expected["train/rpn/avg_factor"].item()

    _, proposals = model.rpn_head.loss_and_propose(recorder.outputs["neck"][0], targets)
    for i, (boxes, scores) in enumerate(proposals):
        close(boxes, case.expected[f"train/proposals/{i}/boxes"], atol=1e-2, rtol=0)
        close(scores, case.expected[f"train/proposals/{i}/scores"], rtol=0)

    for k, stage in enumerate(stages):
        folder = f"train/roi/{stage}" if stage else "train/roi"
        name = f"roi_head.bbox_head.{k}" if stage else "roi_head.bbox_head"
        close(recorder.inputs["roi_head.bbox_roi_extractor"][k][1], case.expected[f"{folder}/rois"], atol=1e-2, rtol=0)
        gt_labels = case.expected[f"{folder}/target_labels"]
        assert torch.equal(recorder.inputs[f"{name}.loss_cls"][0][1], gt_labels)
        positive = gt_labels < gt_labels.max()
        close(recorder.inputs[f"{name}.loss_bbox"][0][1], case.expected[f"{folder}/target_bbox"][positive], atol=1e-3)
        if f"train/mask_targets/{stage}" in case.expected:
            ours = recorder.inputs[f"roi_head.mask_head.{k}.loss_mask"][0][1]
            assert torch.equal(ours, case.expected[f"train/mask_targets/{stage}"].float())


def test_ignored_boxes_are_used_only_above_a_threshold(parity):
    """With the usual threshold of -1 the ignored box of image 0 changes nothing."""
    case = parity("faster_rcnn_r18_fpn")
    model = faster_rcnn().train()
    model.load_state_dict(case.weights)
    without = [replace(t, ignore_boxes=torch.zeros(0, 4)) for t in make_targets(case)]
    close(total_loss(model(case.inputs["inputs"], without)), case.expected["train/loss_total"].squeeze())
    model.rpn_head.assigner = MaxIoUAssigner(0.7, 0.3, 0.3, ignore_iof_thr=0.5)
    spared = model(case.inputs["inputs"], make_targets(case))
    assert spared["loss_rpn_cls"] != model(case.inputs["inputs"], without)["loss_rpn_cls"]


def test_default_losses_are_those_of_the_reference():
    assert isinstance(cascade_mask_rcnn().rpn_head.loss_bbox, SmoothL1Loss)
    assert cascade_mask_rcnn().rpn_head.loss_bbox.options["beta"] == pytest.approx(1 / 9)
