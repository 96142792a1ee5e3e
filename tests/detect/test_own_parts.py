"""Parts of one's own that do not keep to what is asked of them: what is told of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from detect.registry import MODELS
from dpipe.errors import InputError

PARTS = """
import torch
from torch import Tensor, nn


class Backbone(nn.Module):
    channels = (3, 3)
    strides = (4, 8)

    def forward(self, images):
        return [images[:, :, ::4, ::4], images[:, :, ::8, ::8]]


class SilentNeck(nn.Module):
    def forward(self, levels):
        return levels


class HalfSilentNeck(SilentNeck):
    channels = (3, 3)


class Neck(nn.Module):
    channels = (3, 3)
    strides = (4, 8)

    def forward(self, levels):
        return self.make(list(levels))


class FewLevels(Neck):
    make = staticmethod(lambda levels: levels[:1])


class WideLevels(Neck):
    make = staticmethod(lambda levels: [torch.cat([level, level], dim=1) for level in levels])


class CoarseLevels(Neck):
    make = staticmethod(lambda levels: [level[:, :, ::2, ::2] for level in levels])


class OneTensor(Neck):
    make = staticmethod(lambda levels: levels[0])


class UnpaddedLevels(Neck):
    make = staticmethod(lambda levels: [level[:, :, 1:-1, 1:-1] for level in levels])


class NoModule:
    def __init__(self, in_channels):
        pass


class BareLoss(nn.Module):
    def forward(self, pred, target):
        return (pred - target).abs().sum()
"""


@pytest.fixture(autouse=True)
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module ``faulty_parts``."""
    (tmp_path / "faulty_parts.py").write_text(PARTS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "faulty_parts", raising=False)


def rpn(neck: str, **head: object) -> dict[str, object]:
    """The recipe of an RPN with one of these necks."""
    parts = {"backbone": {"type": "faulty_parts.Backbone"}, "neck": {"type": f"faulty_parts.{neck}"}}
    return {"type": "RPN", **parts, "rpn_head": {"type": "RPNHead", "feat_channels": 4, **head}}


@pytest.mark.parametrize("neck", ["SilentNeck", "HalfSilentNeck"])
def test_levels_before_a_neck_that_tells_none_are_not_taken_for_its_own(neck):
    told = f"model.neck, a faulty_parts.{neck}, has no `channels` and `strides`, which would tell; or write it there"
    with pytest.raises(InputError) as error:
        MODELS.build(rpn(neck), path=("model",))
    assert str(error.value) == f"model.rpn_head: RPNHead needs 'in_channels': {told}"
    model = MODELS.build(rpn(neck, in_channels=[3, 3], strides=[4, 8]))
    assert model.bbox_head.rpn_conv.in_channels == 3


@pytest.mark.parametrize(
    ("neck", "made"),
    [
        ("FewLevels", "levels of 3x16x24"),
        ("WideLevels", "levels of 6x16x24, 6x8x12"),
        ("CoarseLevels", "levels of 3x8x12, 3x4x6"),
    ],
)
def test_levels_that_are_not_as_told(neck, made, make_target):
    model = MODELS.build(rpn(neck))
    with pytest.raises(InputError) as error:
        model(torch.zeros(1, 3, 64, 96), [make_target([])])
    assert str(error.value) == (
        f"RPN: neck: {neck} tells the channels [3, 3] and the strides [4, 8], but made {made} "
        "(channels, height, width) of images of 64x96"
    )


def test_one_tensor_instead_of_levels(make_target):
    with pytest.raises(InputError, match=r"^RPN: neck: OneTensor made one tensor of shape \[1, 3, 16, 24\], not"):
        MODELS.build(rpn("OneTensor"))(torch.zeros(1, 3, 64, 96), [make_target([])])


def test_levels_may_lack_some_cells_for_want_of_padding(make_target):
    losses = MODELS.build(rpn("UnpaddedLevels"))(torch.zeros(1, 3, 64, 96), [make_target([[8, 8, 40, 40]])])
    assert set(losses) >= {"loss_rpn_cls", "loss_rpn_bbox"}


def test_a_part_that_is_no_module():
    with pytest.raises(InputError, match=r"^model.neck: expected a part \(Module\).*, got a faulty_parts.NoModule$"):
        MODELS.build(rpn("NoModule"), path=("model",))


def test_a_loss_that_takes_no_avg_factor():
    head = {"type": "Shared2FCBBoxHead", "in_channels": 4, "num_classes": 2, "fc_out_channels": 8}
    with pytest.raises(InputError, match="loss_bbox cannot be a BareLoss, whose forward has no avg_factor"):
        MODELS.build({**head, "loss_bbox": {"type": "faulty_parts.BareLoss"}})
