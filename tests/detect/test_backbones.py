"""ResNet: reference features, names, freezing, pretrained weights."""

from __future__ import annotations

import socket

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from detect.models.backbones import ResNet
from dpipe.errors import InputError


def tiny(**arguments) -> ResNet:
    return ResNet(**{"depth": 18, "base_channels": 4, **arguments})


@pytest.mark.parametrize(("case", "depth"), [("faster_rcnn_r18_fpn", 18), ("cascade_mask_rcnn_r50_fpn", 50)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_features_equal_the_reference(parity, case, depth, memory_format):
    case = parity(case)
    model = ResNet(depth, base_channels=8, frozen_stages=1).eval().to(memory_format=memory_format)
    model.load_state_dict(case.weights_of("backbone"))
    with torch.no_grad():
        outs = model(case.inputs["inputs"].to(memory_format=memory_format))
    assert tuple(out.shape[1] for out in outs) == model.channels
    for out, expected in zip(outs, case.levels("eval/backbone"), strict=True):
        torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("key_file", "arguments"),
    [
        ("cascade-mask-rcnn_r50_fpn_1x_cityscapes-like-8classes", {}),
        ("fcos_r50-caffe_fpn_gn-head_1x_coco", {"style": "caffe", "norm_frozen": True}),
    ],
)
def test_full_size_names_shapes_and_frozen_tensors(parity, key_file, arguments):
    keys = parity("full_size_keys")
    expected = {k.removeprefix("backbone."): v for k, v in keys.json(key_file).items() if k.startswith("backbone.")}
    with torch.device("meta"):
        model = ResNet(50, frozen_stages=1, **arguments)
    assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == expected
    frozen = {f"backbone.{name}" for name, weight in model.named_parameters() if not weight.requires_grad}
    assert frozen == set(keys.json("_summary")[key_file]["frozen_tensors"])


@pytest.mark.parametrize("depth", [34, 101, 152])
def test_names_are_torchvisions(depth):
    with torch.device("meta"):
        model = ResNet(depth)
        reference = getattr(torchvision.models, f"resnet{depth}")()
    expected = {name: w.shape for name, w in reference.state_dict().items() if not name.startswith("fc.")}
    assert {name: w.shape for name, w in model.state_dict().items()} == expected


def test_caffe_style_has_its_stride_on_the_first_convolution():
    for style, strides in (("pytorch", (1, 2)), ("caffe", (2, 1))):
        model = ResNet(50, base_channels=4, style=style)
        for stage in (model.layer2, model.layer3, model.layer4):
            assert (stage[0].conv1.stride[0], stage[0].conv2.stride[0]) == strides
            assert stage[0].downsample[0].stride == (2, 2)
        assert model.layer1[0].conv1.stride == model.layer1[0].conv2.stride == (1, 1)
        assert [out.shape[-1] for out in model(torch.randn(1, 3, 64, 64))] == [16, 8, 4, 2]


@pytest.mark.parametrize("frozen_stages", [-1, 0, 1, 4])
@pytest.mark.parametrize("norm_eval", [False, True])
def test_frozen_stages_have_no_gradient_and_keep_their_statistics(frozen_stages, norm_eval):
    torch.manual_seed(0)
    model = tiny(frozen_stages=frozen_stages, norm_eval=norm_eval).eval().train()
    frozen = ("conv1.", "bn1.", *(f"layer{i}." for i in range(1, frozen_stages + 1))) if frozen_stages >= 0 else ()
    before = {name: value.clone() for name, value in model.named_buffers()}
    outs = model(torch.randn(2, 3, 64, 64))
    assert outs[-1].requires_grad == (frozen_stages < 4)
    if frozen_stages < 4:
        sum(out.square().mean() for out in outs if out.requires_grad).backward()
    for name, weight in model.named_parameters():
        assert weight.requires_grad != name.startswith(frozen), name
        assert (weight.grad is not None) == weight.requires_grad, name
    for name, value in model.named_buffers():
        moved = not norm_eval and not name.startswith(frozen)
        assert torch.equal(value, before[name]) != moved, name


def test_a_new_backbone_is_frozen_before_anyone_calls_train():
    model = tiny(frozen_stages=1, norm_eval=False)
    assert (model.bn1.training, model.layer1.training, model.layer2.training) == (False, False, True)
    assert not tiny(norm_eval=True).layer4[0].bn1.training


def test_odd_sizes_and_chosen_stages():
    model = tiny(num_stages=3, out_indices=[0, 2])
    assert (model.channels, model.strides) == ((4, 16), (4, 16))
    assert [tuple(out.shape) for out in model(torch.randn(1, 3, 33, 65))] == [(1, 4, 9, 17), (1, 16, 3, 5)]
    assert not hasattr(model, "layer4")


def test_stages_that_nothing_reads_are_left_out(tmp_path):
    torch.manual_seed(0)
    whole, part = tiny(frozen_stages=0), tiny(out_indices=[0, 1], frozen_stages=3)
    assert not hasattr(part, "layer3")
    save_file(whole.state_dict(), tmp_path / "whole.safetensors")
    part = tiny(out_indices=[0, 1], pretrained=str(tmp_path / "whole.safetensors")).train()
    images = torch.randn(1, 3, 32, 32)
    for ours, theirs in zip(part(images), whole.train()(images)[:2], strict=True):
        assert torch.equal(ours, theirs)
    sum(level.sum() for level in part(images)).backward()
    assert [name for name, weight in part.named_parameters() if weight.grad is None] == []


def test_random_weights_begin_as_identity_branches():
    model = ResNet(50, base_channels=4)
    assert all(block.bn3.weight.eq(0).all() for block in model.layer2)
    never_trained = ResNet(50, base_channels=4, norm_frozen=True)
    assert all(block.bn3.weight.eq(1).all() for block in never_trained.layer2)
    assert 0.8 < model.layer3[1].conv2.weight.std() / (2 / (16 * 9)) ** 0.5 < 1.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 77}, "depth 18, 34, 50, 101, 152, got 77"),
        ({"num_stages": 5}, "num_stages 5"),
        ({"out_indices": [0, 4]}, r"from 0 to 3, got \[0, 4\]"),
        ({"out_indices": [2, 1]}, "rising"),
        ({"out_indices": []}, "rising"),
        ({"frozen_stages": 5}, "frozen_stages must be from -1 to 4, got 5"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        tiny(**arguments)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of weights, and no network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def refuse(*args, **kwargs):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", refuse)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    "name", ["ResNet18_Weights.IMAGENET1K_V1", "ResNet18_Weights.DEFAULT", "torchvision://resnet18"]
)
def test_named_weights_come_from_the_cache(hub, name):
    torch.manual_seed(0)
    reference = torchvision.models.resnet18()
    torch.save(reference.state_dict(), hub / "resnet18-f37072fd.pth")
    model = ResNet(18, frozen_stages=1, pretrained=name)
    assert torch.equal(model.layer3[0].conv1.weight, reference.layer3[0].conv1.weight)
    assert not model.layer1[0].conv1.weight.requires_grad
    images = torch.randn(1, 3, 64, 64)
    trunk = nn.Sequential(*list(reference.children())[:-2]).eval()
    torch.testing.assert_close(model.eval()(images)[-1], trunk(images))
    # Fewer stages than the file holds are fine.
    assert ResNet(18, num_stages=2, out_indices=[1], pretrained=name).channels == (128,)


