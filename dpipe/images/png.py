"""Large PNG files, decoded by GDAL where it is installed (through ``rasterio``), in half of OpenCV's time.

GDAL inflates the whole file at once with libdeflate and undoes the filters with SIMD, and gives the same pixels. It is
not needed: without it, and for every file that is not plain, OpenCV decodes.
"""

from __future__ import annotations

import warnings
import zlib

import numpy as np

from dpipe.images.memory import Scratch
from dpipe.plan import Size

try:
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioError
    from rasterio.io import MemoryFile
except ImportError:
    rasterio = None

PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xae\x42\x60\x82"
LEAST_PIXELS = 1 << 16  # in smaller images GDAL's opening costs more than its decoding saves
RGB_8_BIT_NOT_INTERLACED = bytes([8, 2, 0, 0, 0])
# The pixels are handed out as they are stored; with animation or transparency they would not be.
_PLAIN_CHUNKS = {b"IHDR", b"IDAT", b"IEND", b"bKGD", b"cHRM", b"eXIf", b"gAMA", b"iCCP", b"iTXt", b"pHYs", b"sBIT"}
_PLAIN_CHUNKS |= {b"sRGB", b"tEXt", b"tIME", b"zTXt"}


def decode_png(data: bytes, size: Size, scratch: Scratch) -> np.ndarray | None:
    """Decodes a large PNG file of the plain kind: RGB of 8 bits a channel, not interlaced.

    One kind of damage does not show: where the compressed pixels are whole in themselves, but of fewer rows than the
    header says, GDAL fills the rest with what its memory held. No encoder ends a file like that.

    Args:
        data: The file, whole.
        size: Height and width of its pixels.
        scratch: The image lies in its memory.

    Returns:
        (H, W, 3) uint8 RGB, the very pixels that OpenCV decodes; None for a file of another kind or damaged, and where
        GDAL is not installed.
    """
    if rasterio is None or size[0] * size[1] < LEAST_PIXELS or not _is_plain(data):
        return None
    image = scratch.array("decoded", (*size, 3))
    # It says so of every image that has no place on the earth. Told each time, as another thread that sets the filters
    # back to what they were takes this one along.
    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
    try:
        with MemoryFile(data) as file, file.open(driver="PNG") as source:
            source.read(out=image.transpose(2, 0, 1))
    except (RasterioError, NotGeoreferencedWarning):  # the warning, where another thread has just made errors of them
        return None
    return image


def _is_plain(data: bytes) -> bool:
    """Looks at all chunks (PNG specification, third edition, 5.3); GDAL does not compare their checksums."""
    if data[24:29] != RGB_8_BIT_NOT_INTERLACED:
        return False
    view, place = memoryview(data), len(PNG_START)
    while place + 12 <= len(data):
        kind, end = data[place + 4 : place + 8], place + 8 + int.from_bytes(data[place : place + 4], "big")
        if kind not in _PLAIN_CHUNKS or zlib.crc32(view[place + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return False
        if kind == b"IEND":
            return True
        place = end + 4
    return False
