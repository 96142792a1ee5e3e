"""Batches of images and targets for any trainer."""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from dpipe.backends.base import Backend, share_of_cores
from dpipe.coco import CocoIndex, image_path
from dpipe.errors import InputError
from dpipe.operation import Operation
from dpipe.plan import SamplePlan
from dpipe.policy import Augment, Normalize, Pad
from dpipe.sampler import BatchSampler
from dpipe.target import MIN_SIZE, BoxSource, Target, make_target

BackendName: TypeAlias = Literal["auto", "opencv", "dali"]


@dataclass
class Batch:
    """N images and their targets.

    Attributes:
        images: (N, 3, H, W), channels_last: float32 normalised, or uint8 RGB where the augmentation has no
            ``Normalize``. Images lie top left; the padding is 0.
        targets: One for each image.
    """

    images: torch.Tensor
    targets: list[Target]

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device | str) -> Batch:
        """Returns the batch with all tensors on a device."""
        return Batch(self.images.to(device), [target.to(device) for target in self.targets])


class ImagePaths(Sequence[Path]):
    """The image files of an index, each name checked against leaving the folder when it is asked for.

    Args:
        root: Folder of the images.
        file_names: Relative to it.
    """

    def __init__(self, root: str | Path, file_names: Sequence[str]) -> None:
        self.root = Path(root)
        self.file_names = file_names

    def __len__(self) -> int:
        return len(self.file_names)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [image_path(self.root, name) for name in self.file_names[number]]
        return image_path(self.root, self.file_names[number])


