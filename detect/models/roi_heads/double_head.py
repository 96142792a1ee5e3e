"""The bbox head of Double-Head R-CNN (arXiv 1904.06493): convolutions for boxes, fully connected layers for classes."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck

from detect.models.arguments import Count, Counts, Stds
from detect.models.layers import ConvModule, kaiming_init
from detect.models.roi_heads.bbox_head import BBoxHeadBase, fc_layers, init_layers
from detect.registry import MODELS
from dpipe.errors import InputError


class BasicResBlock(nn.Module):
    """A residual block that widens features: 3x3 and 1x1 convolutions, beside a 1x1 (arXiv 1904.06493, figure 4a).

    Args:
        in_channels: Channels of the input, and of what is between the convolutions.
        out_channels: Channels of the output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = ConvModule(in_channels, in_channels, 3, norm="bn", activation="relu")
        self.conv2 = ConvModule(in_channels, out_channels, 1, norm="bn")
        self.conv_identity = ConvModule(in_channels, out_channels, 1, norm="bn")

    def forward(self, x: Tensor) -> Tensor:
        """(R, in_channels, S, S) to (R, out_channels, S, S)."""
        return F.relu(self.conv2(self.conv1(x)) + self.conv_identity(x))


@MODELS.register
class DoubleConvFCBBoxHead(BBoxHeadBase):
    """A branch of fully connected layers for classes, a branch of convolutions for boxes (arXiv 1904.06493).

    The branches may read features of their own: with its ``reg_roi_scale_factor`` a StandardRoIHead cuts out those for
    boxes from larger RoIs. BatchNorm in the branch of convolutions takes statistics of the RoIs in training, whatever
    the backbone's does. Parameters are named as in OpenMMLab's checkpoints.

    Args:
        in_channels: C of the RoI features (that of all levels).
        num_classes: K, without the background.
        num_convs: Bottleneck blocks of the branch for boxes, behind the block that widens the features.
        num_fcs: Layers of the branch for classes.
        roi_feat_size: S, side of the RoI features.
        conv_out_channels: Width of the branch for boxes, a multiple of 4.
        fc_out_channels: Width of the branch for classes.
        reg_class_agnostic: Four deltas for a RoI instead of four for each class.
        target_stds: What regression targets are divided by.
        loss_cls: A loss of classes by softmax; cross entropy without one.
        loss_bbox: A loss of boxes, decoded for those that take boxes (IoU); smooth L1 with beta 1 without one.

    Raises:
        InputError: If ``conv_out_channels`` is no multiple of 4, or a loss does not fit.
    """

    takes_box_features = True

    def __init__(
        self,
        in_channels: Count | Counts,
        num_classes: Count,
        num_convs: Count = 4,
        num_fcs: Count = 2,
        roi_feat_size: Count = 7,
        conv_out_channels: Count = 1024,
        fc_out_channels: Count = 1024,
        reg_class_agnostic: bool = False,
        target_stds: Stds = (0.1, 0.1, 0.2, 0.2),
        loss_cls: nn.Module | None = None,
        loss_bbox: nn.Module | None = None,
    ) -> None:
        super().__init__(in_channels, num_classes, roi_feat_size, reg_class_agnostic, target_stds, loss_cls, loss_bbox)
        if conv_out_channels % 4:
            raise InputError(
                f"DoubleConvFCBBoxHead: conv_out_channels must be a multiple of 4, got {conv_out_channels}"
            )
        self.res_block = BasicResBlock(self.level_channels, conv_out_channels)
        self.conv_branch = nn.ModuleList(
            [Bottleneck(conv_out_channels, conv_out_channels // 4) for _ in range(num_convs)]
        )
        kaiming_init(self.conv_branch)
        self.fc_branch = fc_layers(self.level_channels * roi_feat_size**2, fc_out_channels, num_fcs)
        self.fc_cls, self.fc_reg = self.last_layers(fc_out_channels, conv_out_channels)
        init_layers(self.fc_branch, self.fc_cls, self.fc_reg)

    def forward(self, features: Tensor, box_features: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Predicts classes and boxes.

        Args:
            features: RoI features (R, C, S, S).
            box_features: Those that boxes are predicted from, (R, C, S, S); the same without them.

        Returns:
            Logits (R, K + 1) and deltas (R, 4) or (R, 4 * K), in float32.
        """
        boxes = self.res_block(features if box_features is None else box_features)
        for block in self.conv_branch:
            boxes = block(boxes)
        classes = features.flatten(1)
        for layer in self.fc_branch:
            classes = F.relu(layer(classes))
        return self.fc_cls(classes).float(), self.fc_reg(boxes.mean(dim=(2, 3))).float()