def test_named_weights_that_cannot_be_had(hub):
    with pytest.raises(
        InputError, match=r"resnet18-f37072fd.pth: cannot be downloaded \(Network is unreachable\)"
    ) as info:
        ResNet(18, pretrained="ResNet18_Weights.IMAGENET1K_V1")
    assert str(hub) in str(info.value)
    assert "\n" not in str(info.value)
    assert not list(hub.iterdir())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ResNet50_Weights.IMAGENET1K_V1", "for resnet18: ResNet18_Weights.IMAGENET1K_V1"),
        ("ResNet18_Weights.IMAGENET9K", "for resnet18: ResNet18_Weights.IMAGENET1K_V1"),
        ("torchvision://resnet50", "'torchvision://resnet18'"),
        ("absent.pth", "absent.pth: no such checkpoint file"),
    ],
)
def test_wrong_names_of_weights(hub, name, message):
    with pytest.raises(InputError, match=message):
        ResNet(18, pretrained=name)


def test_pretrained_file_converted_from_caffe(tmp_path):
    """It has a bias for every convolution, for which there is no use before a BatchNorm, and no classifier."""
    torch.manual_seed(0)
    state = tiny(depth=50).state_dict()
    biases = {
        name.replace(".weight", ".bias"): torch.zeros(len(weight))
        for name, weight in state.items()
        if weight.dim() == 4
    }
    assert {"conv1.bias", "layer1.0.conv3.bias", "layer4.0.downsample.0.bias"} < set(biases)
    save_file({**state, **biases}, tmp_path / "caffe.safetensors")
    model = tiny(depth=50, style="caffe", pretrained=str(tmp_path / "caffe.safetensors"))
    assert torch.equal(model.layer3[0].conv1.weight, state["layer3.0.conv1.weight"])
    save_file({**state, "layer1.0.conv9.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"layer1\.0\.conv9\.weight missing, unknown"):
        tiny(depth=50, pretrained=str(tmp_path / "other.safetensors"))


def test_pretrained_file_of_another_depth_or_width(tmp_path):
    path = tmp_path / "resnet34.safetensors"
    save_file(tiny(depth=34).state_dict(), path)
    assert tiny(depth=34, pretrained=str(path)).channels == (4, 8, 16, 32)
    for arguments in ({"depth": 18}, {"depth": 34, "base_channels": 8}, {"depth": 50}):
        with pytest.raises(InputError, match=r"does not fit|nothing fits") as info:
            tiny(**arguments, pretrained=str(path))
        assert "\n" not in str(info.value)
