"""An exponential moving average of a model's weights, which is often a better detector than the weights themselves.

After each step of the optimizer the average moves towards the weights: ``average += (1 - d) (weights - average)``. The
decay ``d`` of update i = 1, 2, ... is ``decay (1 - exp(-i / warmup_iters))``, as in YOLOv5 and YOLOX (0.9998 and 2000),
so that the average soon forgets the weights that training began with. BatchNorm's statistics are averaged too; counters
and other whole numbers are copied.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import nn

from detect.sections.training import Ema


class WeightAverage:
    """The average of a model's weights.

    Args:
        model: The average begins with its weights, on its device; it must stay there.
        section: The recipe's ``train.ema``.

    Attributes:
        model: A model of its own, in evaluation mode, with the average as its weights.
        updates: How often it was updated.
    """

    def __init__(self, model: nn.Module, section: Ema) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.updates = 0
        self._section = section
        # Each once: what has two names must not be averaged twice. Those of the model share its memory.
        found = {
            (weight.data_ptr(), weight.shape): (average, weight)
            for average, weight in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True)
        }
        pairs = [(average, weight) for average, weight in found.values() if average.is_floating_point()]
        self._averages, self._weights = [average for average, _ in pairs], [weight for _, weight in pairs]
        self._copied = [(average, weight) for average, weight in found.values() if not average.is_floating_point()]

    def decay(self, update: int) -> float:
        """How much of the average stays at an update, which are counted from 1."""
        ramp = self._section.warmup_iters
        return self._section.decay * (1 - math.exp(-update / ramp) if ramp else 1.0)

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the model's weights after a step."""
        self.updates += 1
        torch._foreach_lerp_(self._averages, self._weights, 1 - self.decay(self.updates))
        for average, weight in self._copied:
            average.copy_(weight)

    def state_dict(self, model: nn.Module) -> dict[str, Any]:
        """What a checkpoint, whose weights are the average, keeps besides: the weights that are trained.

        Args:
            model: That which is averaged.
        """
        return {"updates": self.updates, "weights": {name: weight.cpu() for name, weight in model.state_dict().items()}}
