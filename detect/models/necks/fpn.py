"""Feature pyramid network: strong semantics at every scale.

Legend: N images, L levels of the backbone, C_l channels of level l, H_l, W_l its size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from detect.models.arguments import Count, CountOrZero, Counts
from detect.models.layers import ConvModule, xavier_init
from detect.registry import MODELS
from dpipe.errors import InputError

ExtraConvs = Literal["on_input", "on_lateral", "on_output"]
MOST_STRIDE = 4096
"""Of a level; a cell of it is larger than most images."""


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
        source_channels: Channels of each level of the backbone, as they were given.
        source_strides: Pixels per cell of each level of the backbone, as they were given.

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
        self.source_channels = tuple(in_channels)
        self.source_strides = tuple(strides)
        self.taken = taken_levels(len(in_channels), start_level, end_level, num_outs)
        in_channels = in_channels[self.taken]
        self.strides = pyramid_strides(strides[self.taken], len(in_channels), num_outs)
        self.channels = (out_channels,) * num_outs
        self.extra_source = extra_source(add_extra_convs)
        self.relu_before_extra_convs = relu_before_extra_convs
        self.lateral_convs = lateral_convs(in_channels, out_channels)
        self.fpn_convs = output_convs(len(in_channels), out_channels)
        self.fpn_convs.extend(extra_convs(self.extra_source, in_channels, out_channels, num_outs))
        xavier_init(self)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Makes the pyramid.

        Args:
            features: Levels of the backbone, (N, C_l, H_l, W_l), finest first.

        Returns:
            Levels of the pyramid, (N, out_channels, H_l, W_l), finest first.
        """
        laterals, outs = self.top_down(features)
        return self.with_extra_levels(features, laterals, outs)

    def top_down(self, features: Sequence[Tensor]) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """The laterals and the smoothed sums of the levels that are taken, (N, out_channels, H_l, W_l) each."""
        laterals = make_laterals(self.lateral_convs, features[self.taken])
        return laterals, sum_and_smooth(laterals, list(self.fpn_convs)[: len(laterals)])

    def with_extra_levels(
        self, features: Sequence[Tensor], laterals: Sequence[Tensor], outs: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """The pyramid's levels, given those of the backbone, the laterals and the levels without the extra ones."""
        sources = {"on_input": features[-1], "on_lateral": laterals[-1], "on_output": outs[-1]}
        source = None if self.extra_source is None else sources[self.extra_source]
        convs = list(self.fpn_convs)[len(laterals) :]
        return add_extra_levels(outs, source, convs, self.relu_before_extra_convs, len(self.channels))


def taken_levels(num_levels: int, start_level: int, end_level: int, num_outs: int) -> slice:
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
        InputError: There are not as many strides as levels, fewer outputs than levels, or so many that a cell of the
            last one is larger than any image.
    """
    if len(strides) != num_levels:
        raise InputError(f"a neck of {num_levels} in_channels needs as many strides, got {list(strides)}")
    if num_outs < num_levels:
        raise InputError(f"num_outs is {num_outs}, but a pyramid over {num_levels} levels has at least {num_levels}")
    if math.log2(strides[-1]) + num_outs - num_levels > math.log2(MOST_STRIDE):
        raise InputError(
            f"num_outs is {num_outs}: the stride doubles from {strides[-1]} with each level beyond {num_levels}, "
            f"expected at most {MOST_STRIDE}"
        )
    extra = [strides[-1] * 2 ** (i + 1) for i in range(num_outs - num_levels)]
    return (*strides, *extra)


def lateral_convs(in_channels: Sequence[int], out_channels: int) -> nn.ModuleList:
    """The 1x1 convolutions that bring every level to the same number of channels."""
    return nn.ModuleList([ConvModule(channels, out_channels, 1) for channels in in_channels])


def output_convs(num_levels: int, out_channels: int) -> nn.ModuleList:
    """The 3x3 convolutions that smooth every level after upsampling."""
    return nn.ModuleList([ConvModule(out_channels, out_channels, 3) for _ in range(num_levels)])


def make_laterals(convs: Iterable[nn.Module], levels: Sequence[Tensor]) -> list[Tensor]:
    """Brings levels (N, C_l, H_l, W_l), one for each convolution, to the same number of channels."""
    return [conv(level) for conv, level in zip(convs, levels, strict=True)]


def sum_and_smooth(laterals: Sequence[Tensor], convs: Iterable[nn.Module]) -> tuple[Tensor, ...]:
    """Takes laterals (N, C, H_l, W_l), finest first, through the top-down path and the smoothing convolutions."""
    summed = [laterals[-1]]
    for lateral in reversed(laterals[:-1]):
        # To the lateral's own size, for a level of odd size is not twice the one above it.
        summed.append(lateral + F.interpolate(summed[-1], size=lateral.shape[-2:], mode="nearest"))
    return tuple(conv(level) for conv, level in zip(convs, reversed(summed), strict=True))


def extra_source(add_extra_convs: bool | ExtraConvs) -> ExtraConvs | None:
    """What the first extra convolution reads; None without extra convolutions."""
    if isinstance(add_extra_convs, bool):
        return "on_input" if add_extra_convs else None
    return add_extra_convs


def extra_convs(
    source: ExtraConvs | None, in_channels: Sequence[int], out_channels: int, num_outs: int
) -> list[nn.Module]:
    """The 3x3 convolutions of stride 2 that make the levels above those of the backbone; none without a source."""
    if source is None:
        return []
    widths = [in_channels[-1] if source == "on_input" else out_channels] + [out_channels] * num_outs
    return [ConvModule(width, out_channels, 3, stride=2) for width in widths[: num_outs - len(in_channels)]]


def add_extra_levels(
    outs: Sequence[Tensor], source: Tensor | None, convs: Iterable[nn.Module], relu: bool, num_outs: int
) -> tuple[Tensor, ...]:
    """Puts levels on top of a pyramid.

    Args:
        outs: Its levels (N, C, H_l, W_l), finest first.
        source: What the first convolution reads; without one every second cell of the level before makes the next.
        convs: One for each extra level.
        relu: ReLU before each convolution but the first.
        num_outs: How many levels there are in the end.
    """
    outs = list(outs)
    if source is None:
        while len(outs) < num_outs:
            outs.append(F.max_pool2d(outs[-1], kernel_size=1, stride=2))
        return tuple(outs)
    for conv in convs:
        outs.append(conv(source))
        source = F.relu(outs[-1]) if relu else outs[-1]
    return tuple(outs)
