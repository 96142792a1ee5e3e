"""Photometric operations on uint8 RGB images, as plans name them.

The blends are Pillow's ``ImageEnhance`` and the equalisation its ``ImageOps.equalize``, which the AutoAugment papers
used: out = degenerate + factor * (image - degenerate), rounded and clipped to 0..255 after each operation.
"""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np

LEVELS = np.arange(256, dtype=np.float64)


def apply_photometric(image: np.ndarray, operations: Iterable[tuple[str, float]]) -> np.ndarray:
    """Applies operations in order.

    Args:
        image: (H, W, 3) uint8 RGB; not changed.
        operations: Names and magnitudes, as in ``SamplePlan.photometric``.

    Returns:
        (H, W, 3) uint8 RGB, ``image`` itself where there is no operation.
    """
    for name, magnitude in operations:
        image = OPERATIONS[name](image, magnitude)
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
    """Equalises the histogram of each channel; shapes as in ``apply_photometric``, the magnitude has no meaning."""
    tables = [_equalizing(cv2.calcHist([image], [channel], None, [256], [0, 256])) for channel in range(3)]
    return cv2.LUT(image, np.stack(tables, axis=-1)[None])  # (1, 256, 3): a table a channel


def _equalizing(histogram: np.ndarray) -> np.ndarray:
    """Returns the table of one channel, (256,) uint8, from its histogram."""
    counts = histogram.ravel().astype(np.int64)
    present = counts[counts > 0]
    # Pillow leaves the last grey level that occurs out of the mean step.
    step = (counts.sum() - present[-1]) // 255
    if len(present) < 2 or step == 0:
        return LEVELS.astype(np.uint8)
    below = np.cumsum(counts) - counts
    return np.minimum((below + step // 2) // step, 255).astype(np.uint8)


def _rounded(table: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(table), 0, 255).astype(np.uint8)


OPERATIONS = {"color": color, "brightness": brightness, "contrast": contrast, "equalize": equalize}
"""Every photometric operation that a plan can name."""
