"""Masks on the grids of boxes: training targets, and predictions brought back onto the image.

Shapes and names:
    P positive RoIs of one image; S side of a mask's grid (28); n detections; boxes (x1, y1, x2, y2) in continuous
    pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

from detect.models.assign import Samples
from detect.models.boxes import clip_boxes
from detect.models.detections import RunLengths
from dpipe.errors import InputError

if TYPE_CHECKING:
    from dpipe.target import Target


def mask_targets(samples: Sequence[Samples], targets: Sequence[Target], size: int) -> Tensor:
    """For each positive RoI its ground truth's mask on the RoI's grid.

    A cell is on when at least half of it is covered. Polygons are measured exactly, on the CPU; bitmaps are averaged
    by RoIAlign on the device they are on.

    Args:
        samples: N images' samples, P_i positives each.
        targets: Their targets.
        size: S.

    Returns:
        (sum of P_i, S, S) float32 of 0 and 1.

    Raises:
        InputError: If an image's annotations have no masks.
    """
    grids = []
    for sample, target in zip(samples, targets, strict=True):
        boxes = sample.positive_boxes
        if target.masks is None:
            raise InputError(
                f"image {target.file_name!r} has no masks: its annotations are boxes only, but the model has mask heads"
            )
        if isinstance(target.masks, Tensor):
            coverage = _bitmap_coverage(target.masks, boxes, sample.gt_indices, size)
        else:
            grid = target.masks.to_grids(boxes.cpu().numpy(), sample.gt_indices.cpu().numpy(), size)
            coverage = torch.from_numpy(grid).to(boxes.device)
        grids.append((coverage >= 0.5).float())
    return torch.cat(grids)


def _bitmap_coverage(bitmaps: Tensor, boxes: Tensor, instances: Tensor, size: int) -> Tensor:
    """Share of each cell that bitmaps (G, H, W) cover, for P boxes: (P, S, S)."""
    if len(boxes) == 0:
        return boxes.new_zeros((0, size, size))
    height, width = bitmaps.shape[1:]
    clipped = clip_boxes(boxes, boxes.new_tensor([width, height]))
    rois = torch.cat([instances[:, None].to(boxes.dtype), clipped], dim=1)  # the instance is the RoI's image
    return roi_align(bitmaps[:, None].to(boxes.dtype), rois, size, sampling_ratio=-1, aligned=True)[:, 0]


def encode_masks(probabilities: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float) -> list[RunLengths]:
    """Predicted masks at an image's full size, as run lengths.

    A mask is sampled (bilinear, nothing beyond its grid) at the pixel centres in and next to its box, and is on where
    that reaches the threshold. One mask after another: what is held at a time is one bitmap of the image.

    Args:
        probabilities: (n, S, S) in 0..1.
        boxes: (n, 4) in pixels of the image.
        size: (height, width) of the image.
        threshold: From here on a pixel is on.

    Returns:
        n run lengths.
    """
    height, width = size
    bitmap = np.zeros((height, width), dtype=np.uint8, order="F")
    encoded = []
    # The regions' corners are needed on the host; one transfer brings all of them.
    for probability, box, corners in zip(probabilities, boxes, boxes.tolist(), strict=True):
        x1, x2 = max(int(corners[0]) - 1, 0), min(int(corners[2]) + 2, width)
        y1, y2 = max(int(corners[1]) - 1, 0), min(int(corners[3]) + 2, height)
        empty = x2 <= x1 or y2 <= y1 or corners[2] <= corners[0] or corners[3] <= corners[1]
        if not empty:
            pasted = _sample(probability, box, x1, y1, x2, y2) >= threshold
            bitmap[y1:y2, x1:x2] = pasted.cpu().numpy()
        run_lengths = coco_mask.encode(bitmap)
        run_lengths["counts"] = run_lengths["counts"].decode("ascii")
        encoded.append(run_lengths)
        if not empty:
            bitmap[y1:y2, x1:x2] = 0
    return encoded


def _sample(probability: Tensor, box: Tensor, x1: int, y1: int, x2: int, y2: int) -> Tensor:
    """Values (y2 - y1, x2 - x1) of one mask (S, S) at the centres of the pixels of a region."""
    corner, extent = box[:2], box[2:] - box[:2]
    x = (torch.arange(x1, x2, device=box.device) + 0.5 - corner[0]) / extent[0] * 2 - 1
    y = (torch.arange(y1, y2, device=box.device) + 0.5 - corner[1]) / extent[1] * 2 - 1
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)  # (y2 - y1, x2 - x1, 2)
    return F.grid_sample(probability[None, None], grid[None], mode="bilinear", align_corners=False)[0, 0]
