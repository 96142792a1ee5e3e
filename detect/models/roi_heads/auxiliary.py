"""AugFPN's consistent supervision (arXiv 1912.05384, section 3.1).

Shapes and names:
    R RoIs of all images, P positives of them; L raw laterals; C channels; S, s sides of the RoI features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from detect.models.arguments import (
    BBOX_HEAD,
    MASK_HEAD,
    Count,
    CountOrZero,
    Counts,
    NotNegative,
    check_classes,
    check_side,
    require,
)
from detect.models.assign import Samples
from detect.models.boxes import boxes_to_rois
from detect.models.interfaces import BBoxHead
from detect.models.roi_extractors import extract_all_levels
from detect.models.roi_heads.boxes import box_losses
from detect.models.roi_heads.masks import sampled_mask_loss
from detect.registry import MODELS

if TYPE_CHECKING:
    from dpipe.target import Target


@MODELS.register
class AuxiliaryHead(nn.Module):
    """Trains every lateral, before levels are fused, to tell the same RoIs apart. Used in training only.

    The RoIs that the RoI head samples (a cascade's first stage) are cut out of each level; one bbox head and one mask
    head, shared by the levels, are trained on them with the RoI head's targets. The losses of the levels are added
    up; the authors' code logs them apart, as ``loss_cls_level{i}`` and so on.

    Args:
        strides: Pixels per position of the levels, of which as many are used as there are laterals.
        bbox_head: Classes and deltas.
        mask_head: Masks; only boxes are supervised without it.
        loss_weight: What all its losses are multiplied by.
        bbox_size: S, side of the RoI features of the bbox head.
        mask_size: s, side of the RoI features of the mask head.
        sampling_ratio: Samples per cell and axis of RoIAlign, the authors' 2; 0 adapts their number to the RoI's size,
            which makes large RoIs slow on fine levels.
    """

    def __init__(
        self,
        strides: Counts,
        bbox_head: nn.Module,
        mask_head: nn.Module | None = None,
        loss_weight: NotNegative = 0.25,
        bbox_size: Count = 7,
        mask_size: Count = 14,
        sampling_ratio: CountOrZero = 2,
    ) -> None:
        super().__init__()
        require(bbox_head, BBOX_HEAD, "AuxiliaryHead: bbox_head")
        check_side(bbox_head, bbox_size, "AuxiliaryHead: bbox_size is", "bbox_head")
        if mask_head is not None:
            require(mask_head, MASK_HEAD, "AuxiliaryHead: mask_head")
        check_classes([bbox_head] if mask_head is None else [bbox_head, mask_head], "AuxiliaryHead")
        self.num_classes = cast(BBoxHead, bbox_head).num_classes
        # Not named `strides`: that attribute would announce levels to the parts of a recipe that follow.
        self.level_strides = tuple(strides)
        self.bbox_head = bbox_head
        self.mask_head = mask_head
        self.loss_weight = loss_weight
        self.bbox_size = bbox_size
        self.mask_size = mask_size
        self.sampling_ratio = sampling_ratio

    def loss(
        self, laterals: Sequence[Tensor], samples: Sequence[Samples], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """``loss_aux_cls``, ``loss_aux_bbox`` and, with a mask head, ``loss_aux_mask``.

        Args:
            laterals: L raw laterals (N, C, H_l, W_l), finest first.
            samples: N images' samples, from the RoI head.
            targets: N targets.
        """
        head = cast(BBoxHead, self.bbox_head)
        rois = boxes_to_rois([s.boxes for s in samples])
        # All levels go through the head at once, and each has losses of its own: not every loss is a sum over its rows.
        split = (len(laterals), len(rois))
        logits, deltas = (out.unflatten(0, split) for out in head(self._extract(laterals, rois, self.bbox_size)))
        levels = [box_losses(head, *level, samples) for level in zip(logits, deltas, strict=True)]
        losses = {
            f"loss_aux_{kind}": self.loss_weight * torch.stack([level[f"loss_{kind}"] for level in levels]).sum()
            for kind in ("cls", "bbox")
        }
        if self.mask_head is not None:
            loss = sampled_mask_loss(
                self.mask_head,
                lambda rois: self._extract(laterals, rois, self.mask_size),
                samples,
                targets,
                repeats=len(laterals),
            )
            losses["loss_aux_mask"] = self.loss_weight * loss
        return losses

    def _extract(self, laterals: Sequence[Tensor], rois: Tensor, size: int) -> Tensor:
        """RoI features (L * R, C, size, size), level after level."""
        strides = self.level_strides[: len(laterals)]
        pooled = extract_all_levels(laterals, rois, strides, size, self.sampling_ratio)  # (R, L, C, size, size)
        return pooled.transpose(0, 1).flatten(0, 1)
