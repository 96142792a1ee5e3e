"""Path aggregation: a feature pyramid with a second path, from fine to coarse.

Legend: N images, L levels taken from the backbone, C_l channels of level l, H_l, W_l its size.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from detect.models.arguments import Count, CountOrZero, Counts
from detect.models.layers import ConvModule, xavier_init
from detect.models.necks.fpn import FPN, ExtraConvs, output_convs
from detect.registry import MODELS


@MODELS.register
class PAFPN(FPN):
    """Path aggregation network (PANet, arXiv 1803.01534, section 3.1).

    The pyramid of an FPN goes through a bottom-up path: from the second level on, the level below, brought to its size
    by a 3x3 convolution of stride 2, is added to each, and a 3x3 convolution smooths the sum, as OpenMMLab orders
    them: sums, not what was smoothed, are passed on, and there is no ReLU. Parameters are named as in its checkpoints.
    Extra levels stand above what the path gives.

    Args:
        in_channels: Channels of each level of the backbone, finest first.
        out_channels: Channels of every level of the pyramid.
        num_outs: Levels of the pyramid, at least as many as are taken from the backbone.
        strides: Pixels per cell of each level of the backbone.
        start_level: The first of the backbone's levels that is taken, counted from 0.
        end_level: The last of them; -1 is the backbone's last. Only above that are there extra levels.
        add_extra_convs: What the first extra convolution reads, see FPN; ``on_output`` reads the last level of the
            bottom-up path.
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
        super().__init__(
            in_channels,
            out_channels,
            num_outs,
            strides,
            start_level,
            end_level,
            add_extra_convs,
            relu_before_extra_convs,
        )
        steps = len(self.lateral_convs) - 1
        self.downsample_convs = nn.ModuleList(
            [ConvModule(out_channels, out_channels, 3, stride=2) for _ in range(steps)]
        )
        self.pafpn_convs = output_convs(steps, out_channels)
        xavier_init(self.downsample_convs)
        xavier_init(self.pafpn_convs)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Makes the pyramid.

        Args:
            features: Levels of the backbone, (N, C_l, H_l, W_l), finest first.

        Returns:
            Levels of the pyramid, (N, out_channels, H_l, W_l), finest first.
        """
        laterals, top_down = self.top_down(features)
        below, outs = top_down[0], [top_down[0]]
        for level, downsample, smooth in zip(top_down[1:], self.downsample_convs, self.pafpn_convs, strict=True):
            below = level + downsample(below)
            outs.append(smooth(below))
        return self.with_extra_levels(features, laterals, outs)
