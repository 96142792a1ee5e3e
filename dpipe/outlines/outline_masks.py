"""Run-length masks of one image to COCO's polygons, as the converters want them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dpipe.polygons import Polygons


def outline_masks(masks: Sequence[dict[str, Any]]) -> list[Any]:
    """Traces masks along their exact pixel edges.

    Args:
        masks: COCO run-length masks, ``{"size": [height, width], "counts": ...}``.

    Returns:
        For each mask a list of rings, flat x and y in whole pixels; for one that has holes, which COCO's polygons
        cannot tell, the mask in run lengths.
    """
    return Polygons.from_coco(masks).to_coco([mask["size"] for mask in masks]) if masks else []
