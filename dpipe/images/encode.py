"""RGB arrays into image files, with and without loss."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import cv2
import numpy as np
from PIL import Image

from dpipe.errors import InputError
from dpipe.images.decode import EXIF_ORIENTATION

Format: TypeAlias = Literal["jpeg", "jp2", "webp"]

SUFFIXES: dict[str, str] = {"jpeg": ".jpg", "jp2": ".jp2", "webp": ".webp"}

DEFAULT_QUALITY = 95
LEAST_OPENCV_JP2 = 64  # OpenCV cannot write JPEG 2000 with fewer rows or columns


@dataclass(frozen=True)
class Encoding:
    """How images are written.

    Args:
        format: ``jpeg``, lossless ``jp2`` (JPEG 2000), or ``webp``.
        quality: 1..100 for lossy formats; 95 where not given.
        lossless: Keep every pixel; what ``jp2`` does anyway, and ``jpeg`` cannot.

    Raises:
        InputError: For what a format cannot do.
    """

    format: Format
    quality: int | None = None
    lossless: bool = False

    def __post_init__(self) -> None:
        if self.format not in SUFFIXES:
            raise InputError(f"unknown format {self.format!r}: expected jpeg, jp2 or webp")
        if self.lossless and self.format == "jpeg":
            raise InputError("JPEG cannot be lossless: take jp2 or webp")
        if self.quality is not None and self.keeps_pixels:
            raise InputError(f"a lossless {self.format} has no quality: leave it out")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise InputError(f"quality must lie in 1..100, got {self.quality}")

    @property
    def keeps_pixels(self) -> bool:
        """Whether what is written decodes to the very same pixels."""
        return self.lossless or self.format == "jp2"


def encode_image(pixels: np.ndarray, encoding: Encoding, orientation: int = 1) -> bytes:
    """Returns the bytes of an image file.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        encoding: How.
        orientation: EXIF orientation to note in a JPEG, 1 (none) to 8.

    Raises:
        InputError: If the format cannot hold the image.
    """
    try:
        if encoding.format == "jp2" and min(pixels.shape[:2]) >= LEAST_OPENCV_JP2:
            # The same bytes as Pillow's, but other threads can work meanwhile.
            options = [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000]
            return cv2.imencode(".jp2", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)[1].tobytes()
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, **_pillow_options(encoding, orientation))
    except (cv2.error, OSError, ValueError) as error:
        reason = str(error).strip().replace("\n", " ")
        raise InputError(f"it cannot be written as {encoding.format}: {reason}") from None
    return file.getvalue()


def _pillow_options(encoding: Encoding, orientation: int) -> dict[str, Any]:
    quality = DEFAULT_QUALITY if encoding.quality is None else encoding.quality
    if encoding.format == "jp2":
        return {"format": "JPEG2000", "irreversible": False}
    if encoding.format == "webp":
        return {"format": "WEBP", "lossless": True} if encoding.lossless else {"format": "WEBP", "quality": quality}
    # At full resolution of colour: halving it costs 8 dB at this quality, and saves but a quarter of the bytes.
    options: dict[str, Any] = {"format": "JPEG", "quality": quality, "subsampling": "4:4:4"}
    if orientation != 1:
        options["exif"] = Image.Exif()
        options["exif"][EXIF_ORIENTATION] = orientation
    return options


def psnr(pixels: np.ndarray, decoded: np.ndarray) -> float:
    """Returns the peak signal-to-noise ratio of two uint8 images of one shape, in dB; infinite where they are equal."""
    squared = cv2.norm(pixels, decoded, cv2.NORM_L2SQR) / pixels.size
    return 10 * math.log10(255**2 / squared) if squared else math.inf
