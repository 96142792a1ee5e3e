"""Image batches by NVIDIA DALI, on the GPU or on the CPU.

Files are read and decoded, warped, changed in colour, normalised and padded by DALI's C++ threads and CUDA kernels;
Python only turns plans into numbers for the graph (``dali_graph``).
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dpipe.backends.base import BatchImages, padded_size
from dpipe.backends.dali_steps import photometric_step
from dpipe.decode import JPEG_END, JPEG_START, PNG_END, PNG_START, check_image, decode_image
from dpipe.errors import BadSampleError, InputError
from dpipe.geometry import invert
from dpipe.plan import SamplePlan
from dpipe.policy import Augment

if TYPE_CHECKING:
    from nvidia.dali import Pipeline

Plans = Sequence[SamplePlan]

# In DALI's messages: an operator that reads or decodes files, and what can go wrong in any operator.
_FILE_OPERATOR = re.compile(r"operator `nvidia\.dali\.fn\.(io\.file\.read|peek_image_shape|decoders\.image)`")
_MACHINE_TROUBLE = re.compile(r"cuda|alloc|out of memory|driver|too many open files", re.IGNORECASE)
_LOOK = 8  # bytes at either end of a file that tell its format and whether it is whole


class DaliBackend:
    """Runs plans through a DALI pipeline; see ``Backend`` for what it yields.

    Args:
        paths: Image files by image number; indexed only when an image is read.
        augment: Its normalisation and padding are applied.
        device: ``cpu``, ``cuda`` or ``cuda:<number>``: where batches are made and handed out.
        threads: CPU threads, at least 1; no more are made than there are images in work.
        prefetch: Batches that are worked on ahead of the one that is waited for; 0 or more.
        max_batch_size: Images in the largest batch that will come.

    Raises:
        InputError: Where DALI cannot be imported.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        augment: Augment,
        *,
        device: str = "cpu",
        threads: int = 2,
        prefetch: int = 2,
        max_batch_size: int = 1,
    ) -> None:
        try:
            import nvidia.dali  # noqa: F401
        except ImportError as error:
            raise InputError(
                f"the DALI backend needs NVIDIA DALI, which cannot be imported ({error}): "
                "install nvidia-dali-cuda120 on Linux, or use the opencv backend"
            ) from None
        self.paths = paths
        self.normalize = augment.normalize
        self.size_divisor = augment.size_divisor
        self.device = torch.device(device)
        if self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())
        # DALI's decoder sets buffers aside for each thread, so there are no more than images in work.
        self.threads = min(threads, (prefetch + 1) * max_batch_size)
        self.prefetch = prefetch
        self.max_batch_size = max_batch_size
        self._source = _Source()
        self._slots = 0
        self._pipeline: Pipeline | None = None
        self._looked_at = np.zeros(len(paths), dtype=bool)

    def stream(self, batches: Iterable[Plans]) -> Generator[BatchImages, None, None]:
        """See ``Backend.stream``; a stream that was begun before ends.

        A batch is DALI's own buffer, handed over by DLPack without a copy. DALI's default executor makes new buffers
        for each batch and gives them away, so it stays as it is for as long as someone holds it.
        """
        feed = _Feed(iter(batches), self.paths, self.size_divisor, self._looked_at)
        self._begin(feed)
        try:
            while True:
                feed.slots = self._slots
                pipeline = self._open_pipeline()
                pipeline.schedule_run()  # the first call fills the queue
                while feed.in_flight:
                    images = self._take(pipeline, feed.in_flight[0])
                    feed.in_flight.popleft()
                    if self.prefetch:
                        pipeline.schedule_run()
                    yield BatchImages(images)
                    if self._source.feed is not feed:
                        return
                    if not self.prefetch:
                        pipeline.schedule_run()
                if feed.error is not None:
                    raise feed.error
                if feed.held is None:
                    pipeline.reset()
                    self._source.feed = None
                    return
                # This batch has more photometric operations than the graph has steps: a larger graph goes on.
                self._slots = max(2 * self._slots, 1)
                self._pipeline = None
        finally:
            if self._source.feed is feed:
                self.close()

    def close(self) -> None:
        """See ``Backend.close``."""
        self._source.feed = None
        self._pipeline = None  # with what it has under way

    def _begin(self, feed: _Feed) -> None:
        if self._source.feed is not None:
            self.close()
        self._source.feed = feed

    def _open_pipeline(self) -> Pipeline:
        if self._pipeline is None:
            from dpipe.backends.dali_graph import build_pipeline

            self._pipeline = build_pipeline(
                self._source,
                slots=self._slots,
                normalize=self.normalize,
                device_id=self.device.index if self.device.type == "cuda" else None,
                threads=self.threads,
                prefetch=max(self.prefetch, 1),
                max_batch_size=self.max_batch_size,
            )
        return self._pipeline

    def _take(self, pipeline: Pipeline, plans: Plans) -> torch.Tensor:
        """Waits for the oldest batch under way, (N, 3, H, W), and checks that it is of the plans' images."""
        # Bound to the CUDA stream of the caller, a buffer is filled before that stream reads it, and DALI does not use
        # it again before that stream is done with it.
        cuda_stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
        try:
            images, shapes = pipeline.share_outputs(cuda_stream=cuda_stream)
        except Exception as error:  # DALI raises errors of many types for bad files
            bad = self._explain(plans, error)
            if bad is None:
                raise
            raise bad from error
        pipeline.release_outputs()
        decoded_sizes = np.asarray(shapes.as_tensor())[:, :2]
        for plan, (height, width) in zip(plans, decoded_sizes.tolist(), strict=True):
            if (height, width) != tuple(plan.source_size):
                path = self.paths[plan.image]
                check_image(path, plan.source_size, plan.sample)
                expected = f"{plan.source_size[1]}x{plan.source_size[0]}"
                raise BadSampleError(
                    path, f"DALI decodes {width}x{height} pixels, expected were {expected}", plan.sample
                )
        return torch.from_dlpack(images.as_tensor()).permute(0, 3, 1, 2)  # a view of (N, H, W, 3): channels_last

    def _explain(self, plans: Plans, error: Exception) -> InputError | None:
        """Finds the file that DALI, which does not tell, stumbled over; None where the error is not about a file."""
        try:
            for plan in plans:
                decode_image(self.paths[plan.image], plan.source_size, plan.sample)
        except BadSampleError as bad:
            return bad
        # "... <which operator> ... encountered:\n\n<what went wrong>\n<where in C++>\n..."
        where, _, what = str(error).rpartition("encountered:")
        reason = what.strip().partition("\n")[0]
        if not _FILE_OPERATOR.search(where) or _MACHINE_TROUBLE.search(reason):
            return None
        if len(plans) == 1:
            return BadSampleError(self.paths[plans[0].image], f"DALI: {reason}", plans[0].sample)
        files = ", ".join(str(self.paths[plan.image]) for plan in plans)
        return InputError(f"DALI: {reason}: while making a batch of {files}")


