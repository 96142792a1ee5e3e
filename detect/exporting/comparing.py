"""An exported model against the detector that it was made of.

Shapes and names:
    n detections of an image by the detector, m by the exported model; S side of a mask.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detect.exporting.graph import DetectorGraph
from detect.looking.dry_run import blank_target
from detect.models.detections import Detections
from detect.models.detectors import TwoStageDetector
from detect.models.interfaces import MaskingRoIHead
from dpipe.errors import InputError

TOLERANCE = 1e-3
"""How far scores and masks may differ, and boxes in pixels."""

RELATIVE = 1e-5
"""How far boxes may differ besides, as a share of their longer sides: float32 holds seven digits."""

ROUNDED_SHARE = 0.02
"""Of detections that may be others: where a score or an overlap is at its threshold, rounding decides. It may be one
however few there are, if more are the same: a fault of the graph changes all of them."""

Values = NDArray[np.float32]


@dataclass(frozen=True)
class Expected:
    """What the detector finds in one image, best first.

    Attributes:
        boxes: (n, 4) in pixels of the input.
        scores: (n,).
        labels: (n,) int64.
        masks: (n, S, S) probabilities on the boxes' grids, or None.
    """

    boxes: Values
    scores: Values
    labels: NDArray[np.int64]
    masks: Values | None


@dataclass(frozen=True)
class Agreement:
    """How near an exported model came.

    Attributes:
        shape: (N, H, W) of the images.
        detections: How many the detector found in them.
        others: Detections of either that the other does not have, as a score or an overlap is at its threshold.
        scores: The largest difference of scores.
        boxes: The largest difference of corners, in pixels.
        masks: The largest difference of probabilities; None without masks.
    """

    shape: tuple[int, int, int]
    detections: int
    others: int
    scores: float
    boxes: float
    masks: float | None


@torch.no_grad()
def expected_of(graph: DetectorGraph, images: Tensor) -> list[Expected]:
    """What the detector itself finds, in each image.

    Args:
        graph: Made of the detector.
        images: (N, 3, H, W) float32, red, green and blue as 0..255.
    """
    detector = graph.detector
    inputs = graph.prepare(images)
    targets = [blank_target((images.shape[2], images.shape[3])) for _ in images]
    if not isinstance(detector, TwoStageDetector) or detector.roi_head.mask_head is None:
        return [_expected(found, None) for found in detector(inputs, targets)]
    # As the detector does, but that masks stay on the boxes' grids.
    roi_head = cast(MaskingRoIHead, detector.roi_head)
    features, proposals = detector.propose(inputs, targets)
    found = roi_head.predict_boxes(features, proposals, targets, rescale=False)
    masks = roi_head.predict_masks(features, found)
    return [_expected(one, its_masks) for one, its_masks in zip(found, masks, strict=True)]


def _expected(found: Detections, masks: Tensor | None) -> Expected:
    return Expected(
        found.boxes.numpy(), found.scores.numpy(), found.labels.numpy(), None if masks is None else masks.numpy()
    )


def compare(
    expected: Sequence[Expected], outputs: Sequence[NDArray[np.generic]], images: Tensor, file: str
) -> Agreement:
    """Compares what an exported model gave with what the detector finds.

    Args:
        expected: Of each image.
        outputs: Counts, boxes, scores, labels and, with masks, masks; see :class:`detect.exporting.graph.Outputs`.
        images: (N, 3, H, W).
        file: What the message calls the exported model.

    Raises:
        InputError: If they differ by more than rounding.
    """
    counts = outputs[0].tolist()
    differences = np.zeros(3)
    others = total = same = 0
    for number, one in enumerate(expected):
        got = Expected(*(output[number][: counts[number]] for output in outputs[1:]), *[None] * (5 - len(outputs)))
        pairs = _pairs(one, got)
        others += len(one.scores) + len(got.scores) - 2 * len(pairs)
        total += len(one.scores)
        same += len(pairs)
        if pairs:
            differences = np.maximum(differences, _differences(one, got, *np.array(pairs).T))
    scores, boxes, masks = differences.tolist()
    shape = (images.shape[0], images.shape[2], images.shape[3])
    told = "x".join(map(str, shape))
    most_are_same = same > total - same or total == 0
    if not (most_are_same and others <= 2 * math.ceil(ROUNDED_SHARE * total) and masks <= TOLERANCE):  # or NaN
        raise InputError(
            f"{file}: the exported model differs from the detector on images of {told}: of {total} detections "
            f"{others} differ by more than {TOLERANCE:g}, and masks by {masks:.1e}; nothing was written"
        )
    return Agreement(shape, total, others, scores, boxes, masks if len(outputs) == 5 else None)


def _pairs(one: Expected, other: Expected) -> list[tuple[int, int]]:
    """Which detections are the same but for rounding, each in one pair at most, as their numbers."""
    sides = (one.boxes[:, 2:] - one.boxes[:, :2]).max(axis=1, initial=0)
    boxes = np.abs(one.boxes[:, None] - other.boxes[None]).max(axis=2, initial=0)  # (n, m)
    scores = np.abs(one.scores[:, None] - other.scores[None])
    same = (
        (one.labels[:, None] == other.labels[None])
        & (scores <= TOLERANCE)
        & (boxes <= TOLERANCE + RELATIVE * sides[:, None])
    )
    pairs, taken = [], np.zeros(len(other.scores), dtype=bool)
    for number, row in enumerate(same):
        free = np.flatnonzero(row & ~taken)
        if len(free):
            chosen = int(free[np.argmin(boxes[number, free])])
            taken[chosen] = True
            pairs.append((number, chosen))
    return pairs


def _differences(
    one: Expected, other: Expected, rows: NDArray[np.int64], other_rows: NDArray[np.int64]
) -> tuple[float, float, float]:
    """The largest differences of scores, boxes and masks of pairs."""
    masks = 0.0
    if one.masks is not None and other.masks is not None:
        masks = float(np.abs(one.masks[rows] - other.masks[other_rows]).max())
    return (
        float(np.abs(one.scores[rows] - other.scores[other_rows]).max()),
        float(np.abs(one.boxes[rows] - other.boxes[other_rows]).max()),
        masks,
    )
