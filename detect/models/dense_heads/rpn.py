"""The region proposal network (Faster R-CNN, arXiv 1506.01497) on a pyramid (FPN, arXiv 1612.03144).

Shapes and names:
    N images; L levels; A anchors a position; C logits an anchor, 1 with a sigmoid and 2 with a softmax; H, W size of a
    level's feature map; n = sum of H * W * A over levels, in the order level, row, column, anchor.
    logits: (N, n, C); deltas: (N, n, 4) relative to anchors (n, 4).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detect.models.anchors import AnchorGenerator
from detect.models.arguments import Count, Counts, NotNegative, Positives, Probability, Stds, check_loss
from detect.models.assign import NEGATIVE, Assigner, Assignment, MaxIoUAssigner, RandomSampler, Sampler
from detect.models.boxes import DeltaCoder, group_nms, image_bounds, on_device, regression_loss
from detect.models.channels import common_channels
from detect.models.dense_heads.rpn_outputs import AnchorSamples, RPNOutputs, objectness, sample_errors
from detect.models.interfaces import Proposals
from detect.models.losses import CrossEntropyLoss, SmoothL1Loss
from detect.models.prior_roles import IGNORED, NEGATIVE_ROLE, OUTSIDE, POSITIVE_ROLE, PriorRoles
from detect.models.samplers import needs_losses
from detect.registry import MODELS
from dpipe.errors import InputError

if TYPE_CHECKING:
    from dpipe.target import Target


@MODELS.register
class RPNHead(nn.Module):
    """A 3x3 convolution, then objectness and box deltas for every anchor.

    Objectness is one logit by a sigmoid, or two, foreground and background, by a softmax: as ``loss_cls`` has it.

    Args:
        in_channels: Channels of the levels (all alike).
        strides: Pixels per position of each level.
        feat_channels: Channels after the 3x3 convolution.
        scales: Sides of the square anchor in strides.
        ratios: Heights over widths of the anchors.
        center_offset: Where in its cell an anchor has its centre, in strides: 0 is the corner, 0.5 the middle.
        target_stds: What regression targets are divided by.
        assigner: IoU 0.7 / 0.3 with low-quality matches from 0.3 without one.
        sampler: 256 anchors an image, half of them positive, without one.
        allowed_border: How far in pixels an anchor may reach beyond the image and still be trained; below 0 any may.
        pad_divisor: Each image's own padded size is its size rounded up to multiples of this (Pad's ``size_divisor``);
            anchors on positions beyond it, which only a larger image of the batch brought about, are not trained. A
            recipe that does not set it gets that of its ``Pad``.
        loss_cls: A loss of classes, by a sigmoid or (``use_sigmoid: false``) a softmax of two; cross entropy by sigmoid
            without one.
        loss_bbox: A loss of boxes, decoded for those that take boxes (IoU); smooth L1 with beta 1/9 without one.
        nms_iou: Of two proposals of a level with a greater IoU only the better is kept.
        min_size: Proposals must be wider and higher than this many pixels of the network's input (where OpenMMLab's RPN
            alone, not that of two stages, measures them in the original image when it is tested).
        train_nms_pre: Proposals of a level before NMS in training.
        train_max_per_img: Proposals of an image after NMS in training.
        test_nms_pre: The same in evaluation.
        test_max_per_img: The same in evaluation.
        log_errors: Losses come with ``rpn_cls_error`` and ``rpn_box_mae``, which are not trained, see
            :func:`sample_errors`.

    Raises:
        InputError: If parts do not fit each other.
    """

    def __init__(
        self,
        in_channels: Count | Counts,
        strides: Counts,
        feat_channels: Count = 256,
        scales: Positives = (8.0,),
        ratios: Positives = (0.5, 1.0, 2.0),
        center_offset: Probability = 0.0,
        target_stds: Stds = (1.0, 1.0, 1.0, 1.0),
        assigner: Assigner | None = None,
        sampler: Sampler | None = None,
        allowed_border: float = -1.0,
        pad_divisor: Count = 32,
        loss_cls: nn.Module | None = None,
        loss_bbox: nn.Module | None = None,
        nms_iou: Probability = 0.7,
        min_size: NotNegative = 0.0,
        train_nms_pre: Count = 2000,
        train_max_per_img: Count = 1000,
        test_nms_pre: Count = 1000,
        test_max_per_img: Count = 1000,
        log_errors: bool = False,
    ) -> None:
        super().__init__()
        self.anchors = AnchorGenerator(strides, scales, ratios, center_offset)
        self.coder = DeltaCoder(target_stds)
        self.assigner = assigner or MaxIoUAssigner(0.7, 0.3, min_pos_iou=0.3)
        self.sampler = sampler or RandomSampler(256, 0.5, add_gt_as_proposals=False)
        if needs_losses(self.sampler):
            raise InputError(
                f"RPNHead: sampler cannot be a {type(self.sampler).__name__}, which needs the losses of RoIs"
            )
        self.allowed_border = allowed_border
        self.pad_divisor = pad_divisor
        self.loss_cls = loss_cls or CrossEntropyLoss(use_sigmoid=True)
        self.loss_bbox = loss_bbox or SmoothL1Loss(beta=1 / 9)
        use_sigmoid = getattr(self.loss_cls, "use_sigmoid", True)
        num_logits = 1 if use_sigmoid else 2
        check_loss(self.loss_cls, "RPNHead: loss_cls", sigmoid=use_sigmoid, num_logits=num_logits)
        check_loss(self.loss_bbox, "RPNHead: loss_bbox")
        self.nms_iou = nms_iou
        self.min_size = min_size
        self.train_nms_pre = train_nms_pre
        self.train_max_per_img = train_max_per_img
        self.test_nms_pre = test_nms_pre
        self.test_max_per_img = test_max_per_img
        self.log_errors = log_errors
        self._has_warned = False

        num_anchors = self.anchors.num_anchors
        self.level_strides = self.anchors.strides
        self.level_channels = common_channels(in_channels, "RPNHead")
        self.rpn_conv = nn.Conv2d(self.level_channels, feat_channels, 3, padding=1)
        self.rpn_cls = nn.Conv2d(feat_channels, num_anchors * num_logits, 1)
        self.rpn_reg = nn.Conv2d(feat_channels, num_anchors * 4, 1)
        for conv in (self.rpn_conv, self.rpn_cls, self.rpn_reg):
            nn.init.normal_(conv.weight, std=0.01)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)

    def forward(self, features: Sequence[Tensor]) -> RPNOutputs:
        """Raw predictions of all levels, each (N, C, H, W)."""
        hidden = [F.relu(self.rpn_conv(level)) for level in features]
        return RPNOutputs([self.rpn_cls(h).float() for h in hidden], [self.rpn_reg(h).float() for h in hidden])

    def loss(self, features: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """``loss_rpn_cls`` and ``loss_rpn_bbox``, scalars summed over levels, and the errors that are to be logged."""
        outputs = self(features)
        return self._loss(outputs, self.anchors.grids(outputs.sizes), targets)

    def propose(self, features: Sequence[Tensor], targets: Sequence[Target]) -> list[Proposals]:
        """For each image the best boxes and their scores, without gradient."""
        outputs = self(features)
        return self._propose(outputs, self.anchors.grids(outputs.sizes), targets)

    def loss_and_propose(
        self, features: Sequence[Tensor], targets: Sequence[Target]
    ) -> tuple[dict[str, Tensor], list[Proposals]]:
        """Losses and proposals of one forward pass."""
        outputs = self(features)
        grids = self.anchors.grids(outputs.sizes)
        return self._loss(outputs, grids, targets), self._propose(outputs, grids, targets)

    def sample_anchors(
        self, anchors: Tensor, sizes: Sequence[tuple[int, int]], targets: Sequence[Target]
    ) -> list[AnchorSamples]:
        """Assigns and samples the anchors of every image.

        Args:
            anchors: (n, 4) of all levels.
            sizes: (H, W) of each level's feature map.
            targets: N targets.

        Returns:
            For each image, which anchors take part: none, with a warning of the first such image, where
            ``allowed_border`` leaves none. A narrow picture among others is no reason to end a run.
        """
        samples = []
        for target in targets:
            candidates, assignment = self._assign(anchors, sizes, target)
            if not len(candidates) and not self._has_warned:
                warnings.warn(self._no_anchor(anchors, target), stacklevel=2)
                self._has_warned = True
            positives, negatives = self.sampler.choose(assignment)
            samples.append(
                AnchorSamples(candidates[positives], candidates[negatives], assignment.gt_indices[positives])
            )
        return samples

    @torch.no_grad()
    def prior_roles(self, sizes: Sequence[tuple[int, int]], target: Target) -> PriorRoles:
        """What each anchor of one image is in training; the sampler draws as it does there.

        Args:
            sizes: (H, W) of each level's feature map.
            target: Its size, boxes and ignore_boxes are read.
        """
        grids = self.anchors.grids(sizes)
        anchors = torch.cat(grids)
        candidates, assignment = self._assign(anchors, sizes, target)
        kinds = torch.where(assignment.gt_indices >= 0, POSITIVE_ROLE, IGNORED)
        kinds = torch.where(assignment.gt_indices == NEGATIVE, NEGATIVE_ROLE, kinds)
        roles = torch.full((len(anchors),), OUTSIDE, device=anchors.device)
        gt_indices = torch.full_like(roles, -1)
        sampled = torch.zeros_like(roles, dtype=torch.bool)
        roles[candidates], gt_indices[candidates] = kinds, assignment.gt_indices
        sampled[candidates[torch.cat(self.sampler.choose(assignment))]] = True
        levels = torch.cat([torch.full_like(roles[: len(grid)], level) for level, grid in enumerate(grids)])
        return PriorRoles(anchors, levels, roles, sampled, gt_indices)

    def _assign(self, anchors: Tensor, sizes: Sequence[tuple[int, int]], target: Target) -> tuple[Tensor, Assignment]:
        """Indices of the anchors (n, 4) of one image that may be trained, and what they are assigned."""
        height, width = target.size
        padded = (_round_up(height, self.pad_divisor), _round_up(width, self.pad_divisor))
        usable = torch.cat(self.anchors.inside_padding(sizes, padded))
        if self.allowed_border >= 0:
            limits = on_device([width + self.allowed_border, height + self.allowed_border], anchors)
            usable &= (anchors[:, :2] >= -self.allowed_border).all(1) & (anchors[:, 2:] < limits).all(1)
        candidates = usable.nonzero().squeeze(1)  # waits for the device: how many there are is a shape from here on
        return candidates, self.assigner.assign(anchors[candidates], target.boxes, target.ignore_boxes)

    def _no_anchor(self, anchors: Tensor, target: Target) -> str:
        """What is to be told of an image none of whose anchors (n, 4) may be trained."""
        sides = (anchors[:, 2:] - anchors[:, :2]).unique(dim=0)
        width, height = sides[sides.amax(dim=1).argmin()].tolist()
        return (
            f"RPNHead learns nothing of {target.file_name}, and of others like it: with allowed_border "
            f"{self.allowed_border:g} no anchor may be trained, as the image is {target.size[0]}x{target.size[1]} px "
            f"and the smallest anchor {height:.0f}x{width:.0f} px; larger images, smaller scales or allowed_border -1 "
            "leave some"
        )

    def _loss(self, outputs: RPNOutputs, grids: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        anchors = torch.cat(list(grids))
        samples = self.sample_anchors(anchors, outputs.sizes, targets)
        avg_factor = sum(s.avg_factor for s in samples)
        logits = torch.cat(outputs.flat_logits(), dim=1)  # (N, n, C)
        deltas = torch.cat(outputs.flat_deltas(), dim=1)  # (N, n, 4)
        # Only sampled anchors have a weight in the loss: it is computed of them alone.
        positive_logits = torch.cat([logits[i, s.positives] for i, s in enumerate(samples)])
        negative_logits = torch.cat([logits[i, s.negatives] for i, s in enumerate(samples)])
        labels = torch.ones(len(positive_logits) + len(negative_logits), dtype=torch.int64, device=logits.device)
        labels[: len(positive_logits)] = 0  # the one foreground class; 1 is the background
        loss_cls = self.loss_cls(torch.cat([positive_logits, negative_logits]), labels, avg_factor=avg_factor)
        positive_anchors = torch.cat([anchors[s.positives] for s in samples])
        positive_deltas = torch.cat([deltas[i, s.positives] for i, s in enumerate(samples)])
        gt_boxes = torch.cat([target.boxes[s.gt_indices] for s, target in zip(samples, targets, strict=True)])
        loss_bbox = regression_loss(self.loss_bbox, self.coder, positive_anchors, positive_deltas, gt_boxes, avg_factor)
        losses = {"loss_rpn_cls": loss_cls, "loss_rpn_bbox": loss_bbox}
        if self.log_errors:
            delta_targets = self.coder.encode(positive_anchors, gt_boxes)
            losses |= sample_errors(positive_logits, negative_logits, positive_deltas, delta_targets)
        return losses

    @torch.no_grad()
    def _propose(self, outputs: RPNOutputs, grids: Sequence[Tensor], targets: Sequence[Target]) -> list[Proposals]:
        nms_pre, max_per_img = (
            (self.train_nms_pre, self.train_max_per_img)
            if self.training
            else (self.test_nms_pre, self.test_max_per_img)
        )
        level_logits, level_anchors, level_deltas, level_numbers = [], [], [], []
        for level, (logits, deltas, anchors) in enumerate(
            zip(outputs.flat_logits(), outputs.flat_deltas(), grids, strict=True)
        ):
            best, order = objectness(logits).topk(min(nms_pre, logits.shape[1]), dim=1)  # (N, k)
            level_logits.append(best)
            level_anchors.append(anchors[order])  # (N, k, 4)
            level_deltas.append(deltas.gather(1, order[..., None].expand(-1, -1, 4)))
            level_numbers.append(torch.full_like(order[0], level))
        scores = torch.cat(level_logits, dim=1).sigmoid()
        bounds = image_bounds(targets, like=scores)[:, None]  # (N, 1, 2)
        boxes = self.coder.decode(torch.cat(level_anchors, dim=1), torch.cat(level_deltas, dim=1), bounds)
        levels = torch.cat(level_numbers)
        large = (boxes[..., 2:] - boxes[..., :2] > self.min_size).all(dim=-1)  # (N, sum of k)

        proposals = []
        for image_boxes, image_scores, image_large in zip(boxes, scores, large, strict=True):
            candidates = image_large.nonzero().squeeze(1)  # waits for the device, as the suppression does
            image_boxes, image_scores = image_boxes[candidates], image_scores[candidates]
            kept = group_nms(image_boxes, image_scores, levels[candidates], self.nms_iou, max_per_img)
            proposals.append((image_boxes[kept], image_scores[kept]))
        return proposals


def _round_up(value: int, divisor: int) -> int:
    return -(-value // divisor) * divisor
