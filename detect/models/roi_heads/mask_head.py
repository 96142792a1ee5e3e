"""Mask heads: the shape of the object in each region of interest."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detect.models.arguments import Count, CountOrZero, Counts, check_loss
from detect.models.channels import common_channels
from detect.models.layers import ConvModule, kaiming_init
from detect.models.losses import CrossEntropyLoss
from detect.registry import MODELS

TOGETHER = 16
"""RoIs that a CPU upsamples at a time in training. Backwards, what is upsampled is held three times, while all other
layers hold their inputs: without this a step's memory peaks there."""


@MODELS.register
class FCNMaskHead(nn.Module):
    """Convolutions, one upsampling to twice the side, and a mask for every class (Mask R-CNN, arXiv 1703.06870).

    Args:
        in_channels: C of the RoI features (that of all levels).
        num_classes: K.
        num_convs: 3x3 convolutions before the upsampling.
        conv_out_channels: Their width.
        loss_mask: A loss of classes by sigmoid, of each pixel; cross entropy without one.
    """

    def __init__(
        self,
        in_channels: Count | Counts,
        num_classes: Count,
        num_convs: CountOrZero = 4,
        conv_out_channels: Count = 256,
        loss_mask: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.loss_mask = loss_mask or CrossEntropyLoss(use_sigmoid=True)
        check_loss(self.loss_mask, "FCNMaskHead: loss_mask", sigmoid=True, num_logits=1)
        self.num_classes = num_classes
        self.level_channels = common_channels(in_channels, "FCNMaskHead")
        widths = [self.level_channels] + [conv_out_channels] * num_convs
        self.convs = nn.ModuleList(
            [ConvModule(before, after, 3, activation="relu") for before, after in itertools.pairwise(widths)]
        )
        self.upsample = nn.ConvTranspose2d(widths[-1], conv_out_channels, 2, stride=2)
        self.conv_logits = nn.Conv2d(conv_out_channels, num_classes, 1)
        kaiming_init(self)

    def forward(self, features: Tensor) -> Tensor:
        """RoI features (R, C, s, s) to logits (R, K, 2 s, 2 s), in float32."""
        x = features
        for conv in self.convs:
            x = conv(x)
        if x.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return torch.cat([self._upsampled_logits(part) for part in x.split(TOGETHER)])
        return self._upsampled_logits(x)

    def _upsampled_logits(self, x: Tensor) -> Tensor:
        return self.conv_logits(F.relu(self.upsample(x))).float()
