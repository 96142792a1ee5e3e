"""Bbox heads: the class and the box of each region of interest."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from detect.models.arguments import Count, Counts, Stds, check_loss
from detect.models.boxes import DeltaCoder
from detect.models.channels import common_channels
from detect.models.losses import CrossEntropyLoss, SmoothL1Loss
from detect.registry import MODELS


@MODELS.register
class Shared2FCBBoxHead(nn.Module):
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
        super().__init__()
        self.num_classes = num_classes
        self.reg_class_agnostic = reg_class_agnostic
        self.coder = DeltaCoder(target_stds)
        self.loss_cls = loss_cls or CrossEntropyLoss()
        self.loss_bbox = loss_bbox or SmoothL1Loss()
        check_loss(self.loss_cls, "Shared2FCBBoxHead: loss_cls", sigmoid=False, num_logits=num_classes + 1)
        check_loss(self.loss_bbox, "Shared2FCBBoxHead: loss_bbox")
        self.roi_feat_size = roi_feat_size
        self.level_channels = common_channels(in_channels, "Shared2FCBBoxHead")
        flat_size = self.level_channels * roi_feat_size**2
        shared_fcs = [nn.Linear(flat_size, fc_out_channels), nn.Linear(fc_out_channels, fc_out_channels)]
        self.shared_fcs = nn.ModuleList(shared_fcs)
        self.fc_cls = nn.Linear(fc_out_channels, num_classes + 1)
        self.fc_reg = nn.Linear(fc_out_channels, 4 if reg_class_agnostic else 4 * num_classes)
        for layer in shared_fcs:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer, std in ((self.fc_cls, 0.01), (self.fc_reg, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """RoI features (R, C, S, S) to logits (R, K + 1) and deltas (R, 4) or (R, 4 * K), in float32."""
        x = features.flatten(1)
        for layer in self.shared_fcs:
            x = F.relu(layer(x))
        return self.fc_cls(x).float(), self.fc_reg(x).float()
