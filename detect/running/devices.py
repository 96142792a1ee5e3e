"""What a run computes on: Lightning Fabric, with mistakes told before anything starts.

Processes are started by torchrun, by SLURM's srun, or, on one machine, by Fabric itself.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Literal

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning_utilities.core import rank_zero

from detect.running.together import end_with_first_process
from dpipe.errors import InputError

Accelerator = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class Launcher:
    """What has started this process among others.

    Attributes:
        name: What users call it.
        rank: This process's number among all.
        devices: Processes on each machine.
        nodes: Machines.
    """

    name: Literal["torchrun", "srun"]
    rank: int
    devices: int
    nodes: int

    def environment(self) -> ClusterEnvironment:
        """What tells Fabric the same."""
        return TorchElasticEnvironment() if self.name == "torchrun" else SLURMEnvironment()

    @classmethod
    def found(cls) -> Launcher | None:
        """The launcher that the environment's variables tell of.

        A job of one task, such as a shell in it, is no launch: there ``--devices`` starts processes as anywhere.

        Raises:
            InputError: If machines have unequal numbers of processes, or SLURM tells too little.
        """
        if "TORCHELASTIC_RUN_ID" in os.environ:
            size, devices = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
            if size % devices:
                raise InputError(
                    f"torchrun: has started {devices} processes on this machine of {size} in all: expected the same "
                    "number on each machine"
                )
            return cls("torchrun", int(os.environ["RANK"]), devices, size // devices)
        if int(os.environ.get("SLURM_NTASKS", 1)) > 1 and os.environ.get("SLURM_JOB_NAME") not in SHELLS:
            told = os.environ.get("SLURM_NTASKS_PER_NODE", "")
            if not told.isdecimal():
                raise InputError("srun: expected --ntasks-per-node, which tells the processes of each machine")
            nodes = int(os.environ["SLURM_NTASKS"]) // int(told)
            return cls("srun", int(os.environ["SLURM_PROCID"]), int(told), nodes)
        return None


SHELLS = ("bash", "interactive")
"""Names of SLURM jobs that Fabric takes for shells; what runs in them is not launched by srun."""


def _is_for_users(record: logging.LogRecord) -> bool:
    """Whether a hint of Fabric's is of use to somebody who does not program: not that on TF32, on most GPUs."""
    return "torch.set_float32_matmul_precision" not in record.getMessage()


def make_fabric(devices: int, accelerator: Accelerator, precision: str) -> Fabric:
    """Sets up devices, processes and precision.

    Args:
        devices: GPUs, or processes on the CPU, of this machine. Where torchrun or srun have started processes, 1 stands
            for as many as these.
        accelerator: ``auto`` takes GPUs where there are any.
        precision: ``32-true``, ``bf16-mixed`` or ``16-mixed``.

    Raises:
        InputError: For a device or a precision that this machine does not have, and for another number of devices than
            processes were started.
    """
    launcher = Launcher.found()
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    if devices < 1:
        raise InputError(f"--devices {devices}: expected at least 1")
    if launcher is not None:
        if devices not in (1, launcher.devices):
            raise InputError(
                f"--devices {devices}: {launcher.name} has started {launcher.devices} processes on this machine; leave "
                "--devices out"
            )
        devices = launcher.devices
    if accelerator == "cuda" and not torch.cuda.device_count():
        raise InputError("--accelerator cuda: this machine has no CUDA device")
    if accelerator == "cuda" and devices > torch.cuda.device_count():
        raise InputError(f"--devices {devices}: this machine has {torch.cuda.device_count()} CUDA devices")
    if accelerator == "cpu" and precision == "16-mixed":
        raise InputError("train.precision: 16-mixed needs a GPU; on the CPU take 32-true or bf16-mixed")
    if launcher is None:
        end_with_first_process(launched_rank())
    rank_zero.log.addFilter(_is_for_users)  # Fabric's logger, or Lightning's where that was imported too
    return Fabric(
        accelerator=accelerator,
        devices=devices,
        num_nodes=launcher.nodes if launcher else 1,
        precision=precision,  # type: ignore[arg-type]
        plugins=launcher.environment() if launcher else LightningEnvironment(),
    )


def launched_rank() -> int:
    """This process's number as its launcher tells it, known before any process group is set up."""
    launcher = Launcher.found()
    # Fabric itself starts processes on one machine only.
    return launcher.rank if launcher else int(os.environ.get("LOCAL_RANK", 0))
