"""What the processes of a run tell each other within a step."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of a number over all processes that train together; the number itself where there is one process.

    A divisor of a loss has to be the same everywhere, for gradients are averaged over processes as if it were. All
    processes must call this equally often.

    Args:
        value: A scalar, without gradient.

    Returns:
        A scalar.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()
