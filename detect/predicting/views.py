"""Test-time augmentation: an image seen at several sizes and mirrored, and what is found in all views merged.

As in detectron2's ``GeneralizedRCNNWithTTA``: the boxes of each view's own prediction are brought back to the original
image, and those of all views together go through the head's own suppression. Masks of what is kept are then predicted
in all views, and averaged (as in ``aug_test`` of OpenMMLab's version 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from detect.config import Config, build_augment
from detect.models.detections import Detections, mirrored_axes, to_input
from detect.models.detectors import TwoStageDetector
from detect.models.interfaces import MaskingRoIHead
from detect.models.masks import encode_masks
from detect.models.nms import NMS, Suppression
from dpipe.errors import InputError
from dpipe.operations.geometric import RandomFlip, Resize
from dpipe.policy import Augment, Pad
from dpipe.target import Target

MIRRORED = RandomFlip(prob=1.0)


def build_views(config: Config, tta: bool) -> list[Augment]:
    """The transforms of each view: the recipe's ``test_transforms``, with test-time augmentation varied.

    Args:
        config: The recipe; ``evaluation.tta`` says which scales, and whether they are mirrored as well.
        tta: False gives one view, the ``test_transforms`` as they are.

    Raises:
        InputError: If scales are asked for and the ``test_transforms`` have not exactly one ``Resize``.
    """
    plain = build_augment(config, train=False)
    if not tta:
        return [plain]
    chosen = config.evaluation.tta
    scaled = [list(plain.operations)]
    if chosen.scales is not None:
        resizes = [number for number, operation in enumerate(plain.operations) if isinstance(operation, Resize)]
        if len(resizes) != 1:
            raise InputError(
                f"{config.recipe.where(('evaluation', 'tta', 'scales'))}: evaluation.tta.scales: replace the scale of "
                f"the Resize in data.test_transforms, which have {len(resizes)}; expected one"
            )
        (place,) = resizes
        keep_ratio = plain.operations[place].keep_ratio  # type: ignore[attr-defined]
        scaled = [
            [*plain.operations[:place], Resize((long, short), keep_ratio), *plain.operations[place + 1 :]]
            for long, short in chosen.scales
        ]
    finish: list[Any] = [step for step in (plain.normalize, Pad(plain.size_divisor)) if step is not None]
    views = [Augment([*operations, *finish]) for operations in scaled]
    if chosen.flip:
        mirrored = [Augment([*operations, MIRRORED, *finish]) for operations in scaled]
        views = [view for pair in zip(views, mirrored, strict=True) for view in pair]
    return views


def check_mergeable(model: nn.Module) -> None:
    """Checks that the model tells how views are to be merged, before any image is read.

    Raises:
        InputError: If its head does not.
    """
    _merging(model)


def detect_in_views(model: nn.Module, views: Sequence[tuple[Tensor, Sequence[Target]]]) -> list[Detections]:
    """Runs a model on one or several views of the same N images.

    Args:
        model: In evaluation mode.
        views: The images (N, 3, H, W) of each view, and their targets. One view is the model's own prediction.

    Returns:
        For each image its detections. With several views, masks are the means over all of them; those of a RoI head of
        one's own that does not draw masks in given boxes are those of the view whose box was kept.

    Raises:
        InputError: For several views, if the model's head does not tell how its boxes are suppressed.
    """
    if len(views) == 1:
        ((images, targets),) = views
        return model(images, targets)
    merging = _merging(model)
    head = getattr(model, "roi_head", None)
    if isinstance(head, MaskingRoIHead) and head.mask_head is not None and isinstance(model, TwoStageDetector):
        return _detect_with_mean_masks(model, head, views, merging)
    found = [model(images, targets) for images, targets in views]
    return [merge(of_image, *merging) for of_image in zip(*found, strict=True)]


def _detect_with_mean_masks(
    model: TwoStageDetector,
    head: MaskingRoIHead,
    views: Sequence[tuple[Tensor, Sequence[Target]]],
    merging: tuple[Suppression, float, int],
) -> list[Detections]:
    """Boxes of all views, merged; then in each of them the mask of every view, and the mean of these."""
    pyramids, found = [], []
    for images, targets in views:
        features, proposals = model.propose(images, targets)
        found.append(head.predict_boxes(features, proposals, targets, rescale=True))
        pyramids.append(features)
    merged = [merge(of_image, *merging) for of_image in zip(*found, strict=True)]
    drawn = []
    for features, (_, targets) in zip(pyramids, views, strict=True):
        seen = [replace(one, boxes=to_input(one.boxes, target)) for one, target in zip(merged, targets, strict=True)]
        masks = head.predict_masks(features, seen)
        drawn.append([mask.flip(mirrored_axes(target)) for mask, target in zip(masks, targets, strict=True)])
    return [
        replace(one, masks=encode_masks(mean_of(masks), one.boxes, target.original_size, head.mask_thr))
        for one, masks, target in zip(merged, zip(*drawn, strict=True), views[0][1], strict=True)
    ]


def mean_of(masks: Sequence[Tensor]) -> Tensor:
    """The mean of each mask's probabilities over the views, (n, S, S) float32."""
    return torch.stack([mask.float() for mask in masks]).mean(dim=0)


def merge(found: Sequence[Detections], nms: Suppression, iou_thr: float, max_kept: int) -> Detections:
    """One image's detections from those in its views, which are in the original image's coordinates.

    Args:
        found: The detections in each view; all have masks, or none.
        nms: What thins out boxes that overlap.
        iou_thr: Its threshold.
        max_kept: How many are kept at most.
    """
    boxes = torch.cat([one.boxes for one in found])
    scores = torch.cat([one.scores for one in found])
    labels = torch.cat([one.labels for one in found])
    kept, kept_scores = nms.suppress(boxes, scores, labels, iou_thr, max_kept)
    masks = None
    if all(one.masks is not None for one in found):
        every = [mask for one in found for mask in one.masks or ()]
        masks = [every[number] for number in kept.tolist()]
    return Detections(boxes[kept], kept_scores, labels[kept], masks)


def _merging(model: nn.Module) -> tuple[Suppression, float, int]:
    """The suppression of the model's last head, its threshold, and how many detections an image keeps."""
    head: Any = getattr(model, "roi_head", None) or getattr(model, "bbox_head", None)
    try:
        if getattr(model, "proposes", False):
            # FCOS has thresholds for detections and for proposals, an RPN head has only the latter.
            iou_thr = getattr(head, "proposal_nms_iou", None)
            return NMS(), head.nms_iou if iou_thr is None else iou_thr, head.test_max_per_img
        return head.nms, head.nms_iou, head.max_per_img
    except AttributeError as error:
        owner = type(model if head is None else head).__name__
        raise InputError(
            f"test-time augmentation merges the boxes of all views as the head does, but {owner} has no "
            f"{error.name!r} that tells how; expected nms, nms_iou and max_per_img"
        ) from None
