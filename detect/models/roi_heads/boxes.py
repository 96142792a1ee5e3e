"""What RoI heads do with the classes and deltas that a bbox head predicts.

Shapes and names:
    R RoIs of all images, in the order image by image, positives then negatives; P positives of them; K classes.
    logits: (R, K + 1), the last column the background's; deltas: (R, 4), or (R, 4 * K) with deltas for each class.
    labels: 0..K - 1, and K for the background.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from detect.models.assign import Assigner, LossSampler, Sampler, Samples, sample_rois
from detect.models.boxes import image_bounds, regression_loss
from detect.models.detections import Detections, to_original
from detect.models.interfaces import BBoxHead
from detect.models.losses import accuracy
from detect.models.nms import NMS, Suppression
from detect.models.samplers import needs_losses

if TYPE_CHECKING:
    from dpipe.target import Target


RoIOutputs = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From RoIs (R, 5) to logits and deltas: a bbox head with the features that it reads."""


def sample_images(
    assigner: Assigner,
    sampler: Sampler | LossSampler,
    proposals: Sequence[Tensor],
    targets: Sequence[Target],
    head: BBoxHead,
    outputs: RoIOutputs,
) -> list[Samples]:
    """Assigns and samples the proposals of all images.

    Args:
        assigner: Decides which are positive and negative.
        sampler: Chooses among them.
        proposals: For each image (n, 4).
        targets: N targets.
        head: The bbox head that will be trained on the samples.
        outputs: What it predicts; called only for a sampler that chooses by losses.
    """
    samples = []
    for number, (boxes, target) in enumerate(zip(proposals, targets, strict=True)):
        roi_losses = partial(class_losses, head, outputs, number) if needs_losses(sampler) else None
        samples.append(sample_rois(assigner, sampler, boxes, target, roi_losses))
    return samples


@torch.no_grad()
def class_losses(head: BBoxHead, outputs: RoIOutputs, image: int, boxes: Tensor, labels: Tensor) -> Tensor:
    """The class loss (k,) of each RoI of an image, without gradient.

    Args:
        head: The bbox head.
        outputs: What it predicts.
        image: The image's number in the batch.
        boxes: (k, 4).
        labels: (k,) int64, negative for the background.
    """
    logits, _ = outputs(torch.cat([boxes.new_full((len(boxes), 1), image), boxes], dim=1))
    labels = torch.where(labels < 0, head.num_classes, labels)
    return head.loss_cls(logits, labels, reduction_override="none")


def roi_labels(num_classes: int, samples: Sequence[Samples]) -> Tensor:
    """Labels (R,) int64 of all sampled RoIs."""
    labels = []
    for sample in samples:
        background = sample.gt_labels.new_full((len(sample.boxes) - sample.num_positives,), num_classes)
        labels += [sample.gt_labels, background]
    return torch.cat(labels)


def positive_rows(samples: Sequence[Samples], device: torch.device) -> Tensor:
    """Where the positives (P,) are among all R RoIs. Known from shapes: nothing waits for the device."""
    rows, start = [], 0
    for sample in samples:
        rows.append(torch.arange(start, start + sample.num_positives, device=device))
        start += len(sample.boxes)
    return torch.cat(rows)


def class_deltas(head: BBoxHead, deltas: Tensor, rows: Tensor, labels: Tensor) -> Tensor:
    """The four deltas (k, 4) of rows (k,) for their labels (k,)."""
    if head.reg_class_agnostic:
        return deltas[rows]
    return deltas.unflatten(1, (-1, 4))[rows, labels]


def box_losses(head: BBoxHead, logits: Tensor, deltas: Tensor, samples: Sequence[Samples]) -> dict[str, Tensor]:
    """Losses of the classes of all RoIs and of the boxes of the positives, both averaged over all RoIs.

    Returns:
        ``loss_cls``, ``loss_bbox``, and the percentage ``acc`` of right classes, which is no loss. Without RoIs or
        without positives the losses are 0 and still depend on the predictions.
    """
    labels = roi_labels(head.num_classes, samples)
    rows = positive_rows(samples, logits.device)
    gt_labels = torch.cat([sample.gt_labels for sample in samples])
    positive_boxes = torch.cat([sample.positive_boxes for sample in samples])
    gt_boxes = torch.cat([sample.gt_boxes for sample in samples])
    own_deltas = class_deltas(head, deltas, rows, gt_labels)
    avg_factor = max(len(logits), 1)
    return {
        "loss_cls": head.loss_cls(logits, labels, avg_factor=avg_factor),
        "loss_bbox": regression_loss(head.loss_bbox, head.coder, positive_boxes, own_deltas, gt_boxes, avg_factor),
        "acc": accuracy(logits.detach(), labels),
    }


@torch.no_grad()
def refine_rois(
    head: BBoxHead, rois: Tensor, logits: Tensor, deltas: Tensor, bounds: Tensor, labels: Tensor | None = None
) -> Tensor:
    """RoIs of the next stage of a cascade.

    Args:
        head: The stage's head.
        rois: (R, 5).
        logits: (R, K + 1); a RoI moves with the deltas of its best class other than the background.
        deltas: (R, 4) or (R, 4 * K).
        bounds: (N, 2) width and height of each image.
        labels: (R,) classes that, where not the background, decide instead: those of the ground truths in training.

    Returns:
        (R, 5), clipped to the images.
    """
    classes = logits[:, :-1].argmax(dim=1)
    if labels is not None:
        classes = torch.where(labels == head.num_classes, classes, labels)
    rows = torch.arange(rois.shape[0], device=rois.device)
    boxes = head.coder.decode(rois[:, 1:], class_deltas(head, deltas, rows, classes), bounds[rois[:, 0].long()])
    return torch.cat([rois[:, :1], boxes], dim=1)


def detect_boxes(
    head: BBoxHead,
    rois: Tensor,
    logits: Tensor,
    deltas: Tensor,
    targets: Sequence[Target],
    counts: Sequence[int],
    *,
    score_thr: float = 0.05,
    nms: Suppression | None = None,
    nms_iou: float = 0.5,
    max_per_img: int = 100,
    rescale: bool = True,
) -> list[Detections]:
    """The best boxes of every image.

    Args:
        head: The (last) bbox head.
        rois: (R, 5).
        logits: (R, K + 1).
        deltas: (R, 4) or (R, 4 * K).
        targets: N targets, for the images' sizes.
        counts: How many of the RoIs are each image's.
        score_thr: A class's probability must be greater.
        nms: Thins out boxes that overlap; NMS within each class without one.
        nms_iou: Its threshold.
        max_per_img: How many an image keeps.
        rescale: Whether boxes are brought back to the original image, which happens before the suppression.
    """
    scores = logits.softmax(dim=1)[:, :-1]
    bounds = image_bounds(targets, like=rois)
    detections, start = [], 0
    for target, image_bound, count in zip(targets, bounds, counts, strict=True):
        # Only what passes the threshold is decoded; how much that is, the device has to tell.
        rows, labels = (scores[start : start + count] > score_thr).nonzero(as_tuple=True)
        rows = rows + start
        boxes = head.coder.decode(rois[rows, 1:], class_deltas(head, deltas, rows, labels), image_bound)
        if rescale:
            boxes = to_original(boxes, target)
        image_scores = scores[rows, labels]
        kept, kept_scores = (nms or NMS()).suppress(boxes, image_scores, labels, nms_iou, max_per_img)
        detections.append(Detections(boxes[kept], kept_scores, labels[kept]))
        start += count
    return detections
