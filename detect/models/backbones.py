"""Backbones: an image to features at several strides.

Legend: N images, H, W their padded size, C_l channels and s_l stride of output level l.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from detect.models.arguments import Count
from detect.models.backbone_parts import check_stages, hold_in_evaluation, load_backbone
from detect.models.conv_norm import BasicBlock, Bottleneck
from detect.models.layers import kaiming_init
from detect.registry import MODELS
from dpipe.errors import InputError

BLOCKS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


@MODELS.register
class ResNet(nn.Module):
    """ResNet (arXiv 1512.03385) of torchvision's blocks, without its classifier.

    Parameters have the names that torchvision and OpenMMLab share (``layer1.0.conv1.weight``), so both load.

    Args:
        depth: 18, 34, 50, 101 or 152.
        base_channels: Channels of the stem; stage i has ``base_channels * 2**i``, in deep ResNets four times as many at
            its end.
        num_stages: How many of the four stages there are. Those beyond the last that is handed out are left out.
        out_indices: Which stages are handed out, counted from 0.
        style: Where a bottleneck has its stride: ``pytorch`` on the 3x3 convolution, ``caffe`` on the first 1x1
            convolution, as weights converted from Caffe need it.
        frozen_stages: This many stages, and the stem, are never trained and their BatchNorm keeps its statistics; 0 is
            the stem alone, -1 nothing.
        norm_eval: BatchNorm keeps its statistics in all stages, as is usual for batches of an image or two.
        norm_frozen: BatchNorm's scale and shift are not trained in any stage.
        pretrained: Where the weights come from: a torchvision name (``ResNet50_Weights.IMAGENET1K_V1``, or
            ``torchvision://resnet50`` for the same), a path or a URL. None draws them at random (He's normal; each
            residual branch begins as zero, unless ``norm_frozen`` would keep it there).

    Attributes:
        channels: Channels of each output level.
        strides: Pixels per cell of each output level.

    Raises:
        InputError: An argument is out of range, or the weights cannot be had or do not fit.
    """

    def __init__(
        self,
        depth: int = 50,
        base_channels: Count = 64,
        num_stages: int = 4,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        style: Literal["pytorch", "caffe"] = "pytorch",
        frozen_stages: int = -1,
        norm_eval: bool = True,
        norm_frozen: bool = False,
        pretrained: str | None = None,
    ) -> None:
        super().__init__()
        _check_arguments(depth, num_stages, out_indices, frozen_stages)
        num_stages = out_indices[-1] + 1  # what nothing reads would have no gradient, which DDP does not allow
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval

        self.conv1 = nn.Conv2d(3, base_channels, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(base_channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        block, lengths = BLOCKS[depth]
        channels = base_channels
        for i, length in enumerate(lengths[:num_stages]):
            stage = _make_stage(block, channels, base_channels * 2**i, length, stride=1 if i == 0 else 2, style=style)
            self.add_module(f"layer{i + 1}", stage)
            channels = base_channels * 2**i * block.expansion
        self.stages = [f"layer{i + 1}" for i in range(num_stages)]
        self.channels = tuple(base_channels * 2**i * block.expansion for i in self.out_indices)
        self.strides = tuple(4 * 2**i for i in self.out_indices)

        if pretrained is None:
            kaiming_init(self)
            for module in () if norm_frozen else self.modules():
                if isinstance(module, BasicBlock | Bottleneck):
                    nn.init.zeros_((module.bn2 if isinstance(module, BasicBlock) else module.bn3).weight)
        else:
            self._load(pretrained, depth)

        for part in self._frozen_parts():
            part.requires_grad_(False)
        if norm_frozen:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.requires_grad_(False)
        self.train(self.training)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images (N, 3, H, W) to features (N, C_l, ceil(H / s_l), ceil(W / s_l)), finest first."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        outs = []
        for i, name in enumerate(self.stages):
            x = getattr(self, name)(x)
            if i in self.out_indices:
                outs.append(x)
        return tuple(outs)

    def train(self, mode: bool = True) -> ResNet:
        """Switches to training or evaluation, but for what ``frozen_stages`` and ``norm_eval`` hold in evaluation."""
        super().train(mode)
        hold_in_evaluation(self._frozen_parts(), self if self.norm_eval else None)
        return self

    def _frozen_parts(self) -> list[nn.Module]:
        """The stem and the stages that are not trained."""
        if self.frozen_stages < 0:
            return []
        return [self.conv1, self.bn1, *(getattr(self, name) for name in self.stages[: self.frozen_stages])]

    def _load(self, pretrained: str, depth: int) -> None:
        """Loads weights of a whole ResNet of this depth.

        Its classifier and stages not built here may be left out, and biases of convolutions, which files converted from
        Caffe have: the BatchNorm that follows each convolution has the bias that counts.
        """
        absent = "".join(rf"|layer{i + 1}\." for i in range(len(self.stages), 4))
        load_backbone(self, pretrained, f"resnet{depth}", unused=rf"fc\.{absent}|.*(conv\d|downsample\.0)\.bias$")


def _check_arguments(depth: int, num_stages: int, out_indices: Sequence[int], frozen_stages: int) -> None:
    """Raises InputError for values that no ResNet has."""
    if depth not in BLOCKS:
        raise InputError(f"ResNet has depth {', '.join(map(str, BLOCKS))}, got {depth}")
    if not 1 <= num_stages <= 4:
        raise InputError(f"ResNet has 1 to 4 stages, got num_stages {num_stages}")
    check_stages("ResNet", out_indices, frozen_stages, num_stages)


def _make_stage(
    block: type[BasicBlock] | type[Bottleneck],
    in_channels: int,
    channels: int,
    length: int,
    stride: int,
    style: Literal["pytorch", "caffe"],
) -> nn.Sequential:
    """One stage: ``length`` blocks, the first of which changes size and channels."""
    out_channels = channels * block.expansion
    downsample = None
    if stride != 1 or in_channels != out_channels:
        downsample = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
        )
    first = block(in_channels, channels, stride, downsample)
    if style == "caffe" and block is Bottleneck:
        first.conv1.stride, first.conv2.stride = first.conv2.stride, first.conv1.stride
    return nn.Sequential(first, *(block(out_channels, channels) for _ in range(length - 1)))
