"""Whether there is room for what a run will write, told before hours of work."""

from __future__ import annotations

import shutil
from pathlib import Path

from torch import Tensor, nn

from detect.running.state import checkpoint_folders
from detect.sections.optimizer import AdamWSection, Optimizer
from detect.sections.training import Train
from dpipe.errors import InputError


def checkpoint_bytes(model: nn.Module, optimizer: Optimizer, averages: bool) -> int:
    """About how large a checkpoint will be: weights, what the optimizer remembers of each, and their average.

    Args:
        model: The model.
        optimizer: The recipe's ``optimizer``.
        averages: Whether there is a moving average of the weights.
    """
    trained = _bytes([weight for weight in model.parameters() if weight.requires_grad])
    copies = 2 if isinstance(optimizer, AdamWSection) else int(optimizer.momentum > 0)
    return (1 + averages) * _bytes(list(model.state_dict().values())) + copies * trained


def check_room(folder: Path, each: int, train: Train, iterations: int) -> None:
    """Checks that the disk has room for the checkpoints that will be there at the same time.

    Those that are there count as room, as new ones take their place.

    Args:
        folder: The folder of checkpoints; it exists.
        each: Bytes of a checkpoint.
        train: Tells how many there will be.
        iterations: Of the whole run.

    Raises:
        InputError: If there is too little.
    """
    most = -(-train.epochs // train.checkpoint_every)
    if train.checkpoint_every_iters is not None:
        most += iterations // train.checkpoint_every_iters
    if train.eval_every:
        most += -(-train.epochs // train.eval_every)  # each may be better than all before
    # One is written before another is removed.
    count = min(most, train.keep + bool(train.eval_every) + 1)
    there = sum(path.stat().st_size for found in checkpoint_folders(folder) for path in found.iterdir())
    room = shutil.disk_usage(folder).free + there
    if room < count * each:
        raise InputError(
            f"{folder}: the disk has room for {_human(room)}, expected {_human(count * each)}: up to {count} "
            f"checkpoints of {_human(each)} will be there at the same time (train.keep is {train.keep})"
        )


def _bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _human(size: int) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size = size / 1024  # type: ignore[assignment]
    return f"{size:.4g} GiB"
