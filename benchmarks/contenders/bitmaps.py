"""Masks from annotations, for those that carry bitmaps."""

from __future__ import annotations

import numpy as np
from pycocotools import mask as coco_mask
from samples import Sample


def read_bitmaps(sample: Sample) -> np.ndarray:
    """The full-size masks of a sample's objects, as pycocotools' ``annToMask`` makes them: (n, H, W) uint8."""
    height, width = sample.steps.source_size
    masks = np.empty((len(sample.rings), height, width), dtype=np.uint8)
    for mask, rings in zip(masks, sample.rings, strict=True):
        parts = coco_mask.frPyObjects([ring.tolist() for ring in rings], height, width)
        mask[:] = coco_mask.decode(coco_mask.merge(parts))
    return masks
