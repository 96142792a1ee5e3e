"""Which backend works for a loader; their libraries are imported only where they are used."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch

from dpipe.backends.base import Backend
from dpipe.backends.dali_options import DaliOptions
from dpipe.errors import InputError
from dpipe.operations.albumentations_op import Albumentations
from dpipe.policy import Augment

BackendName: TypeAlias = Literal["auto", "opencv", "dali"]
DtypeName: TypeAlias = Literal["float32", "float16", "bfloat16"]

GPU_PREFETCH = 3
"""Batches that DALI works on ahead where they lie in the GPU's memory: enough for files that take unequally long."""

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def checked_device(name: str | torch.device) -> torch.device:
    """Returns the device of that name; ``cuda`` is the current device, and stays the one that it is now.

    Raises:
        InputError: If it is neither the CPU nor a CUDA device of this machine.
    """
    try:
        device = torch.device(name)
    except (RuntimeError, ValueError):
        raise InputError(f"unknown device {name!r}: expected cpu, cuda or cuda:<number>") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device {name!r} is not supported: expected cpu, cuda or cuda:<number>")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {name!r} is not there: this machine has {torch.cuda.device_count()} CUDA devices")
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def checked_dtype(name: str, augment: Augment) -> torch.dtype:
    """Returns the type of that name, for normalised images.

    Raises:
        InputError: For another name, or where images are not normalised, so that they stay bytes.
    """
    if name not in _DTYPES:
        raise InputError(f"unknown dtype {name!r}: expected {', '.join(_DTYPES)}")
    if augment.normalize is None and name != "float32":
        raise InputError(f"dtype {name} is the type of normalised images: expected a Normalize among the transforms")
    return _DTYPES[name]


def make_backend(
    name: str,
    device: torch.device,
    paths: Sequence[Path],
    augment: Augment,
    *,
    threads: int,
    prefetch: int | None,
    batch_size: int,
    dali: DaliOptions | None = None,
    **options: Any,
) -> Backend:
    """Returns the backend of that name.

    Args:
        name: ``opencv``, ``dali``, or ``auto``: DALI for a CUDA device where it can be imported and the augmentation
            has no ``Albumentations``, else OpenCV.
        device: Where batches are wanted.
        paths: Image files by image number.
        augment: Its normalisation and padding are applied.
        threads: That read and decode.
        prefetch: Batches that are worked on ahead; where not given, enough for the threads of this backend, or
            ``GPU_PREFETCH`` for DALI on a GPU.
        batch_size: Images of the largest batch.
        dali: Options of DALI; unused where ``auto`` finds that OpenCV has to do.
        **options: What both backends take.

    Raises:
        InputError: For an unknown name, for DALI where it cannot be imported, and for its options with OpenCV.
    """
    if name not in ("auto", "opencv", "dali"):
        raise InputError(f"unknown backend {name!r}: expected auto, opencv or dali")
    if name == "opencv" and dali is not None:
        raise InputError("options of DALI were given with the opencv backend: leave out dali, or take the dali backend")
    if name == "auto":
        only_opencv = any(isinstance(operation, Albumentations) for operation in augment.every_operation())
        name = "dali" if device.type == "cuda" and not only_opencv and dali_imports() else "opencv"
    if prefetch is None and name == "dali" and device.type == "cuda":
        prefetch = GPU_PREFETCH
    elif prefetch is None:
        # DALI shares out one batch at a time. OpenCV's threads take the next image, of whichever batch: two for each of
        # them, as images take unequally long and batches come in order.
        images = threads if name == "dali" else 2 * threads
        prefetch = max(2, math.ceil(images / max(batch_size, 1)))
    if name == "dali":
        from dpipe.backends.dali import DaliBackend

        return DaliBackend(
            paths,
            augment,
            device=str(device),
            threads=threads,
            prefetch=prefetch,
            max_batch_size=batch_size,
            options=dali,
            **options,
        )
    from dpipe.backends.opencv import OpenCVBackend

    # From pinned memory, batches are copied to the GPU while it computes.
    pin_memory = device.type == "cuda"
    return OpenCVBackend(paths, augment, threads=threads, prefetch=prefetch, pin_memory=pin_memory, **options)


def dali_imports() -> bool:
    """Whether NVIDIA DALI can be imported."""
    try:
        import nvidia.dali  # noqa: F401
    except ImportError:
        return False
    return True
