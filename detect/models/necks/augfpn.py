"""AugFPN's neck: a feature pyramid whose top level gets back the context that its 1x1 convolution lost.

AugFPN (arXiv 1912.05384) has three parts. Residual Feature Augmentation is here, ``residual_augmentation`` switches
it. Soft RoI Selection is ``SoftRoIExtractor``; with ``SingleRoIExtractor`` in its place it is off. Consistent
Supervision is a RoI head's auxiliary head, which reads the raw laterals that :meth:`AugFPN.pyramid_and_laterals`
returns.

Legend: N images, L levels of the backbone, C_l channels of level l, H_l, W_l its size, P pooled contexts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detect.models.arguments import Count, Counts
from detect.models.layers import xavier_init
from detect.models.necks.context_pooling import pool_and_resize
from detect.models.necks.fpn import (
    add_extra_levels,
    lateral_convs,
    make_laterals,
    output_convs,
    pyramid_strides,
    sum_and_smooth,
)
from detect.registry import MODELS
from dpipe.errors import InputError


@MODELS.register
class AugFPN(nn.Module):
    """Feature pyramid with Residual Feature Augmentation (arXiv 1912.05384).

    The backbone's top level is average-pooled to ``pool_ratios`` of its size, whatever its aspect ratio; each
    context passes a 1x1 convolution and is upsampled back (bilinear); a gate per context and cell (sigmoid) weighs
    them, and their sum is added to the top lateral before the top-down path. Parameters are named as in the
    authors' repository.

    Args:
        in_channels: Channels of each level of the backbone, finest first.
        out_channels: Channels of every level of the pyramid.
        num_outs: Levels of the pyramid, at least as many as the backbone's.
        strides: Pixels per cell of each level of the backbone.
        pool_ratios: Size of each pooled context as a share of the top level's.
        residual_augmentation: False makes this a plain FPN.

    Attributes:
        channels: Channels of each level of the pyramid.
        strides: Pixels per cell of each level of the pyramid.
        source_channels: Channels of each level of the backbone, as they were given.
        source_strides: Pixels per cell of each level of the backbone, as they were given.
    """

    def __init__(
        self,
        in_channels: Counts,
        out_channels: Count = 256,
        num_outs: Count = 5,
        strides: Counts = (4, 8, 16, 32),
        pool_ratios: Sequence[float] = (0.1, 0.2, 0.3),
        residual_augmentation: bool = True,
    ) -> None:
        super().__init__()
        if not pool_ratios or not all(0 < ratio <= 1 for ratio in pool_ratios):
            raise InputError(f"pool_ratios must be shares above 0 and up to 1, got {list(pool_ratios)}")
        self.source_channels = tuple(in_channels)
        self.source_strides = tuple(strides)
        self.strides = pyramid_strides(strides, len(in_channels), num_outs)
        self.channels = (out_channels,) * num_outs
        self.pool_ratios = tuple(pool_ratios)
        self.residual_augmentation = residual_augmentation
        self.lateral_convs = lateral_convs(in_channels, out_channels)
        self.fpn_convs = output_convs(len(in_channels), out_channels)
        if residual_augmentation:
            num_contexts = len(self.pool_ratios)
            self.high_lateral_conv = nn.ModuleList(
                [nn.Conv2d(in_channels[-1], out_channels, 1) for _ in range(num_contexts)]
            )
            self.high_lateral_conv_attention = nn.Sequential(
                nn.Conv2d(out_channels * num_contexts, out_channels, 1),
                nn.ReLU(inplace=True),
                nn.Conv2d(out_channels, num_contexts, 3, padding=1),
            )
        xavier_init(self)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Makes the pyramid: levels (N, C_l, H_l, W_l) to levels (N, out_channels, H_l, W_l), finest first."""
        return self.pyramid_and_laterals(features)[0]

    def pyramid_and_laterals(self, features: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Makes the pyramid, and hands out the laterals that consistent supervision trains.

        Args:
            features: Levels of the backbone, (N, C_l, H_l, W_l), finest first.

        Returns:
            The pyramid (``num_outs`` levels) and the raw laterals (L levels, before context and top-down path),
            each level (N, out_channels, H_l, W_l), finest first.
        """
        raw_laterals = tuple(make_laterals(self.lateral_convs, features))
        laterals = list(raw_laterals)
        if self.residual_augmentation:
            laterals[-1] = laterals[-1] + self._context(features[-1])
        outs = sum_and_smooth(laterals, self.fpn_convs)
        return add_extra_levels(outs, None, (), False, len(self.channels)), raw_laterals

    def _context(self, top: Tensor) -> Tensor:
        """Pools the top level (N, C_L, H, W) at several ratios and fuses the contexts to (N, out_channels, H, W)."""
        size = top.shape[-2:]
        contexts = []
        for ratio, conv in zip(self.pool_ratios, self.high_lateral_conv, strict=True):
            if torch.compiler.is_exporting():
                contexts.append(conv(pool_and_resize(top, ratio)))
                continue
            pooled_size = (max(1, int(size[0] * ratio)), max(1, int(size[1] * ratio)))
            pooled = conv(F.adaptive_avg_pool2d(top, pooled_size))
            contexts.append(F.interpolate(pooled, size=size, mode="bilinear", align_corners=True))
        gates = self.high_lateral_conv_attention(torch.cat(contexts, dim=1)).sigmoid()  # N, P, H, W
        return (torch.stack(contexts, dim=1) * gates[:, :, None]).sum(dim=1)  # N, P, C, H, W -> N, C, H, W
