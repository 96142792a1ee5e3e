"""The geometry of a plan, done to pixels by OpenCV."""

from __future__ import annotations

from dataclasses import dataclass

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
    if flips is None and not any(halvings) and not plan.photometric:
        seen = _window(plan)
        if seen is not None:
            image, flips = _cut(image, seen, plan.fill, scratch), seen.flips
    unscaled = image.shape[:2] == plan.size
    # A plain resize costs half of a warp. It is coarser, with weights of 11 bits: up to a grey level, which an
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
    # A resize blends no fill into the outermost pixels.
    border = cv2.BORDER_CONSTANT if flips is None else cv2.BORDER_REPLICATE
    return _warped(image, plan, border, out, scratch)


def _warped(image: np.ndarray, plan: SamplePlan, border: int, out: np.ndarray, scratch: Scratch) -> np.ndarray:
    """One bilinear warp of an image that is halved as the plan says, (H, W, 3) uint8, into ``out``.

    It is done in four channels: OpenCV gathers such pixels twice as fast as those of three, with the same result.
    """
    height, width = plan.size
    four = cv2.cvtColor(image, cv2.COLOR_RGB2RGBA, dst=scratch.array("four channels", (*image.shape[:2], 4)))
    warped = cv2.warpAffine(
        four,
        pixel_centre_matrix(plan.halved_matrix),
        (width, height),
        dst=scratch.array("warped", (height, width, 4)),
        flags=cv2.INTER_LINEAR,
        borderMode=border,
        borderValue=(*plan.fill, 0),
    )
    return cv2.cvtColor(warped, cv2.COLOR_RGBA2RGB, dst=out)


@dataclass(frozen=True)
class _Window:
    """Whole pixels of the source, or beyond it, that a resize with flips makes an output of."""

    top: int
    left: int
    height: int
    width: int
    flips: tuple[bool, bool]


def _window(plan: SamplePlan) -> _Window | None:
    """The window of a plan that shifts by whole pixels, or crops, and does not enlarge; None for others.

    Where nothing is enlarged, a resize of the window takes all its samples from within, and is the warp. In a larger
    output the outermost samples lie between the window's pixels and those around it, of which a resize knows nothing.
    """
    (a, b, tx), (c, d, ty) = plan.matrix.tolist()
    height, width = plan.size
    if b or c or not (0 < abs(a) <= 1 and 0 < abs(d) <= 1):
        return None
    sides = (-tx / a, (width - tx) / a, -ty / d, (height - ty) / d)
    left, right, top, bottom = (round(side) for side in sides)
    if max(abs(side - whole) for side, whole in zip(sides, (left, right, top, bottom), strict=True)) > 1e-6:
        return None
    left, right = sorted((left, right))
    top, bottom = sorted((top, bottom))
    source_height, source_width = plan.source_size
    if left >= source_width or right <= 0 or top >= source_height or bottom <= 0:
        return None  # it shows nothing of the source
    return _Window(top, left, bottom - top, right - left, (a < 0, d < 0))


def _cut(image: np.ndarray, window: _Window, fill: tuple[int, int, int], scratch: Scratch) -> np.ndarray:
    """The pixels of a window, (H, W, 3) uint8, filled where there are none: a view of the image where that will do."""
    height, width = image.shape[:2]
    bottom, right = window.top + window.height, window.left + window.width
    part = image[max(window.top, 0) : bottom, max(window.left, 0) : right]
    above, before = max(-window.top, 0), max(-window.left, 0)
    below, after = max(bottom - height, 0), max(right - width, 0)
    if not (above or before or below or after):
        return part
    out = scratch.array("window", (window.height, window.width, 3))
    return cv2.copyMakeBorder(part, above, below, before, after, cv2.BORDER_CONSTANT, dst=out, value=fill)


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
