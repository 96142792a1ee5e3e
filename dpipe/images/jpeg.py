"""JPEG files: what their segments say, and pixels that are known to be undamaged.

OpenCV's decoder fills what it cannot read with grey, or shifts it, and prints a warning at most. The same library,
libjpeg-turbo, asked through ``simplejpeg``, gives the same pixels, into memory that is used again, and tells.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import simplejpeg

from dpipe.images.memory import Scratch
from dpipe.plan import Size

JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
START_OF_SCAN = 0xDA
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers of segments that hold the image's size
COMMON_FRAMES = frozenset({0xC0, 0xC1, 0xC2})  # sequential and progressive, with Huffman codes
COMMON_SAMPLINGS = frozenset({0x11, 0x21, 0x22, 0x12, 0x41})  # of the luma, where the chroma's are 0x11

# Of decoders that are strict about the wording of a header, not about pixels.
_HARMLESS = re.compile(r"Warning|Unknown Adobe|Invalid SOS parameters|Inconsistent progression")
_LEFT_OVER = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
_PADDING = 3  # bytes: what makes the length a multiple of four


class DamagedJpegError(Exception):
    """The compressed pixels cannot be what was written; the message is libjpeg-turbo's."""


def decode_jpeg(data: bytes, size: Size, scratch: Scratch) -> np.ndarray | None:
    """Decodes a JPEG file of a common kind: grey or colour, of 8 bits a channel, with Huffman codes.

    Args:
        data: The file, whole.
        size: Height and width of its stored pixels.
        scratch: The image lies in its memory.

    Returns:
        (H, W, 3) uint8 RGB, the very pixels that OpenCV decodes; None for a file that only OpenCV may know.

    Raises:
        DamagedJpegError: For damage that shows. Hundreds of bytes that were overwritten by chance nearly always do, a
            dozen in more than half of all files; a single flipped bit often changes colours and nothing else.
    """
    if not _is_common(data):
        return None
    buffer = scratch.array("decoded", (*size, 3))
    try:
        image: np.ndarray = simplejpeg.decode_jpeg(data, "RGB", buffer=buffer)
    except ValueError as error:
        message = str(error)
        left_over = _LEFT_OVER.search(message)
        if _HARMLESS.match(message) or (left_over and int(left_over[1]) <= _PADDING):
            return None
        raise DamagedJpegError(message.removeprefix("Corrupt JPEG data: ")) from None
    return image


def jpeg_size(data: bytes) -> Size | None:
    """Returns the height and width of the stored pixels; None where the frame's header is not in ``data``."""
    frame = _frame(data)
    return None if frame is None else (int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big"))


def jpeg_is_complete(data: bytes) -> bool:
    """Whether the end-of-image marker comes after the start of the pixels.

    The marker cannot occur inside of compressed pixels, but a thumbnail in the header has its own: hence the walk over
    the header's segments.
    """
    scans = (place for marker, place in _segments(data) if marker == START_OF_SCAN)
    return data.rfind(JPEG_END) > next(scans, len(data))


def _is_common(data: bytes) -> bool:
    frame = _frame(data, COMMON_FRAMES)
    if frame is None or len(frame) < 6 or frame[0] != 8:
        return False
    components, factors = frame[5], frame[7::3]
    return components == 1 or (components == 3 and factors[0] in COMMON_SAMPLINGS and factors[1:] == b"\x11\x11")


def _frame(data: bytes, markers: frozenset[int] = FRAMES) -> bytes | None:
    """The content of the segment that describes the image (ITU-T T.81, B.2.2).

    It is the precision, the height, the width, the number of components, and of each its name, factors and table.
    """
    for marker, place in _segments(data):
        if marker in markers:
            content = data[place + 4 : place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")]
            return content if len(content) >= 5 else None
    return None


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """The markers of a JPEG's segments up to the first scan, and where they stand (ITU-T T.81, annex B)."""
    place = len(JPEG_START)
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        yield marker, place
        if marker == START_OF_SCAN:
            return
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
