"""FPN and AugFPN: reference pyramids and gradients, names, odd sizes, switches."""

from __future__ import annotations

import pytest
import torch

from detect.models.necks.augfpn import AugFPN
from detect.models.necks.fpn import FPN
from dpipe.errors import InputError


@pytest.mark.parametrize("case", ["faster_rcnn_r18_fpn", "cascade_mask_rcnn_r50_fpn"])
def test_fpn_equals_the_reference(parity, case):
    case = parity(case)
    features = case.levels("eval/backbone")
    neck = FPN([feature.shape[1] for feature in features], 16)
    neck.load_state_dict(case.weights_of("neck"))
    assert (neck.channels, neck.strides) == ((16,) * 5, (4, 8, 16, 32, 64))
    with torch.no_grad():
        outs = neck(features)
    for out, expected in zip(outs, case.levels("eval/neck"), strict=True):
        torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)


def test_fpn_full_size_names_and_shapes(parity):
    keys = parity("full_size_keys").json("cascade-mask-rcnn_r50_fpn_1x_cityscapes-like-8classes")
    with torch.device("meta"):
        neck = FPN((256, 512, 1024, 2048))
    expected = {name.removeprefix("neck."): shape for name, shape in keys.items() if name.startswith("neck.")}
    assert {name: list(weight.shape) for name, weight in neck.state_dict().items()} == expected


@pytest.fixture
def augfpn(parity):
    case = parity("augfpn_parts")
    meta = case.json("meta")
    neck = AugFPN(meta["in_channels"], meta["out_channels"], meta["num_outs"])
    neck.load_state_dict(case.weights_of("neck"))
    return neck, [case.inputs[f"backbone/{i}"] for i in range(4)], case


def test_augfpn_equals_the_authors(augfpn):
    neck, features, case = augfpn
    pyramid, laterals = neck.pyramid_and_laterals(features)
    assert neck.strides == (4, 8, 16, 32, 64)
    for outs, name in ((pyramid, "neck/out"), (laterals, "neck/raw_lateral")):
        for out, expected in zip(outs, case.levels(name), strict=True):
            torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)
    loss = sum(level.square().mean() for level in (*pyramid, *laterals))
    torch.testing.assert_close(loss, case.expected["neck/loss_sum_of_mean_squares"].squeeze(), rtol=1e-5, atol=0)
    loss.backward()
    for name, weight in neck.named_parameters():
        norm = case.expected[f"neck/grad_norm/{name}"].squeeze()
        torch.testing.assert_close(weight.grad.norm(), norm, rtol=1e-4, atol=1e-7, msg=name)


def test_augfpn_forward_is_its_pyramid(augfpn):
    neck, features, _ = augfpn
    for out, level in zip(neck(features), neck.pyramid_and_laterals(features)[0], strict=True):
        assert torch.equal(out, level)


def test_augfpn_without_augmentation_is_fpn(augfpn):
    _, features, case = augfpn
    plain = AugFPN([16, 32, 64, 128], 16, residual_augmentation=False)
    fpn = FPN([16, 32, 64, 128], 16)
    assert set(plain.state_dict()) == set(fpn.state_dict())
    plain.load_state_dict({name: case.weights[f"neck.{name}"] for name in plain.state_dict()})
    fpn.load_state_dict(plain.state_dict())
    for out, expected in zip(plain(features), fpn(features), strict=True):
        assert torch.equal(out, expected)


@pytest.mark.parametrize("neck_type", [FPN, AugFPN])
def test_sizes_that_no_stride_divides(neck_type):
    torch.manual_seed(0)
    neck = neck_type([2, 3, 4, 5], 6)
    sizes = [(25, 33), (13, 17), (7, 9), (3, 5)]
    outs = neck([torch.randn(1, c, *size) for c, size in zip((2, 3, 4, 5), sizes, strict=True)])
    assert [tuple(out.shape[-2:]) for out in outs] == [*sizes, (2, 3)]
    # A context is pooled to at least one cell.
    tiny = neck([torch.randn(1, c, s, s) for c, s in zip((2, 3, 4, 5), (8, 4, 2, 1), strict=True)])
    assert tiny[-1].shape[-2:] == (1, 1)
    assert all(out.isfinite().all() for out in tiny)


@pytest.mark.parametrize("neck_type", [FPN, AugFPN])
def test_weights_begin_by_glorot(neck_type):
    torch.manual_seed(0)
    neck = neck_type([16, 32, 64, 128], 64)
    bound = (6 / (64 * 9 * 2)) ** 0.5
    weight = neck.fpn_convs[0].conv.weight
    assert 0.95 * bound < weight.abs().max() <= bound
    assert neck.fpn_convs[0].conv.bias.eq(0).all()


@pytest.mark.parametrize("neck_type", [FPN, AugFPN])
def test_wrong_arguments(neck_type):
    with pytest.raises(InputError, match="num_outs is 3"):
        neck_type([2, 3, 4, 5], 6, num_outs=3)
    with pytest.raises(InputError, match="as many strides"):
        neck_type([2, 3, 4], 6)


@pytest.mark.parametrize("ratios", [[], [0.1, 0.0], [1.5]])
def test_wrong_pool_ratios(ratios):
    with pytest.raises(InputError, match="pool_ratios"):
        AugFPN([2, 3, 4, 5], 6, pool_ratios=ratios)
