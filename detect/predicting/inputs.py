"""What to find objects in: files, folders and patterns, images and videos, brought to one form."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from detect.predicting.videos import VIDEO_SUFFIXES, frames_of, is_video, video_info
from dpipe.building.problems import shorten
from dpipe.errors import BadSampleError, InputError
from dpipe.images.decode import EXIF_ORIENTATION, UNREADABLE, check_image, decode_image
from dpipe.plan import Size

IMAGE_SUFFIXES = frozenset(
    (".bmp", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")
)
SWAPS_SIDES = (5, 6, 7, 8)
"""EXIF orientations that turn by 90 degrees."""

OnBad = Callable[[BadSampleError], None]
"""Is told of what cannot be used, which is then left out; or raises the error."""

_OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=")


@dataclass(frozen=True, eq=False)
class Source:
    """One image.

    Attributes:
        path: The image file, or the video that it is a frame of; None for an array.
        frame: The number of the frame, from 0; None for what is no video.
        pixels: (H, W, 3) uint8 RGB; None where the file is yet to be read.
    """

    path: Path | None = None
    frame: int | None = None
    pixels: NDArray[np.uint8] | None = None

    @property
    def name(self) -> str:
        """What messages call it."""
        if self.path is None:
            return "image"
        return str(self.path) if self.frame is None else f"{self.path}, frame {self.frame}"

    def read(self) -> NDArray[np.uint8]:
        """The pixels, (H, W, 3) uint8 RGB, upright.

        Raises:
            BadSampleError: If the file cannot be used.
        """
        if self.pixels is not None:
            return self.pixels
        assert self.path is not None
        return read_upright(self.path)


def is_override(word: str) -> bool:
    """Whether a word among the inputs sets a value of the recipe: ``key.path=value``, and no file has that name."""
    return _OVERRIDE.match(word) is not None and not os.path.lexists(word)


def find_files(inputs: Sequence[str | Path]) -> list[Path]:
    """The images and videos that are meant, in the order given, each once.

    Args:
        inputs: Files of any name; folders, which stand for the images and videos right in them; and patterns such as
            ``shots/**/*.jpg``, of whose matches the images and videos are taken. Both by their names, in order.

    Raises:
        InputError: For a file that is not there, and a folder or pattern that has none.
    """
    if not inputs:
        raise InputError("expected at least one image or video, got none")
    found: dict[str, Path] = {}
    for given in inputs:
        for path in _expand(given):
            found.setdefault(os.path.abspath(path), path)
    return list(found.values())


def check_files(paths: Iterable[Path]) -> None:
    """Looks at every file before any work is done, without decoding pixels.

    Raises:
        BadSampleError: For the first that is no image and no video.
    """
    for path in paths:
        if is_video(path):
            video_info(path)
        else:
            check_image(path, upright_size(path))


def sources_of(paths: Iterable[Path], on_bad: OnBad) -> Iterator[Source]:
    """Each image, and each frame of each video, in order; files of images are not yet read.

    Args:
        paths: Images and videos.
        on_bad: Is told of videos that cannot be used.
    """
    for path in paths:
        if not is_video(path):
            yield Source(path)
            continue
        try:
            for number, pixels in enumerate(frames_of(path)):
                yield Source(path, number, pixels)
        except BadSampleError as error:
            on_bad(error)


def source_of(image: Any) -> Source:
    """The source of an image as a caller of the Python interface gives it.

    Args:
        image: A path, or an array (H, W, 3) uint8 RGB.

    Raises:
        InputError: For anything else; a video is more than one image.
    """
    if isinstance(image, str | Path):
        if is_video(Path(image)):
            raise InputError(f"{image}: is a video; detect.predict takes those, and frames are arrays to predict on")
        return Source(Path(image))
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise InputError(f"an image as an array is (height, width, 3) uint8 RGB, got {image.shape} {image.dtype}")
        return Source(pixels=np.ascontiguousarray(image))
    raise InputError(f"an image is a path or an array (height, width, 3) uint8 RGB, got {shorten(image)}")


def read_upright(path: Path) -> NDArray[np.uint8]:
    """Reads an image file as its EXIF orientation has it shown: (H, W, 3) uint8 RGB.

    Raises:
        BadSampleError: If it cannot be used.
    """
    return decode_image(path, upright_size(path))


def upright_size(path: Path) -> Size:
    """Height and width of an image file as its EXIF orientation has it shown, from its header.

    Raises:
        BadSampleError: If it is no image.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(EXIF_ORIENTATION, 1) in SWAPS_SIDES
    except FileNotFoundError:
        raise BadSampleError(path, "no such image file") from None
    except (UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise BadSampleError(path, UNREADABLE) from None
    except OSError as error:
        raise BadSampleError(path, f"cannot be read: {error.strerror or error}") from None
    return (width, height) if turned else (height, width)


def _expand(given: str | Path) -> list[Path]:
    """The files that one word stands for."""
    path = Path(given)
    kinds = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in kinds and file.is_file())
        if not files:
            raise InputError(f"{path}: the folder holds no image and no video; those in folders of it: '{path}/**/*'")
        return files
    if not path.exists() and glob.has_magic(str(given)):
        matches = sorted(Path(match) for match in glob.glob(str(given), recursive=True))
        files = [match for match in matches if match.suffix.lower() in kinds and match.is_file()]
        if not files:
            raise InputError(f"{given}: the pattern matches no image and no video")
        return files
    if not path.exists():
        raise BadSampleError(path, "no such image or video")
    return [path]