class DetectionLoader:
    """Iterates over a data set in augmented batches, resumably.

    Iterating goes on from the current position to the end of the epoch, then the epoch number rises by one, so a
    ``for`` loop over the loader is an epoch. The n-th batch is a function of (seed, epoch, n, rank, world size),
    whatever the number of threads; what is being worked on ahead never counts as handed out.

    Args:
        index: The annotations.
        images: Folder that the index's file names are relative to.
        augment: What is done to each sample.
        batch_size: Images of a batch on this rank.
        backend: ``opencv`` (CPU), ``dali``, or ``auto``: DALI for a CUDA device where it can be imported, else OpenCV.
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
            with the other processes on this machine: those that ``LOCAL_WORLD_SIZE`` counts, else ``world_size``.
        prefetch: Batches that are worked on ahead of the one that is waited for. An image is one thread's work, so
            where not given there are as many as keep all threads busy, ``threads / batch_size``, and at least 2.
        boxes_from: See ``make_target``.
        min_size: See ``make_target``.

    Attributes:
        sampler: Its ``epoch`` and ``position`` are those of the next batch.

    Raises:
        InputError: For an argument out of range, no images, a folder that is not there, or a device or backend that
            this machine lacks.
    """

    def __init__(
        self,
        index: CocoIndex,
        images: str | Path,
        *,
        augment: Augment | Sequence[Operation | Normalize | Pad | Mapping[str, Any]],
        batch_size: int = 1,
        backend: BackendName = "auto",
        device: str = "cpu",
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
    ) -> None:
        threads = share_of_cores(world_size) if threads is None else threads
        if threads < 1:
            raise InputError(f"threads must be at least 1, got {threads}")
        if prefetch is None:
            prefetch = max(2, math.ceil(threads / max(batch_size, 1)))
        if prefetch < 0:
            raise InputError(f"prefetch must be at least 0, got {prefetch}")
        if boxes_from not in ("polygons", "corners"):
            raise InputError(f"boxes_from must be polygons or corners, got {boxes_from!r}")
        if not Path(images).is_dir():
            raise InputError(f"{images}: no such folder of images")
        self.index = index
        self.seed = seed
        self.augment = augment if isinstance(augment, Augment) else Augment(augment)
        self.boxes_from: BoxSource = boxes_from
        self.min_size = min_size
        self.device = _checked_device(device)
        self._numbers = np.flatnonzero(index.non_empty()) if filter_empty else np.arange(len(index))
        if not len(self._numbers):
            what = "image with an instance to learn from" if filter_empty else "image"
            raise InputError(f"{index.path}: expected at least one {what}, found none")
        self.sampler = BatchSampler(
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
        paths = ImagePaths(images, index.file_names)
        self.backend = _make_backend(backend, self.device, paths, self.augment, threads, prefetch, batch_size)

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        """Yields the rest of the current epoch.

        Raises:
            BadSampleError: At the batch that holds it, for an image that cannot be used.
        """
        epoch, position = self.sampler.epoch, self.sampler.position
        targets: deque[Future[list[Target]]] = deque()
        # Targets have a thread of their own: they are numpy work that should be done when the pixels are.
        with ThreadPoolExecutor(1, thread_name_prefix="dpipe-target") as pool:

            def plans() -> Iterator[list[SamplePlan]]:
                for samples in self.sampler.batches(epoch, position):
                    batch = [self.plan(int(sample), epoch) for sample in samples]
                    targets.append(pool.submit(self._targets, batch))
                    yield batch

            with closing(self.backend.stream(plans())) as stream:
                for number, made in enumerate(stream, position + 1):
                    batch = Batch(made.images, targets.popleft().result())
                    self.sampler.epoch, self.sampler.position = epoch, number
                    yield batch.to(self.device)
        self.sampler.epoch, self.sampler.position = epoch + 1, 0

    def plan(self, sample: int, epoch: int) -> SamplePlan:
        """Draws what is done to a sample in an epoch."""
        image = int(self._numbers[self.sampler.image_of(sample)])
        size = (int(self.index.heights[image]), int(self.index.widths[image]))
        return self.augment.draw(size, seed=self.seed, epoch=epoch, sample=sample, image=image)

    def set_epoch(self, epoch: int) -> None:
        """Goes to the start of an epoch; the current epoch's own number changes nothing, so a resumed one goes on."""
        self.sampler.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Returns the position after the last batch that was handed out, equal on all ranks."""
        return {**self.sampler.state_dict(), "images": self._digest()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes to a saved position: the next batch is the one that would have come.

        Raises:
            InputError: If the state was saved with other images, seed or global batch size.
        """
        if state.get("images") != self._digest():
            raise InputError(
                f"{self.index.path}: has not the images that the loader's state was saved with: it cannot go on"
            )
        self.sampler.load_state_dict(state)

    def close(self) -> None:
        """Frees what the backend holds; the loader cannot be iterated afterwards."""
        self.backend.close()

    def _digest(self) -> str:
        """Tells the images and their order: a position means nothing in others, even if they are as many."""
        digest = hashlib.sha256(self.index.image_ids[self._numbers].tobytes())
        names = (self.index.file_names[number] for number in self._numbers.tolist())
        digest.update("\0".join(names).encode(errors="surrogatepass"))
        return digest.hexdigest()

    def _targets(self, plans: Sequence[SamplePlan]) -> list[Target]:
        return [make_target(self.index, plan, self.boxes_from, self.min_size) for plan in plans]


def _checked_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except (RuntimeError, ValueError):
        raise InputError(f"unknown device {name!r}: expected cpu, cuda or cuda:<number>") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device {name!r} is not supported: expected cpu, cuda or cuda:<number>")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {name!r} is not there: this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def _make_backend(
    name: str,
    device: torch.device,
    paths: Sequence[Path],
    augment: Augment,
    threads: int,
    prefetch: int,
    batch_size: int,
) -> Backend:
    """Returns the backend of that name; their libraries are imported only where they are used."""
    if name not in ("auto", "opencv", "dali"):
        raise InputError(f"unknown backend {name!r}: expected auto, opencv or dali")
    if name == "auto":
        name = "dali" if device.type == "cuda" and _dali_imports() else "opencv"
    if name == "dali":
        from dpipe.backends.dali import DaliBackend

        return DaliBackend(
            paths, augment, device=str(device), threads=threads, prefetch=prefetch, max_batch_size=batch_size
        )
    from dpipe.backends.opencv import OpenCVBackend

    return OpenCVBackend(paths, augment, threads=threads, prefetch=prefetch)


def _dali_imports() -> bool:
    try:
        import nvidia.dali  # noqa: F401
    except ImportError:
        return False
    return True
