"""Which samples make which batch, as a function of (seed, epoch, batch number, rank, world size)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from dpipe.errors import InputError
from dpipe.rng import ORDER, check_number, random_stream


class BatchSampler:
    """Cuts each epoch into batches, over ranks, resumably.

    Samples are numbered 0..num_images*repeat-1; sample s is image s % num_images, so a repeated image is drawn and
    augmented anew each time. Batches of ``batch_size * world_size`` samples are formed first and every rank takes its
    slice of each: two ranks see what one rank with twice the batch size would see.

    Args:
        num_images: Images in the data set, at least 1.
        batch_size: Samples of a batch on one rank.
        seed: Of the shuffling, 0..2**64-1.
        shuffle: Draw a new order each epoch; otherwise samples come in their order.
        rank: This process's number, 0..world_size-1.
        world_size: Number of processes.
        groups: A group number for each image, shape (num_images,). Only samples of one group meet in a batch, but for
            the last few batches of an epoch, which collect what is left over of all groups.
        repeat: How often an epoch sees each image.
        pad: Fill the last batch with samples from the start of the epoch, so that all batches are full. Otherwise every
            sample comes exactly once, over all ranks; the last batch is smaller and some ranks may have none.

    Attributes:
        epoch: Epoch that is sampled next, or now.
        position: Batches of that epoch that were handed out.

    Raises:
        InputError: For a number out of range.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
        groups: np.ndarray | None = None,
        repeat: int = 1,
        pad: bool = True,
    ) -> None:
        limits = {"num_images": num_images, "batch_size": batch_size, "world_size": world_size, "repeat": repeat}
        for name, value in limits.items():
            if not isinstance(value, int | np.integer) or value < 1:
                raise InputError(f"{name} must be an integer of at least 1, got {value!r}")
        if not 0 <= rank < world_size:
            raise InputError(f"rank {rank} is out of range: expected 0..{world_size - 1} for world_size {world_size}")
        if groups is not None and np.shape(groups) != (num_images,):
            raise InputError(
                f"groups must have one number for each of the {num_images} images, got shape {np.shape(groups)}"
            )
        check_number("seed", seed)
        self.num_images = num_images
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.world_size = world_size
        self.groups = None if groups is None else np.asarray(groups)
        self.repeat = repeat
        self.pad = pad
        self.epoch = 0
        self.position = 0

    @property
    def num_samples(self) -> int:
        """Samples in an epoch, over all ranks, without padding."""
        return self.num_images * self.repeat

    @property
    def global_batch_size(self) -> int:
        """Samples of a batch over all ranks."""
        return self.batch_size * self.world_size

    def image_of(self, sample: int) -> int:
        """Returns the image number of a sample."""
        return sample % self.num_images

    def __len__(self) -> int:
        """Batches of an epoch on this rank."""
        full, rest = divmod(self.num_samples, self.global_batch_size)
        if self.pad:
            return full + (rest > 0)
        return full + (rest > self.rank * self.batch_size)

    def order(self, epoch: int) -> np.ndarray:
        """Returns the samples of an epoch over all ranks, (L,) int64, to be cut into global batches."""
        if self.shuffle:
            order = random_stream(ORDER, self.seed, epoch).permutation(self.num_samples)
        else:
            order = np.arange(self.num_samples)
        if self.groups is not None:
            order = _grouped(order, self.groups[order % self.num_images], self.global_batch_size)
        missing = -len(order) % self.global_batch_size
        if self.pad and missing:
            order = np.concatenate([order, np.resize(order, missing)])
        return order

    def batches(self, epoch: int, start: int = 0) -> Iterator[np.ndarray]:
        """Yields this rank's batches of an epoch from batch ``start`` on, without moving the position.

        Yields:
            Sample numbers, (n,) int64 with n <= ``batch_size``, never empty.
        """
        order = self.order(epoch)
        for number in range(start, len(self)):
            first = number * self.global_batch_size + self.rank * self.batch_size
            last = min(first + self.batch_size, (number + 1) * self.global_batch_size)
            yield order[first:last]

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields the rest of the current epoch; at its end the next epoch becomes the current one."""
        epoch = self.epoch
        for number, batch in enumerate(self.batches(epoch, self.position), self.position):
            self.epoch, self.position = epoch, number + 1
            yield batch
        self.epoch, self.position = epoch + 1, 0

    def set_epoch(self, epoch: int) -> None:
        """Goes to the start of an epoch; the current epoch's own number changes nothing, so a resumed one goes on."""
        check_number("epoch", epoch)
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def _setup(self) -> dict[str, int | bool | str | None]:
        """What must be equal for a position to mean the same batch."""
        groups = None if self.groups is None else hashlib.sha256(self.groups.tobytes()).hexdigest()
        return {
            "seed": self.seed,
            "shuffle": self.shuffle,
            "num_images": self.num_images,
            "repeat": self.repeat,
            "global_batch_size": self.global_batch_size,
            "pad": self.pad,
            "groups": groups,
        }

    def state_dict(self) -> dict[str, int | bool | str | None]:
        """Returns the position, in samples over all ranks: every rank has the same state."""
        return {"epoch": self.epoch, "consumed": self.position * self.global_batch_size, **self._setup()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes to a saved position.

        Raises:
            InputError: If the state lacks a key, or was saved with another number of images, other groups, another
                seed or another global batch size ...
        """
        missing = sorted(self.state_dict().keys() - state.keys())
        if missing:
            raise InputError(f"sampler state lacks {', '.join(missing)}")
        for name, value in self._setup().items():
            if state[name] != value and name == "groups":
                raise InputError("sampler state was saved with other groups of images than these: it cannot go on")
            if state[name] != value:
                raise InputError(
                    f"sampler state was saved with {name} {state[name]}, here it is {value}: it cannot go on"
                )
        self.epoch = int(state["epoch"])
        self.position = int(state["consumed"]) // self.global_batch_size


def _grouped(order: np.ndarray, groups: np.ndarray, batch_size: int) -> np.ndarray:
    """Reorders samples so that batches hold one group each.

    A group's samples keep their order; a batch stands where its last sample stood; what is left over of the groups
    comes last, group after group.

    Args:
        order: Samples, (S,).
        groups: Their groups, (S,).
        batch_size: Samples of a batch.
    """
    full: list[np.ndarray] = []
    left: list[np.ndarray] = []
    for group in np.unique(groups):
        places = np.flatnonzero(groups == group)
        whole = len(places) // batch_size * batch_size
        full.append(places[:whole].reshape(-1, batch_size))
        left.append(places[whole:])
    batches = np.concatenate(full)  # (batches, batch_size) places in `order`
    batches = batches[np.argsort(batches[:, -1], kind="stable")]
    return order[np.concatenate([batches.ravel(), *left])]
