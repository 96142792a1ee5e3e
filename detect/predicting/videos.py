"""Videos by OpenCV: their frames, and video files that are there whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# FFmpeg would write on standard error what is told in one line here. Read when OpenCV first opens a video.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

import cv2
import numpy as np
from numpy.typing import NDArray

from dpipe.errors import BadSampleError

VIDEO_SUFFIXES = frozenset((".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"))
USUAL_FPS = 25.0
"""Of videos that do not tell their own."""


@dataclass(frozen=True)
class VideoInfo:
    """What a video tells of itself.

    Attributes:
        fps: Frames a second.
        frames: How many frames there are, which some formats only estimate; 0 where not known.
    """

    fps: float
    frames: int


def is_video(path: Path) -> bool:
    """Whether a file's name is that of a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def video_info(path: Path) -> VideoInfo:
    """Opens a video and reads what it tells of itself.

    Raises:
        BadSampleError: If it cannot be opened, or not a single frame can be read.
    """
    with _opened(path) as capture:
        if not capture.grab():
            raise BadSampleError(path, "the video has no frame that can be read")
        fps, frames = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
    return VideoInfo(fps if 0 < fps < 1000 else USUAL_FPS, int(frames) if 0 < frames < 2**31 else 0)


def frames_of(path: Path) -> Iterator[NDArray[np.uint8]]:
    """The frames of a video, (H, W, 3) uint8 RGB, upright, as far as they can be read.

    Raises:
        BadSampleError: If not a single one can be.
    """
    with _opened(path) as capture:
        done, frame = capture.read()
        if not done:
            raise BadSampleError(path, "the video has no frame that can be read")
        while done:
            yield np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8)
            done, frame = capture.read()


@contextmanager
def whole_video(path: Path, fps: float) -> Iterator[Callable[[NDArray[np.uint8]], None]]:
    """A video file (MPEG-4 in MP4) to write frames to, under a temporary name until the end.

    Args:
        path: The file, replaced if it exists. Its folder exists.
        fps: Frames a second.

    Yields:
        A function that writes a frame, (H, W, 3) uint8 RGB, all of one size. The format has even sides only: the last
        row or column of an odd one is left out.

    Raises:
        OSError: If that does not work; it names ``path``.
    """
    unfinished = path.with_name(f".{path.stem}-{os.getpid()}-{secrets.token_hex(4)}{path.suffix}")
    writer: list[cv2.VideoWriter] = []

    def write(frame: NDArray[np.uint8]) -> None:
        height, width = (side - side % 2 for side in frame.shape[:2])
        if not writer:
            code = cv2.VideoWriter.fourcc(*"mp4v")
            writer.append(cv2.VideoWriter(str(unfinished), cv2.CAP_FFMPEG, code, fps, (width, height)))
            if not writer[0].isOpened():
                raise OSError(None, "cannot be written as a video", str(path))
        writer[0].write(cv2.cvtColor(frame[:height, :width], cv2.COLOR_RGB2BGR))

    try:
        yield write
        for one in writer:
            one.release()
            if not _is_readable(unfinished):  # OpenCV says nothing of a full disk
                raise OSError(None, "the video could not be written whole; is the disk full?", str(path))
            unfinished.replace(path)
    finally:
        for one in writer:
            one.release()
        unfinished.unlink(missing_ok=True)


def _is_readable(path: Path) -> bool:
    try:
        video_info(path)
    except BadSampleError:
        return False
    return True


@contextmanager
def _opened(path: Path) -> Iterator[cv2.VideoCapture]:
    if not path.exists():
        raise BadSampleError(path, "no such video")
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # what is wrong is told below
    try:
        capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    finally:
        cv2.utils.logging.setLogLevel(level)
    try:
        if not capture.isOpened():
            raise BadSampleError(path, "no video in a known format, or corrupt")
        yield capture
    finally:
        capture.release()
