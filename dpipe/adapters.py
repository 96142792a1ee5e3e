"""Batches in the forms that other trainers take.

Each function takes a ``Batch`` and costs little, but where masks are asked for: polygons become bitmaps. None of the
forms knows regions to ignore, but ``to_tensors``: objects in them are learned as background, as is usual there.
"""

from __future__ import annotations

from typing import Any, Literal

import torch

from dpipe.batch import Batch
from dpipe.errors import InputError
from dpipe.outlines.polygon_torch import bitmaps_on
from dpipe.polygons import Polygons
from dpipe.target import Target


def to_torchvision(batch: Batch, masks: bool = True) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """Returns what torchvision's detection models take, as its references/detection have it.

    The models normalise images themselves: leave ``Normalize`` out of the augmentation, and images come as 0..1. Images
    that are normalised are handed on as they are, for models that do not; torchvision's would normalise them twice. The
    models resize as well: pass ``_skip_resize=True`` to the model's builder where the augmentation has done it.

    Args:
        batch: From the loader.
        masks: Give bitmaps; leave them out for models without masks, as they are costly.

    Returns:
        N images (3, h, w) of their own sizes, views of the batch where it is normalised, else float32 0..1. N targets:
        ``boxes`` (n, 4) float32 xyxy, ``labels`` (n,) int64 from 1, as 0 is the background, ``image_id`` int,
        ``area`` (n,) float32 square pixels, ``iscrowd`` (n,) int64 zeros, and ``masks`` (n, h, w) uint8.

    Raises:
        InputError: If masks are asked for and an instance has none: an empty bitmap would be learned as its shape.
    """
    images = batch.images if batch.images.is_floating_point() else batch.images.float() / 255
    shown, targets = [], []
    for image, target in zip(images, batch.targets, strict=True):
        height, width = target.size
        shown.append(image[:, :height, :width])
        found: dict[str, Any] = {
            "boxes": target.boxes,
            "labels": target.labels + 1,
            "image_id": target.image_id,
            "area": areas(target),
            "iscrowd": torch.zeros_like(target.labels),
        }
        if masks:
            found["masks"] = bitmaps(target, height, width)
        targets.append(found)
    return shown, targets


def to_detr(batch: Batch, masks: bool = False, relative_to: Literal["image", "batch"] = "image") -> dict[str, Any]:
    """Returns what the detection models of Hugging Face's transformers take: ``model(**to_detr(batch))``.

    Args:
        batch: From the loader, normalised.
        masks: Give bitmaps, for models that segment.
        relative_to: What boxes are fractions of. ``image`` suits models that look at ``pixel_mask`` and count positions
            within each image (DETR, Conditional DETR, Deformable DETR); the image's size turns their predictions into
            pixels. ``batch``, the padded size, suits models that do not (YOLOS, RT-DETR, D-FINE), and is what the image
            processors give since transformers 4.38.

    Returns:
        ``pixel_values`` (N, 3, H, W), ``pixel_mask`` (N, H, W) int64, 1 on images and 0 on padding, and ``labels``, N
        dictionaries: ``class_labels`` (n,) int64 from 0, ``boxes`` (n, 4) float32 (cx, cy, w, h) in 0..1, ``image_id``
        (1,) int64, ``area`` (n,) float32 square pixels, ``iscrowd`` (n,) int64 zeros, ``orig_size`` (2,) int64 height
        and width of the source, ``size`` (2,) int64 of what boxes are relative to, and ``masks`` (n, H, W) uint8.

    Raises:
        InputError: For another ``relative_to``, images that are not normalised, and where masks are asked for and an
            instance has none.
    """
    if relative_to not in ("image", "batch"):
        raise InputError(f"relative_to must be image or batch, got {relative_to!r}")
    if not batch.images.is_floating_point():
        raise InputError("to_detr: expected normalised images, got uint8: the augmentation needs a Normalize")
    device = batch.images.device
    padded = (batch.images.shape[2], batch.images.shape[3])
    pixel_mask = torch.zeros((len(batch), *padded), dtype=torch.int64, device=device)
    labels = []
    for on_image, target in zip(pixel_mask, batch.targets, strict=True):
        on_image[: target.size[0], : target.size[1]] = 1
        height, width = target.size if relative_to == "image" else padded
        found = {
            "class_labels": target.labels,
            "boxes": _centres(target.boxes) / target.boxes.new_tensor((width, height, width, height)),
            "image_id": torch.tensor([target.image_id], device=device),
            "area": areas(target),
            "iscrowd": torch.zeros_like(target.labels),
            "orig_size": torch.tensor(target.original_size, device=device),
            "size": torch.tensor((height, width), device=device),
        }
        if masks:
            found["masks"] = bitmaps(target, *padded)
        labels.append(found)
    return {"pixel_values": batch.images, "pixel_mask": pixel_mask, "labels": labels}


