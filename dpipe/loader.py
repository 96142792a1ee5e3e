"""Batches of images and targets for any trainer."""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpipe.backends.base import BatchImages, OnBadSample, share_of_cores
from dpipe.backends.choose import BackendName, DtypeName, checked_device, checked_dtype, make_backend
from dpipe.backends.dali_options import DaliOptions
from dpipe.batch import Batch
from dpipe.building.arguments import check_arguments
from dpipe.building.problems import shorten
from dpipe.coco import CocoIndex, ImagePaths
from dpipe.errors import InputError
from dpipe.operations.operation import Operation
from dpipe.plan import SamplePlan
from dpipe.policy import Augment, Normalize, Pad
from dpipe.rng import check_number
from dpipe.sampler import BatchSampler
from dpipe.target import MIN_SIZE, BoxSource, Target, check_options, empty_target, make_target

logger = logging.getLogger("dpipe")


class DetectionLoader:
    """Iterates over a data set in augmented batches, resumably.

    A ``for`` loop over the loader is an epoch; at its end the epoch number rises by one. After a loop that was broken
    off, the next one begins the same epoch anew. The n-th batch is a function of (seed, epoch, n, rank, world size),
    whatever the number of threads; what is being worked on ahead never counts as handed out.

    ``state_dict`` and ``load_state_dict`` follow torchdata's convention of stateful loaders, so trainers that know it,
    such as Lightning's, save and restore the position by themselves: the loop after ``load_state_dict`` is the rest of
    that epoch. It may go on with another batch size and on another number of ranks: what is left is shared anew.

    A bad sample, an image that cannot be used, is an error or is skipped. Skipping loses and repeats no other sample:
    its batch is smaller. A batch without any usable sample is left out where ranks need not step together (one rank, or
    ``pad_last`` off); else an empty one stands in (``Batch.stand_in``).

    Args:
        index: The annotations.
        images: Folder that the index's file names are relative to.
        augment: What is done to each sample.
        batch_size: Images of a batch on this rank.
        backend: ``opencv`` (CPU), ``dali``, or ``auto``: DALI for a CUDA device, where it can be imported and there are
            no ``Albumentations``, else OpenCV.
        device: ``cpu``, ``cuda`` or ``cuda:<number>``: where batches are handed out.
        shuffle: Draw a new order each epoch.
        seed: Of the order and of the augmentation, 0..2**64-1.
        rank: This process's number, 0..world_size-1.
        world_size: Number of processes that share the data.
        repeat: How often an epoch sees each image, augmented anew each time.
        group_by_aspect: When shuffling, let batches hold either landscape or portrait images, which saves padding.
        filter_empty: Leave out images without an instance to learn from.
        pad_last: Fill the last batch with samples from the start of the epoch. Set to False for evaluation,
            together with ``shuffle``: then each image comes exactly once.
        threads: Threads that read and decode. Where not given, as many as this process may use cores, shared evenly
            with the other processes on this machine: those that ``LOCAL_WORLD_SIZE`` counts, else ``world_size``. DALI
            on a GPU takes no more than there are images in a batch.
        prefetch: Batches that are worked on ahead of the one that is waited for. Where not given, as many as keep all
            threads busy, and at least 2: an image is one thread's work, and with the OpenCV backend others go on
            while one image that takes long holds up its batch, so there are two images for each thread. With DALI on a
            GPU, whose memory batches take, 3.
        boxes_from: See ``make_target``.
        min_size: See ``make_target``.
        on_bad_sample: ``fail`` raises the error at the sample's batch. ``skip`` leaves the sample out, warns once of
            each file in the log of the name ``dpipe``, and does not read that file again.
        dtype: Of normalised images: ``float32``, ``float16`` or ``bfloat16``, rounded to nearest.
        dali: Options of DALI's decoder, where it is DALI that decodes.

    Attributes:
        sampler: Its ``epoch`` and ``position`` are those of the next batch.
        batch_sampler: The same; trainers look for it under this name as well.
        skipped: The files that were found bad and skipped on this rank, and what is wrong with them: file names of the
            index to reasons.

    Raises:
        InputError: For an argument of a wrong type or out of range, no images, a folder that is not there, or a device
            or backend that this machine lacks.
    """

    def __init__(
        self,
        index: CocoIndex,
        images: str | Path,
        *,
        augment: Augment | Sequence[Operation | Normalize | Pad | Mapping[str, Any]],
        batch_size: int = 1,
        backend: BackendName = "auto",
        device: str | torch.device = "cpu",
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        repeat: int = 1,
        group_by_aspect: bool = True,
        filter_empty: bool = False,
        pad_last: bool = True,
        threads: int | None = None,
        prefetch: int | None = None,
        boxes_from: BoxSource = "polygons",
        min_size: float = MIN_SIZE,
        on_bad_sample: OnBadSample = "fail",
        dtype: DtypeName = "float32",
        dali: DaliOptions | None = None,
    ) -> None:
        check_arguments(DetectionLoader, locals())
        threads = share_of_cores(world_size) if threads is None else threads
        if threads < 1:
            raise InputError(f"threads must be at least 1, got {threads}")
        if prefetch is not None and prefetch < 0:
            raise InputError(f"prefetch must be at least 0, got {prefetch}")
        check_options(boxes_from, min_size)
        if not Path(images).is_dir():
            raise InputError(f"{images}: no such folder of images")
        self.index = index
        self.seed = seed
        self.augment = augment if isinstance(augment, Augment) else Augment(augment)
        self.filter_empty = filter_empty
        self.group_by_aspect = group_by_aspect
        self.boxes_from: BoxSource = boxes_from
        self.min_size = min_size
        self.device = checked_device(device)
        self.skipped: dict[str, str] = {}
        self._numbers = np.flatnonzero(index.non_empty()) if filter_empty else np.arange(len(index))
        if not len(self._numbers):
            what = "image with an instance to learn from" if filter_empty else "image"
            raise InputError(f"{index.path}: expected at least one {what}, found none")
        self.sampler = self.batch_sampler = BatchSampler(
            len(self._numbers),
            batch_size,
            seed=seed,
            shuffle=shuffle,
            rank=rank,
            world_size=world_size,
            groups=index.aspect_groups()[self._numbers] if shuffle and group_by_aspect else None,
            repeat=repeat,
            pad=pad_last,
        )
        self.backend = make_backend(
            backend,
            self.device,
            ImagePaths(images, index.file_names),
            self.augment,
            threads=threads,
            prefetch=prefetch,
            batch_size=batch_size,
            dali=dali,
            on_bad_sample=on_bad_sample,
            dtype=checked_dtype(dtype, self.augment),
        )

    def __len__(self) -> int:
        """Batches of the current epoch on this rank, those that were handed out and those to come."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        """Yields the current epoch, or the rest of it after ``load_state_dict``.

        Raises:
            BadSampleError: At the batch that holds it, for an image that cannot be used, unless it is to be skipped.
            InputError: If all images are bad; or, at its end, if this rank, which knows only its own share, handed out
                several batches in a whole epoch and all were stand-ins.
        """
        self.sampler.begin()
        epoch, position, earlier = self.sampler.epoch, self.sampler.position, self.sampler.earlier
        whole, stand_ins = position == 0, 0
        waiting: deque[tuple[list[SamplePlan], Future[list[Target]]]] = deque()
        # Targets have a thread of their own: they are numpy work that should be done when the pixels are.
        with ThreadPoolExecutor(1, thread_name_prefix="dpipe-target") as pool:

            def plans() -> Iterator[list[SamplePlan]]:
                for samples in self.sampler.batches():
                    batch = [self.plan(int(sample), epoch) for sample in samples]
                    waiting.append((batch, pool.submit(self._targets, batch)))
                    yield batch

            with closing(self.backend.stream(plans())) as stream:
                for made in stream:
                    batch_plans, targets = waiting.popleft()
                    batch = self._batch(made, batch_plans, targets.result())
                    position += 1
                    stand_ins += batch is not None and batch.stand_in
                    self.sampler.go_to(epoch, position, earlier)
                    if batch is not None:
                        yield batch.to(self.device)
                    del made, batch  # their memory is wanted for the next ones
        # One batch may well be bad; a wrong folder of images would go on like this for ever.
        if whole and stand_ins == position > 1:
            file_name, reason = next(reversed(self.skipped.items()))
            raise InputError(
                f"{self.index.path}: none of the images that rank {self.sampler.rank} of {self.sampler.world_size} saw "
                f"in epoch {epoch} can be used, such as {file_name}: {reason}"
            )
        self.sampler.go_to(epoch + 1)

    def plan(self, sample: int, epoch: int) -> SamplePlan:
        """Draws what is done to a sample in an epoch.

        Raises:
            InputError: For a number out of range.
        """
        check_number("sample", sample)
        image = int(self._numbers[self.sampler.image_of(sample)])
        size = (int(self.index.heights[image]), int(self.index.widths[image]))
        boxes = self._boxes(image) if self.augment.needs_boxes else None
        return self.augment.draw(size, seed=self.seed, epoch=epoch, sample=sample, image=image, boxes=boxes)

    def set_epoch(self, epoch: int) -> None:
        """Goes to the start of an epoch; the current epoch's own number changes nothing, so a resumed one goes on."""
        self.sampler.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Returns the position after the last batch that was handed out, equal on all ranks, for JSON or PyTorch."""
        return {**self.sampler.state_dict(), **self._setup, "images": self._digest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes to a saved position: the next batch is the first of what was left of that epoch.

        Where the global batch size is that of the state, it is the very batch that would have come.

        Raises:
            InputError: If the state is damaged, or was saved with other images, another seed or other settings that the
                order of samples depends on.
        """
        if not isinstance(state, Mapping):
            raise InputError(f"loader state: expected the mapping that state_dict returns, got {shorten(state)}")
        missing = sorted(self.state_dict().keys() - state.keys())
        if missing:
            raise InputError(f"loader state lacks {', '.join(missing)}: expected what state_dict returns")
        for name, value in self._setup.items():
            if state[name] != value and (name != "group_by_aspect" or self.sampler.shuffle):
                raise InputError(
                    f"loader state was saved with {name} {state[name]}, here it is {value}: it cannot go on"
                )
        if state["images"] != self._digest:
            raise InputError(
                f"{self.index.path}: has not the images that the loader's state was saved with: it cannot go on"
            )
        self.sampler.load_state_dict(state)

    def close(self) -> None:
        """Frees what the backend holds; the loader cannot be iterated afterwards."""
        self.backend.close()

    @property
    def _setup(self) -> dict[str, bool]:
        """What, beside what the sampler knows, decides which images come and in which order."""
        return {"filter_empty": self.filter_empty, "group_by_aspect": self.group_by_aspect}

    @cached_property
    def _digest(self) -> str:
        """Tells the images and their order: a position means nothing in others, even if they are as many."""
        digest = hashlib.sha256(self.index.image_ids[self._numbers].tobytes())
        used = np.zeros(len(self.index), dtype=bool)
        used[self._numbers] = True
        names = compress(self.index.file_names, used.tolist())  # each looked up by its number would take far longer
        digest.update("\0".join(names).encode(errors="surrogatepass"))
        return digest.hexdigest()

    def _boxes(self, image: int) -> np.ndarray:
        """Returns the annotated boxes of an image's objects, crowds apart: (n, 4) xyxy."""
        rows = slice(int(self.index.offsets[image]), int(self.index.offsets[image + 1]))
        return self.index.boxes[rows][~self.index.crowd[rows]]

    def _targets(self, plans: Sequence[SamplePlan]) -> list[Target]:
        return [make_target(self.index, plan, self.boxes_from, self.min_size) for plan in plans]

    def _batch(self, made: BatchImages, plans: Sequence[SamplePlan], targets: Sequence[Target]) -> Batch | None:
        """Joins images and targets; None where nothing is left of a batch that may be left out."""
        for place, error in made.bad:
            self._skip(self.index.file_names[plans[place].image], error.reason)
        bad = {place for place, _ in made.bad}
        left = [target for place, target in enumerate(targets) if place not in bad]
        if left:
            return Batch(made.images, left)
        if self.sampler.world_size == 1 or not self.sampler.pad:
            return None
        zeros = made.images.new_zeros((1, *made.images.shape[1:])).to(memory_format=torch.channels_last)
        return Batch(zeros, [empty_target(self.index, plans[0])], stand_in=True)

    def _skip(self, file_name: str, reason: str) -> None:
        """Notes a bad file, once.

        Raises:
            InputError: If no image is left.
        """
        if file_name in self.skipped:
            return
        self.skipped[file_name] = reason
        logger.warning("skipped %s: %s", file_name, reason)
        if len(self.skipped) == len(self._numbers):
            raise InputError(f"{self.index.path}: none of its images can be used, such as {file_name}: {reason}")
