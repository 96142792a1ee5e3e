"""Image files into RGB arrays, with a clear error for every file that is not what the index says."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from dpipe.errors import BadSampleError
from dpipe.plan import Size

JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
START_OF_SCAN = 0xDA


def decode_image(path: Path, size: Size, sample: int | None = None) -> np.ndarray:
    """Reads an image.

    The orientation that EXIF data ask for is applied only where that, and not the stored pixels, gives the size in the
    index: annotations belong to the image of that size.

    Args:
        path: The file, in any format that OpenCV reads.
        size: Height and width according to the index.
        sample: For messages.

    Returns:
        (H, W, 3) uint8 RGB, of that size.

    Raises:
        BadSampleError: If the file is missing, truncated, unreadable or of another size.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise BadSampleError(path, "no such image file", sample) from None
    except OSError as error:
        raise BadSampleError(path, f"cannot be read: {error.strerror or error}", sample) from None
    if not data:
        raise BadSampleError(path, "the file is empty", sample)
    if data.startswith(JPEG_START) and not _jpeg_is_complete(data):
        raise BadSampleError(path, "truncated JPEG: its end-of-image marker is missing", sample)
    image = _decode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise BadSampleError(path, "no image in a known format, or truncated, or corrupt", sample)
    if image.shape[:2] == tuple(size):
        return image
    upright = _decode(data, cv2.IMREAD_COLOR_RGB)
    if upright is not None and upright.shape[:2] == tuple(size):
        return upright
    (height, width), (expected_height, expected_width) = image.shape[:2], size
    raise BadSampleError(
        path, f"it is {width}x{height} pixels, the annotations say {expected_width}x{expected_height}", sample
    )


def _decode(data: bytes, flags: int) -> np.ndarray | None:
    try:
        return cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags)
    except cv2.error:  # larger than OpenCV's limits, for one
        return None


def _jpeg_is_complete(data: bytes) -> bool:
    """Whether the end-of-image marker comes after the start of the pixels.

    Some decoders fill what is missing with grey and only print a warning. The marker cannot occur inside of compressed
    pixels, but a thumbnail in the header has its own: hence the walk over the header's segments (ITU-T T.81, annex B).
    """
    place = len(JPEG_START)
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == START_OF_SCAN:
            return data.rfind(JPEG_END) > place
        if marker == 0xFF:  # a fill byte
            place += 1
        else:
            place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return False
