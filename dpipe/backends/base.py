"""What every image backend offers, and what they share."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import torch

from dpipe.errors import BadSampleError
from dpipe.plan import SamplePlan, Size

OnBadSample: TypeAlias = Literal["fail", "skip"]


@dataclass(frozen=True)
class BatchImages:
    """The pixels of a batch of plans.

    Attributes:
        images: Of the plans whose image can be used, in their order: (N, 3, H, W), channels_last, with (H, W) =
            ``padded_size`` of all plans of the batch. Normalised where the augmentation has a ``Normalize``, else uint8
            RGB. Images lie top left; the padding is 0.
        bad: The other plans, as their places in the batch of plans and what is wrong with their images.
    """

    images: torch.Tensor
    bad: tuple[tuple[int, BadSampleError], ...] = ()


class Backend(Protocol):
    """Turns batches of plans into batches of images.

    A backend is made from the paths of all images by image number (indexed only when an image is read) and from the
    ``Augment`` whose normalisation and padding it applies; the plans say the rest. It is told what to do about a bad
    sample, an image that cannot be used: ``fail`` raises the error, ``skip`` leaves it out of its batch. An image that
    was found bad is not read again, and is reported again in each batch that asks for it.
    """

    def stream(self, batches: Iterable[Sequence[SamplePlan]]) -> Generator[BatchImages, None, None]:
        """Yields one padded image batch for each batch of plans, in order; closing it ends what is under way.

        Args:
            batches: Read ahead of what was yielded by at most ``prefetch`` batches.

        Raises:
            BadSampleError: At the batch that holds it, for a bad sample, unless it is to be skipped.
        """
        ...

    def close(self) -> None:
        """Frees what is held between streams; no stream may be used afterwards."""
        ...


def padded_size(plans: Sequence[SamplePlan], size_divisor: int = 1) -> Size:
    """Returns the height and width of a batch: of its largest images, rounded up to multiples of ``size_divisor``."""
    height = max(plan.size[0] for plan in plans)
    width = max(plan.size[1] for plan in plans)
    return -(-height // size_divisor) * size_divisor, -(-width // size_divisor) * size_divisor


def usable_cores() -> int:
    """Returns how many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def share_of_cores(world_size: int) -> int:
    """Returns how many cores fall to this process where others on this machine do the same; at least 1.

    Args:
        world_size: Number of processes, on all machines; taken for those on this one where the launcher does not tell
            them in ``LOCAL_WORLD_SIZE``, as torchrun does.
    """
    told = os.environ.get("LOCAL_WORLD_SIZE", "")
    processes = int(told) if told.isdecimal() else world_size
    return max(1, usable_cores() // max(processes, 1))
