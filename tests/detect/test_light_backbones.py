"""MobileNets and timm's models as backbones: reference features, strides, freezing, pretrained weights."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from detect.models.backbones import ResNet
from detect.models.mobilenets import MobileNet
from detect.models.timm_backbone import TimmBackbone
from detect.registry import MODELS
from dpipe.errors import InputError

CHANNELS = {
    "mobilenet_v2": (24, 32, 96, 1280),
    "mobilenet_v3_large": (24, 40, 112, 960),
    "mobilenet_v3_small": (16, 24, 48, 576),
}


def shapes_of(levels: Sequence[torch.Tensor]) -> list[tuple[int, ...]]:
    return [tuple(level.shape) for level in levels]


class TestMobileNet:
    @pytest.mark.parametrize("arch", sorted(CHANNELS))
    def test_features_are_torchvisions(self, arch, tmp_path):
        torch.manual_seed(0)
        reference = getattr(torchvision.models, arch)().eval()
        torch.save(reference.state_dict(), tmp_path / "weights.pth")
        model = MobileNet(arch, pretrained=str(tmp_path / "weights.pth")).eval()
        images = torch.randn(1, 3, 65, 96)
        outs = model(images)
        assert model.strides == (4, 8, 16, 32)
        assert model.channels == CHANNELS[arch]
        assert shapes_of(outs) == [
            (1, c, -(-65 // s), -(-96 // s)) for c, s in zip(CHANNELS[arch], model.strides, strict=True)
        ]
        torch.testing.assert_close(outs[-1], reference.features(images))
        # A level is the deepest of its stride: the block after it has half the size.
        for level, block in zip(outs, model.last_blocks, strict=True):
            if block + 1 < len(model.features):
                assert model.features[block + 1](level).shape[-1] == -(-level.shape[-1] // 2)

    @pytest.mark.parametrize("arch", sorted(CHANNELS))
    @pytest.mark.parametrize("frozen_stages", [-1, 0, 1, 4])
    @pytest.mark.parametrize("norm_eval", [False, True])
    def test_frozen_stages_have_no_gradient_and_keep_their_statistics(self, arch, frozen_stages, norm_eval):
        torch.manual_seed(0)
        model = MobileNet(arch, 0.25, frozen_stages=frozen_stages, norm_eval=norm_eval).eval().train()
        before = {name: value.clone() for name, value in model.named_buffers()}
        outs = model(torch.randn(2, 3, 64, 64))
        assert [out.requires_grad for out in outs] == [i >= frozen_stages for i in range(4)]
        first = next((i for i, block in enumerate(model.features) if next(block.parameters()).requires_grad), None)
        stem = {"mobilenet_v2": 2, "mobilenet_v3_large": 2, "mobilenet_v3_small": 1}[arch]
        expected = {-1: 0, 0: stem, 1: model.last_blocks[0] + 1, 4: None}[frozen_stages]
        assert first == expected
        for name, value in model.named_buffers():
            frozen = expected is None or int(name.split(".")[1]) < expected
            assert torch.equal(value, before[name]) == (norm_eval or frozen), name

    def test_chosen_stages_and_width(self):
        model = MobileNet("mobilenet_v2", width_mult=0.5, out_indices=[1, 3])
        assert (model.channels, model.strides) == ((16, 1280), (8, 32))
        assert shapes_of(model(torch.randn(1, 3, 64, 64))) == [(1, 16, 8, 8), (1, 1280, 2, 2)]

    def test_blocks_that_nothing_reads_are_left_out(self, tmp_path):
        whole = torchvision.models.mobilenet_v2(width_mult=0.5)
        save_file(whole.state_dict(), tmp_path / "whole.safetensors")
        model = MobileNet("mobilenet_v2", 0.5, [2], pretrained=str(tmp_path / "whole.safetensors"))
        images = torch.randn(1, 3, 64, 64)
        (level,) = model(images)
        assert torch.equal(level, whole.eval().features[: len(model.features)](images))
        assert len(model.features) < len(whole.features)
        level.sum().backward()
        assert [name for name, weight in model.named_parameters() if weight.grad is None] == []

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"out_indices": [0, 4]}, r"MobileNet: out_indices must be rising .* from 0 to 3, got \[0, 4\]"),
            ({"frozen_stages": 5}, "MobileNet: frozen_stages must be from -1 to 4, got 5"),
            ({"pretrained": "torchvision://mobilenet_v2"}, "is not for mobilenet_v3_large"),
            ({"pretrained": "MobileNet_V2_Weights.DEFAULT"}, "MobileNet_V3_Large_Weights.IMAGENET1K_V2"),
        ],
    )
    def test_wrong_arguments(self, arguments, message):
        with pytest.raises(InputError, match=message):
            MobileNet(**arguments)

    def test_weights_of_another_model(self, tmp_path):
        torch.save(MobileNet("mobilenet_v3_small").state_dict(), tmp_path / "small.pth")
        with pytest.raises(InputError, match=r"does not fit this MobileNet \(mobilenet_v3_large\): features") as info:
            MobileNet(pretrained=str(tmp_path / "small.pth"))
        assert "\n" not in str(info.value)
        state = MobileNet().state_dict()
        torch.save({**state, "features.99.weight": torch.ones(1)}, tmp_path / "more.pth")
        with pytest.raises(InputError, match=r"does not fit this MobileNet .*: features.99.weight missing, unknown or"):
            MobileNet(pretrained=str(tmp_path / "more.pth"))

    def test_named_weights_come_from_the_cache(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        folder = tmp_path / "hub" / "checkpoints"
        folder.mkdir(parents=True)
        reference = torchvision.models.mobilenet_v3_small()
        torch.save(reference.state_dict(), folder / "mobilenet_v3_small-047dcff4.pth")
        model = MobileNet("mobilenet_v3_small", pretrained="MobileNet_V3_Small_Weights.IMAGENET1K_V1")
        assert torch.equal(model.features[0][0].weight, reference.features[0][0].weight)


class TestTimm:
    def test_a_convolutional_model(self):
        model = TimmBackbone("resnet10t").eval()
        assert (model.strides, model.channels) == ((4, 8, 16, 32), (64, 128, 256, 512))
        outs = model(torch.randn(1, 3, 64, 96))
        assert shapes_of(outs) == [(1, 64, 16, 24), (1, 128, 8, 12), (1, 256, 4, 6), (1, 512, 2, 3)]
        model = TimmBackbone("resnet10t", out_indices=[0, 3])
        assert (model.strides, model.channels) == ((2, 16), (64, 256))

    def test_a_model_that_puts_channels_last(self):
        model = MODELS.build(
            {"type": "TimmBackbone", "model_name": "swin_tiny_patch4_window7_224", "out_indices": [0, 1]}
        )
        assert shapes_of(model(torch.randn(1, 3, 224, 224))) == [(1, 96, 56, 56), (1, 192, 28, 28)]

    @pytest.mark.parametrize(
        ("name", "options", "shapes"),
        [
            ("swin_tiny_patch4_window7_224", {"strict_img_size": False}, [(1, 96, 16, 24), (1, 192, 8, 12)]),
            ("vit_tiny_patch16_224", {"dynamic_img_size": True, "depth": 2}, [(1, 192, 4, 6)] * 2),
        ],
    )
    def test_transformers_of_images_of_any_size(self, name, options, shapes):
        model = MODELS.build({"type": "TimmBackbone", "model_name": name, "out_indices": [0, 1], "options": options})
        assert shapes_of(model.eval()(torch.zeros(1, 3, 64, 96))) == shapes

    @pytest.mark.parametrize("name", ["features_only", "pretrained_cfg_overlay", "checkpoint_path", "out_indices"])
    def test_options_that_are_not_to_be_chosen(self, name):
        with pytest.raises(InputError, match=f"TimmBackbone: options cannot hold {name}; weights and levels are told"):
            TimmBackbone("resnet10t", options={name: True, "in_chans": 3})

    def test_options_are_the_models_with_weights_of_a_file_too(self, tmp_path):
        whole = timm.create_model("resnet10t", stem_width=16)
        torch.save(whole.state_dict(), tmp_path / "weights.pth")
        model = TimmBackbone("resnet10t", pretrained=str(tmp_path / "weights.pth"), options={"stem_width": 16})
        assert torch.equal(model.body.conv1[0].weight, whole.conv1[0].weight)

    @pytest.mark.parametrize("norm_eval", [False, True])
    def test_norm_eval(self, norm_eval):
        model = TimmBackbone("resnet10t", norm_eval=norm_eval).train()
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        assert norms
        assert {norm.training for norm in norms} == {not norm_eval}

    def test_weights_of_a_file(self, tmp_path):
        """Also where features_only changes names, and with another classifier."""
        torch.manual_seed(0)
        whole = timm.create_model("convnext_atto", num_classes=7)
        torch.save(whole.state_dict(), tmp_path / "weights.pth")
        model = TimmBackbone("convnext_atto", pretrained=str(tmp_path / "weights.pth"))
        assert torch.equal(model.body.state_dict()["stem_0.weight"], whole.state_dict()["stem.0.weight"])
        torch.save(ResNet(18).state_dict(), tmp_path / "resnet.pth")
        with pytest.raises(InputError, match=r"resnet.pth: nothing fits"):
            TimmBackbone("convnext_atto", pretrained=str(tmp_path / "resnet.pth"))
        with pytest.raises(InputError, match=r"does not fit timm's resnet10t: \d+ tensors are missing"):
            TimmBackbone("resnet10t", pretrained=str(tmp_path / "resnet.pth"))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("nonsense",), "TimmBackbone: timm cannot make 'nonsense': "),
            (("resnet10t", [9]), "TimmBackbone: timm cannot make 'resnet10t': "),
            (("resnet10t", None, True, False, {"nonsense": 1}), "timm cannot make 'resnet10t': .*nonsense"),
            (("resnet10t", None, True, "absent.pth"), r"absent.pth: no such checkpoint file"),
        ],
    )
    def test_mistakes(self, arguments, message):
        with pytest.raises(InputError, match=message) as info:
            TimmBackbone(*arguments)
        assert "\n" not in str(info.value)

    def test_weights_that_cannot_be_downloaded(self, monkeypatch):
        def refuse(name, **options):
            raise OSError("no connection,\nand nothing cached")

        monkeypatch.setattr(timm, "create_model", refuse)
        with pytest.raises(InputError, match=r"timm cannot make 'resnet10t': no connection, and nothing cached$"):
            TimmBackbone("resnet10t", pretrained=True)

    def test_without_timm(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "timm", None)
        with pytest.raises(InputError, match=r"TimmBackbone: needs timm, .*: pip install 'dpipe-detect\[timm\]'$"):
            TimmBackbone("resnet10t")
