"""What each stage of a recipe costs on one core."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from dpipe.backends.opencv import OpenCVBackend
from dpipe.coco import CocoIndex, image_path
from dpipe.images.decode import decode_image
from dpipe.images.memory import Scratch
from dpipe.images.photometric import apply_photometric
from dpipe.images.resample import resample
from dpipe.loader import DetectionLoader
from dpipe.policy import Augment
from dpipe.target import make_target

STAGES = {
    "read": "reading the file, from memory where the system keeps it",
    "decode": "decoding, and looking whether the file is whole",
    "draw": "drawing the plan",
    "resample": "resampling: one warp or one resize",
    "photometric": "operations on colours",
    "normalise": "normalising into the batch",
    "target": "boxes and masks",
}

LEAST_REPETITIONS = 3


@dataclass(frozen=True)
class StageTime:
    """What a stage costs.

    Attributes:
        name: A key of ``STAGES``.
        ms: Milliseconds an image, on one core: the mean over the images of the median over repetitions.
        share: Of the sum of all stages, 0..1.
    """

    name: str
    ms: float
    share: float


def measure_stages(index: CocoIndex, images: Path, augment: Augment, seconds: float) -> tuple[StageTime, ...]:
    """Times what the OpenCV backend does with each image, and the making of targets, on one core."""
    backend = OpenCVBackend([], augment)
    loader = DetectionLoader(index, images, augment=augment, backend="opencv", threads=1)
    paths = [image_path(images, name) for name in index.file_names]
    scratch = Scratch()
    times: list[NDArray[np.float64]] = []
    started = time.perf_counter()
    try:
        while len(times) < LEAST_REPETITIONS or time.perf_counter() - started < seconds:
            times.append(
                np.array([time_image(number, path, loader, backend, scratch)[0] for number, path in enumerate(paths)])
            )
    finally:
        loader.close()
    # The first time round files come from the disk and memory is new.
    means = np.median(np.stack(times[1:]), axis=0).mean(axis=0)
    return tuple(
        StageTime(name, 1000 * float(mean), float(mean / means.sum())) for name, mean in zip(STAGES, means, strict=True)
    )


def time_image(
    number: int, path: Path, loader: DetectionLoader, backend: OpenCVBackend, scratch: Scratch
) -> tuple[list[float], np.ndarray]:
    """Takes one image through the stages, with the functions that the backend and the loader call.

    Args:
        number: Of the image in the loader's index, and of the sample.
        path: Of the image.
        loader: Draws the plan, and knows what targets are wanted.
        backend: Knows how to normalise.
        scratch: As each of the backend's threads has one.

    Returns:
        Seconds of each of the ``STAGES``, and the image as the backend makes it, without padding: (h, w, 3).
    """
    clock = _Clock()
    with clock:
        path.read_bytes()
    read = clock.seconds[-1]
    size = (int(loader.index.heights[number]), int(loader.index.widths[number]))
    with clock:
        pixels = decode_image(path, size, number, scratch)
    clock.seconds[-1] = max(clock.seconds[-1] - read, 0.0)  # it reads the file as well
    with clock:
        plan = loader.plan(number, epoch=0)
    height, width = plan.size
    resampled = scratch.array("resampled", (height, width, 3))
    with clock:
        pixels = resample(pixels, plan, resampled, scratch)
    with clock:
        pixels = apply_photometric(pixels, plan.photometric)
    out = pixels
    if backend.table is not None:
        # The kernel hands out these pages now: the backend's batches have theirs already.
        out = np.full((height, width, 3), 1, dtype=np.float32)
    with clock:
        if backend.table is not None:
            if backend.bgr:
                pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
            cv2.LUT(pixels, backend.table, out)
    with clock:
        make_target(loader.index, plan, loader.boxes_from, loader.min_size)
    return clock.seconds, out


class _Clock:
    """Notes how long each ``with`` block took."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds.append(time.perf_counter() - self._started)
