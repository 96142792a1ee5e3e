"""Feature pyramid network: strong semantics at every scale.

Legend: N images, L levels of the backbone, C_l channels of level l, H_l, W_l its size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from detect.models.arguments import Count, Counts
from detect.models.layers import ConvModule, xavier_init
from detect.registry import MODELS
from dpipe.errors import InputError


@MODELS.register
class FPN(nn.Module):
    """Feature pyramid network (arXiv 1612.03144).

    A 1x1 convolution brings every level to ``out_channels`` (the laterals), each level is added to the one below it by
    nearest-neighbour upsampling, and a 3x3 convolution smooths every sum. Levels beyond the backbone's take every
    second cell of the level before.

    Args:
        in_channels: Channels of each level of the backbone, finest first.
        out_channels: Channels of every level of the pyramid.
        num_outs: Levels of the pyramid, at least as many as the backbone's.
        strides: Pixels per cell of each level of the backbone.

    Attributes:
        channels: Channels of each level of the pyramid.
        strides: Pixels per cell of each level of the pyramid.
    """

    def __init__(
        self,
        in_channels: Counts,
        out_channels: Count = 256,
        num_outs: Count = 5,
        strides: Counts = (4, 8, 16, 32),
    ) -> None:
        super().__init__()
        self.strides = pyramid_strides(strides, len(in_channels), num_outs)
        self.channels = (out_channels,) * num_outs
        self.lateral_convs = lateral_convs(in_channels, out_channels)
        self.fpn_convs = output_convs(len(in_channels), out_channels)
        xavier_init(self)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Makes the pyramid.

        Args:
            features: Levels of the backbone, (N, C_l, H_l, W_l), finest first.

        Returns:
            Levels of the pyramid, (N, out_channels, H_l, W_l), finest first.
        """
        laterals = [conv(feature) for conv, feature in zip(self.lateral_convs, features, strict=True)]
        return finish_pyramid(laterals, self.fpn_convs, len(self.channels))


def pyramid_strides(strides: Sequence[int], num_levels: int, num_outs: int) -> tuple[int, ...]:
    """Strides of a pyramid whose extra levels double the stride.

    Raises:
        InputError: There are not as many strides as levels, or fewer outputs than levels.
    """
    if len(strides) != num_levels:
        raise InputError(f"a neck of {num_levels} in_channels needs as many strides, got {list(strides)}")
    if num_outs < num_levels:
        raise InputError(f"num_outs is {num_outs}, but a pyramid over {num_levels} levels has at least {num_levels}")
    extra = [strides[-1] * 2 ** (i + 1) for i in range(num_outs - num_levels)]
    return (*strides, *extra)


def lateral_convs(in_channels: Sequence[int], out_channels: int) -> nn.ModuleList:
    """The 1x1 convolutions that bring every level to the same number of channels."""
    return nn.ModuleList([ConvModule(channels, out_channels, 1) for channels in in_channels])


def output_convs(num_levels: int, out_channels: int) -> nn.ModuleList:
    """The 3x3 convolutions that smooth every level after upsampling."""
    return nn.ModuleList([ConvModule(out_channels, out_channels, 3) for _ in range(num_levels)])


def finish_pyramid(laterals: Sequence[Tensor], convs: nn.ModuleList, num_outs: int) -> tuple[Tensor, ...]:
    """Takes laterals (N, C, H_l, W_l), finest first, through top-down path, smoothing convolutions and extra levels."""
    summed = [laterals[-1]]
    for lateral in reversed(laterals[:-1]):
        # To the lateral's own size, for a level of odd size is not twice the one above it.
        summed.append(lateral + F.interpolate(summed[-1], size=lateral.shape[-2:], mode="nearest"))
    outs = [conv(level) for conv, level in zip(convs, reversed(summed), strict=True)]
    while len(outs) < num_outs:
        outs.append(F.max_pool2d(outs[-1], kernel_size=1, stride=2))
    return tuple(outs)
