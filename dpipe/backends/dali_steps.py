"""How the DALI graph is told of photometric operations; apart from it, so that DALI is imported only where it runs."""

from __future__ import annotations

from dpipe.errors import InputError
from dpipe.plan import PhotometricStep

LINEAR_STEP = 1
"""A photometric step of the graph: a weighted sum of the image, its grey version and its mean grey level."""

EQUALIZE_STEP = 2
"""A photometric step of the graph: the equalisation of each channel's histogram."""


def photometric_step(operation: PhotometricStep) -> tuple[int, tuple[float, float, float]]:
    """Returns the graph's step for an operation of a plan, and its weights.

    Raises:
        InputError: For one that is not one of ``dpipe.images.photometric``'s.
    """
    if callable(operation):
        raise InputError(f"DALI has no such operation on colours as {operation!r}: take the opencv backend")
    name, factor = operation
    if name == "equalize":
        return EQUALIZE_STEP, (0.0, 0.0, 0.0)
    weights = {
        "color": (factor, 1 - factor, 0.0),
        "brightness": (factor, 0.0, 0.0),
        "contrast": (factor, 0.0, 1 - factor),
    }
    return LINEAR_STEP, weights[name]
