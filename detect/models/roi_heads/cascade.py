"""The RoI head of Cascade R-CNN and Cascade Mask R-CNN (arXiv 1712.00726, 1906.09756).

Shapes and names:
    N images; T stages; R RoIs of all images; K classes. rois (R, 5); logits (R, K + 1); deltas (R, 4) or (R, 4 * K).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from detect.models.arguments import (
    BBOX_HEAD,
    MASK_HEAD,
    Count,
    NotNegative,
    Probability,
    check_classes,
    check_roi_parts,
)
from detect.models.assign import Assigner, LossSampler, MaxIoUAssigner, RandomSampler, Sampler, Samples
from detect.models.boxes import boxes_to_rois, image_bounds
from detect.models.detections import Detections
from detect.models.interfaces import BBoxHead, MaskHead
from detect.models.nms import Suppression, suppression
from detect.models.roi_heads.boxes import box_losses, detect_boxes, refine_rois, roi_labels, sample_images
from detect.models.roi_heads.masks import predict_masks, predict_objects, sampled_mask_loss
from detect.models.samplers import check_sampler
from detect.registry import MODELS
from dpipe.errors import InputError

if TYPE_CHECKING:
    from dpipe.target import Target


@MODELS.register
class CascadeRoIHead(nn.Module):
    """Classifies and refines proposals stage after stage, each stage trained on the boxes of the one before.

    In evaluation boxes are the last stage's, class probabilities come from the mean of all stages' logits, and masks
    are the mean of all mask heads' probabilities.

    Args:
        bbox_roi_extractor: Cuts out features for the bbox heads; the stages share it.
        bbox_head: T bbox heads.
        mask_roi_extractor: Cuts out features for the mask heads; needed with them.
        mask_head: T mask heads; no masks are predicted without them.
        assigner: T assigners; IoU 0.5, 0.6, 0.7 without them.
        sampler: 512 RoIs an image, a quarter of them positive, ground truths added, without one.
        stage_loss_weights: T factors of the stages' losses.
        score_thr: A detection's score must be greater.
        nms_iou: Of two detections of a class with a greater IoU only the better is kept.
        max_per_img: Detections of an image at most.
        mask_thr: From this probability on a pixel belongs to the object.
        nms: How detections that overlap are thinned out; NMS within each class without one. ``nms_iou`` is its
            threshold.
    """

    def __init__(
        self,
        bbox_roi_extractor: nn.Module,
        bbox_head: list[nn.Module],
        mask_roi_extractor: nn.Module | None = None,
        mask_head: list[nn.Module] | None = None,
        assigner: list[Assigner] | None = None,
        sampler: Sampler | LossSampler | None = None,
        stage_loss_weights: Sequence[NotNegative] = (1.0, 0.5, 0.25),
        score_thr: Probability = 0.05,
        nms_iou: Probability = 0.5,
        max_per_img: Count = 100,
        mask_thr: Probability = 0.5,
        nms: Suppression | None = None,
    ) -> None:
        super().__init__()
        if assigner is None:
            assigner = [MaxIoUAssigner(iou, iou, min_pos_iou=iou, match_low_quality=False) for iou in (0.5, 0.6, 0.7)]
        counts = {"bbox_head": len(bbox_head), "assigner": len(assigner), "stage_loss_weights": len(stage_loss_weights)}
        if mask_head is not None:
            counts["mask_head"] = len(mask_head)
        if len(set(counts.values())) != 1:
            told = ", ".join(f"{name} has {count}" for name, count in counts.items())
            raise InputError(f"CascadeRoIHead: every stage needs one of each, but {told}")
        if (mask_head is None) != (mask_roi_extractor is None):
            raise InputError("CascadeRoIHead: mask_head and mask_roi_extractor come together")
        for head in bbox_head:
            check_roi_parts(bbox_roi_extractor, head, BBOX_HEAD, "CascadeRoIHead", "bbox")
        for head in mask_head or ():
            check_roi_parts(cast(nn.Module, mask_roi_extractor), head, MASK_HEAD, "CascadeRoIHead", "mask")
        check_classes([*bbox_head, *(mask_head or ())], "CascadeRoIHead")
        self.bbox_roi_extractor = bbox_roi_extractor
        self.bbox_head = nn.ModuleList(bbox_head)
        self.num_classes = self._stage(0).num_classes
        self.mask_roi_extractor = mask_roi_extractor
        self.mask_head = None if mask_head is None else nn.ModuleList(mask_head)
        self.assigners = assigner
        self.sampler = sampler or RandomSampler(512, 0.25)
        check_sampler(self.sampler, [self._stage(stage) for stage in range(len(bbox_head))], "CascadeRoIHead")
        self.stage_loss_weights = tuple(stage_loss_weights)
        self.score_thr = score_thr
        self.nms_iou = nms_iou
        self.max_per_img = max_per_img
        self.mask_thr = mask_thr
        self.nms = suppression(nms, "CascadeRoIHead")

    def sample(
        self, features: Sequence[Tensor], proposals: Sequence[Tensor], targets: Sequence[Target]
    ) -> list[Samples]:
        """The RoIs to train the first stage on."""
        return self._sample(0, features, proposals, targets)

    def loss(
        self, features: Sequence[Tensor], samples: Sequence[Samples], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """``s{k}.loss_cls``, ``s{k}.loss_bbox``, ``s{k}.acc`` and, with mask heads, ``s{k}.loss_mask`` of stages k.

        Each stage moves all its RoIs, positive or not, drops those that were ground truths, and assigns and samples
        what is left anew for the next.
        """
        losses: dict[str, Tensor] = {}
        bounds = image_bounds(targets, like=samples[0].boxes)
        for stage, weight in enumerate(self.stage_loss_weights):
            head = self._stage(stage)
            rois = boxes_to_rois([sample.boxes for sample in samples])
            logits, deltas = self.outputs(stage, features, rois)
            stage_losses = box_losses(head, logits, deltas, samples)
            if self.mask_head is not None and self.mask_roi_extractor is not None:
                stage_losses["loss_mask"] = sampled_mask_loss(
                    self.mask_head[stage], partial(self.mask_roi_extractor, features), samples, targets
                )
            for name, value in stage_losses.items():
                losses[f"s{stage}.{name}"] = value * weight if "loss" in name else value
            if stage + 1 < len(self.bbox_head):
                refined = refine_rois(head, rois, logits, deltas, bounds, roi_labels(head.num_classes, samples))
                samples = self._sample(stage + 1, features, _without_ground_truths(refined, samples), targets)
        return losses

    def predict(
        self, features: Sequence[Tensor], proposals: Sequence[Tensor], targets: Sequence[Target]
    ) -> list[Detections]:
        """Detections in the original images' coordinates."""
        return predict_objects(self, features, proposals, targets)

    def predict_boxes(
        self, features: Sequence[Tensor], proposals: Sequence[Tensor], targets: Sequence[Target], rescale: bool
    ) -> list[Detections]:
        """Detections without masks, in the original images' coordinates if ``rescale``, else in the input's."""
        rois = boxes_to_rois(proposals)
        bounds = image_bounds(targets, like=rois)
        all_logits = []
        for stage in range(len(self.bbox_head)):
            head = self._stage(stage)
            logits, deltas = self.outputs(stage, features, rois)
            all_logits.append(logits)
            if stage + 1 < len(self.bbox_head):
                rois = refine_rois(head, rois, logits, deltas, bounds)
        return detect_boxes(
            head,
            rois,
            torch.stack(all_logits).mean(dim=0),
            deltas,
            targets,
            [len(p) for p in proposals],
            score_thr=self.score_thr,
            nms=self.nms,
            nms_iou=self.nms_iou,
            max_per_img=self.max_per_img,
            rescale=rescale,
        )

    def predict_masks(self, features: Sequence[Tensor], detections: Sequence[Detections]) -> list[Tensor]:
        """Probabilities (n_i, S, S) of the masks of each image's detections, which are in the input's coordinates."""
        heads = [cast(MaskHead, head) for head in cast(nn.ModuleList, self.mask_head)]
        return predict_masks(heads, cast(nn.Module, self.mask_roi_extractor), features, detections)

    def _stage(self, stage: int) -> BBoxHead:
        return cast(BBoxHead, self.bbox_head[stage])

    def outputs(self, stage: int, features: Sequence[Tensor], rois: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (R, K + 1) and deltas (R, 4) or (R, 4 * K) of RoIs (R, 5)."""
        return self._stage(stage)(self.bbox_roi_extractor(features, rois))

    def _sample(
        self, stage: int, features: Sequence[Tensor], proposals: Sequence[Tensor], targets: Sequence[Target]
    ) -> list[Samples]:
        outputs = partial(self.outputs, stage, features)
        return sample_images(self.assigners[stage], self.sampler, proposals, targets, self._stage(stage), outputs)


def _without_ground_truths(rois: Tensor, samples: Sequence[Samples]) -> list[Tensor]:
    """Boxes (n_i, 4) of each image's refined RoIs, without those that began as ground truths: they are added again."""
    proposals = []
    for sample, boxes in zip(samples, rois[:, 1:].split([len(s.boxes) for s in samples]), strict=True):
        keep = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
        keep[: sample.num_positives] = ~sample.is_gt
        proposals.append(boxes[keep])  # waits for the device: how many are left is a shape from here on
    return proposals
