"""The RoI head of Faster R-CNN (arXiv 1506.01497) and, with a mask head, of Mask R-CNN (arXiv 1703.06870)."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from detect.models.arguments import BBOX_HEAD, MASK_HEAD, Count, Positive, Probability, check_classes, check_roi_parts
from detect.models.assign import Assigner, LossSampler, MaxIoUAssigner, RandomSampler, Sampler, Samples
from detect.models.boxes import boxes_to_rois
from detect.models.detections import Detections
from detect.models.interfaces import BBoxHead, MaskHead
from detect.models.nms import Suppression, suppression
from detect.models.roi_heads.boxes import box_losses, detect_boxes, sample_images
from detect.models.roi_heads.masks import predict_masks, predict_objects, sampled_mask_loss
from detect.models.samplers import check_sampler
from detect.registry import MODELS
from dpipe.errors import InputError

if TYPE_CHECKING:
    from dpipe.target import Target


@MODELS.register
class StandardRoIHead(nn.Module):
    """Classifies and refines proposals once, and draws a mask in each detection.

    Args:
        bbox_roi_extractor: Cuts out features for the bbox head.
        bbox_head: Classes and deltas.
        mask_roi_extractor: Cuts out features for the mask head; needed with one.
        mask_head: Masks; none are predicted without it.
        assigner: IoU 0.5, without low-quality matches, without one.
        sampler: 512 RoIs an image, a quarter of them positive, ground truths added, without one.
        score_thr: A detection's score must be greater.
        nms_iou: Of two detections of a class with a greater IoU only the better is kept.
        max_per_img: Detections of an image at most.
        mask_thr: From this probability on a pixel belongs to the object.
        nms: How detections that overlap are thinned out; NMS within each class without one. ``nms_iou`` is its
            threshold.
        reg_roi_scale_factor: Grows RoIs about their centres for the features that boxes are predicted from, which the
            bbox head takes beside those for classes (Double-Head, arXiv 1904.06493, has 1.3). The level of the pyramid
            stays that of the RoI. Without one all is predicted from the same features.
    """

    def __init__(
        self,
        bbox_roi_extractor: nn.Module,
        bbox_head: nn.Module,
        mask_roi_extractor: nn.Module | None = None,
        mask_head: nn.Module | None = None,
        assigner: Assigner | None = None,
        sampler: Sampler | LossSampler | None = None,
        score_thr: Probability = 0.05,
        nms_iou: Probability = 0.5,
        max_per_img: Count = 100,
        mask_thr: Probability = 0.5,
        nms: Suppression | None = None,
        reg_roi_scale_factor: Positive | None = None,
    ) -> None:
        super().__init__()
        if (mask_head is None) != (mask_roi_extractor is None):
            raise InputError("StandardRoIHead: mask_head and mask_roi_extractor come together")
        check_roi_parts(bbox_roi_extractor, bbox_head, BBOX_HEAD, "StandardRoIHead", "bbox")
        if mask_roi_extractor is not None and mask_head is not None:
            check_roi_parts(mask_roi_extractor, mask_head, MASK_HEAD, "StandardRoIHead", "mask")
        check_classes([head for head in (bbox_head, mask_head) if head is not None], "StandardRoIHead")
        if reg_roi_scale_factor is not None:
            _check_scaling(bbox_roi_extractor, bbox_head)
        self.bbox_roi_extractor = bbox_roi_extractor
        self.bbox_head = bbox_head
        self.num_classes = cast(BBoxHead, bbox_head).num_classes
        self.mask_roi_extractor = mask_roi_extractor
        self.mask_head = mask_head
        self.assigner = assigner or MaxIoUAssigner(0.5, 0.5, min_pos_iou=0.5, match_low_quality=False)
        self.sampler = sampler or RandomSampler(512, 0.25)
        check_sampler(self.sampler, [cast(BBoxHead, bbox_head)], "StandardRoIHead")
        self.score_thr = score_thr
        self.nms_iou = nms_iou
        self.max_per_img = max_per_img
        self.mask_thr = mask_thr
        self.nms = suppression(nms, "StandardRoIHead")
        self.reg_roi_scale_factor = reg_roi_scale_factor

    def sample(
        self, features: Sequence[Tensor], proposals: Sequence[Tensor], targets: Sequence[Target]
    ) -> list[Samples]:
        """The RoIs to train on."""
        head = cast(BBoxHead, self.bbox_head)
        return sample_images(self.assigner, self.sampler, proposals, targets, head, partial(self.outputs, features))

    def loss(
        self, features: Sequence[Tensor], samples: Sequence[Samples], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """``loss_cls``, ``loss_bbox``, ``acc`` and, with a mask head, ``loss_mask``."""
        head = cast(BBoxHead, self.bbox_head)
        rois = boxes_to_rois([sample.boxes for sample in samples])
        logits, deltas = self.outputs(features, rois)
        losses = box_losses(head, logits, deltas, samples)
        if self.mask_head is not None and self.mask_roi_extractor is not None:
            losses["loss_mask"] = sampled_mask_loss(
                self.mask_head, partial(self.mask_roi_extractor, features), samples, targets
            )
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
        head = cast(BBoxHead, self.bbox_head)
        rois = boxes_to_rois(proposals)
        logits, deltas = self.outputs(features, rois)
        return detect_boxes(
            head,
            rois,
            logits,
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
        extractor = cast(nn.Module, self.mask_roi_extractor)
        return predict_masks([cast(MaskHead, self.mask_head)], extractor, features, detections)

    def outputs(self, features: Sequence[Tensor], rois: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (R, K + 1) and deltas (R, 4) or (R, 4 * K) of RoIs (R, 5)."""
        class_features = self.bbox_roi_extractor(features, rois)
        if self.reg_roi_scale_factor is None:
            return self.bbox_head(class_features)
        return self.bbox_head(
            class_features, self.bbox_roi_extractor(features, rois, roi_scale_factor=self.reg_roi_scale_factor)
        )


def _check_scaling(extractor: nn.Module, head: nn.Module) -> None:
    """Raises InputError where features for boxes cannot be cut out of larger RoIs, or the head does not take them."""
    if "roi_scale_factor" not in inspect.signature(extractor.forward).parameters:
        raise InputError(
            f"StandardRoIHead: reg_roi_scale_factor needs a bbox_roi_extractor whose forward takes roi_scale_factor, "
            f"which that of {type(extractor).__name__} does not"
        )
    if not getattr(head, "takes_box_features", False):
        raise InputError(
            f"StandardRoIHead: reg_roi_scale_factor needs a bbox_head that takes box features, "
            f"which {type(head).__name__} does not"
        )
