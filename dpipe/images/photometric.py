"""Photometric operations on uint8 RGB images, as plans name them.

They come after the warp, on all output pixels, what the warp filled included, wherever a list of transforms names them;
the batch's padding comes after them, and stays 0.

The blends are those of Pillow's ``ImageEnhance``, which the AutoAugment papers used: out = degenerate + factor * (image
- degenerate), here rounded, and clipped to 0..255, after each operation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import cv2
import numpy as np

from dpipe.plan import PhotometricStep

LEVELS = np.arange(256, dtype=np.float64)


def apply_photometric(image: np.ndarray, operations: Iterable[PhotometricStep]) -> np.ndarray:
    """Applies operations in order.

    Args:
        image: (H, W, 3) uint8 RGB; not changed.
        operations: Names and magnitudes, or callables, as in ``SamplePlan.photometric``.

    Returns:
        (H, W, 3) uint8 RGB, ``image`` itself where there is no operation.
    """
    for operation in operations:
        if isinstance(operation, tuple):
            name, magnitude = operation
            image = OPERATIONS[name](image, magnitude)
        else:
            image = operation(image)
    return image


def color(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends with the image's grey version (ITU-R 601 luma); shapes as in ``apply_photometric``."""
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(image, factor, grey, 1 - factor, 0)


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends with black; shapes as in ``apply_photometric``."""
    return cv2.LUT(image, _rounded(factor * LEVELS))


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends with the mean of the grey version, rounded; shapes as in ``apply_photometric``."""
    mean = int(cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0] + 0.5)
    return cv2.LUT(image, _rounded(mean + factor * (LEVELS - mean)))


def equalize(image: np.ndarray, magnitude: float = 1.0) -> np.ndarray:
    """Equalises the histogram of each channel; shapes as in ``apply_photometric``, the magnitude has no meaning.

    The formula is OpenCV's, which DALI shares; Pillow's differs by a few grey levels.
    """
    return cv2.merge([cv2.equalizeHist(channel) for channel in cv2.split(image)])


def _rounded(table: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(table), 0, 255).astype(np.uint8)


OPERATIONS: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "color": color,
    "brightness": brightness,
    "contrast": contrast,
    "equalize": equalize,
}
"""Every photometric operation that a plan can name."""
