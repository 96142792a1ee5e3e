"""A detector as one graph of tensors: from the pixels of pictures to what is in them.

Shapes and names:
    N images of height H and width W, any; k places for what is found in one; S side of a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detect.exporting.proposing import Found, detect, propose
from detect.exporting.regions import detect_in_regions, draw_masks
from detect.exporting.selection import EMPTY
from detect.models.detectors import TwoStageDetector
from detect.models.single_stage import RPN, pyramid


class Outputs(NamedTuple):
    """What the graph gives, best first; behind ``counts`` places boxes, scores and masks are 0 and labels -1.

    Attributes:
        counts: (N,) int64, how many places hold something.
        boxes: (N, k, 4) float32, (x1, y1, x2, y2) in pixels of the input.
        scores: (N, k) float32.
        labels: (N, k) int64.
        masks: (N, k, S, S) float32, the probability of the object in each cell of its box; None without mask heads.
    """

    counts: Tensor
    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None


class DetectorGraph(nn.Module):
    """Normalises and pads pictures, and finds what is in them: the same as the detector, in fixed numbers of places.

    Args:
        detector: In evaluation; see :func:`detect.exporting.checks.check_exportable` for which can be had.
        mean: A grey level for each channel, in the order that the detector takes them.
        std: As ``mean``.
        bgr: Whether that order is blue, green, red.
        size_divisor: Height and width are padded to multiples of it.
    """

    def __init__(
        self, detector: nn.Module, mean: Sequence[float], std: Sequence[float], bgr: bool, size_divisor: int
    ) -> None:
        super().__init__()
        self.detector = detector
        self.bgr = bgr
        self.size_divisor = size_divisor
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(list(mean), dtype=torch.float32)[:, None, None])
        self.register_buffer("std", torch.tensor(list(std), dtype=torch.float32)[:, None, None])

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Finds what is in pictures.

        Args:
            images: (N, 3, H, W) float32, red, green and blue as 0..255.

        Returns:
            The fields of :class:`Outputs` in order, without masks where the detector draws none.
        """
        height, width = images.shape[2:]
        bounds = torch.stack([images.new_full((), width), images.new_full((), height)])
        features = pyramid(self.detector, self.prepare(images))
        # nn.Module does not tell which parts a detector has; check_exportable has looked at them.
        parts: Any = self.detector
        masks = None
        if isinstance(self.detector, TwoStageDetector):
            proposals = propose(parts.rpn_head, features, bounds)
            found = detect_in_regions(parts.roi_head, features, proposals, bounds)
            masks = draw_masks(parts.roi_head, features, found)
        elif isinstance(self.detector, RPN):
            found = propose(parts.bbox_head, features, bounds)
        else:
            found = detect(parts.bbox_head, features, bounds)
        return tuple(output for output in _outputs(found, masks) if output is not None)

    def prepare(self, images: Tensor) -> Tensor:
        """What the detector takes, (N, 3, H', W'): normalised, and padded right and below."""
        images = ((images.flip(1) if self.bgr else images) - self.mean) / self.std
        height, width = images.shape[2:]
        return F.pad(images, (0, self._padding(width), 0, self._padding(height)))

    def _padding(self, side: int) -> int:
        # `-side % divisor` is the same, and takes the exporter half as long again to reason with.
        return (side + self.size_divisor - 1) // self.size_divisor * self.size_divisor - side


def _outputs(found: Found, masks: Tensor | None) -> Outputs:
    """Nothing but zeros, and labels -1, where nothing is."""
    there = found.scores > EMPTY
    return Outputs(
        there.sum(dim=1),
        torch.where(there[..., None], found.boxes, 0.0),
        torch.where(there, found.scores, 0.0),
        torch.where(there, found.labels, -1),
        None if masks is None else torch.where(there[..., None, None], masks, 0.0),
    )
