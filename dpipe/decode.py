"""Image files into RGB arrays, with a clear error for every file that is not what the index says."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from dpipe.errors import BadSampleError
from dpipe.plan import Size

JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
JPEG_START_OF_SCAN = 0xDA
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xae\x42\x60\x82"
EXIF_ORIENTATION = 0x0112
UNREADABLE = "no image in a known format, or corrupt"


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
    data = _read(path, sample)
    image = _decode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise BadSampleError(path, UNREADABLE, sample)
    if image.shape[:2] == tuple(size):
        return image
    upright = _decode(data, cv2.IMREAD_COLOR_RGB)
    if upright is not None and upright.shape[:2] == tuple(size):
        return upright
    raise _wrong_size(path, (image.shape[0], image.shape[1]), size, sample)


def check_image(path: Path, size: Size, sample: int | None = None) -> int:
    """Checks an image file without decoding its pixels, for decoders that cannot say what is wrong with which file.

    Args:
        path: The file.
        size: Height and width according to the index.
        sample: For messages.

    Returns:
        The EXIF orientation to apply, by the rule of ``decode_image``: 1 (none) to 8.

    Raises:
        BadSampleError: If the file is missing, truncated, in no known format or of another size.
    """
    data = _read(path, sample)
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # what Pillow raises for bad files
        raise BadSampleError(path, UNREADABLE, sample) from None
    if (height, width) == tuple(size):
        return 1
    if (width, height) == tuple(size) and orientation in (5, 6, 7, 8):  # those that turn by 90 degrees
        return int(orientation)
    raise _wrong_size(path, (height, width), size, sample)


def _wrong_size(path: Path, found: Size, expected: Size, sample: int | None) -> BadSampleError:
    reason = f"it is {found[1]}x{found[0]} pixels, the annotations say {expected[1]}x{expected[0]}"
    return BadSampleError(path, reason, sample)


def _read(path: Path, sample: int | None) -> bytes:
    """Returns a file's bytes, checked for being there to the end as far as the format tells."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise BadSampleError(path, "no such image file", sample) from None
    except OSError as error:
        raise BadSampleError(path, f"cannot be read: {error.strerror or error}", sample) from None
    if not data:
        raise BadSampleError(path, "the file is empty", sample)
    # Some decoders fill what is missing with grey and only print a warning.
    if data.startswith(JPEG_START) and not _jpeg_is_complete(data):
        raise BadSampleError(path, "truncated JPEG: its end-of-image marker is missing", sample)
    if data.startswith(PNG_START) and data.rfind(PNG_END) < 0:
        raise BadSampleError(path, "truncated PNG: its end chunk is missing", sample)
    if data.startswith(b"RIFF") and len(data) < 8 + int.from_bytes(data[4:8], "little"):
        raise BadSampleError(path, "truncated WebP: it is shorter than its header says", sample)
    return data


def _decode(data: bytes, flags: int) -> np.ndarray | None:
    try:
        return cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags)
    except cv2.error:  # larger than OpenCV's limits, for one
        return None


def _jpeg_is_complete(data: bytes) -> bool:
    """Whether the end-of-image marker comes after the start of the pixels.

    The marker cannot occur inside of compressed pixels, but a thumbnail in the header has its own: hence the walk over
    the header's segments (ITU-T T.81, annex B).
    """
    place = len(JPEG_START)
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == JPEG_START_OF_SCAN:
            return data.rfind(JPEG_END) > place
        if marker == 0xFF:  # a fill byte
            place += 1
        else:
            place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return False
