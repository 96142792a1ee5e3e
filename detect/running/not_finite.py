"""What is kept of a batch whose loss is not finite, so that one can look for the reason."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from dpipe.errors import InputError
from dpipe.files import whole_file
from dpipe.polygons import Polygons
from dpipe.target import Target

if TYPE_CHECKING:
    from dpipe.batch import Batch

MASKS = tuple(Polygons.__dataclass_fields__)


@dataclass
class SavedBatch:
    """A batch whose loss was not finite, and the model then.

    Attributes:
        images: (N, 3, H, W), as the model got them.
        targets: N targets.
        losses: What the model returned.
        weights: The model's weights and buffers, for ``load_state_dict``.
        seed: What PyTorch's generators were seeded with before the first batch of the iteration.
        iteration: Number of the iteration, from 1.
    """

    images: Tensor
    targets: list[Target]
    losses: dict[str, Tensor]
    weights: dict[str, Tensor]
    seed: int
    iteration: int


def save_batch(
    path: Path, batch: Batch, losses: Mapping[str, Tensor], model: nn.Module, seed: int, iteration: int
) -> None:
    """Writes what :func:`read_batch` reads, tensors and plain values only.

    Raises:
        OSError: If it cannot be written, such as when the disk is full; nothing is left behind then.
    """
    content = {
        "images": batch.images.detach().cpu(),
        "targets": [_plain(target) for target in batch.targets],
        "losses": {name: value.detach().cpu() for name, value in losses.items()},
        "weights": {name: weight.cpu() for name, weight in model.state_dict().items()},
        "seed": seed,
        "iteration": iteration,
    }
    with whole_file(path) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # how PyTorch reports a full disk
            raise OSError(f"{path}: cannot be written: {error}") from error


def read_batch(path: str | Path) -> SavedBatch:
    """Reads a batch that a run has kept; nothing in it is executed.

    Raises:
        InputError: If it is no such file.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        targets = [_target(target) for target in content.pop("targets")]
        return SavedBatch(targets=targets, **content)
    except OSError:
        raise
    except Exception as error:  # a crafted file can raise anything
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"{path}: is no batch that a run has kept: {reason or type(error).__name__}") from error


def keep_and_tell(
    path: Path, batch: Batch, losses: Mapping[str, Tensor], model: nn.Module, seed: int, iteration: int, epoch: int
) -> str:
    """Keeps a batch whose loss is not finite, where that can be, and returns what there is to tell of it.

    Args:
        path: Of the file that :func:`read_batch` reads.
        batch: What was learned from.
        losses: What the model returned.
        model: As it was then.
        seed: Of PyTorch's generators before the first batch of the iteration.
        iteration: Number of the iteration, from 1.
        epoch: Number of the epoch, from 1.
    """
    try:
        save_batch(path, batch, losses, model, seed, iteration)
        kept = f"the batch is kept in {path}"
    except OSError as error:
        kept = f"the batch cannot be kept ({error})"
    names = ", ".join(target.file_name for target in batch.targets)
    return (
        f"the loss is not finite at iteration {iteration} (epoch {epoch}): {what_is_not_finite(losses)}, on the images "
        f"{names}; {kept}; a lower optimizer.lr, a longer schedule.warmup_iters or train.clip_norm may help"
    )


def what_is_not_finite(losses: Mapping[str, Tensor]) -> str:
    """Names and values of the losses that are not finite."""
    bad = [f"{name} is {value.item()}" for name, value in losses.items() if not math.isfinite(value.item())]
    return ", ".join(bad) or "the sum"


def _plain(target: Target) -> dict[str, Any]:
    values: dict[str, Any] = {**vars(target), "matrix": torch.from_numpy(target.matrix)}
    if isinstance(target.masks, Polygons):
        values["masks"] = [torch.from_numpy(np.ascontiguousarray(getattr(target.masks, name))) for name in MASKS]
    return {name: value.cpu() if isinstance(value, Tensor) else value for name, value in values.items()}


def _target(values: Mapping[str, Any]) -> Target:
    masks, sizes = values["masks"], {name: tuple(values[name]) for name in ("size", "original_size")}
    if isinstance(masks, Sequence):
        masks = Polygons(**{name: tensor.numpy() for name, tensor in zip(MASKS, masks, strict=True)})
    return Target(**{**values, **sizes, "matrix": values["matrix"].numpy(), "masks": masks})
