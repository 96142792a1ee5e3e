"""What a run computes on: Lightning Fabric, with mistakes told before anything starts."""

from __future__ import annotations

import os
from typing import Literal

import torch
from lightning_fabric import Fabric

from dpipe.errors import InputError

Accelerator = Literal["auto", "cpu", "cuda"]


def make_fabric(devices: int, accelerator: Accelerator, precision: str) -> Fabric:
    """Sets up devices, processes and precision.

    Args:
        devices: GPUs, or processes on the CPU.
        accelerator: ``auto`` takes GPUs where there are any.
        precision: ``32-true``, ``bf16-mixed`` or ``16-mixed``.

    Raises:
        InputError: For a device or a precision that this machine does not have.
    """
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    if devices < 1:
        raise InputError(f"--devices {devices}: expected at least 1")
    if accelerator == "cuda" and devices > torch.cuda.device_count():
        raise InputError(f"--devices {devices}: this machine has {torch.cuda.device_count()} CUDA devices")
    if accelerator == "cpu" and precision == "16-mixed":
        raise InputError("train.precision: 16-mixed needs a GPU; on the CPU take 32-true or bf16-mixed")
    return Fabric(accelerator=accelerator, devices=devices, precision=precision)  # type: ignore[arg-type]


def launched_rank() -> int:
    """This process's number as its launcher tells it, known before any process group is set up."""
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        if name in os.environ:
            return int(os.environ[name])
    return 0
