"""What a detector is to find in one image, in the image's output coordinates."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from dpipe.coco import CocoIndex
from dpipe.errors import InputError
from dpipe.geometry import clip_boxes, transform_boxes
from dpipe.plan import SamplePlan, Size
from dpipe.polygons import Polygons

BoxSource: TypeAlias = Literal["polygons", "corners"]

MIN_SIZE = 1.0
"""Pixels: what is thinner has no pixel of its own to be found by, and makes the logarithms of box codings explode."""


@dataclass
class Target:
    """The instances of one image, n of them, and k regions to ignore.

    Every per-instance field has the same order and length.

    Attributes:
        image_id: The image's id in the JSON.
        sample: Sample number in the repeated data set.
        file_name: The image's file name in the JSON.
        size: Height and width of the image, top left inside the padded batch.
        original_size: Height and width of the source image.
        matrix: Source to output, continuous coordinates, (2, 3) float64.
        boxes: (n, 4) float32 xyxy within ``size``.
        labels: (n,) int64, 0..C-1.
        masks: Of the n instances, as polygons or bitmaps (n, H, W); None where the data set has no masks.
        annotation_ids: (n,) int64, ids in the JSON.
        ignore_boxes: (k, 4) float32 xyxy of crowds and difficult objects, never to be learned as objects.
        has_mask: (n,) bool, whether the instance has a mask: in many data sets some have a box only, which says nothing
            of the shape. Where not given, all bitmaps count as masks, and polygons where there is a ring.
    """

    image_id: int
    sample: int
    file_name: str
    size: Size
    original_size: Size
    matrix: np.ndarray
    boxes: torch.Tensor
    labels: torch.Tensor
    masks: Polygons | torch.Tensor | None
    annotation_ids: torch.Tensor
    ignore_boxes: torch.Tensor
    has_mask: torch.Tensor = None  # type: ignore[assignment]  # a tensor once it is made

    def __post_init__(self) -> None:
        if self.has_mask is None:
            if isinstance(self.masks, Polygons):
                has_mask = torch.from_numpy(_ring_counts(self.masks) > 0)
            else:
                has_mask = torch.full((len(self.boxes),), self.masks is not None)
            self.has_mask = has_mask.to(self.boxes.device)

    def to(self, device: torch.device | str) -> Target:
        """Returns the target with its tensors on a device; polygons stay in host memory."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        non_blocking = torch.device(device).type == "cuda"  # not towards the host, where it could be read too early
        moved: dict[str, Any] = {name: tensor.to(device, non_blocking=non_blocking) for name, tensor in tensors.items()}
        return replace(self, **moved)


def check_options(boxes_from: str, min_size: float) -> None:
    """Checks the options of ``make_target``.

    Raises:
        InputError: For another ``boxes_from``, or a ``min_size`` that is negative or not finite.
    """
    if boxes_from not in ("polygons", "corners"):
        raise InputError(f"boxes_from must be polygons or corners, got {boxes_from!r}")
    if not 0 <= min_size < math.inf:
        raise InputError(f"min_size must be a number of pixels of at least 0, got {min_size}")


def make_target(
    index: CocoIndex, plan: SamplePlan, boxes_from: BoxSource = "polygons", min_size: float = MIN_SIZE
) -> Target:
    """Takes an image's annotations through a plan's geometry.

    Args:
        index: The data set.
        plan: What is done to the image.
        boxes_from: ``polygons`` makes each box tight around the transformed and clipped polygon, where the instance has
            one; ``corners``, and all other instances, get the box of the transformed corners of the annotated box,
            which is larger after a rotation.
        min_size: Pixels of the output: instances whose box is thinner or lower are dropped, as is what has left the
            image.

    Raises:
        InputError: See ``check_options``.
    """
    check_options(boxes_from, min_size)
    rows = slice(int(index.offsets[plan.image]), int(index.offsets[plan.image + 1]))
    height, width = plan.size
    polygons = index.polygons.select(rows)
    drawn = _ring_counts(polygons) > 0
    polygons = polygons.transform(plan.matrix).clip(width, height)

    boxes = clip_boxes(transform_boxes(index.boxes[rows], plan.matrix), width, height)
    if boxes_from == "polygons":
        boxes = np.where(drawn[:, None], polygons.boxes(), boxes)
    sides = boxes[:, 2:] - boxes[:, :2]
    # One mask over one table: boxes, labels, polygons and ids cannot get out of step. A box whose polygon has left the
    # image goes with it.
    seen = (sides > 0).all(axis=1) & (sides >= min_size).all(axis=1) & (~drawn | (_ring_counts(polygons) > 0))
    crowd = index.crowd[rows]
    kept = np.flatnonzero(seen & ~crowd)
    return Target(
        image_id=int(index.image_ids[plan.image]),
        sample=plan.sample,
        file_name=index.file_names[plan.image],
        size=plan.size,
        original_size=plan.source_size,
        matrix=plan.matrix,
        boxes=torch.from_numpy(boxes[kept].astype(np.float32)),
        labels=torch.from_numpy(index.labels[rows][kept]),
        masks=polygons.select(kept) if index.has_masks else None,
        annotation_ids=torch.from_numpy(index.annotation_ids[rows][kept]),
        ignore_boxes=torch.from_numpy(boxes[seen & crowd].astype(np.float32)),
        has_mask=torch.from_numpy(drawn[kept]),
    )


def empty_target(index: CocoIndex, plan: SamplePlan) -> Target:
    """Returns a target for a plan whose image cannot be used: nothing to find, and all of the image to be ignored."""
    height, width = plan.size
    return Target(
        image_id=int(index.image_ids[plan.image]),
        sample=plan.sample,
        file_name=index.file_names[plan.image],
        size=plan.size,
        original_size=plan.source_size,
        matrix=plan.matrix,
        boxes=torch.zeros((0, 4)),
        labels=torch.zeros(0, dtype=torch.int64),
        masks=Polygons.empty() if index.has_masks else None,
        annotation_ids=torch.zeros(0, dtype=torch.int64),
        ignore_boxes=torch.tensor([[0.0, 0.0, width, height]]),
    )


def _ring_counts(polygons: Polygons) -> np.ndarray:
    return np.diff(polygons.instance_offsets)
