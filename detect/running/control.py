"""What makes a run repeatable and interruptible: seeds, deterministic kernels, signals."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import numpy as np
import torch


class TrainingInterruptedError(Exception):
    """A signal ended the run, after its state was saved.

    Attributes:
        signum: The signal's number.
    """

    def __init__(self, signum: int, where: str) -> None:
        self.signum = signum
        super().__init__(f"stopped by {signal.Signals(signum).name} {where}; --resume goes on from there")


def iteration_seed(seed: int, iteration: int, rank: int) -> int:
    """A seed for PyTorch of its own for each iteration and process, 0..2**63-1."""
    return int(np.random.SeedSequence([seed, iteration, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Has PyTorch add in a fixed order on the CPU, where that costs next to nothing; a GPU keeps its fast kernels."""
    if device.type != "cpu":
        yield
        return
    settings: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False  # that finds bugs, and costs time
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        settings.fill_uninitialized_memory = before[1]


@contextmanager
def signals() -> Iterator[list[int]]:
    """Notes SIGINT and SIGTERM instead of acting on them; the second one acts as usual.

    Yields:
        The list that signals are noted in.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # Python delivers signals to the main thread only
        return

    def note(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        signal.signal(signum, before[signum])

    before: dict[int, Any] = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    for signum in before:
        signal.signal(signum, note)
    try:
        yield received
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
