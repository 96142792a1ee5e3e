"""The optimizer, and the learning rate over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn, optim


@dataclass(frozen=True)
class WarmupSteps:
    """The factor on the learning rate: steps by epoch, and a linear warm-up by iteration.

    Both apply at once, as in OpenMMLab: in the warm-up the factor of the step is multiplied by
    ``warmup_ratio + (1 - warmup_ratio) * iteration / warmup_iters``.

    Args:
        warmup_iters: Iterations of the warm-up; 0 for none.
        warmup_ratio: The factor at the first iteration.
        steps: Numbers of epochs after which the factor is multiplied by ``gamma``.
        gamma: The factor of a step.
    """

    warmup_iters: int = 0
    warmup_ratio: float = 0.001
    steps: Sequence[int] = ()
    gamma: float = 0.1

    def factor(self, iteration: int, epoch: int) -> float:
        """The factor for an iteration.

        Args:
            iteration: Iterations done before it, in the whole run.
            epoch: Epochs finished before it.
        """
        factor = self.gamma ** sum(epoch >= step for step in self.steps)
        if iteration < self.warmup_iters:
            factor *= self.warmup_ratio + (1 - self.warmup_ratio) * iteration / self.warmup_iters
        return factor


def sgd(model: nn.Module, lr: float, momentum: float, weight_decay: float) -> optim.SGD:
    """Stochastic gradient descent on all weights that are not frozen."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    return optim.SGD(weights, lr=lr, momentum=momentum, weight_decay=weight_decay)
