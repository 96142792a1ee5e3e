"""What a detector predicts for one image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from detect.models.boxes import on_device
from dpipe.errors import InputError

if TYPE_CHECKING:
    from dpipe.target import Target

RunLengths = dict[str, Any]
"""A mask as COCO's compressed run lengths: ``size`` [height, width] and ``counts`` (str), as in a results file."""


@dataclass(frozen=True)
class Detections:
    """The n objects found in one image, best score first.

    Attributes:
        boxes: (n, 4) float32, in pixels of the original image.
        scores: (n,) float32.
        labels: (n,) int64.
        masks: n masks of the original image's size as run lengths, or None without mask heads. Full maps are never held
            together: a hundred of a 2048 x 1024 image would be 800 MiB of floats.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: list[RunLengths] | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def to(self, device: torch.device | str) -> Detections:
        """The same detections with tensors on ``device``."""
        return replace(self, boxes=self.boxes.to(device), scores=self.scores.to(device), labels=self.labels.to(device))

    def select(self, chosen: Tensor | slice) -> Detections:
        """Some of the detections.

        Args:
            chosen: Indices (k,) int64, a mask (n,) bool, or a slice.
        """
        masks = self.masks
        if masks is not None:
            numbers = torch.arange(len(self))[chosen if isinstance(chosen, slice) else chosen.cpu()]
            masks = [masks[i] for i in numbers.tolist()]
        return Detections(self.boxes[chosen], self.scores[chosen], self.labels[chosen], masks)

    def bitmaps(self) -> np.ndarray:
        """The masks decoded.

        Returns:
            (n, height, width) bool; (0, 0, 0) for no detection.

        Raises:
            ValueError: If the detector predicts no masks.
        """
        if self.masks is None:
            raise ValueError("these detections have no masks")
        if not self.masks:
            return np.zeros((0, 0, 0), dtype=bool)
        return np.stack([coco_mask.decode(mask).astype(bool) for mask in self.masks])


def to_original(boxes: Tensor, target: Target) -> Tensor:
    """Boxes (n, 4) of the network's input in coordinates of the original image.

    Args:
        boxes: (n, 4) in pixels of the network's input.
        target: Its matrix, from the original to the input, is read: a resize, possibly mirrored.

    Raises:
        InputError: If the matrix turns or shears: masks and boxes can then not be brought back.
    """
    scales, shifts = _scales_and_shifts(boxes, target)
    return _ordered((boxes - shifts) / scales, target)


def to_input(boxes: Tensor, target: Target) -> Tensor:
    """Boxes (n, 4) of the original image in coordinates of the network's input: the inverse of :func:`to_original`.

    Args:
        boxes: (n, 4) in pixels of the original image.
        target: See :func:`to_original`.

    Raises:
        InputError: If the matrix turns or shears.
    """
    scales, shifts = _scales_and_shifts(boxes, target)
    return _ordered(boxes * scales + shifts, target)


def _scales_and_shifts(boxes: Tensor, target: Target) -> tuple[Tensor, Tensor]:
    """What coordinates (4,) are multiplied by, and what is added then, on the way from the original to the input."""
    (scale_x, shear_x, shift_x), (shear_y, scale_y, shift_y) = target.matrix.tolist()
    if shear_x != 0 or shear_y != 0:
        raise InputError(
            f"image {target.file_name!r}: predictions can be brought back only from a resized or mirrored image, "
            "but the test transforms also turn or shear it"
        )
    return on_device([scale_x, scale_y] * 2, boxes), on_device([shift_x, shift_y] * 2, boxes)


def _ordered(boxes: Tensor, target: Target) -> Tensor:
    """Boxes (n, 4) whose sides have changed places along mirrored axes, with the lower coordinates first again."""
    axes = mirrored_axes(target)
    if -1 in axes:  # left and right have changed places
        boxes = torch.stack([boxes[:, 2], boxes[:, 1], boxes[:, 0], boxes[:, 3]], dim=1)
    if -2 in axes:
        boxes = torch.stack([boxes[:, 0], boxes[:, 3], boxes[:, 2], boxes[:, 1]], dim=1)
    return boxes


def mirrored_axes(target: Target) -> list[int]:
    """Along which of the last two axes of a grid (-2 for y, -1 for x) the network's input is mirrored."""
    return [axis for axis, scale in ((-2, target.matrix[1, 1]), (-1, target.matrix[0, 0])) if scale < 0]
