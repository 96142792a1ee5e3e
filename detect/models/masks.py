"""Masks on the grids of boxes: training targets, and predictions brought back onto the image.

Shapes and names:
    P positive RoIs of one image; S side of a mask's grid (28); n detections; boxes (x1, y1, x2, y2) in continuous
    pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import roi_align

from detect.models.assign import Samples
from detect.models.boxes import clip_boxes, on_device
from detect.models.detections import RunLengths
from dpipe.errors import InputError
from dpipe.outlines.polygon_torch import grids_on
from dpipe.outlines.ragged import Ints, offsets_of
from dpipe.outlines.run_lengths import encode_toggles
from dpipe.polygons import Polygons

if TYPE_CHECKING:
    from dpipe.target import Target


BATCH_PIXELS = 2**21
"""Pixels of predicted masks that are sampled at a time: a whole image of the usual size."""


def mask_targets(samples: Sequence[Samples], targets: Sequence[Target], size: int) -> Tensor:
    """For each positive RoI its ground truth's mask on the RoI's grid.

    A cell is on when at least half of it is covered. Polygons are measured exactly, those of all images together, on
    the boxes' device; bitmaps are averaged by RoIAlign on the device they are on.

    Args:
        samples: N images' samples, P_i positives each.
        targets: Their targets.
        size: S.

    Returns:
        (sum of P_i, S, S) float32 of 0 and 1.

    Raises:
        InputError: If an image has objects, and its data set no masks.
    """
    coverage = [sample.positive_boxes.new_zeros((0, size, size)) for sample in samples]
    drawn = []
    for number, (sample, target) in enumerate(zip(samples, targets, strict=True)):
        if target.masks is None:
            if len(target.boxes):
                raise InputError(
                    f"image {target.file_name!r}: its objects are boxes only, and so are all of its data set, but the "
                    "model has mask heads; leave out roi_head.mask_head, roi_head.mask_roi_extractor and "
                    "auxiliary_head.mask_head"
                )
        elif isinstance(target.masks, Tensor):
            coverage[number] = _bitmap_coverage(target.masks, sample.positive_boxes, sample.gt_indices, size)
        else:
            drawn.append(number)
    if drawn:
        several = [samples[number] for number in drawn]
        polygons = [cast(Polygons, targets[number].masks) for number in drawn]
        parts = _polygon_coverage(polygons, several, size).split([len(sample.gt_indices) for sample in several])
        for number, part in zip(drawn, parts, strict=True):
            coverage[number] = part
    return (torch.cat(coverage) >= 0.5).float()


def _polygon_coverage(polygons: Sequence[Polygons], samples: Sequence[Samples], size: int) -> Tensor:
    """Share of each cell that is inside, for all positives of several images: (sum of P_i, S, S)."""
    boxes = torch.cat([sample.positive_boxes for sample in samples])
    before = np.cumsum([0, *map(len, polygons)]).tolist()
    instances = torch.cat([sample.gt_indices + first for sample, first in zip(samples, before[:-1], strict=True)])
    together = Polygons.concatenate(polygons)
    if boxes.is_cuda:
        return grids_on(together, boxes, instances, size)
    return torch.from_numpy(together.to_grids(boxes.numpy(), instances.numpy(), size))


def _bitmap_coverage(bitmaps: Tensor, boxes: Tensor, instances: Tensor, size: int) -> Tensor:
    """Share of each cell that bitmaps (G, H, W) cover, for P boxes: (P, S, S)."""
    if len(boxes) == 0:
        return boxes.new_zeros((0, size, size))
    height, width = bitmaps.shape[1:]
    clipped = clip_boxes(boxes, on_device([width, height], boxes))
    rois = torch.cat([instances[:, None].to(boxes.dtype), clipped], dim=1)  # the instance is the RoI's image
    return roi_align(bitmaps[:, None].to(boxes.dtype), rois, size, sampling_ratio=-1, aligned=True)[:, 0]


def encode_masks(probabilities: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float) -> list[RunLengths]:
    """Predicted masks at an image's full size, as run lengths.

    A mask is sampled (bilinear, nothing beyond its grid) at the pixel centres in and next to its box, and is on where
    that reaches the threshold. No bitmap of the whole image is made: the regions of several masks, or stripes of a
    large one, are sampled together, and their runs found.

    Args:
        probabilities: (n, S, S) in 0..1.
        boxes: (n, 4) in pixels of the image.
        size: (height, width) of the image.
        threshold: From here on a pixel is on.

    Returns:
        n run lengths.
    """
    toggles: list[list[Ints]] = [[] for _ in boxes]
    # The regions' corners are needed on the host; one transfer brings all of them.
    for batch in _batches(_stripes(boxes.tolist(), size)):
        # Before each column there is a pixel that is off, so that no run goes on in the next.
        shapes = [(stripe.x2 - stripe.x1, stripe.y2 - stripe.y1 + 1) for stripe in batch]
        offsets = np.cumsum([0, *(columns * rows for columns, rows in shapes)])
        bits = torch.zeros(int(offsets[-1]), dtype=torch.bool, device=boxes.device)
        with torch.autocast(boxes.device.type, enabled=False):
            for stripe, shape, part in zip(batch, shapes, bits.split(np.diff(offsets).tolist()), strict=True):
                values = _sample(probabilities[stripe.mask].float(), boxes[stripe.mask], stripe)
                torch.ge(values, threshold, out=part.view(shape)[:, 1:])
        changes = np.flatnonzero(np.diff(bits.cpu().numpy(), append=False))  # one transfer a batch
        firsts, lasts = changes[0::2] + 1, changes[1::2]
        parts = np.searchsorted(firsts, offsets)
        for stripe, offset, begin, end in zip(batch, offsets[:-1], parts[:-1], parts[1:], strict=True):
            first, last = (stripe.to_image(at[begin:end] - offset, size[0]) for at in (firsts, lasts))
            toggles[stripe.mask].append(np.stack([first, last + 1], axis=1).ravel())
    joined = [np.concatenate([np.zeros(0, dtype=np.int64), *several]) for several in toggles]
    lengths = np.array([len(one) for one in joined], dtype=np.int64)
    return encode_toggles(
        np.concatenate([np.zeros(0, dtype=np.int64), *joined]),
        offsets_of(lengths),
        np.broadcast_to(np.array(size, dtype=np.int64), (len(joined), 2)),
    )


@dataclass(frozen=True)
class _Stripe:
    """Columns of the region of one mask: pixels x1..x2, y1..y2 of the image."""

    mask: int
    x1: int
    y1: int
    x2: int
    y2: int

    @property
    def area(self) -> int:
        return (self.x2 - self.x1) * (self.y2 - self.y1)

    def to_image(self, positions: Ints, height: int) -> Ints:
        """Positions in columns that begin with one more pixel, as positions in the columns of the image."""
        columns, rows = np.divmod(positions, self.y2 - self.y1 + 1)
        return (columns + self.x1) * height + rows - 1 + self.y1


def _stripes(boxes: list[list[float]], size: tuple[int, int]) -> Iterator[_Stripe]:
    """The regions of all masks that have one, cut where they are larger than a batch; columns from left to right."""
    height, width = size
    for number, corners in enumerate(boxes):
        x1, x2 = max(int(corners[0]) - 1, 0), min(int(corners[2]) + 2, width)
        y1, y2 = max(int(corners[1]) - 1, 0), min(int(corners[3]) + 2, height)
        if x2 <= x1 or y2 <= y1 or corners[2] <= corners[0] or corners[3] <= corners[1]:
            continue
        step = max(1, BATCH_PIXELS // (y2 - y1))
        for left in range(x1, x2, step):
            yield _Stripe(number, left, y1, min(left + step, x2), y2)


def _batches(stripes: Iterable[_Stripe]) -> Iterator[list[_Stripe]]:
    """Stripes in order, as many together as have about BATCH_PIXELS."""
    batch: list[_Stripe] = []
    for stripe in stripes:
        if batch and sum(s.area for s in batch) + stripe.area > BATCH_PIXELS:
            yield batch
            batch = []
        batch.append(stripe)
    if batch:
        yield batch


def _sample(probability: Tensor, box: Tensor, stripe: _Stripe) -> Tensor:
    """Values (x2 - x1, y2 - y1) of one mask (S, S) at the centres of pixels, column by column.

    Bilinear interpolation is separable: products of two small matrices of weights with the mask.
    """
    rows = _bilinear_weights(box[1], box[3], stripe.y1, stripe.y2, len(probability))
    columns = _bilinear_weights(box[0], box[2], stripe.x1, stripe.x2, len(probability))
    return columns @ (probability.T @ rows.T)


def _bilinear_weights(low: Tensor, high: Tensor, start: int, stop: int, size: int) -> Tensor:
    """Weights (stop - start, S) of the cells of a grid from ``low`` to ``high`` at pixels' centres along one axis."""
    pixels = torch.arange(start, stop, device=low.device)
    # In cells' centres: -1 and S are as far beyond the grid as weights reach.
    at = ((pixels + 0.5 - low) / (high - low) * 2 - 1 + 1) * (size / 2) - 0.5
    cells = torch.arange(size, device=low.device)
    return (1 - (at[:, None] - cells).abs()).clamp(min=0)
