"""Image batches by OpenCV, in threads: one resample an image, straight into the batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch

from dpipe.backends.base import BatchImages, padded_size
from dpipe.decode import decode_image
from dpipe.geometry import pixel_centre_matrix
from dpipe.photometric import apply_photometric
from dpipe.plan import SamplePlan
from dpipe.policy import Augment, Normalize


class OpenCVBackend:
    """Decodes, warps and normalises on the CPU; see ``Backend`` for what it yields.

    OpenCV lets go of Python's lock, so threads share the work without copies between processes. Each image is one task
    in one thread; OpenCV's own threads are switched off (for the process, as it has one setting), since they would
    compete with ours for the same cores.

    Args:
        paths: Image files by image number; indexed only when an image is read.
        augment: Its normalisation and padding are applied.
        threads: At least 1.
        prefetch: Batches that are worked on ahead of the one that is waited for; 0 or more.
    """

    def __init__(self, paths: Sequence[Path], augment: Augment, *, threads: int = 2, prefetch: int = 2) -> None:
        cv2.setNumThreads(1)
        self.paths = paths
        self.size_divisor = augment.size_divisor
        self.threads = threads
        self.prefetch = prefetch
        self.bgr = augment.normalize is not None and augment.normalize.bgr
        self.table = None if augment.normalize is None else normalizing_table(augment.normalize)

    def stream(self, batches: Iterable[Sequence[SamplePlan]]) -> Generator[BatchImages, None, None]:
        """See ``Backend.stream``."""
        source = iter(batches)
        ahead: deque[tuple[np.ndarray, list[Future[None]]]] = deque()
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="dpipe-image")
        try:
            while True:
                while len(ahead) <= self.prefetch and (plans := next(source, None)) is not None:
                    ahead.append(self._submit(pool, plans))
                if not ahead:
                    return
                images, tasks = ahead.popleft()
                for task in tasks:
                    task.result()
                # A view of (N, H, W, 3): channels_last.
                yield BatchImages(torch.from_numpy(images).permute(0, 3, 1, 2))
        finally:
            # Also where the consumer breaks off: what has begun ends, what has not begun never does.
            pool.shutdown(wait=True, cancel_futures=True)

    def close(self) -> None:
        """Does nothing: threads live and end with each stream."""

    def _submit(self, pool: ThreadPoolExecutor, plans: Sequence[SamplePlan]) -> tuple[np.ndarray, list[Future[None]]]:
        """Allocates a batch, (N, H, W, 3), and hands its images to the threads."""
        shape = (len(plans), *padded_size(plans, self.size_divisor), 3)
        images = np.empty(shape, dtype=np.uint8 if self.table is None else np.float32)
        return images, [pool.submit(self._fill, out, plan) for out, plan in zip(images, plans, strict=True)]

    def _fill(self, out: np.ndarray, plan: SamplePlan) -> None:
        """Writes one image into its place in the batch, (H, W, 3)."""
        height, width = plan.size
        out[height:] = 0
        out[:height, width:] = 0
        pixels = decode_image(self.paths[plan.image], plan.source_size, plan.sample)
        pixels = apply_photometric(resample(pixels, plan), plan.photometric)
        if self.table is None:
            out[:height, :width] = pixels
            return
        if self.bgr:
            pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
        cv2.LUT(pixels, self.table, out[:height, :width])


def resample(image: np.ndarray, plan: SamplePlan) -> np.ndarray:
    """Brings an image into its output geometry, with one bilinear interpolation.

    Args:
        image: (H, W, 3) uint8 of ``plan.source_size``.
        plan: Its geometry.

    Returns:
        (h, w, 3) uint8 of ``plan.size``.
    """
    height, width = plan.size
    flips = plan.resize_flips
    if flips is None:
        matrix = pixel_centre_matrix(plan.matrix)
        return cv2.warpAffine(
            image,
            matrix,
            (width, height),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=plan.fill,
        )
    # A resize costs a quarter of a warp, and does not blend the fill into the outermost pixels.
    if plan.size != plan.source_size:
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    if any(flips):
        flip_x, flip_y = flips
        image = cv2.flip(image, -1 if flip_x and flip_y else 1 if flip_x else 0)
    return image


def normalizing_table(normalize: Normalize) -> np.ndarray:
    """Returns what each grey level becomes, (1, 256, 3) float32, in the order of the output channels.

    Looking up is exact, and as fast as one multiplication in place.
    """
    levels = np.arange(256, dtype=np.float64)[None, :, None]
    mean, std = np.array(normalize.mean), np.array(normalize.std)
    return ((levels - mean) / std).astype(np.float32)
