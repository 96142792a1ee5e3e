"""FCOS: a class, a box and a centerness at every position, without anchors (arXiv 1904.01355).

Shapes and names:
    N images; L levels; K classes; H, W size of a level's feature map; n = sum of H * W over levels, in the order level,
    row, column; P positive points of all images.
    logits: (N, K, H, W); distances: (N, 4, H, W) to the left, top, right and bottom edges; centerness: logits
    (N, 1, H, W).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from detect.models.arguments import Count, CountOrZero, Counts, NotNegative, Positive, Probability, check_loss
from detect.models.boxes import clip_boxes, group_nms, image_bounds
from detect.models.channels import common_channels
from detect.models.dense_heads.fcos_targets import PointTargets, assign_points, centerness, level_points
from detect.models.detections import Detections, to_original
from detect.models.interfaces import Proposals
from detect.models.layers import ConvModule
from detect.models.losses import CrossEntropyLoss, FocalLoss, IoULoss
from detect.models.nms import Suppression, suppression
from detect.models.prior_roles import NEGATIVE_ROLE, POSITIVE_ROLE, PriorRoles
from detect.models.ranks import mean_over_ranks
from detect.registry import MODELS
from dpipe.errors import InputError

if TYPE_CHECKING:
    from dpipe.target import Target

Ranges = Sequence[tuple[float, float]]

PRIOR_LOGIT = math.log(0.01 / 0.99)
"""Every class's probability begins with 0.01, so that the many negatives do not drown the first steps."""


@dataclass(frozen=True)
class FCOSOutputs:
    """Raw predictions of each level.

    Attributes:
        logits: (N, K, H, W).
        distances: (N, 4, H, W), in pixels, or in strides with ``norm_on_bbox``.
        centerness: Logits (N, 1, H, W).
    """

    logits: list[Tensor]
    distances: list[Tensor]
    centerness: list[Tensor]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(H, W) of each level."""
        return [(level.shape[2], level.shape[3]) for level in self.logits]


@dataclass(frozen=True)
class Candidates:
    """The m best predictions of one image before non-maximum suppression.

    Attributes:
        boxes: (m, 4), clipped to the image, in pixels of the network's input.
        scores: (m,) probability of the class times centerness.
        labels: (m,) int64.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def select(self, rows: Tensor) -> Candidates:
        """Some of them, by indices or by a mask."""
        return Candidates(self.boxes[rows], self.scores[rows], self.labels[rows])


