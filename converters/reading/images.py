"""Reading of label images and of what a converter must know about a photograph, with errors that name the file."""

from __future__ import annotations

import io
import os
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from converters.errors import ConversionError
from converters.reading.archives import ArchivePath, Place
from converters.reading.image_headers import HEAD, JPEG_END, PNG_END, quick_size, size_from_bytes

# Pillow's modes with one integer per pixel; a palette image ("P") gives its indices.
LABEL_MODES = ("P", "L", "1", "I", "I;16", "I;16B")
EXIF_ORIENTATION = 0x0112
EXIF_TRANSPOSING = (5, 6, 7, 8)
PNG_BEGINNING = b"\x89PNG\r\n\x1a\n"
ROWS_PER_COPY = 64
PNG_LAST_CHUNK = b"IEND"
BLOCKS_KEPT = 4
"""Pieces of memory, of at most 16 MiB, that Pillow keeps for its next image; by default it keeps none."""


@contextmanager
def memory_kept() -> Iterator[None]:
    """Lets Pillow use the memory of an image again for the next one.

    Else the system clears every page of it anew, a quarter of the time that a label image of Cityscapes takes, and two
    processes get in each other's way. (https://pillow.readthedocs.io/en/stable/reference/block_allocator.html)
    """
    before = Image.core.get_blocks_max()
    Image.core.set_blocks_max(max(before, BLOCKS_KEPT))
    try:
        yield
    finally:
        Image.core.set_blocks_max(before)


def read_label_image(path: Place) -> npt.NDArray[Any]:
    """Reads an image that holds one number per pixel.

    Decoders overlook some damage, which gives other pixels: a PNG's checksums are compared first.

    Args:
        path: A gray or palette image of 1 to 32 bits; of a palette image the indices are read.

    Returns:
        (H, W) unsigned or signed integers.

    Raises:
        ConversionError: The file is missing, damaged, or has colour channels.
    """
    with _image(path, checked=True) as image:
        if image.mode not in LABEL_MODES:
            raise ConversionError(f"{path}: has colour channels (mode {image.mode}), expected one number per pixel")
        labels = _pixels(image)
    if labels.dtype == bool:
        return labels.astype(np.uint8)
    return labels.astype(labels.dtype.newbyteorder("="), copy=False)


def image_size(path: Place) -> tuple[int, int]:
    """Reads the size of an image from its header, and makes sure that the file goes on to its end.

    The pixels are decoded only where the file's last bytes are not those of a complete PNG or JPEG. In an archive,
    which knows how long its files are, these bytes are not looked at where the header tells the size.

    Args:
        path: An image.

    Returns:
        Width and height in pixels, as stored: EXIF's orientation is not applied.

    Raises:
        ConversionError: The file is missing, no image, or truncated.
    """
    size = _quick_size(path)
    if size is not None:
        return size
    with _image(path) as image:
        width, height = image.size
        if not _ends_as_expected(path, image.format):
            image.load()
    return width, height


def is_shown_transposed(path: Place) -> bool:
    """Tells whether EXIF asks to show an image with its width and height exchanged.

    This can cost a full decoding (of a PNG, whose metadata may follow the pixels).

    Raises:
        ConversionError: The file is missing or damaged.
    """
    with _image(path) as image:
        return image.getexif().get(EXIF_ORIENTATION) in EXIF_TRANSPOSING


def _pixels(image: Image.Image) -> npt.NDArray[Any]:
    """Copies the pixels of an image with one number per pixel.

    Strip by strip: in one piece, Pillow's copy of a large image takes a third of the time that its decoding does.
    """
    image.load()
    width, height = image.size
    tops = range(0, height, ROWS_PER_COPY)
    strips = (np.asarray(image.crop((0, top, width, min(top + ROWS_PER_COPY, height)))) for top in tops)
    first = next(strips)
    labels = np.empty((height, width), first.dtype)
    labels[: len(first)] = first
    for top, strip in zip(tops[1:], strips, strict=True):
        labels[top : top + len(strip)] = strip
    return labels


def _quick_size(path: Place) -> tuple[int, int] | None:
    """Returns the size where the header is as usual; None where it takes a closer look."""
    if isinstance(path, Path):
        return quick_size(os.fspath(path))
    if not path.is_file():
        return None
    head = path.read_bytes(HEAD)
    return size_from_bytes(head, PNG_END) or size_from_bytes(head, JPEG_END)


def _ends_as_expected(path: Place, image_format: str | None) -> bool:
    ending = {"PNG": PNG_END, "JPEG": JPEG_END}.get(image_format or "")
    if ending is None:
        return False
    if isinstance(path, ArchivePath):
        return path.read_bytes().endswith(ending)
    with path.open("rb") as file:
        file.seek(-len(ending), os.SEEK_END)
        return file.read() == ending


def _check_png(data: bytes) -> None:
    """Compares the checksums of a PNG's chunks (PNG specification, third edition, 5.3).

    Raises:
        ValueError: One is wrong, or the file ends before its last chunk.
    """
    view, place = memoryview(data), len(PNG_BEGINNING)
    while place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        kind = data[place + 4 : place + 8]
        if end + 4 > len(data):
            break
        if zlib.crc32(view[place + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise ValueError(f"the checksum of a chunk is wrong, at byte {place}")
        if kind == PNG_LAST_CHUNK:
            return
        place = end + 4
    raise ValueError("it ends in the middle")


@contextmanager
def _image(path: Place, *, checked: bool = False) -> Iterator[Image.Image]:
    """Opens an image.

    Args:
        path: The file.
        checked: Whether to compare the checksums of a PNG.

    Raises:
        ConversionError: The file is missing or no image, or the caller's use of it fails.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata and large sizes, which do not concern the pixels
            opened: Path | io.BytesIO
            if isinstance(path, ArchivePath) or checked:
                data = path.read_bytes()
                if checked and data.startswith(PNG_BEGINNING):
                    _check_png(data)
                opened = io.BytesIO(data)
            else:
                opened = path
            with Image.open(opened) as image:
                yield image
    except ConversionError:
        raise
    except UnidentifiedImageError:
        raise ConversionError(f"{path}: is not an image, or damaged at its beginning") from None
    except FileNotFoundError:
        raise ConversionError(f"{path}: is missing") from None
    except Exception as error:
        # Decoders raise nearly anything on damaged data: OSError, SyntaxError, struct.error, EOFError,
        # DecompressionBombError ...
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConversionError(f"{path}: cannot be read as an image ({reason or type(error).__name__})") from error
