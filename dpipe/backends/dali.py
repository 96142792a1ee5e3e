"""Image batches by NVIDIA DALI, on the GPU or on the CPU.

Files are read and decoded, warped, changed in colour, normalised and padded by DALI's C++ threads and CUDA kernels;
Python only turns plans into numbers for the graph (``dali_graph``).
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dpipe.backends.base import BatchImages, OnBadSample, padded_size
from dpipe.backends.dali_errors import file_trouble, find_culprits, probe_inputs
from dpipe.backends.dali_feed import Feed, Flight, Samples, Source, most_halvings, most_steps
from dpipe.backends.dali_notice import cpu_format_notice
from dpipe.backends.dali_options import DaliOptions
from dpipe.errors import BadSampleError, InputError
from dpipe.images.decode import check_image
from dpipe.operations.albumentations_op import Albumentations
from dpipe.plan import SamplePlan
from dpipe.policy import Augment

if TYPE_CHECKING:
    from nvidia.dali import Pipeline

Plans = Sequence[SamplePlan]


class DaliBackend:
    """Runs plans through a DALI pipeline; see ``Backend`` for what it yields.

    Bad samples are what the OpenCV backend takes for bad, but for one kind: DALI's decoders make pixels of a JPEG whose
    compressed pixels are damaged, and do not say so. ``dpipe check`` finds such files.

    Args:
        paths: Image files by image number; indexed only when an image is read.
        augment: Its normalisation and padding are applied.
        device: ``cpu``, ``cuda`` or ``cuda:<number>``: where batches are made and handed out.
        threads: CPU threads, at least 1; no more are made than there are images in work, on a GPU in one batch.
        prefetch: Batches that are worked on ahead of the one that is waited for; 0 or more.
        max_batch_size: Images in the largest batch that will come.
        dtype: Of normalised images: float32, float16 or bfloat16. DALI itself makes the first two; it has no bfloat16,
            so PyTorch rounds its float32 to that, on the device where the batch is.
        options: Of the decoder.
        on_bad_sample: ``fail`` or ``skip``; see ``Backend``.

    Raises:
        InputError: Where DALI cannot be imported, or cannot do what the augmentation asks for.
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
        dtype: torch.dtype = torch.float32,
        options: DaliOptions | None = None,
        on_bad_sample: OnBadSample = "fail",
    ) -> None:
        try:
            import nvidia.dali  # noqa: F401
        except ImportError as error:
            raise InputError(
                f"the DALI backend needs NVIDIA DALI, which cannot be imported ({error}): "
                "install nvidia-dali-cuda120 on Linux, or use the opencv backend"
            ) from None
        if any(isinstance(operation, Albumentations) for operation in augment.every_operation()):
            raise InputError("Albumentations runs in the opencv backend alone: take that, or leave it out for DALI")
        self.paths = paths
        self.dtype = torch.uint8 if augment.normalize is None else dtype
        self.options = options or DaliOptions()
        self.normalize = augment.normalize
        self.size_divisor = augment.size_divisor
        self.device = torch.device(device)
        if self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())
        # DALI's decoder sets buffers aside for each thread, so there are no more than images in work. On a GPU, where
        # buffers are tens of MB of its memory, they are those of a batch: an operator works on one batch at a time.
        in_work = max_batch_size if self.device.type == "cuda" else (prefetch + 1) * max_batch_size
        self.threads = min(threads, in_work)
        self.prefetch = prefetch
        self.max_batch_size = max_batch_size
        if self.device.type == "cuda" and self.options.decoder == "gpu" and (notice := cpu_format_notice(paths)):
            logging.getLogger("dpipe").warning(notice)
        self._samples = Samples(paths, on_bad_sample)
        self._source = Source()
        self._slots = 0
        self._halvings = 0
        self._pipeline: Pipeline | None = None

    def stream(self, batches: Iterable[Plans]) -> Generator[BatchImages, None, None]:
        """See ``Backend.stream``; a stream that was begun before ends.

        A batch is DALI's own buffer, handed over by DLPack without a copy. DALI's default executor makes new buffers
        for each batch and gives them away, so it stays as it is for as long as someone holds it.

        Where DALI stumbles over a file in the middle of its graph, and bad samples are to be skipped, the pipeline is
        made anew, and what was in flight runs again without that file.
        """
        feed = Feed(iter(batches), self._samples, self.size_divisor)
        self._begin(feed)
        try:
            while True:
                yield from self._run(feed)
                if self._source.feed is not feed:
                    return
                if not feed.waiting:
                    if feed.error is not None:
                        raise feed.error
                    self._source.feed = None
                    return
                flight = feed.prepare()
                if not flight.usable:
                    feed.waiting.popleft()
                    yield self._without_images(flight)
                else:
                    self._make_room(flight.usable)
        finally:
            if self._source.feed is feed:
                self.close()

    def close(self) -> None:
        """See ``Backend.close``."""
        self._source.feed = None
        self._pipeline = None  # with what it has under way

    def _begin(self, feed: Feed) -> None:
        if self._source.feed is not None:
            self.close()
        self._source.feed = feed

    def _run(self, feed: Feed) -> Generator[BatchImages, None, None]:
        """Yields batches until nothing is in flight.

        That is at the end, where ``feed`` has a batch that this graph cannot make, or where a file was found bad.
        """
        feed.slots, feed.halvings = self._slots, self._halvings
        pipeline = self._open_pipeline()
        pipeline.schedule_run()  # the first call fills the queue
        while feed.in_flight:
            made = self._take(pipeline, feed.in_flight[0])
            if made is None:
                feed.run_again()
                self._pipeline = None
                return
            feed.in_flight.popleft()
            if self.prefetch:
                pipeline.schedule_run()
            yield made
            if self._source.feed is not feed:
                return
            if not self.prefetch:
                pipeline.schedule_run()
        pipeline.reset()

    def _make_room(self, plans: Plans) -> None:
        """Lets a larger graph go on where these plans have more steps than the graph."""
        steps, halvings = most_steps(plans), most_halvings(plans)
        if steps > self._slots or halvings > self._halvings:
            self._slots = max(steps, 2 * self._slots) if steps > self._slots else self._slots
            self._halvings = max(halvings, self._halvings)
            self._pipeline = None

    def _open_pipeline(self) -> Pipeline:
        if self._pipeline is None:
            from dpipe.backends.dali_graph import build_pipeline

            self._pipeline = build_pipeline(
                self._source,
                slots=self._slots,
                halvings=self._halvings,
                normalize=self.normalize,
                half=self.dtype == torch.float16,
                options=self.options,
                device_id=self._device_id,
                threads=self.threads,
                prefetch=max(self.prefetch, 1),
                max_batch_size=self.max_batch_size,
            )
        return self._pipeline

    @property
    def _device_id(self) -> int | None:
        return self.device.index if self.device.type == "cuda" else None

    def _take(self, pipeline: Pipeline, flight: Flight) -> BatchImages | None:
        """Waits for the oldest batch under way.

        Returns:
            None where DALI stumbled over files that are left out from now on.

        Raises:
            BadSampleError: For a bad sample, unless it is to be skipped.
        """
        try:
            images, shapes = self._outputs(pipeline)
        except Exception as error:  # DALI raises errors of many types for bad files
            self._quarantine_culprits(flight.usable, error)
            return None
        pipeline.release_outputs()
        pixels = torch.from_dlpack(images.as_tensor())
        bad = self._wrongly_decoded(flight, np.asarray(shapes.as_tensor())[:, :2])
        if bad:
            left_out = {place for place, _ in bad}
            kept = [row for row, (place, _) in enumerate(flight.numbered) if place not in left_out]
            pixels = pixels[kept]
        if pixels.dtype != self.dtype:
            pixels = pixels.to(self.dtype)
        # A view of (N, H, W, 3): channels_last.
        return BatchImages(pixels.permute(0, 3, 1, 2), tuple(sorted([*flight.bad, *bad], key=lambda item: item[0])))

    def _outputs(self, pipeline: Pipeline) -> Sequence[Any]:
        """Waits for the pipeline's outputs; those on a GPU may still be in the making there.

        Bound to the CUDA stream of the caller, a buffer is filled before that stream reads it, and DALI does not use it
        again before that stream is done with it.
        """
        if self.device.type != "cuda":
            return pipeline.share_outputs()
        # A device's default stream is just 0 to DALI, which takes it for that of the current device: another GPU would
        # wait, and lose the memory that a process takes on each GPU it uses.
        with torch.cuda.device(self.device):
            return pipeline.share_outputs(cuda_stream=torch.cuda.current_stream())

    def _wrongly_decoded(self, flight: Flight, sizes: np.ndarray) -> list[tuple[int, BadSampleError]]:
        """Finds images that were not decoded to the size in the index."""
        bad = []
        for (place, plan), size in zip(flight.numbered, sizes.tolist(), strict=True):
            if tuple(size) != tuple(plan.source_size):
                error = self._wrong_size(plan, size)
                self._samples.quarantine(plan, error)
                bad.append((place, error))
        return bad

    def _wrong_size(self, plan: SamplePlan, size: Sequence[int]) -> BadSampleError:
        path = self.paths[plan.image]
        try:
            check_image(path, plan.source_size, plan.sample)
        except BadSampleError as error:
            return error
        expected = f"{plan.source_size[1]}x{plan.source_size[0]}"
        return BadSampleError(path, f"DALI decodes {size[1]}x{size[0]} pixels, expected were {expected}", plan.sample)

    def _quarantine_culprits(self, plans: Plans, error: Exception) -> None:
        """Leaves out from now on what DALI stumbled over.

        Raises:
            BadSampleError: For a bad sample, unless it is to be skipped.
            InputError: Where DALI stumbled over one of the files, but decodes each of them alone.
            Exception: ``error`` itself, where it is not about a file.
        """
        culprits = find_culprits(plans, self.paths, error, self._probe)
        if culprits and not self._samples.skip:
            raise culprits[0][1] from error
        for plan, bad in culprits:
            self._samples.quarantine(plan, bad)
        if not culprits:
            reason = file_trouble(error)
            if reason is None:
                raise error
            files = ", ".join(str(self.paths[plan.image]) for plan in plans)
            raise InputError(f"DALI: {reason}: while making a batch of {files}") from error

    def _probe(self, plan: SamplePlan) -> None:
        """Decodes an image alone, as the graph does."""
        from dpipe.backends.dali_graph import build_probe

        pipeline = build_probe(
            lambda: probe_inputs(plan, self.paths), options=self.options, device_id=self._device_id, threads=1
        )
        pipeline.run()

    def _without_images(self, flight: Flight) -> BatchImages:
        """Returns a batch of which nothing can be used."""
        size = padded_size(flight.plans, self.size_divisor)
        pixels = torch.empty((0, *size, 3), dtype=self.dtype, device=self.device)
        return BatchImages(pixels.permute(0, 3, 1, 2), flight.bad)
