"""The geometry of a plan, done to pixels by OpenCV."""

from __future__ import annotations

import cv2
import numpy as np

from dpipe.geometry import pixel_centre_matrix
from dpipe.images.memory import Scratch
from dpipe.plan import SamplePlan


def resample(
    image: np.ndarray, plan: SamplePlan, out: np.ndarray | None = None, scratch: Scratch | None = None
) -> np.ndarray:
    """Brings an image into its output geometry: halved as often as the plan says, then one bilinear interpolation.

    Args:
        image: (H, W, 3) uint8 of ``plan.source_size``.
        plan: Its geometry.
        out: (h, w, 3) uint8 of ``plan.size``, to write into.
        scratch: For what is made on the way.

    Returns:
        ``out``, or a new array like it.
    """
    scratch = scratch or Scratch()
    height, width = plan.size
    if out is None:
        out = np.empty((height, width, 3), dtype=np.uint8)
    halvings, flips = plan.halvings, plan.resize_flips
    whole = all(edge % 2**times == 0 for edge, times in zip(plan.source_size, halvings, strict=True))
    image = _halved(image, halvings, scratch)
    unscaled = image.shape[:2] == plan.size
    # A plain resize costs a quarter of a warp. It is coarser, with weights of 11 bits: up to a grey level, which an
    # operation on colours may blow up.
    if flips is not None and whole and (unscaled or not plan.photometric):
        flip_x, flip_y = flips
        if not unscaled:
            resized = scratch.array("resized", out.shape) if flip_x or flip_y else out
            image = cv2.resize(image, (width, height), dst=resized, interpolation=cv2.INTER_LINEAR)
        if flip_x or flip_y:
            cv2.flip(image, -1 if flip_x and flip_y else 1 if flip_x else 0, dst=out)
        elif image is not out:
            np.copyto(out, image)
        return out
    return cv2.warpAffine(
        image,
        pixel_centre_matrix(plan.halved_matrix),
        (width, height),
        dst=out,
        flags=cv2.INTER_LINEAR,
        # A resize blends no fill into the outermost pixels.
        borderMode=cv2.BORDER_CONSTANT if flips is None else cv2.BORDER_REPLICATE,
        borderValue=plan.fill,
    )


def _halved(image: np.ndarray, halvings: tuple[int, int], scratch: Scratch) -> np.ndarray:
    """The means of neighbouring pixels, so often down the height and along the width; see ``SamplePlan.halvings``."""
    down, along = halvings
    for step in range(max(down, along)):
        factor_y, factor_x = 2 if step < down else 1, 2 if step < along else 1
        height, width = image.shape[:2]
        below, right = -height % factor_y, -width % factor_x
        if below or right:
            image = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_REPLICATE)
        size = (image.shape[0] // factor_y, image.shape[1] // factor_x)
        half = scratch.array(f"halved {step % 2}", (*size, 3))
        # At a factor of two this is the mean, rounded half up: INTER_AREA rounds half to even along a single axis.
        image = cv2.resize(image, size[::-1], dst=half, interpolation=cv2.INTER_LINEAR)
    return image