def to_tensors(batch: Batch) -> dict[str, torch.Tensor]:
    """Returns a batch as nothing but tensors: the instances of all images one after another, T of them.

    Returns:
        ``images`` (N, 3, H, W); ``sizes`` (N, 2) int64 heights and widths without padding; ``image_ids`` (N,) int64;
        ``boxes`` (T, 4) float32 xyxy; ``labels`` (T,) int64 from 0; ``image_of`` (T,) int64, the place in the batch of
        each instance's image; ``ignore_boxes`` (K, 4) float32 xyxy and ``image_of_ignored`` (K,) int64.
    """
    device, targets = batch.images.device, batch.targets
    counts = torch.tensor([len(target.boxes) for target in targets], device=device)
    ignored = torch.tensor([len(target.ignore_boxes) for target in targets], device=device)
    places = torch.arange(len(targets), device=device)
    return {
        "images": batch.images,
        "sizes": torch.tensor([target.size for target in targets], device=device),
        "image_ids": torch.tensor([target.image_id for target in targets], device=device),
        "boxes": torch.cat([target.boxes for target in targets]),
        "labels": torch.cat([target.labels for target in targets]),
        "image_of": places.repeat_interleave(counts),
        "ignore_boxes": torch.cat([target.ignore_boxes for target in targets]),
        "image_of_ignored": places.repeat_interleave(ignored),
    }


def areas(target: Target) -> torch.Tensor:
    """Returns how many square pixels each instance covers, of its box where it has no mask: (n,) float32."""
    of_boxes = (target.boxes[:, 2:] - target.boxes[:, :2]).prod(dim=1)
    if target.masks is None:
        return of_boxes
    if isinstance(target.masks, Polygons):
        of_masks = torch.from_numpy(target.masks.areas()).to(of_boxes)
    else:
        of_masks = target.masks.flatten(1).sum(dim=1).to(of_boxes)
    return torch.where(target.has_mask, of_masks, of_boxes)


def bitmaps(target: Target, height: int, width: int) -> torch.Tensor:
    """Returns the masks of all instances, (n, height, width) uint8, on the target's device.

    Raises:
        InputError: If an instance has none.
    """
    bare = len(target.labels) if target.masks is None else int((~target.has_mask).sum())
    if bare:
        raise InputError(
            f"{target.file_name}: {bare} of {len(target.labels)} objects have no mask: expected one for each, "
            "or masks=False"
        )
    device = target.boxes.device
    if target.masks is None:  # nor instances
        return torch.zeros((0, height, width), dtype=torch.uint8, device=device)
    if isinstance(target.masks, Polygons):
        if device.type == "cuda":
            return bitmaps_on(target.masks, height, width, device)
        return torch.from_numpy(target.masks.to_bitmaps(height, width))
    padding = (0, width - target.masks.shape[2], 0, height - target.masks.shape[1])
    return torch.nn.functional.pad(target.masks.to(torch.uint8), padding)


def _centres(boxes: torch.Tensor) -> torch.Tensor:
    """Turns boxes from (x0, y0, x1, y1) into (cx, cy, w, h)."""
    return torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], dim=1)
