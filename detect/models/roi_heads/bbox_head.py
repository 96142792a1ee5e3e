"""Bbox heads: the class and the box of each region of interest."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from detect.models.arguments import Count, Counts, Stds, check_loss
from detect.models.boxes import DeltaCoder
from detect.models.channels import common_channels
from detect.models.layers import ConvModule, FullyConnected
from detect.models.losses import CrossEntropyLoss, SmoothL1Loss
from detect.registry import MODELS


class BBoxHeadBase(nn.Module):
    """What the bbox heads here have in common: the attributes of a bbox head, and what is checked against other parts.

    Args:
        in_channels: C of the RoI features (that of all levels).
        num_classes: K, without the background.
        roi_feat_size: S, side of the RoI features.
        reg_class_agnostic: Four deltas for a RoI instead of four for each class.
        target_stds: What regression targets are divided by.
        loss_cls: A loss of classes by softmax; cross entropy without one.
        loss_bbox: A loss of boxes, decoded for those that take boxes (IoU); smooth L1 with beta 1 without one.

    Raises:
        InputError: If levels have different channels, or a loss does not fit its place.
    """

    def __init__(
        self,
        in_channels: int | Sequence[int],
        num_classes: int,
        roi_feat_size: int,
        reg_class_agnostic: bool,
        target_stds: Stds,
        loss_cls: nn.Module | None,
        loss_bbox: nn.Module | None,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        self.num_classes = num_classes
        self.reg_class_agnostic = reg_class_agnostic
        self.coder = DeltaCoder(target_stds)
        self.loss_cls, self.loss_bbox = box_head_losses(owner, num_classes, loss_cls, loss_bbox)
        self.roi_feat_size = roi_feat_size
        self.level_channels = common_channels(in_channels, owner)

    def last_layers(self, class_width: int, box_width: int) -> tuple[nn.Linear, nn.Linear]:
        """The layers that give logits and deltas, from features (R, class_width) and (R, box_width)."""
        num_deltas = 4 if self.reg_class_agnostic else 4 * self.num_classes
        return nn.Linear(class_width, self.num_classes + 1), nn.Linear(box_width, num_deltas)


@MODELS.register
class Shared2FCBBoxHead(BBoxHeadBase):
    """Two fully connected layers, then one each for classes and deltas (FPN, arXiv 1612.03144, section 4.2).

    Args:
        in_channels: C of the RoI features (that of all levels).
        num_classes: K, without the background.
        roi_feat_size: S, side of the RoI features.
        fc_out_channels: Width of the two layers.
        reg_class_agnostic: Four deltas for a RoI instead of four for each class.
        target_stds: What regression targets are divided by.
        loss_cls: A loss of classes by softmax; cross entropy without one.
        loss_bbox: A loss of boxes, decoded for those that take boxes (IoU); smooth L1 with beta 1 without one.
    """

    def __init__(
        self,
        in_channels: Count | Counts,
        num_classes: Count,
        roi_feat_size: Count = 7,
        fc_out_channels: Count = 1024,
        reg_class_agnostic: bool = False,
        target_stds: Stds = (0.1, 0.1, 0.2, 0.2),
        loss_cls: nn.Module | None = None,
        loss_bbox: nn.Module | None = None,
    ) -> None:
        super().__init__(in_channels, num_classes, roi_feat_size, reg_class_agnostic, target_stds, loss_cls, loss_bbox)
        flat_size = self.level_channels * roi_feat_size**2
        self.shared_fcs = fc_layers(flat_size, fc_out_channels, 2)
        self.fc_cls, self.fc_reg = self.last_layers(fc_out_channels, fc_out_channels)
        init_layers(self.shared_fcs, self.fc_cls, self.fc_reg)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """RoI features (R, C, S, S) to logits (R, K + 1) and deltas (R, 4) or (R, 4 * K), in float32."""
        x = features.flatten(1)
        for layer in self.shared_fcs:
            x = F.relu(layer(x))
        return self.fc_cls(x).float(), self.fc_reg(x).float()


@MODELS.register
class Shared4Conv1FCBBoxHead(BBoxHeadBase):
    """Four 3x3 convolutions and a fully connected layer, then one each for classes and deltas.

    The head of Group Normalization (arXiv 1803.08494, section 4.2), here without normalization, as OpenMMLab's is
    where its configuration names none; parameters are named as in its checkpoints.

    Args:
        in_channels: C of the RoI features (that of all levels).
        num_classes: K, without the background.
        roi_feat_size: S, side of the RoI features.
        conv_out_channels: Width of the convolutions.
        fc_out_channels: Width of the fully connected layer.
        reg_class_agnostic: Four deltas for a RoI instead of four for each class.
        target_stds: What regression targets are divided by.
        loss_cls: A loss of classes by softmax; cross entropy without one.
        loss_bbox: A loss of boxes, decoded for those that take boxes (IoU); smooth L1 with beta 1 without one.
    """

    def __init__(
        self,
        in_channels: Count | Counts,
        num_classes: Count,
        roi_feat_size: Count = 7,
        conv_out_channels: Count = 256,
        fc_out_channels: Count = 1024,
        reg_class_agnostic: bool = False,
        target_stds: Stds = (0.1, 0.1, 0.2, 0.2),
        loss_cls: nn.Module | None = None,
        loss_bbox: nn.Module | None = None,
    ) -> None:
        super().__init__(in_channels, num_classes, roi_feat_size, reg_class_agnostic, target_stds, loss_cls, loss_bbox)
        widths = [self.level_channels] + [conv_out_channels] * 4
        self.shared_convs = nn.ModuleList(
            [ConvModule(before, after, 3, activation="relu") for before, after in itertools.pairwise(widths)]
        )
        self.shared_fcs = fc_layers(conv_out_channels * roi_feat_size**2, fc_out_channels, 1)
        self.fc_cls, self.fc_reg = self.last_layers(fc_out_channels, fc_out_channels)
        init_layers(self.shared_fcs, self.fc_cls, self.fc_reg)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """RoI features (R, C, S, S) to logits (R, K + 1) and deltas (R, 4) or (R, 4 * K), in float32."""
        x = features
        for conv in self.shared_convs:
            x = conv(x)
        x = x.flatten(1)
        for layer in self.shared_fcs:
            x = F.relu(layer(x))
        return self.fc_cls(x).float(), self.fc_reg(x).float()


def box_head_losses(
    owner: str, num_classes: int, loss_cls: nn.Module | None, loss_bbox: nn.Module | None
) -> tuple[nn.Module, nn.Module]:
    """The losses of a bbox head: those given, or cross entropy and smooth L1.

    Args:
        owner: The head's class, for the message.
        num_classes: K, without the background.
        loss_cls: A loss of classes by softmax.
        loss_bbox: A loss of boxes.

    Raises:
        InputError: If a loss does not fit its place.
    """
    loss_cls = loss_cls or CrossEntropyLoss()
    loss_bbox = loss_bbox or SmoothL1Loss()
    check_loss(loss_cls, f"{owner}: loss_cls", sigmoid=False, num_logits=num_classes + 1)
    check_loss(loss_bbox, f"{owner}: loss_bbox")
    return loss_cls, loss_bbox


def fc_layers(in_features: int, width: int, count: int) -> nn.ModuleList:
    """Fully connected layers one behind the other."""
    widths = [in_features] + [width] * count
    return nn.ModuleList([FullyConnected(before, after) for before, after in itertools.pairwise(widths)])


def init_layers(layers: nn.ModuleList, fc_cls: nn.Linear, fc_reg: nn.Linear) -> None:
    """Draws the weights of fully connected layers from Glorot's uniform distribution, those of logits and deltas small.

    Biases are 0. All layers are made before one is drawn, which is what a seed's weights depend on.
    """
    for layer in layers:
        nn.init.xavier_uniform_(cast(nn.Linear, layer).weight)
        nn.init.zeros_(cast(nn.Linear, layer).bias)
    for layer, std in ((fc_cls, 0.01), (fc_reg, 0.001)):
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)
