"""What RoI heads detect, in shapes that no image decides.

The boxes, scores, classes and masks are those of ``predict``.

Shapes and names:
    N images; P places for proposals of an image, k for its detections; R = N * P; K classes; S side of a mask.
    bounds: (2,) width and height of the images, without padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from detect.exporting.proposing import Found, thin_out
from detect.exporting.selection import EMPTY
from detect.models.interfaces import BBoxHead, MaskHead
from detect.models.nms import NMS
from detect.models.roi_heads.boxes import refine_rois
from detect.models.roi_heads.cascade import CascadeRoIHead
from detect.models.roi_heads.masks import own_class
from detect.models.roi_heads.standard import StandardRoIHead


def detect_in_regions(
    roi_head: StandardRoIHead | CascadeRoIHead, features: Sequence[Tensor], proposals: Found, bounds: Tensor
) -> Found:
    """The detections of a RoI head, in ``max_per_img`` places."""
    rois = as_rois(proposals.boxes)
    all_logits = []
    heads = _bbox_heads(roi_head)
    for stage, head in enumerate(heads):
        if isinstance(roi_head, CascadeRoIHead):
            logits, deltas = roi_head.outputs(stage, features, rois)
        else:
            logits, deltas = roi_head.outputs(features, rois)
        all_logits.append(logits)
        if stage + 1 < len(heads):
            rois = refine_rois(head, rois, logits, deltas, bounds.expand(proposals.boxes.shape[0], -1))
    found = _candidates(heads[-1], rois, torch.stack(all_logits).mean(dim=0), deltas, proposals, bounds)
    found = Found(found.boxes, torch.where(found.scores > roi_head.score_thr, found.scores, EMPTY), found.labels)
    nms = cast(NMS, roi_head.nms)
    return thin_out(nms, found, heads[-1].num_classes, bounds, roi_head.nms_iou, roi_head.max_per_img)


def draw_masks(roi_head: StandardRoIHead | CascadeRoIHead, features: Sequence[Tensor], found: Found) -> Tensor | None:
    """Probabilities (N, k, S, S) of what was found, on the grids of its boxes; None without mask heads."""
    if roi_head.mask_head is None or roi_head.mask_roi_extractor is None:
        return None
    roi_features = roi_head.mask_roi_extractor(features, as_rois(found.boxes))
    labels = found.labels.flatten()
    masks = [own_class(head(roi_features), labels).sigmoid() for head in _mask_heads(roi_head)]
    return torch.stack(masks).mean(dim=0).unflatten(0, found.labels.shape)


def as_rois(boxes: Tensor) -> Tensor:
    """Boxes (N, P, 4) as RoIs (R, 5), image after image."""
    images = torch.arange(boxes.shape[0], dtype=boxes.dtype, device=boxes.device)
    return torch.cat([images[:, None, None].expand(-1, boxes.shape[1], -1), boxes], dim=2).flatten(0, 1)


def _bbox_heads(roi_head: StandardRoIHead | CascadeRoIHead) -> list[BBoxHead]:
    heads = roi_head.bbox_head if isinstance(roi_head, CascadeRoIHead) else [roi_head.bbox_head]
    return [cast(BBoxHead, head) for head in heads]


def _mask_heads(roi_head: StandardRoIHead | CascadeRoIHead) -> list[MaskHead]:
    heads = cast(nn.ModuleList, roi_head.mask_head) if isinstance(roi_head, CascadeRoIHead) else [roi_head.mask_head]
    return [cast(MaskHead, head) for head in heads]


def _candidates(
    head: BBoxHead, rois: Tensor, logits: Tensor, deltas: Tensor, proposals: Found, bounds: Tensor
) -> Found:
    """Each class of each proposal: P * K places an image."""
    shape = proposals.scores.shape  # N, P
    probabilities = logits.softmax(dim=1)[:, :-1].unflatten(0, shape)  # (N, P, K)
    scores = torch.where(proposals.scores[..., None] > EMPTY, probabilities, EMPTY)
    # (N, P, 1, 4), or (N, P, K, 4) of deltas for each class.
    class_deltas = deltas.unflatten(1, (-1, 4)).unflatten(0, shape)
    boxes = head.coder.decode(rois[:, 1:].unflatten(0, shape)[:, :, None], class_deltas, bounds)
    boxes = boxes.expand(-1, -1, head.num_classes, -1).flatten(1, 2)
    labels = torch.arange(head.num_classes, device=logits.device).expand_as(scores)
    return Found(boxes, scores.flatten(1), labels.flatten(1))
