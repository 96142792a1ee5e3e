"""Feature pyramid network: strong semantics at every scale.

Legend: N images, L levels of the backbone, C_l channels of level l, H_l, W_l its size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from detect.models.arguments import Count, CountOrZero, Counts
from detect.models.layers import ConvModule, xavier_init
from detect.registry import MODELS
from dpipe.errors import InputError

ExtraConvs = Literal["on_input", "on_lateral", "on_output"]


@MODELS.register
class FPN(nn.Module):
    """Feature pyramid network (arXiv 1612.03144).

    A 1x1 convolution brings every level to ``out_channels`` (the laterals), each level is added to the one below it by
    nearest-neighbour upsampling, and a 3x3 convolution smooths every sum. Levels beyond those of the backbone take
    every second cell of the level before, or are made by 3x3 convolutions of stride 2, as RetinaNet (arXiv 1708.02002)
    and FCOS (arXiv 1904.01355) have them.

    Args:
        in_channels: Channels of each level of the backbone, finest first.
        out_channels: Channels of every level of the pyramid.
        num_outs: Levels of the pyramid, at least as many as are taken from the backbone.
        strides: Pixels per cell of each level of the backbone.
        start_level: The first of the backbone's levels that is taken, counted from 0.
        end_level: The last of them; -1 is the backbone's last. Only above that are there extra levels.
        add_extra_convs: What the first extra convolution reads: the backbone's last level (``on_input``, or true), its
            lateral (``on_lateral``), or the pyramid's level (``on_output``). The next ones read the extra level before
            theirs. With false, extra levels are made without convolutions.
        relu_before_extra_convs: ReLU before each extra convolution but the first.

    Attributes:
        channels: Channels of each level of the pyramid.
        strides: Pixels per cell of each level of the pyramid.

    Raises:
        InputError: If there are no such levels, or not as many strides as levels.
    """

    def __init__(
        self,
        in_channels: Counts,
        out_channels: Count = 256,
        num_outs: Count = 5,
        strides: Counts = (4, 8, 16, 32),
        start_level: CountOrZero = 0,
        end_level: int = -1,
        add_extra_convs: bool | ExtraConvs = False,
        relu_before_extra_convs: bool = False,
    ) -> None:
        super().__init__()
        if len(strides) != len(in_channels):
            raise InputError(f"a neck of {len(in_channels)} in_channels needs as many strides, got {list(strides)}")
        self.taken = _taken_levels(len(in_channels), start_level, end_level, num_outs)
        in_channels = in_channels[self.taken]
        self.strides = pyramid_strides(strides[self.taken], len(in_channels), num_outs)
        self.channels = (out_channels,) * num_outs
        self.add_extra_convs: ExtraConvs | None
        if isinstance(add_extra_convs, bool):
            self.add_extra_convs = "on_input" if add_extra_convs else None
        else:
            self.add_extra_convs = add_extra_convs
        self.relu_before_extra_convs = relu_before_extra_convs
        self.lateral_convs = lateral_convs(in_channels, out_channels)
        self.fpn_convs = output_convs(len(in_channels), out_channels)
        if self.add_extra_convs is not None:
            for i in range(num_outs - len(in_channels)):
                from_backbone = i == 0 and self.add_extra_convs == "on_input"
                self.fpn_convs.append(
                    ConvModule(in_channels[-1] if from_backbone else out_channels, out_channels, 3, stride=2)
                )
        xavier_init(self)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Makes the pyramid.

        Args:
            features: Levels of the backbone, (N, C_l, H_l, W_l), finest first.

        Returns:
            Levels of the pyramid, (N, out_channels, H_l, W_l), finest first.
        """
        inputs = features[self.taken]
        laterals = [conv(feature) for conv, feature in zip(self.lateral_convs, inputs, strict=True)]
        if self.add_extra_convs is None:
            return finish_pyramid(laterals, self.fpn_convs, len(self.channels))
        convs = list(self.fpn_convs)
        outs = list(finish_pyramid(laterals, convs[: len(laterals)], len(laterals)))
        source = {"on_input": inputs, "on_lateral": laterals, "on_output": outs}[self.add_extra_convs][-1]
        for conv in convs[len(laterals) :]:
            outs.append(conv(source))
            source = F.relu(outs[-1]) if self.relu_before_extra_convs else outs[-1]
        return tuple(outs)


def _taken_levels(num_levels: int, start_level: int, end_level: int, num_outs: int) -> slice:
    """Which of a backbone's levels a pyramid takes.

    Raises:
        InputError: There are no such levels, or extra levels above one that is not the backbone's last.
    """
    last = num_levels - 1 if end_level == -1 else end_level
    if not 0 <= start_level <= last < num_levels:
        raise InputError(
            f"start_level {start_level} and end_level {end_level} take no levels of {num_levels}, counted from 0"
        )
    if last < num_levels - 1 and num_outs != last - start_level + 1:
        raise InputError(
            f"num_outs is {num_outs}, but levels {start_level} to {last} of {num_levels} make a pyramid of "
            f"{last - start_level + 1}: extra levels stand only above the backbone's last"
        )
    return slice(start_level, last + 1)


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


def finish_pyramid(laterals: Sequence[Tensor], convs: Iterable[nn.Module], num_outs: int) -> tuple[Tensor, ...]:
    """Takes laterals (N, C, H_l, W_l), finest first, through top-down path, smoothing convolutions and extra levels."""
    summed = [laterals[-1]]
    for lateral in reversed(laterals[:-1]):
        # To the lateral's own size, for a level of odd size is not twice the one above it.
        summed.append(lateral + F.interpolate(summed[-1], size=lateral.shape[-2:], mode="nearest"))
    outs = [conv(level) for conv, level in zip(convs, reversed(summed), strict=True)]
    while len(outs) < num_outs:
        outs.append(F.max_pool2d(outs[-1], kernel_size=1, stride=2))
    return tuple(outs)
