"""Which samples make which batch, as a function of (seed, epoch, batch number, rank, world size).

Where an epoch was interrupted and goes on with another global batch size, it is one of the earlier batches' sizes and
numbers as well, which the state tells.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from dpipe.errors import InputError
from dpipe.rng import ORDER, check_number, random_stream

Cut: TypeAlias = tuple[int, int]
"""A number of successive batches of one size: the global batch size, and how many."""


class BatchSampler:
    """Cuts each epoch into batches, over ranks, resumably.

    Samples are numbered 0..num_images*repeat-1; sample s is image s % num_images, so a repeated image is drawn and
    augmented anew each time. Batches of ``batch_size * world_size`` samples are formed first and every rank takes its
    slice of each: two ranks see what one rank with twice the batch size would see.

    Iterating begins the epoch, or, where a state was loaded, goes on in the middle of it. An epoch that was begun with
    another global batch size goes on with what is left of it: what is left keeps its order and is cut, and grouped,
    anew.

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
        position: Batches of that epoch that were handed out, of any size.
        earlier: Those of them that had another global batch size: (global batch size, number of batches), in turn.

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
        self.earlier: tuple[Cut, ...] = ()
        self._loaded = False

    @property
    def num_samples(self) -> int:
        """Samples in an epoch, over all ranks, without padding."""
        return self.num_images * self.repeat

    @property
    def global_batch_size(self) -> int:
        """Samples of a batch over all ranks."""
        return self.batch_size * self.world_size

    @property
    def batches_left(self) -> int:
        """Batches of the current epoch on this rank that were not handed out."""
        return max(len(self) - self.position, 0)

    def image_of(self, sample: int) -> int:
        """Returns the image number of a sample."""
        return sample % self.num_images

    def __len__(self) -> int:
        """Batches of the current epoch on this rank: handed out, and to come."""
        left = self.num_samples
        for size, count in self.earlier:
            left = max(left - size * count, 0)
        return self._earlier_batches() + self._batches_of(left)

    def batches_of_an_epoch(self) -> int:
        """Returns the batches on this rank of an epoch that begins and ends with this batch size."""
        return self._batches_of(self.num_samples)

    def order(self) -> np.ndarray:
        """Returns what the current epoch still had when batches got this size: samples over all ranks, (L,) int64.

        Cut into global batches, it gives those that come after the ``earlier`` ones.
        """
        if self.shuffle:
            order = random_stream(ORDER, self.seed, self.epoch).permutation(self.num_samples)
        else:
            order = np.arange(self.num_samples)
        begin = order  # of the epoch, as its first batches were cut
        for number, (size, count) in enumerate((*self.earlier, (self.global_batch_size, 0))):
            if self.groups is not None and len(order):
                order = _grouped(order, self.groups[order % self.num_images], size)
            if number == 0:
                begin = order
            order = order[size * count :]
        missing = -len(order) % self.global_batch_size
        if self.pad and missing:
            order = np.concatenate([order, np.resize(begin, missing)])
        return order

    def batches(self) -> Iterator[np.ndarray]:
        """Yields this rank's share of the rest of the current epoch, without moving the position.

        Yields:
            Sample numbers, (n,) int64 with n <= ``batch_size``, never empty.
        """
        order = self.order()
        done = self._earlier_batches()
        for number in range(self.position - done, len(self) - done):
            first = number * self.global_batch_size + self.rank * self.batch_size
            yield order[first : first + self.batch_size]

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields the current epoch, or the rest of it (see ``begin``); at its end the next epoch is the current one."""
        self.begin()
        epoch, earlier = self.epoch, self.earlier
        for position, batch in enumerate(self.batches(), self.position + 1):
            self.go_to(epoch, position, earlier)
            yield batch
        self.go_to(epoch + 1)

    def begin(self) -> None:
        """Goes to the start of the epoch, unless a loaded position has yet to be gone on from.

        After an epoch whose batches were all handed out, that is the next one, even if nobody asked for its end.
        """
        if self.position and not self._loaded:
            self.go_to(self.epoch if self.batches_left else self.epoch + 1)
        self._loaded = False

    def go_to(self, epoch: int, position: int = 0, earlier: Sequence[Cut] = ()) -> None:
        """Sets the attributes of these names."""
        self.epoch, self.position, self.earlier = epoch, position, tuple(earlier)

    @property
    def sampler(self) -> BatchSampler:
        """Itself: Lightning 2.5 asks every batch sampler for the sampler that it draws from."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Goes to the start of an epoch; the current epoch's own number changes nothing, so a resumed one goes on."""
        check_number("epoch", epoch)
        if epoch != self.epoch:
            self.go_to(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Returns the position as plain numbers, strings and lists; every rank has the same.

        ``consumed`` lists (global batch size, number of batches) of the epoch's batches that were handed out, in turn.
        """
        return {"epoch": self.epoch, "consumed": [list(cut) for cut in self._consumed()], **self._setup}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes to a saved position, which may be of other batch sizes and another number of ranks.

        Raises:
            InputError: If the state lacks a key or is damaged, or was saved with another number of images, other
                groups, another seed, or other settings that the order of samples depends on.
        """
        missing = sorted(self.state_dict().keys() - state.keys())
        if missing:
            raise InputError(f"sampler state lacks {', '.join(missing)}")
        for name, value in self._setup.items():
            if state[name] != value and name == "groups":
                raise InputError("sampler state was saved with other groups of images than these: it cannot go on")
            if state[name] != value:
                raise InputError(
                    f"sampler state was saved with {name} {state[name]}, here it is {value}: it cannot go on"
                )
        epoch, consumed = _checked(state["epoch"], state["consumed"])
        position = sum(count for _, count in consumed)
        if consumed and consumed[-1][0] == self.global_batch_size:
            consumed.pop()
        self.go_to(epoch, position, consumed)
        self._loaded = True

    @cached_property
    def _setup(self) -> dict[str, int | bool | str | None]:
        """What must be equal for the samples of an epoch to have the same order."""
        groups = None if self.groups is None else hashlib.sha256(self.groups.tobytes()).hexdigest()
        return {
            "seed": self.seed,
            "shuffle": self.shuffle,
            "num_images": self.num_images,
            "repeat": self.repeat,
            "pad": self.pad,
            "groups": groups,
        }

    def _consumed(self) -> list[Cut]:
        now = self.position - self._earlier_batches()
        return [*self.earlier, (self.global_batch_size, now)] if now else list(self.earlier)

    def _earlier_batches(self) -> int:
        return sum(count for _, count in self.earlier)

    def _batches_of(self, samples: int) -> int:
        """Batches on this rank that so many samples make."""
        full, rest = divmod(samples, self.global_batch_size)
        return full + (rest > (0 if self.pad else self.rank * self.batch_size))


def _checked(epoch: Any, consumed: Any) -> tuple[int, list[Cut]]:
    """Takes the position out of a state.

    Raises:
        InputError: If it is not what ``BatchSampler.state_dict`` gives.
    """
    try:
        cuts = [(size, count) for size, count in consumed]
    except (TypeError, ValueError):
        cuts = [(0, 0)]
    numbers = [epoch + 1 if isinstance(epoch, int) else 0, *(number for cut in cuts for number in cut)]
    if not all(isinstance(number, int) and 1 <= number <= 2**64 for number in numbers):
        raise InputError(f"sampler state is damaged: epoch {epoch!r}, consumed {consumed!r}")
    return epoch, cuts


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
