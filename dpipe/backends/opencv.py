"""Image batches by OpenCV, in threads: one resample an image, straight into the batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch

from dpipe.backends.base import BatchImages, OnBadSample, padded_size
from dpipe.errors import BadSampleError, InputError
from dpipe.images.decode import decode_image
from dpipe.images.memory import BatchMemory, Scratch
from dpipe.images.photometric import apply_photometric
from dpipe.images.resample import resample
from dpipe.plan import SamplePlan
from dpipe.policy import Augment, Normalize


class OpenCVBackend:
    """Decodes, warps and normalises on the CPU; see ``Backend`` for what it yields.

    OpenCV lets go of Python's lock, so threads share the work without copies between processes. Each image is one task
    in one thread; OpenCV's own threads are switched off (for the process, as it has one setting), since they would
    compete with ours for the same cores.

    A batch stays as it is for as long as someone holds it, or any part of it; then its memory is used for another, in
    later epochs too.

    Args:
        paths: Image files by image number; indexed only when an image is read.
        augment: Its normalisation and padding are applied.
        threads: At least 1.
        prefetch: Batches that are worked on ahead of the one that is waited for; 0 or more.
        on_bad_sample: ``fail`` or ``skip``.
        dtype: Of normalised images: float32, or float16 or bfloat16, to which the float32 values are rounded.
        pin_memory: Make batches in pinned memory, from which they are copied to a GPU while others compute.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        augment: Augment,
        *,
        threads: int = 2,
        prefetch: int = 2,
        on_bad_sample: OnBadSample = "fail",
        dtype: torch.dtype = torch.float32,
        pin_memory: bool = False,
    ) -> None:
        cv2.setNumThreads(1)
        self.paths = paths
        self.size_divisor = augment.size_divisor
        self.threads = threads
        self.prefetch = prefetch
        self.on_bad_sample = on_bad_sample
        self.dtype = torch.uint8 if augment.normalize is None else dtype
        self.pin_memory = pin_memory
        self.bgr = augment.normalize is not None and augment.normalize.bgr
        self.table = None if augment.normalize is None else normalizing_table(augment.normalize, dtype)
        self._memory = BatchMemory(spare=prefetch + 2)
        self._scratches: deque[Scratch] = deque()  # that no thread uses now
        self._quarantine: dict[int, str] = {}  # bad images and what is wrong with them

    def stream(self, batches: Iterable[Sequence[SamplePlan]]) -> Generator[BatchImages, None, None]:
        """See ``Backend.stream``."""
        source = iter(batches)
        ahead: deque[tuple[torch.Tensor, list[Future[None]]]] = deque()
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="dpipe-image")
        try:
            while True:
                while len(ahead) <= self.prefetch and (plans := next(source, None)) is not None:
                    ahead.append(self._submit(pool, plans))
                if not ahead:
                    return
                yield self._collect(*ahead.popleft())
        finally:
            # Also where the consumer breaks off: what has begun ends, what has not begun never does.
            pool.shutdown(wait=True, cancel_futures=True)

    def close(self) -> None:
        """Lets go of memory; threads live and end with each stream."""
        self._memory = BatchMemory(spare=0)
        self._scratches.clear()

    def _submit(self, pool: ThreadPoolExecutor, plans: Sequence[SamplePlan]) -> tuple[torch.Tensor, list[Future[None]]]:
        """Allocates a batch, (N, H, W, 3), and hands its images to the threads."""
        shape = (len(plans), *padded_size(plans, self.size_divisor), 3)
        if self.pin_memory:
            images = torch.empty(shape, dtype=self.dtype, pin_memory=True)
        else:
            images = torch.from_numpy(self._memory.array(shape, _BITS[self.dtype])).view(self.dtype)
        # These arrays hold the tensor, so its memory is there until the last of them is filled.
        places = images.view(torch.int16).numpy() if images.itemsize == 2 else images.numpy()
        return images, [pool.submit(self._fill, place, plan) for place, plan in zip(places, plans, strict=True)]

    def _collect(self, images: torch.Tensor, tasks: Sequence[Future[None]]) -> BatchImages:
        """Waits for a batch; what cannot be used is closed up."""
        bad: list[tuple[int, BadSampleError]] = []
        for place, task in enumerate(tasks):
            error = task.exception()
            if error is None:
                if bad:
                    images[place - len(bad)] = images[place]
            elif isinstance(error, BadSampleError) and self.on_bad_sample == "skip":
                bad.append((place, error.with_traceback(None)))  # its frames hold the batch
            else:
                raise error
        return BatchImages(images[: len(tasks) - len(bad)].permute(0, 3, 1, 2), tuple(bad))  # channels_last, no copy

    def _fill(self, out: np.ndarray, plan: SamplePlan) -> None:
        """Writes one image into its place in the batch, (H, W, 3)."""
        try:
            scratch = self._scratches.pop()
        except IndexError:  # all are in use
            scratch = Scratch()
        try:
            self._make(out, plan, scratch)
        finally:
            self._scratches.append(scratch)

    def _make(self, out: np.ndarray, plan: SamplePlan, scratch: Scratch) -> None:
        """Decodes and finishes one image."""
        path = self.paths[plan.image]
        if plan.image in self._quarantine:
            raise BadSampleError(path, self._quarantine[plan.image], plan.sample)
        try:
            pixels = decode_image(path, plan.source_size, plan.sample, scratch)
        except BadSampleError as error:
            if self.on_bad_sample == "skip":
                self._quarantine[plan.image] = error.reason
            raise
        try:
            self.finish(pixels, plan, out, scratch)
        except InputError as error:  # of a recipe's step that does not suit this image
            raise InputError(f"{path} (sample {plan.sample}): {error}") from error

    def finish(self, pixels: np.ndarray, plan: SamplePlan, out: np.ndarray, scratch: Scratch) -> None:
        """Takes a decoded image through its plan: what a stream does to each, for images that are no files.

        Args:
            pixels: (h, w, 3) uint8 RGB of ``plan.source_size``.
            plan: Its geometry and its operations on colours.
            out: (H, W, 3), at least of ``plan.size``, of the backend's ``dtype``; what is beyond that size becomes 0.
            scratch: For what is made on the way.

        Raises:
            InputError: For an operation that does not suit the image.
        """
        height, width = plan.size
        out[height:] = 0
        out[:height, width:] = 0
        self._fill_place(pixels, plan, out[:height, :width], scratch)

    def _fill_place(self, pixels: np.ndarray, plan: SamplePlan, out: np.ndarray, scratch: Scratch) -> None:
        """Resampled, coloured and normalised, into ``out``, (h, w, 3)."""
        if self.table is None and not plan.photometric:
            resample(pixels, plan, out, scratch)
            return
        pixels = resample(pixels, plan, scratch.array("resampled", out.shape), scratch)
        pixels = apply_photometric(pixels, plan.photometric)
        if self.table is None:
            np.copyto(out, pixels)
            return
        if self.bgr:
            pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
        cv2.LUT(pixels, self.table, out)


_BITS = {torch.uint8: np.uint8, torch.float32: np.float32, torch.float16: np.int16, torch.bfloat16: np.int16}
"""What holds a type's bits in NumPy, which does not know all of them."""


def normalizing_table(normalize: Normalize, dtype: torch.dtype = torch.float32) -> np.ndarray:
    """Returns what each grey level becomes, in the order of the output channels.

    Looking up is exact, and as fast as one multiplication in place.

    Args:
        normalize: Mean and standard deviation of each channel.
        dtype: float32, float16 or bfloat16.

    Returns:
        (1, 256, 3) float32, or int16 that holds the bits of the float32 values rounded to ``dtype``.
    """
    levels = np.arange(256, dtype=np.float64)[None, :, None]
    mean, std = np.array(normalize.mean), np.array(normalize.std)
    values = ((levels - mean) / std).astype(np.float32)
    if dtype == torch.float32:
        return values
    return torch.from_numpy(values).to(dtype).view(torch.int16).numpy()
