"""Samplers that choose: by losses (OHEM) and by IoU, against reference choices and their definitions."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from detect.config import build_model, load_config
from detect.models.assign import NEGATIVE, NEITHER, Assignment, MaxIoUAssigner, RandomSampler, sample_rois
from detect.models.dense_heads.rpn import RPNHead
from detect.models.roi_extractors import SingleRoIExtractor
from detect.models.roi_heads.bbox_head import Shared2FCBBoxHead
from detect.models.roi_heads.cascade import CascadeRoIHead
from detect.models.roi_heads.standard import StandardRoIHead
from detect.models.samplers import IoUBalancedNegSampler, OHEMSampler
from dpipe.errors import InputError

STRIDES = (4, 8, 16, 32)


def assignment(*gt_indices):
    return Assignment(torch.tensor(gt_indices, dtype=torch.int64), torch.zeros(len(gt_indices)))


def losses_of(*values):
    return lambda indices: torch.tensor(values)[indices]


def test_ohem_takes_the_greatest_losses_of_each_kind():
    given = assignment(0, NEGATIVE, 1, NEGATIVE, 0, NEITHER, NEGATIVE, NEGATIVE)
    losses = losses_of(3.0, 0.1, 1.0, 0.5, 2.0, 9.0, 0.2, 0.4)
    positives, negatives = OHEMSampler(4, 0.5).choose(given, losses)
    assert (positives.tolist(), negatives.tolist()) == ([0, 4], [3, 7])
    positives, negatives = OHEMSampler(6, 0.2).choose(given, losses)
    assert (positives.tolist(), negatives.tolist()) == ([0], [1, 3, 6, 7])


def test_ohem_computes_no_losses_where_there_is_no_choice():
    def losses(indices):
        raise AssertionError

    positives, negatives = OHEMSampler(4, 0.5).choose(assignment(0, NEGATIVE, NEITHER), losses)
    assert (positives.tolist(), negatives.tolist()) == ([0], [1])


def test_losses_are_asked_for_with_boxes_and_labels():
    gts = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40]])
    proposals = torch.tensor([[50.0, 50, 60, 60], [20, 20, 40, 39], [70, 70, 80, 80], [0, 0, 10, 9]])
    target = SimpleNamespace(boxes=gts, labels=torch.tensor([4, 2]), ignore_boxes=torch.zeros(0, 4))
    asked = []

    def roi_losses(boxes, labels):
        asked.append((boxes, labels.tolist()))
        return boxes[:, 0]

    assigner = MaxIoUAssigner(0.5, 0.5, match_low_quality=False)
    samples = sample_rois(assigner, OHEMSampler(2, 0.5), proposals, target, roi_losses)
    assert [labels for _, labels in asked] == [[4, 2, 2, 4], [NEGATIVE, NEGATIVE]]
    assert torch.equal(asked[0][0], torch.cat([gts, proposals[[1, 3]]]))
    assert torch.equal(asked[1][0], proposals[[0, 2]])
    assert samples.boxes[:, 0].tolist() == [20, 70]
    assert samples.gt_labels.tolist() == [2]
    none = SimpleNamespace(boxes=gts[:0], labels=target.labels[:0], ignore_boxes=torch.zeros(0, 4))
    samples = sample_rois(assigner, OHEMSampler(2, 0.5), proposals, none, roi_losses)
    assert samples.boxes[:, 0].tolist() == [50, 70]


def test_losses_are_computed_without_gradient(make_target):
    head, graded = Shared2FCBBoxHead(4, 3, fc_out_channels=8), []
    head.loss_cls.register_forward_hook(lambda _, inputs, out: graded.append((out.shape, out.requires_grad)))
    roi_head = StandardRoIHead(SingleRoIExtractor(7, STRIDES), head, sampler=OHEMSampler(2, 0.5))
    features = [torch.randn(1, 4, 64 // s, 96 // s, requires_grad=True) for s in STRIDES]
    roi_head.sample(features, [torch.tensor([[50.0, 5, 60, 60], [60, 5, 90, 60]])], [make_target([1, 1, 30, 30])])
    assert graded == [((2,), False)]


def test_random_sampling_costs_no_forward_pass(make_target):
    def forward(*_):
        raise AssertionError

    head = StandardRoIHead(SingleRoIExtractor(7, STRIDES), Shared2FCBBoxHead(4, 3, fc_out_channels=8))
    head.bbox_head.forward = forward
    proposals = torch.rand(2000, 4).sort(dim=1).values * 64
    assert len(head.sample([], [proposals], [make_target([1, 1, 30, 30])])[0].boxes) == 512


@pytest.mark.parametrize("image", range(4))
@pytest.mark.parametrize("option", range(6))
def test_balanced_choices_equal_the_reference(parity, monkeypatch, image, option):
    """With the first of those that a draw may take in the place of random ones, on both sides."""
    monkeypatch.setattr("detect.models.samplers.draw", lambda indices, count: indices[:count])
    case = parity("iou_balanced")
    meta = case.json("meta")
    sampler = IoUBalancedNegSampler(meta["num"], meta["pos_fraction"], **meta["options"][option])
    given = Assignment(case.inputs[f"{image}/gt_indices"], case.inputs[f"{image}/max_ious"])
    for _ in range(2):  # the second image is no other than the first
        positives, negatives = sampler.choose(given)
        assert torch.equal(positives, case.expected[f"{image}/{option}/positives"])
        assert torch.equal(negatives, case.expected[f"{image}/{option}/negatives"])


def test_balanced_sampling_draws_as_many_from_each_bin():
    torch.manual_seed(0)
    ious = torch.cat(
        [torch.linspace(0, 0.149, 5000), torch.linspace(0.151, 0.299, 40), torch.linspace(0.301, 0.449, 40)]
    )
    given = Assignment(torch.full((len(ious),), NEGATIVE), torch.cat([ious[:-1], torch.tensor([0.45])]))
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        _, negatives = IoUBalancedNegSampler(60, 0.25).choose(given)
        draws.append(negatives.tolist())
        bins = (given.max_ious[negatives] / 0.15).long().clamp(max=2)
        assert bins.bincount().tolist() == [20, 20, 20]
        assert negatives.tolist() == sorted(set(negatives.tolist()))
    assert draws[0] == draws[1] != draws[2]
    _, negatives = RandomSampler(60, 0.25).choose(given)
    assert (given.max_ious[negatives] < 0.15).sum() > 50


def test_nothing_to_balance():
    assert [len(part) for part in IoUBalancedNegSampler(8, 0.5).choose(assignment())] == [0, 0]
    assert [len(part) for part in IoUBalancedNegSampler(8, 0.5).choose(assignment(*[NEGATIVE] * 20))] == [0, 8]
    with pytest.raises(InputError, match=r"floor_thr is an IoU, or -1 for none, got -0\.5"):
        IoUBalancedNegSampler(8, 0.5, floor_thr=-0.5)


@pytest.mark.parametrize("sampler", [OHEMSampler, IoUBalancedNegSampler])
@pytest.mark.parametrize("recipe", ["faster_rcnn_r50_fpn_coco", "cascade_mask_rcnn_r50_fpn_coco"])
def test_a_recipe_chooses_its_sampler(recipe, sampler):
    config = load_config(recipe, [f"model.roi_head.sampler.type={sampler.__name__}"])
    with torch.device("meta"):
        model = build_model(config, 3, pretrained=False)
    assert isinstance(model.roi_head.sampler, sampler)
    assert model.roi_head.sampler.num == 512


class PlainLoss(nn.Module):
    def forward(self, pred, target, weight=None, avg_factor=None):
        return pred.sum()


def test_what_cannot_be_mined_is_refused():
    with pytest.raises(InputError, match="RPNHead: sampler cannot be a OHEMSampler, which needs the losses of RoIs"):
        RPNHead(4, STRIDES, sampler=OHEMSampler(8, 0.5))
    message = "reads the loss of each RoI, but the forward of PlainLoss has no reduction_override"
    extractor = SingleRoIExtractor(7, STRIDES)
    heads = [Shared2FCBBoxHead(4, 3, fc_out_channels=8, loss_cls=PlainLoss()) for _ in range(3)]
    with pytest.raises(InputError, match=f"StandardRoIHead: OHEMSampler {message}"):
        StandardRoIHead(extractor, heads[0], sampler=OHEMSampler(8, 0.5))
    with pytest.raises(InputError, match=f"CascadeRoIHead: OHEMSampler {message}"):
        CascadeRoIHead(extractor, heads, sampler=OHEMSampler(8, 0.5))
    StandardRoIHead(extractor, heads[0], sampler=IoUBalancedNegSampler(8, 0.5))
