"""Losses. Each is called as ``loss(pred, target, weight=None, avg_factor=None, reduction_override=None)``.

What every loss has:
    loss_weight: What the result is multiplied by.
    reduction: ``mean``, ``sum`` or ``none`` (the loss of every element).
    weight: A factor for each element, or for each row.
    avg_factor: What the weighted sum is divided by instead of the number of elements, plus float32's eps.
    reduction_override: Replaces ``reduction`` for one call.

Losses of classes have an attribute ``use_sigmoid``. Losses of boxes have an attribute ``takes_boxes``: whether they
compare boxes (x1, y1, x2, y2) in pixels, or any numbers, such as the deltas between boxes.
"""

from detect.models.losses.cross_entropy import CrossEntropyLoss, accuracy
from detect.models.losses.differences import BalancedL1Loss, L1Loss, SmoothL1Loss
from detect.models.losses.focal import FocalLoss
from detect.models.losses.harmonized import GHMC, GHMR
from detect.models.losses.overlaps import CIoULoss, DIoULoss, GIoULoss, IoULoss
from detect.models.losses.weighting import FunctionLoss, weighted_loss

__all__ = [
    "GHMC",
    "GHMR",
    "BalancedL1Loss",
    "CIoULoss",
    "CrossEntropyLoss",
    "DIoULoss",
    "FocalLoss",
    "FunctionLoss",
    "GIoULoss",
    "IoULoss",
    "L1Loss",
    "SmoothL1Loss",
    "accuracy",
    "weighted_loss",
]
