"""MobileNetV2 and V3: light backbones.

Legend: N images, H, W their padded size, C_l channels and s_l stride of output level l.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torchvision
from torch import Tensor, nn

from detect.models.arguments import Positive
from detect.models.backbone_parts import check_stages, hold_in_evaluation, load_backbone
from detect.registry import MODELS

STRIDES = (4, 8, 16, 32)


@MODELS.register
class MobileNet(nn.Module):
    """torchvision's MobileNetV2 (arXiv 1801.04381) or V3 (arXiv 1905.02244), without its classifier.

    Its blocks make four stages, of strides 4, 8, 16 and 32; what comes before is the stem. A stage hands out what its
    last block makes; that of stride 32 ends with the 1x1 convolution in front of the classifier. Parameters have
    torchvision's names (``features.0.0.weight``).

    Args:
        arch: ``mobilenet_v2``, ``mobilenet_v3_large`` or ``mobilenet_v3_small``.
        width_mult: Multiplies the channels of every block.
        out_indices: Which stages are handed out, counted from 0. Those beyond the last are left out.
        frozen_stages: This many stages, and the stem, are never trained and their BatchNorm keeps its statistics; 0 is
            the stem alone, -1 nothing.
        norm_eval: BatchNorm keeps its statistics in all stages, as is usual for batches of an image or two.
        pretrained: Where the weights come from: a torchvision name (``MobileNet_V3_Large_Weights.IMAGENET1K_V2``, or
            ``torchvision://mobilenet_v3_large`` for the first version), a path or a URL. None draws them at random.

    Attributes:
        channels: Channels of each output level.
        strides: Pixels per cell of each output level.

    Raises:
        InputError: An argument is out of range, or the weights cannot be had or do not fit.
    """

    def __init__(
        self,
        arch: Literal["mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small"] = "mobilenet_v3_large",
        width_mult: Positive = 1.0,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = True,
        pretrained: str | None = None,
    ) -> None:
        super().__init__()
        check_stages("MobileNet", out_indices, frozen_stages, len(STRIDES))
        blocks: nn.Sequential = getattr(torchvision.models, arch)(width_mult=width_mult).features
        self.norm_eval = norm_eval
        block_strides = _block_strides(blocks)
        ends = [max(i for i, reached in enumerate(block_strides) if reached == stride) for stride in STRIDES]
        self.last_blocks = tuple(ends[i] for i in out_indices)
        self.features = blocks[: self.last_blocks[-1] + 1]  # what nothing reads would have no gradient
        self.channels = tuple(_out_channels(self.features[i]) for i in self.last_blocks)
        self.strides = tuple(STRIDES[i] for i in out_indices)
        # The stem ends before the first block of stride 4.
        self.num_frozen = (
            0 if frozen_stages < 0 else (block_strides.index(STRIDES[0]), *(i + 1 for i in ends))[frozen_stages]
        )
        if pretrained is not None:
            absent = "".join(rf"|features\.{i}\." for i in range(len(self.features), len(blocks)))
            load_backbone(self, pretrained, arch, unused=rf"classifier\.{absent}")
        for block in self.features[: self.num_frozen]:
            block.requires_grad_(False)
        self.train(self.training)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images (N, 3, H, W) to features (N, C_l, ceil(H / s_l), ceil(W / s_l)), finest first."""
        x, outs = images, []
        for i, block in enumerate(self.features):
            x = block(x)
            if i in self.last_blocks:
                outs.append(x)
        return tuple(outs)

    def train(self, mode: bool = True) -> MobileNet:
        """Switches to training or evaluation, but for what ``frozen_stages`` and ``norm_eval`` hold in evaluation."""
        super().train(mode)
        hold_in_evaluation(self.features[: self.num_frozen], self if self.norm_eval else None)
        return self


def _block_strides(features: nn.Sequential) -> list[int]:
    """Pixels per cell of what each block makes."""
    stride, strides = 1, []
    for block in features:
        for module in block.modules():
            if isinstance(module, nn.Conv2d):
                stride *= int(module.stride[0])
        strides.append(stride)
    return strides


def _out_channels(block: nn.Module) -> int:
    """Channels of what a block makes, which its last convolution tells."""
    return [module.out_channels for module in block.modules() if isinstance(module, nn.Conv2d)][-1]
