"""What RoI heads do with the masks that mask heads predict.

Shapes and names:
    P positive RoIs, n detections; K classes; S side of a mask (28).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from detect.models.assign import Samples
from detect.models.boxes import boxes_to_rois
from detect.models.detections import Detections, mirrored_axes, to_original
from detect.models.interfaces import MaskHead, MaskingRoIHead
from detect.models.masks import encode_masks, mask_targets

if TYPE_CHECKING:
    from dpipe.target import Target


def masked_positives(samples: Sequence[Samples], targets: Sequence[Target]) -> list[Samples]:
    """Of each image's samples what masks are trained on: the positives whose ground truth has a mask.

    Where only a box was annotated, nothing is known of the shape: an empty mask would teach that there is none.
    """
    chosen = []
    for sample, target in zip(samples, targets, strict=True):
        # How many have a mask decides the shapes of what follows: the host waits for that once, not for each field.
        known = target.has_mask[sample.gt_indices].nonzero().squeeze(1)
        chosen.append(
            Samples(
                boxes=sample.positive_boxes[known],
                gt_indices=sample.gt_indices[known],
                gt_boxes=sample.gt_boxes[known],
                gt_labels=sample.gt_labels[known],
                is_gt=sample.is_gt[known],
            )
        )
    return chosen


def shared_mask_targets(
    samples: Sequence[Samples], masked: Sequence[Samples], targets: Sequence[Target], size: int
) -> Tensor:
    """Mask targets (P, S, S), computed once for all heads that are trained on the same samples.

    Args:
        samples: N images' samples, which keep what was computed.
        masked: Their :func:`masked_positives`.
        targets: N targets.
        size: S.
    """
    new = [number for number, sample in enumerate(samples) if size not in sample.mask_targets]
    if new:
        chosen = [masked[number] for number in new]
        computed = mask_targets(chosen, [targets[number] for number in new], size)
        for number, part in zip(new, computed.split([sample.num_positives for sample in chosen]), strict=True):
            samples[number].mask_targets[size] = part
    return torch.cat([sample.mask_targets[size] for sample in samples])


def positive_rois(samples: Sequence[Samples]) -> Tensor:
    """(P, 5): the RoIs that masks are trained on."""
    return boxes_to_rois([sample.positive_boxes for sample in samples])


def own_class(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits (P, S, S) of each mask's own class, of logits (P, K, S, S) and labels (P,)."""
    return logits[torch.arange(labels.shape[0], device=labels.device), labels]


def positive_labels(samples: Sequence[Samples]) -> Tensor:
    """(P,) int64: classes of the RoIs that masks are trained on."""
    return torch.cat([sample.gt_labels for sample in samples])


def mask_loss(head: MaskHead, logits: Tensor, labels: Tensor, gt_masks: Tensor) -> Tensor:
    """Mean over positives and pixels; without positives 0, which still depends on the prediction.

    Args:
        head: The mask head, for its loss.
        logits: (P, K, S, S).
        labels: (P,).
        gt_masks: (P, S, S) of 0 and 1.
    """
    if len(logits) == 0:
        return logits.sum()
    return head.loss_mask(own_class(logits, labels), gt_masks)


def sampled_mask_loss(
    head: nn.Module,
    extract: Callable[[Tensor], Tensor],
    samples: Sequence[Samples],
    targets: Sequence[Target],
    repeats: int = 1,
) -> Tensor:
    """The mask loss of a head on what a RoI head sampled; the sum over the repeats.

    Args:
        head: The mask head.
        extract: Cuts out the features of RoIs (P, 5): (repeats * P, C, s, s).
        samples: N images' samples.
        targets: N targets.
        repeats: How often ``extract`` gives each RoI, all of them one time after the other.
    """
    masked = masked_positives(samples, targets)
    rois, labels = positive_rois(masked), positive_labels(masked)
    logits = head(extract(rois))
    gt_masks = shared_mask_targets(samples, masked, targets, logits.shape[-1])
    losses = [
        mask_loss(cast(MaskHead, head), part, labels, gt_masks) for part in logits.unflatten(0, (repeats, len(rois)))
    ]
    return torch.stack(losses).sum()


def predict_masks(
    heads: Sequence[MaskHead],
    extractor: nn.Module,
    features: Sequence[Tensor],
    detections: Sequence[Detections],
) -> list[Tensor]:
    """Probabilities (n_i, S, S) of each image's detections, the mean of what the heads say.

    Args:
        heads: One, or those of a cascade.
        extractor: Cuts out RoI features.
        features: The pyramid.
        detections: In coordinates of the network's input.
    """
    labels = torch.cat([d.labels for d in detections])
    roi_features = extractor(features, boxes_to_rois([d.boxes for d in detections]))
    probabilities = torch.stack([own_class(head(roi_features), labels).sigmoid() for head in heads]).mean(dim=0)
    return list(probabilities.split([len(d) for d in detections]))


def predict_objects(
    head: MaskingRoIHead, features: Sequence[Tensor], proposals: Sequence[Tensor], targets: Sequence[Target]
) -> list[Detections]:
    """Detections of each image in coordinates of the original image, with masks where the head has them."""
    if head.mask_head is None:
        return head.predict_boxes(features, proposals, targets, rescale=True)
    detections = head.predict_boxes(features, proposals, targets, rescale=False)
    return with_masks(detections, head.predict_masks(features, detections), targets, head.mask_thr)


def with_masks(
    detections: Sequence[Detections], probabilities: Sequence[Tensor], targets: Sequence[Target], threshold: float
) -> list[Detections]:
    """Detections of the network's input brought back to the original images, with masks of their size."""
    results = []
    for found, masks, target in zip(detections, probabilities, targets, strict=True):
        boxes = to_original(found.boxes, target)
        axes = mirrored_axes(target)
        if axes:
            masks = masks.flip(axes)
        results.append(replace(found, boxes=boxes, masks=encode_masks(masks, boxes, target.original_size, threshold)))
    return results
