"""Reading of label images and of what a converter must know about a photograph, with errors that name the file."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from converters.errors import ConversionError

# Pillow's modes with one integer per pixel; a palette image ("P") gives its indices.
LABEL_MODES = ("P", "L", "1", "I", "I;16", "I;16B")
EXIF_ORIENTATION = 0x0112
EXIF_TRANSPOSING = (5, 6, 7, 8)
PNG_END = b"IEND\xaeB`\x82"
JPEG_END = b"\xff\xd9"


def read_label_image(path: Path) -> npt.NDArray[Any]:
    """Reads an image that holds one number per pixel.

    Args:
        path: A gray or palette image of 1 to 32 bits; of a palette image the indices are read.

    Returns:
        (H, W) unsigned or signed integers.

    Raises:
        ConversionError: The file is missing, damaged, or has colour channels.
    """
    with _image(path) as image:
        if image.mode not in LABEL_MODES:
            raise ConversionError(f"{path}: has colour channels (mode {image.mode}), expected one number per pixel")
        labels = np.asarray(image)
    if labels.dtype == bool:
        return labels.astype(np.uint8)
    return labels.astype(labels.dtype.newbyteorder("="), copy=False)


def image_size(path: Path) -> tuple[int, int]:
    """Reads the size of an image from its header, and makes sure that the file goes on to its end.

    The pixels are decoded only where the file's last bytes are not those of a complete PNG or JPEG.

    Args:
        path: An image.

    Returns:
        Width and height in pixels, as stored: EXIF's orientation is not applied.

    Raises:
        ConversionError: The file is missing, no image, or truncated.
    """
    with _image(path) as image:
        width, height = image.size
        if not _ends_as_expected(path, image.format):
            image.load()
    return width, height


def is_shown_transposed(path: Path) -> bool:
    """Tells whether EXIF asks to show an image with its width and height exchanged.

    This can cost a full decoding (of a PNG, whose metadata may follow the pixels).

    Raises:
        ConversionError: The file is missing or damaged.
    """
    with _image(path) as image:
        return image.getexif().get(EXIF_ORIENTATION) in EXIF_TRANSPOSING


def _ends_as_expected(path: Path, image_format: str | None) -> bool:
    ending = {"PNG": PNG_END, "JPEG": JPEG_END}.get(image_format or "")
    if ending is None:
        return False
    with path.open("rb") as file:
        file.seek(-len(ending), os.SEEK_END)
        return file.read() == ending


@contextmanager
def _image(path: Path) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata and large sizes, which do not concern the pixels
            with Image.open(path) as image:
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