class _Source:
    """What the pipeline asks for each batch's arrays; it outlives the streams."""

    def __init__(self) -> None:
        self.feed: _Feed | None = None

    def __call__(self) -> list[Any]:
        if self.feed is None:
            raise StopIteration
        return self.feed.arrays()


class _Feed:
    """Turns the batches of one stream into arrays.

    Args:
        batches: The plans.
        paths: Image files by image number.
        size_divisor: Of the padded size.
        looked_at: By image number, whether its file was looked at before; changed.

    Attributes:
        slots: Photometric steps in the graph.
        in_flight: Batches that were handed to the pipeline, and not yet taken from it.
        held: A batch that the graph has too few steps for; no other comes before a larger graph asks for it.
        error: What ended the stream, to be raised after the batches in flight.
    """

    def __init__(
        self, batches: Iterator[Plans], paths: Sequence[Path], size_divisor: int, looked_at: np.ndarray
    ) -> None:
        self.batches = batches
        self.paths = paths
        self.size_divisor = size_divisor
        self.looked_at = looked_at
        self.slots = 0
        self.in_flight: deque[Plans] = deque()
        self.held: Plans | None = None
        self.error: Exception | None = None

    def arrays(self) -> list[Any]:
        """Returns the inputs of the graph for the next batch.

        Raises:
            StopIteration: Where no batch, or none that fits the graph, is left.
        """
        if self.held is None:
            try:
                self.held = next(self.batches)
                for plan in self.held:
                    self._look_at(plan)
            except StopIteration:
                raise
            except Exception as error:
                self.held, self.error = None, error
                raise StopIteration from None
        plans = self.held
        if max(len(plan.photometric) for plan in plans) > self.slots:
            raise StopIteration
        self.held = None
        self.in_flight.append(plans)
        return self._arrays(plans)

    def _look_at(self, plan: SamplePlan) -> None:
        """Checks the ends of a file, once: a GPU decoder may take a truncated JPEG for a whole one."""
        if self.looked_at[plan.image]:
            return
        path = self.paths[plan.image]
        try:
            with open(path, "rb") as file:
                start = file.read(_LOOK)
                file.seek(-_LOOK, os.SEEK_END)
                end = file.read()
            whole = (start.startswith(JPEG_START) and end.endswith(JPEG_END)) or (
                start.startswith(PNG_START) and end.endswith(PNG_END)
            )
        except OSError:
            whole = False
        if not whole:  # or in another format: a longer look, which raises what is wrong, if anything is
            check_image(path, plan.source_size, plan.sample)
        self.looked_at[plan.image] = True

    def _arrays(self, plans: Plans) -> list[Any]:
        canvas = padded_size(plans, self.size_divisor)
        arrays = [
            [np.frombuffer(os.fsencode(self.paths[plan.image]), dtype=np.uint8) for plan in plans],
            np.array([plan.source_size for plan in plans], dtype=np.int32),
            np.array([invert(plan.matrix) for plan in plans], dtype=np.float32),
            np.array([plan.size for plan in plans], dtype=np.float32),
            np.array([plan.resize_flips is None for plan in plans], dtype=np.int32),
            np.array([plan.fill for plan in plans], dtype=np.int16)[:, None, None],
            np.array([canvas] * len(plans), dtype=np.float32),
        ]
        if self.slots:
            steps = np.zeros((len(plans), self.slots), dtype=np.int32)
            weights = np.zeros((len(plans), self.slots, 3), dtype=np.float32)
            for sample, plan in enumerate(plans):
                for slot, operation in enumerate(plan.photometric):
                    steps[sample, slot], weights[sample, slot] = photometric_step(*operation)
            arrays += [steps, weights]
        return arrays
