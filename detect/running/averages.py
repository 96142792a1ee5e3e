"""Means of what the batches of a run give, for its log: over some iterations, and over the epoch."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Averages:
    """Means over batches and processes, each batch counting the same.

    Values stay on the device until a mean is asked for, so that the host does not wait for each iteration.

    Args:
        fabric: Launched. Its processes call everything but ``add`` together.

    Attributes:
        waited: Seconds that the window waited for data.
        iterations: Iterations of the window.
    """

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric
        self._window: defaultdict[str, list[Tensor]] = defaultdict(list)
        self._sums: defaultdict[str, float] = defaultdict(float)  # of the epoch, without those of the window
        self._batches = 0
        self.begin_window()

    def begin_window(self) -> None:
        """Begins to measure time, and to count."""
        self.waited, self.iterations, self._began = 0.0, 0, time.perf_counter()

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Adds a batch's scalars, by name."""
        for name, value in values.items():
            self._window[name].append(value.detach())

    def end_window(self) -> tuple[dict[str, float], float, float]:
        """The means since the last window, seconds an iteration waited for data, and seconds it took altogether."""
        means = self._into_epoch()
        iterations = max(self.iterations, 1)
        times = self.waited / iterations, (time.perf_counter() - self._began) / iterations
        self.begin_window()
        return means, *times

    def end_epoch(self) -> dict[str, float]:
        """The means of the epoch."""
        self._into_epoch()
        means = {name: value / self._batches for name, value in self._sums.items()}
        self._sums.clear()
        self._batches = 0
        return means

    def state_dict(self) -> dict[str, Any]:
        """What is known of the epoch so far."""
        means, batches = self._window_means()
        sums = {name: self._sums[name] + mean * batches for name, mean in means.items()} or dict(self._sums)
        return {"sums": sums, "batches": self._batches + batches}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on with an epoch.

        Raises:
            KeyError, TypeError, ValueError: If it is no such state.
        """
        self._sums = defaultdict(float, {str(name): float(value) for name, value in state["sums"].items()})
        self._batches = int(state["batches"])

    def _into_epoch(self) -> dict[str, float]:
        means, batches = self._window_means()
        for name, mean in means.items():
            self._sums[name] += mean * batches
        self._batches += batches
        self._window.clear()
        return means

    def _window_means(self) -> tuple[dict[str, float], int]:
        """The means of the window, and its batches."""
        if not self._window:
            return {}, 0
        stacked = torch.stack([torch.stack(values).mean() for values in self._window.values()])
        if self.fabric.world_size > 1:
            stacked = self.fabric.all_reduce(stacked, reduce_op="mean")  # type: ignore[assignment]
        return dict(zip(self._window, stacked.tolist(), strict=True)), len(next(iter(self._window.values())))
