"""Image files into RGB arrays, with a clear error for every file that is not what the index says."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from dpipe.errors import BadSampleError
from dpipe.images.jpeg import JPEG_END, JPEG_START, DamagedJpegError, decode_jpeg, jpeg_is_complete, jpeg_size
from dpipe.images.memory import Scratch
from dpipe.images.png import PNG_END, PNG_START, decode_png
from dpipe.plan import Size

JPEG2000_STARTS = (b"\x00\x00\x00\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")  # in boxes, and bare
EXIF_ORIENTATION = 0x0112
UNREADABLE = "no image in a known format, or corrupt"
PILLOW_ERRORS = Exception  # what Pillow raises for bad files: each of its many formats something else


def decode_image(path: Path, size: Size, sample: int | None = None, scratch: Scratch | None = None) -> np.ndarray:
    """Reads an image.

    The orientation that EXIF data ask for is applied only where that, and not the stored pixels, gives the size in the
    index: annotations belong to the image of that size.

    Args:
        path: The file, in any format that OpenCV reads.
        size: Height and width according to the index.
        sample: For messages.
        scratch: The image may lie in its memory.

    Returns:
        (H, W, 3) uint8 RGB, of that size.

    Raises:
        BadSampleError: If the file is missing, truncated, damaged, unreadable or of another size.
    """
    data = _read(path, sample)
    stored = _stored_size(path, data, size, sample)
    turn = stored is not None and stored != tuple(size)
    image = None
    if not turn and data.startswith(JPEG_START):
        try:
            image = decode_jpeg(data, size, scratch or Scratch())
        except DamagedJpegError as error:
            raise BadSampleError(path, f"damaged JPEG: {error}", sample) from None
    elif not turn and data.startswith(PNG_START):
        image = decode_png(data, size, scratch or Scratch())
    if image is None:
        image = _decode(data, cv2.IMREAD_COLOR_RGB | (0 if turn else cv2.IMREAD_IGNORE_ORIENTATION))
    if image is None:
        raise BadSampleError(path, UNREADABLE, sample)
    if image.shape[:2] != tuple(size):
        raise _wrong_size(path, stored or (image.shape[0], image.shape[1]), size, sample)
    return image


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
    stored = _stored_size(path, data, size, sample)
    if stored == tuple(size):
        return 1
    try:
        with Image.open(io.BytesIO(data)) as image:
            orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    except PILLOW_ERRORS:
        raise BadSampleError(path, UNREADABLE, sample) from None
    if stored is None or orientation not in (5, 6, 7, 8):  # those that turn by 90 degrees
        raise _wrong_size(path, stored or (image.height, image.width), size, sample)
    return int(orientation)


def header_size(data: bytes) -> Size | None:
    """Reads the height and width of the stored pixels from the start of a PNG or JPEG file.

    Args:
        data: As much of the file's start as is at hand.

    Returns:
        None for other formats, and where the part of the header that tells is not in ``data``.
    """
    if data.startswith(PNG_START) and len(data) >= 24:
        return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")
    if data.startswith(JPEG_START):
        return jpeg_size(data)
    return None


def _stored_size(path: Path, data: bytes, size: Size, sample: int | None) -> Size | None:
    """Looks at the header before anything is decoded: a small file may hold an image that fills the memory.

    Returns:
        The height and width of the stored pixels: ``size``, or that turned by 90 degrees; None where only decoding
        tells.

    Raises:
        BadSampleError: If the size is neither.
    """
    found = header_size(data)
    if found is None and not data.startswith((PNG_START, JPEG_START)):
        try:
            with Image.open(io.BytesIO(data)) as image:
                found = image.height, image.width
        except Image.DecompressionBombError:
            # Pillow does not say how large it is, only that it is larger than this.
            limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
            if size[0] * size[1] <= limit:
                reason = f"it has more than {limit} pixels, the annotations say {size[1]}x{size[0]}"
                raise BadSampleError(path, reason, sample) from None
        except PILLOW_ERRORS:
            pass  # OpenCV may know the format
    if found is not None and found != tuple(size) and found[::-1] != tuple(size):
        raise _wrong_size(path, found, size, sample)
    return found


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
    except ValueError:  # half of a surrogate pair, which JSON can spell
        raise BadSampleError(path, "cannot be read: its name is no valid text", sample) from None
    if not data:
        raise BadSampleError(path, "the file is empty", sample)
    # Some decoders fill what is missing with grey and only print a warning.
    if data.startswith(JPEG_START) and not jpeg_is_complete(data):
        raise BadSampleError(path, "truncated JPEG: its end-of-image marker is missing", sample)
    if data.startswith(PNG_START) and data.rfind(PNG_END) < 0:
        raise BadSampleError(path, "truncated PNG: its end chunk is missing", sample)
    if data.startswith(JPEG2000_STARTS) and data.rfind(JPEG_END) < 0:  # the two formats share the marker
        raise BadSampleError(path, "truncated JPEG 2000: its end marker is missing", sample)
    if data.startswith(b"RIFF") and len(data) < 8 + int.from_bytes(data[4:8], "little"):
        raise BadSampleError(path, "truncated WebP: it is shorter than its header says", sample)
    return data


def _decode(data: bytes, flags: int) -> np.ndarray | None:
    try:
        return cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags)
    except cv2.error:  # larger than OpenCV's limits, for one
        return None
