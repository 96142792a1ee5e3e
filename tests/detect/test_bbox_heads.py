"""Bbox heads of several branches: features of their own, no RoIs at all, how weights begin, wrong parts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from detect.models.roi_extractors import SingleRoIExtractor, SoftRoIExtractor
from detect.models.roi_heads.bbox_head import Shared2FCBBoxHead, Shared4Conv1FCBBoxHead
from detect.models.roi_heads.double_head import DoubleConvFCBBoxHead
from detect.models.roi_heads.standard import StandardRoIHead
from dpipe.errors import InputError

STRIDES = (4, 8, 16, 32)


def double(**options):
    return DoubleConvFCBBoxHead(6, 3, 1, 2, conv_out_channels=8, fc_out_channels=10, **options)


def four_convs(**options):
    return Shared4Conv1FCBBoxHead(6, 3, conv_out_channels=8, fc_out_channels=10, **options)


@pytest.mark.parametrize("build", [double, four_convs])
@pytest.mark.parametrize(("agnostic", "deltas"), [(False, 12), (True, 4)])
def test_no_rois(build, agnostic, deltas):
    head = build(reg_class_agnostic=agnostic).train()
    outs = head(torch.zeros(0, 6, 7, 7))
    assert [tuple(out.shape) for out in outs] == [(0, 4), (0, deltas)]
    sum(out.sum() for out in outs).backward()
    assert all(weight.grad is not None for weight in head.parameters())
    assert all(buffer.isfinite().all() for buffer in head.buffers())
    assert [tuple(out.shape) for out in head(torch.randn(2, 6, 7, 7))] == [(2, 4), (2, deltas)]


def test_branches_read_features_of_their_own():
    torch.manual_seed(0)
    head = double().eval()
    small, large = torch.randn(2, 4, 6, 7, 7)
    logits, deltas = head(small, large)
    assert torch.equal(logits, head(small)[0])
    assert torch.equal(deltas, head(large)[1])
    assert not torch.allclose(deltas, head(small)[1])


@pytest.mark.parametrize(("factor", "seen"), [(None, [None]), (1.3, [None, 1.3])])
def test_boxes_are_predicted_from_larger_rois(factor, seen, make_target):
    torch.manual_seed(0)
    extractor, asked = SingleRoIExtractor(7, STRIDES), []
    head = StandardRoIHead(extractor, double().eval(), reg_roi_scale_factor=factor, score_thr=0.0)
    extractor.register_forward_pre_hook(
        lambda _, args, options: asked.append(options.get("roi_scale_factor")), with_kwargs=True
    )
    head.predict([torch.randn(1, 6, 64 // s, 96 // s) for s in STRIDES], [torch.zeros(0, 4)], [make_target([])])
    assert asked == seen


def test_what_cannot_read_larger_rois_is_refused():
    message = "reg_roi_scale_factor needs a bbox_roi_extractor whose forward takes roi_scale_factor"
    with pytest.raises(InputError, match=f"{message}, which that of SoftRoIExtractor does not"):
        StandardRoIHead(SoftRoIExtractor(7, STRIDES, 6), double(), reg_roi_scale_factor=1.3)
    message = "reg_roi_scale_factor needs a bbox_head that takes box features, which Shared2FCBBoxHead does not"
    with pytest.raises(InputError, match=message):
        StandardRoIHead(SingleRoIExtractor(7, STRIDES), Shared2FCBBoxHead(6, 3), reg_roi_scale_factor=1.3)
    with pytest.raises(InputError, match="conv_out_channels must be a multiple of 4, got 10"):
        DoubleConvFCBBoxHead(6, 3, conv_out_channels=10)


@pytest.mark.parametrize("build", [double, four_convs])
def test_how_weights_begin(build):
    torch.manual_seed(0)
    head = build()
    assert 0.005 < head.fc_cls.weight.std() < 0.02
    assert 0.0005 < head.fc_reg.weight.std() < 0.002
    layers = [layer for layer in head.modules() if isinstance(layer, nn.Linear)]
    assert all(layer.bias.eq(0).all() for layer in layers)
    first = head.fc_branch[0] if build is double else head.shared_fcs[0]
    if build is double:
        assert head.conv_branch[0].conv1.weight.std() > 0.5  # 1 by He, from 8 channels to 2
    bound = (6 / sum(first.weight.shape)) ** 0.5
    assert 0.95 * bound < first.weight.abs().max() <= bound