class Scale(nn.Module):
    """A factor that is learned, one for each level."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        """Multiplies ``x`` of any shape."""
        return x * self.scale


@MODELS.register
class FCOSHead(nn.Module):
    """Two stacks of convolutions, shared by all levels: one for classes, one for the distances to a box's edges.

    It finds objects of K classes, and it proposes: as the ``rpn_head`` of a two-stage detector it has one class.
    Parameters are named as in OpenMMLab's checkpoints.

    Args:
        in_channels: Channels of the levels (all alike).
        strides: Pixels per position of each level.
        num_classes: K.
        feat_channels: Channels of both stacks.
        stacked_convs: Convolutions in each of them.
        norm: What follows each of these: ``gn`` (GroupNorm), ``bn`` (BatchNorm) or null.
        num_groups: Groups of a GroupNorm.
        conv_bias: Whether these convolutions have biases; null gives them one only where no norm follows.
        regress_ranges: For each level the least and the greatest distance (px) that it predicts, both included: boxes
            whose farthest edge is nearer or farther are other levels' work.
        center_sampling: Train as positives only points near the centre of a box.
        center_sample_radius: How near, in strides along each axis.
        norm_on_bbox: Predict distances in strides through a ReLU; else in pixels through an exponential. Proposals are
            in pixels in training as well, where OpenMMLab's FCOS as an RPN takes the strides for pixels.
        centerness_on_reg: Predict the centerness from the stack of the boxes; else from that of the classes.
        loss_cls: Focal loss without one.
        loss_bbox: A loss of pairs of boxes; -log IoU without one.
        loss_centerness: Cross entropy by sigmoid without one.
        score_thr: A detection's class probability, before it is multiplied by the centerness, must be greater.
        nms_pre: Detections of a level before NMS.
        nms_iou: Of two detections of a class with a greater IoU only the better is kept.
        max_per_img: Detections of an image.
        proposal_nms_iou: Of two proposals, on whatever levels, with a greater IoU only the better is kept.
        min_size: Detections and proposals must be wider and higher than this many pixels of the network's input.
        train_nms_pre: Proposals of a level before NMS in training.
        train_max_per_img: Proposals of an image after NMS in training.
        test_nms_pre: The same in evaluation.
        test_max_per_img: The same in evaluation.
        nms: How detections (not proposals) that overlap are thinned out; NMS within each class without one. ``nms_iou``
            is its threshold.

    Raises:
        InputError: If there are not as many ranges as levels, a range is empty, or groups do not divide the channels.
    """

    def __init__(
        self,
        in_channels: Count | Counts,
        strides: Counts,
        num_classes: Count,
        feat_channels: Count = 256,
        stacked_convs: CountOrZero = 4,
        norm: Literal["gn", "bn"] | None = "gn",
        num_groups: Count = 32,
        conv_bias: bool | None = None,
        regress_ranges: Ranges = ((-1, 64), (64, 128), (128, 256), (256, 512), (512, 1e8)),
        center_sampling: bool = False,
        center_sample_radius: Positive = 1.5,
        norm_on_bbox: bool = False,
        centerness_on_reg: bool = False,
        loss_cls: nn.Module | None = None,
        loss_bbox: nn.Module | None = None,
        loss_centerness: nn.Module | None = None,
        score_thr: Probability = 0.05,
        nms_pre: Count = 1000,
        nms_iou: Probability = 0.5,
        max_per_img: Count = 100,
        proposal_nms_iou: Probability = 0.7,
        min_size: NotNegative = 0.0,
        train_nms_pre: Count = 2000,
        train_max_per_img: Count = 1000,
        test_nms_pre: Count = 1000,
        test_max_per_img: Count = 1000,
        nms: Suppression | None = None,
    ) -> None:
        super().__init__()
        _check_ranges(regress_ranges, len(strides))
        if norm == "gn" and feat_channels % num_groups:
            raise InputError(f"FCOSHead: num_groups {num_groups} does not divide feat_channels {feat_channels}")
        self.num_classes = num_classes
        self.center_sampling = center_sampling
        self.center_sample_radius = center_sample_radius
        self.norm_on_bbox = norm_on_bbox
        self.centerness_on_reg = centerness_on_reg
        self.loss_cls = loss_cls or FocalLoss()
        self.loss_bbox = loss_bbox or IoULoss()
        self.loss_centerness = loss_centerness or CrossEntropyLoss(use_sigmoid=True)
        check_loss(self.loss_cls, "FCOSHead: loss_cls", sigmoid=True, num_logits=num_classes)
        check_loss(self.loss_bbox, "FCOSHead: loss_bbox")
        check_loss(self.loss_centerness, "FCOSHead: loss_centerness", sigmoid=True, num_logits=1)
        self.score_thr = score_thr
        self.nms_pre = nms_pre
        self.nms_iou = nms_iou
        self.max_per_img = max_per_img
        self.proposal_nms_iou = proposal_nms_iou
        self.min_size = min_size
        self.train_nms_pre = train_nms_pre
        self.train_max_per_img = train_max_per_img
        self.test_nms_pre = test_nms_pre
        self.test_max_per_img = test_max_per_img
        self.nms = suppression(nms, "FCOSHead")
        # On the device with the model, so that no iteration copies them there; no part of checkpoints.
        self.regress_ranges: Tensor
        ranges = torch.tensor([list(r) for r in regress_ranges], dtype=torch.float32)
        self.register_buffer("regress_ranges", ranges, persistent=False)  # (L, 2)

        self.level_strides = tuple(strides)
        self.level_channels = common_channels(in_channels, "FCOSHead")
        self.cls_convs, self.reg_convs = nn.ModuleList(), nn.ModuleList()
        for convs in (self.cls_convs, self.reg_convs):
            for i in range(stacked_convs):
                width = self.level_channels if i == 0 else feat_channels
                convs.append(
                    ConvModule(
                        width, feat_channels, 3, norm=norm, num_groups=num_groups, activation="relu", bias=conv_bias
                    )
                )
        width = feat_channels if stacked_convs else self.level_channels
        self.conv_cls = nn.Conv2d(width, num_classes, 3, padding=1)
        self.conv_reg = nn.Conv2d(width, 4, 3, padding=1)
        self.conv_centerness = nn.Conv2d(width, 1, 3, padding=1)
        self.scales = nn.ModuleList([Scale() for _ in strides])
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                if layer.bias is not None:
                    nn.init.constant_(layer.bias, PRIOR_LOGIT if layer is self.conv_cls else 0.0)

    def forward(self, features: Sequence[Tensor]) -> FCOSOutputs:
        """Raw predictions of all levels, in float32."""
        outputs = FCOSOutputs([], [], [])
        for level, scale in zip(features, self.scales, strict=True):
            cls_features = reg_features = level
            for conv in self.cls_convs:
                cls_features = conv(cls_features)
            for conv in self.reg_convs:
                reg_features = conv(reg_features)
            distances = scale(self.conv_reg(reg_features)).float()
            outputs.logits.append(self.conv_cls(cls_features).float())
            outputs.distances.append(distances.clamp(min=0) if self.norm_on_bbox else distances.exp())
            central = self.conv_centerness(reg_features if self.centerness_on_reg else cls_features)
            outputs.centerness.append(central.float())
        return outputs

    def loss(self, features: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """``loss_cls``, ``loss_bbox`` and ``loss_centerness``, scalars over all images and levels."""
        return self._loss(self(features), targets)

    def predict(self, features: Sequence[Tensor], targets: Sequence[Target]) -> list[Detections]:
        """Detections in the original images' coordinates."""
        outputs = self(features)
        points = self._points(outputs)
        detections = []
        for i, target in enumerate(targets):
            found = self._candidates(outputs, points, i, target, self.nms_pre, self.score_thr)
            # In the original image's coordinates the suppression may decide otherwise by a rounding.
            boxes = to_original(found.boxes, target)
            kept, scores = self.nms.suppress(boxes, found.scores, found.labels, self.nms_iou, self.max_per_img)
            detections.append(Detections(boxes[kept], scores, found.labels[kept]))
        return detections

    def propose(self, features: Sequence[Tensor], targets: Sequence[Target]) -> list[Proposals]:
        """For each image the best boxes and their scores, without gradient."""
        return self._propose(self(features), targets)

    def loss_and_propose(
        self, features: Sequence[Tensor], targets: Sequence[Target]
    ) -> tuple[dict[str, Tensor], list[Proposals]]:
        """Losses and proposals of one forward pass."""
        outputs = self(features)
        return self._loss(outputs, targets), self._propose(outputs, targets)

    def point_targets(
        self, sizes: Sequence[tuple[int, int]], targets: Sequence[Target]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What all points of all images are trained on; points in the padding of the batch are negatives.

        Args:
            sizes: (H, W) of each level's feature map.
            targets: N targets, of which boxes and labels are read.

        Returns:
            Points (n, 2), labels (N, n) and distances (N, n, 4), the last in strides with ``norm_on_bbox``.
        """
        levels, strides, found = self._assign(sizes, targets)
        distances = torch.stack([f.distances for f in found])
        if self.norm_on_bbox:
            distances = distances / strides[:, None]
        return torch.cat(levels), torch.stack([f.labels for f in found]), distances

    @torch.no_grad()
    def prior_roles(self, sizes: Sequence[tuple[int, int]], target: Target) -> PriorRoles:
        """What each point of one image is in training: all are positive or negative, and the losses look at all.

        Args:
            sizes: (H, W) of each level's feature map.
            target: Its boxes and labels are read.
        """
        points, _, (found,) = self._assign(sizes, [target])
        roles = torch.where(found.gt_indices >= 0, POSITIVE_ROLE, NEGATIVE_ROLE)
        levels = torch.cat([torch.full_like(roles[: len(level)], number) for number, level in enumerate(points)])
        return PriorRoles(torch.cat(points), levels, roles, torch.ones_like(roles, dtype=torch.bool), found.gt_indices)

    def _assign(
        self, sizes: Sequence[tuple[int, int]], targets: Sequence[Target]
    ) -> tuple[list[Tensor], Tensor, list[PointTargets]]:
        """Each level's points (H * W, 2), the strides (n,) of all, and what all are trained on in each image."""
        levels = level_points(sizes, self.level_strides, self.regress_ranges.device)
        points = torch.cat(levels)
        ranges = torch.cat([r.expand(len(p), 2) for r, p in zip(self.regress_ranges, levels, strict=True)])
        strides = _strides_of(levels, self.level_strides)  # (n,)
        radii = strides * self.center_sample_radius if self.center_sampling else None
        found = [assign_points(points, ranges, radii, t.boxes, t.labels, self.num_classes) for t in targets]
        return levels, strides, found

    def _loss(self, outputs: FCOSOutputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        points, labels, distance_targets = self.point_targets(outputs.sizes, targets)
        logits = torch.cat([level.flatten(2) for level in outputs.logits], dim=2).mT  # (N, n, K)
        # nonzero waits for the device: how many positives there are decides the shapes of all that follows.
        images, rows = (labels < self.num_classes).nonzero(as_tuple=True)  # (P,) each
        num_positives = mean_over_ranks(points.new_full((), len(rows))).clamp(min=1)
        loss_cls = self.loss_cls(logits.flatten(0, 1), labels.flatten(), avg_factor=num_positives)

        distances = torch.cat([level.flatten(2) for level in outputs.distances], dim=2).mT[images, rows]  # (P, 4)
        central = torch.cat([level.flatten(1) for level in outputs.centerness], dim=1)[images, rows]  # (P,)
        distance_targets = distance_targets[images, rows]
        central_targets = centerness(distance_targets)
        # Points near a box's edges see little of it: their boxes count less.
        loss_bbox = self.loss_bbox(
            _boxes(points[rows], distances),
            _boxes(points[rows], distance_targets),
            weight=central_targets,
            avg_factor=mean_over_ranks(central_targets.sum()).clamp(min=1e-6),
        )
        loss_centerness = self.loss_centerness(central, central_targets, avg_factor=num_positives)
        return {"loss_cls": loss_cls, "loss_bbox": loss_bbox, "loss_centerness": loss_centerness}

    @torch.no_grad()
    def _propose(self, outputs: FCOSOutputs, targets: Sequence[Target]) -> list[Proposals]:
        nms_pre, max_per_img = (
            (self.train_nms_pre, self.train_max_per_img)
            if self.training
            else (self.test_nms_pre, self.test_max_per_img)
        )
        points = self._points(outputs)
        proposals = []
        for i, target in enumerate(targets):
            found = self._candidates(outputs, points, i, target, nms_pre)
            kept = group_nms(found.boxes, found.scores, found.labels, self.proposal_nms_iou, max_per_img)
            proposals.append((found.boxes[kept], found.scores[kept]))
        return proposals

    def _points(self, outputs: FCOSOutputs) -> list[Tensor]:
        return level_points(outputs.sizes, self.level_strides, outputs.logits[0].device)

    def _candidates(
        self,
        outputs: FCOSOutputs,
        points: Sequence[Tensor],
        image: int,
        target: Target,
        nms_pre: int,
        score_thr: float | None = None,
    ) -> Candidates:
        """The best predictions of each level for one image, of at least the allowed size.

        Args:
            outputs: Of all images.
            points: Of each level (H * W, 2).
            image: The image's number in the batch.
            target: Its size is read.
            nms_pre: How many of a level at most.
            score_thr: A class's probability must be greater; all are taken without one.
        """
        chosen_points, distances, scores, labels = [], [], [], []
        for level, stride in enumerate(self.level_strides):
            level_scores = outputs.logits[level][image].flatten(1).mT.flatten().sigmoid()  # (H * W * K,)
            if score_thr is None:
                level_scores, order = level_scores.topk(min(nms_pre, len(level_scores)))
            else:
                # How many pass the threshold, the device has to tell.
                order = (level_scores > score_thr).nonzero().squeeze(1)
                level_scores, best = level_scores[order].topk(min(nms_pre, len(order)))
                order = order[best]
            rows = order // self.num_classes
            level_distances = outputs.distances[level][image].flatten(1).mT[rows]
            chosen_points.append(points[level][rows])
            distances.append(level_distances * stride if self.norm_on_bbox else level_distances)
            scores.append(level_scores * outputs.centerness[level][image].flatten()[rows].sigmoid())
            labels.append(order % self.num_classes)
        bounds = image_bounds([target], like=scores[0])
        boxes = clip_boxes(_boxes(torch.cat(chosen_points), torch.cat(distances)), bounds)
        found = Candidates(boxes, torch.cat(scores), torch.cat(labels))
        return found.select((boxes[:, 2:] - boxes[:, :2] > self.min_size).all(dim=1))


def _boxes(points: Tensor, distances: Tensor) -> Tensor:
    """Boxes (m, 4) from points (m, 2) and distances (m, 4)."""
    return torch.cat([points - distances[:, :2], points + distances[:, 2:]], dim=1)


def _strides_of(points: Sequence[Tensor], strides: Sequence[int]) -> Tensor:
    """The stride of each of the n points, (n,)."""
    return torch.cat([p.new_full((len(p),), stride) for p, stride in zip(points, strides, strict=True)])


def _check_ranges(ranges: Ranges, num_levels: int) -> None:
    """Raises InputError where levels and ranges do not match, or a range is empty."""
    if len(ranges) != num_levels:
        raise InputError(f"FCOSHead: regress_ranges are {len(ranges)}, but there are {num_levels} levels")
    if not all(low < high for low, high in ranges):
        raise InputError(f"FCOSHead: regress_ranges must go from less to more, got {[list(r) for r in ranges]}")
