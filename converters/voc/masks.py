"""Which mask of a ``SegmentationObject`` image belongs to which object of the annotation file.

Pascal VOC numbers the masks by the order of the objects, but sets made by other tools do not keep to it, and some
objects have no mask. So boxes decide: a mask can belong to an object if it lies mostly within its box, and among the
possible pairs the one whose boxes agree best is taken first. The order only settles what the boxes leave open.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from converters.writing.rle import InstanceRLE

# The share of a mask's box that lies in the object's box. Masks are tighter than boxes (a void border surrounds them),
# never wider.
MIN_SHARE_INSIDE = 0.5
# Added to the IoU of a mask and the object of the same number: decides between objects whose boxes are nearly the same.
ORDER_BONUS = 0.05


def match_masks(
    boxes: Sequence[tuple[float, float, float, float]], masks: Sequence[InstanceRLE]
) -> list[InstanceRLE | None]:
    """Finds each object's mask.

    Args:
        boxes: Edges left, top, right, bottom of the objects, in the order of the annotation file.
        masks: The masks of the same image; ``id`` is 1 for the first object where VOC's order is kept.

    Returns:
        For each object its mask or None. A mask is given to one object at most.
    """
    matched: list[InstanceRLE | None] = [None] * len(boxes)
    if not boxes or not masks:
        return matched
    objects = np.asarray(boxes, np.float64)  # (n, 4)
    found = np.asarray([mask.bbox for mask in masks], np.float64)  # (m, 4) x, y, w, h
    found[:, 2:] += found[:, :2]
    shared = _intersections(objects, found)  # (n, m)
    mask_areas = _areas(found)
    iou = shared / (_areas(objects)[:, None] + mask_areas - shared)
    in_order = np.arange(1, len(boxes) + 1)[:, None] == np.asarray([mask.id for mask in masks])
    score = np.where(shared >= MIN_SHARE_INSIDE * mask_areas, iou + ORDER_BONUS * in_order, -1.0)

    used: set[int] = set()
    for flat in np.argsort(-score, axis=None, kind="stable"):
        row, column = divmod(int(flat), len(masks))
        if score[row, column] < 0:
            break
        if matched[row] is None and column not in used:
            matched[row] = masks[column]
            used.add(column)
    return matched


def _areas(boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _intersections(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Returns the areas that every box of a (n, 4) shares with every box of b (m, 4), as (n, m)."""
    top_left = np.maximum(a[:, None, :2], b[None, :, :2])
    bottom_right = np.minimum(a[:, None, 2:], b[None, :, 2:])
    sides = np.clip(bottom_right - top_left, 0, None)
    return sides[..., 0] * sides[..., 1]
