"""FPN, PAFPN and AugFPN: reference pyramids and gradients, names, odd sizes, switches."""

from __future__ import annotations

import pytest
import torch

from detect.models.necks.augfpn import AugFPN
from detect.models.necks.fpn import FPN
from detect.models.necks.pafpn import PAFPN
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


def test_fpn_with_extra_convolutions_equals_the_reference(parity):
    case = parity("fcos_r50_caffe_fpn_gn_head")
    neck = FPN((32, 64, 128, 256), 32, start_level=1, add_extra_convs="on_output", relu_before_extra_convs=True)
    neck.load_state_dict(case.weights_of("neck"))
    assert (neck.channels, neck.strides) == ((32,) * 5, (8, 16, 32, 64, 128))
    with torch.no_grad():
        outs = neck(case.levels("eval/backbone"))
    for out, expected in zip(outs, case.levels("eval/neck"), strict=True):
        torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("source", ["on_input", "on_lateral", "on_output", True])
@pytest.mark.parametrize("relu", [False, True])
def test_what_extra_convolutions_read(source, relu):
    torch.manual_seed(0)
    features = [torch.randn(1, c, s, s) for c, s in zip((2, 3, 4, 5), (16, 8, 4, 2), strict=True)]
    neck = FPN((2, 3, 4, 5), 6, start_level=1, add_extra_convs=source, relu_before_extra_convs=relu)
    outs = neck(features)
    sources = {"on_input": features[3], "on_lateral": neck.lateral_convs[2](features[3]), "on_output": outs[2]}
    fourth = neck.fpn_convs[3](sources["on_input" if source is True else source])
    torch.testing.assert_close(outs[3], fourth)
    torch.testing.assert_close(outs[4], neck.fpn_convs[4](fourth.relu() if relu else fourth))
    assert [out.shape[-1] for out in outs] == [8, 4, 2, 1, 1]
    assert not torch.equal(neck.fpn_convs[4](fourth.relu()), neck.fpn_convs[4](fourth))


def test_fpn_without_extra_convolutions_subsamples():
    neck = FPN((2, 3, 4, 5), 6, start_level=1, add_extra_convs=False)
    outs = neck([torch.randn(1, c, s, s) for c, s in zip((2, 3, 4, 5), (32, 16, 8, 4), strict=True)])
    assert len(neck.fpn_convs) == 3
    assert torch.equal(outs[3], outs[2][:, :, ::2, ::2])
    assert torch.equal(outs[4], outs[3][:, :, ::2, ::2])


def test_fpn_up_to_an_inner_level():
    features = [torch.randn(1, c, s, s) for c, s in zip((2, 3, 4, 5), (16, 8, 4, 2), strict=True)]
    inner = FPN((2, 3, 4, 5), 6, num_outs=2, start_level=1, end_level=2)
    alone = FPN((3, 4), 6, num_outs=2, strides=(8, 16))
    alone.load_state_dict(inner.state_dict())
    assert inner.strides == alone.strides == (8, 16)
    for ours, expected in zip(inner(features), alone(features[1:3]), strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("source", ["on_input", "on_lateral", "on_output", True, False])
@pytest.mark.parametrize("relu", [False, True])
def test_pafpn_adds_a_path_from_fine_to_coarse(source, relu):
    torch.manual_seed(0)
    features = [torch.randn(1, c, s, s) for c, s in zip((2, 3, 4, 5), (23, 12, 6, 3), strict=True)]
    options = {"start_level": 1, "add_extra_convs": source, "relu_before_extra_convs": relu}
    neck = PAFPN((2, 3, 4, 5), 6, **options)
    fpn = FPN((2, 3, 4, 5), 6, **options)
    assert not fpn.load_state_dict(neck.state_dict(), strict=False).missing_keys
    assert neck.strides == fpn.strides == (8, 16, 32, 64, 128)
    outs, top_down = neck(features), fpn(features)
    second = top_down[1] + neck.downsample_convs[0](top_down[0])
    third = top_down[2] + neck.downsample_convs[1](second)
    expected = [top_down[0], neck.pafpn_convs[0](second), neck.pafpn_convs[1](third)]
    if not source:
        expected += [expected[2][:, :, ::2, ::2]] * 2
        expected[4] = expected[3][:, :, ::2, ::2]
    elif source == "on_output":
        expected.append(neck.fpn_convs[3](expected[2]))
        expected.append(neck.fpn_convs[4](expected[3].relu() if relu else expected[3]))
    else:
        expected += top_down[3:]
    for ours, theirs in zip(outs, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start_level": 4}, "start_level 4 and end_level -1 take no levels of 4"),
        ({"start_level": 2, "end_level": 1}, "start_level 2 and end_level 1"),
        ({"end_level": 4}, "end_level 4"),
        ({"end_level": -2}, "end_level -2"),
        ({"end_level": 2}, "num_outs is 5, but levels 0 to 2 of 4 make a pyramid of 3"),
        ({"num_outs": 30}, "num_outs is 30: the stride doubles from 32 with each level beyond 4, expected"),
        ({"start_level": 1, "num_outs": 2}, "num_outs is 2, but a pyramid over 3 levels"),
    ],
)
@pytest.mark.parametrize("neck_type", [FPN, PAFPN])
def test_levels_that_fpn_cannot_take(neck_type, options, message):
    with pytest.raises(InputError, match=message):
        neck_type((2, 3, 4, 5), 6, **options)


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


@pytest.mark.parametrize("neck_type", [FPN, PAFPN, AugFPN])
def test_weights_begin_by_glorot(neck_type):
    torch.manual_seed(0)
    neck = neck_type([16, 32, 64, 128], 64)
    bound = (6 / (64 * 9 * 2)) ** 0.5
    weight = neck.fpn_convs[0].conv.weight
    assert 0.95 * bound < weight.abs().max() <= bound
    assert neck.fpn_convs[0].conv.bias.eq(0).all()


@pytest.mark.parametrize("neck_type", [FPN, PAFPN, AugFPN])
def test_wrong_arguments(neck_type):
    with pytest.raises(InputError, match="num_outs is 3"):
        neck_type([2, 3, 4, 5], 6, num_outs=3)
    with pytest.raises(InputError, match="as many strides"):
        neck_type([2, 3, 4], 6)


@pytest.mark.parametrize("ratios", [[], [0.1, 0.0], [1.5]])
def test_wrong_pool_ratios(ratios):
    with pytest.raises(InputError, match="pool_ratios"):
        AugFPN([2, 3, 4, 5], 6, pool_ratios=ratios)
