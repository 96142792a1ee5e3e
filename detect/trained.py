"""Trained models: finding a checkpoint's weights, what they know of themselves, and loading them whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import orjson
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from detect.config import Config, build_model
from detect.models.checkpoints import entries, load_weights
from detect.models.pretrained import download, is_url
from detect.models.unpickling import load_pth
from detect.running.state import METADATA_KEY, WEIGHTS, ModelInfo, newest_intact
from dpipe.errors import InputError


@dataclass(frozen=True)
class Trained:
    """A model with its weights, in evaluation mode.

    Attributes:
        model: On the CPU.
        class_names: Names of the labels 0..C-1.
        category_ids: The data set's id of each label.
    """

    model: nn.Module
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]


def say_nothing(line: str) -> None:
    """Stands for a way to tell the user, where there is none."""


def find_weights(checkpoint: str | Path, say: Callable[[str], None] = say_nothing) -> Path:
    """Finds the file of weights.

    Args:
        checkpoint: A ``.safetensors`` or ``.pth`` file, its URL (it is downloaded once), a checkpoint folder, or a work
            directory (its newest intact checkpoint is taken).
        say: Is told which checkpoint of a work directory is taken, and why if it is not the newest.

    Raises:
        InputError: If there is none.
    """
    if isinstance(checkpoint, str) and is_url(checkpoint):
        return download(checkpoint)
    path = Path(checkpoint)
    if path.is_file():
        return path
    if not path.exists():
        raise InputError(f"{checkpoint}: no such checkpoint")
    if (path / WEIGHTS).is_file():
        return path / WEIGHTS
    for folder in (path / "checkpoints", path):
        newest, damaged = newest_intact(folder)
        if newest is not None:
            for line in damaged:
                say(line)
            say(f"{newest}: is taken, the newest that is intact" if damaged else f"checkpoint: {newest}")
            return newest / WEIGHTS
        if damaged:
            raise InputError(f"{damaged[0]}, and there is no other to take")
    raise InputError(f"{checkpoint}: holds no checkpoint ({WEIGHTS}, or a work directory's checkpoints)")


def read_classes(weights: Path) -> tuple[tuple[str, ...] | None, tuple[int, ...] | None]:
    """Reads the class names and category ids that a checkpoint knows, see :func:`read_info`.

    Returns:
        Names and ids; ``None`` for what the file does not tell.
    """
    info = read_info(weights)
    return (None, None) if info is None else (info.class_names, info.category_ids)


def read_info(weights: Path) -> ModelInfo | None:
    """Reads what a checkpoint knows about its model.

    Args:
        weights: A ``.safetensors`` file, or a ``.pth`` file of OpenMMLab, which knows no category ids.

    Returns:
        What it knows; ``None`` if it does not tell at least the class names.

    Raises:
        InputError: If the file cannot be read.
    """
    if weights.suffix == ".safetensors":
        try:
            with safe_open(weights, "pt") as file:
                metadata = file.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise InputError(f"{weights}: is not a safetensors file that can be read: {error}") from None
        return ModelInfo.from_metadata(metadata, weights) if METADATA_KEY in metadata else None
    meta = entries(entries(load_pth(weights)).get("meta"))
    told = entries(meta.get("dataset_meta"))
    names = meta.get("CLASSES") or told.get("classes") or told.get("CLASSES")  # versions 2, 3, and before 3.0.0
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return None
    epoch, iteration = (value if type(value := meta.get(key)) is int else 0 for key in ("epoch", "iter"))
    return ModelInfo(tuple(names), None, recipe="", epoch=epoch, iteration=iteration)


def load_trained(
    config: Config,
    checkpoint: str | Path,
    data_classes: Sequence[str] | None = None,
    say: Callable[[str], None] = say_nothing,
) -> Trained:
    """Builds the recipe's model with a checkpoint's weights.

    The class names are the checkpoint's; where it has none, those of the data set, the recipe, or the validation JSON.

    Args:
        config: The recipe.
        checkpoint: See :func:`find_weights`.
        data_classes: The class names of the data set that is evaluated, if one is.
        say: See :func:`find_weights`; is also told which parts of the checkpoint the model has no use for.

    Raises:
        InputError: If there is no such checkpoint, its weights do not fit the recipe's model or are not finite, its
            classes are not the data set's, or nothing tells the classes.
    """
    weights = find_weights(checkpoint, say)
    names, ids = read_classes(weights)
    if names is not None and data_classes is not None and tuple(data_classes) != names:
        raise InputError(
            f"{weights}: was trained on the classes {list(names)}, but the data set has {list(data_classes)}"
        )
    names = names or (None if data_classes is None else tuple(data_classes))
    if names is None or ids is None:
        names, ids = _from_recipe(config, names, weights)
    model = build_model(config, len(names), pretrained=False)
    loaded = load_weights(model, weights, strict=True)
    if loaded.left_out:
        say(loaded.table(rows=2))
    _check_finite(model, weights)
    return Trained(model.eval(), names, ids)


def _check_finite(model: nn.Module, weights: Path) -> None:
    """Raises InputError for weights that are NaN or infinite: such a model finds nothing, and does not say why."""
    tensors = chain(model.named_parameters(), model.named_buffers())
    wrong = [name for name, tensor in tensors if not torch.isfinite(tensor).all()]
    if wrong:
        raise InputError(
            f"{weights}: holds weights that are NaN or infinite, in {len(wrong)} tensors such as {wrong[0]}; "
            "the run that made it had diverged"
        )


def _from_recipe(
    config: Config, names: tuple[str, ...] | None, weights: Path
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Class names and ids of a checkpoint that does not know both, from the recipe and the validation JSON."""
    if names is None and config.data.classes is not None:
        names = tuple(config.data.classes)
    try:
        categories = orjson.loads(Path(config.data.val.annotations).read_bytes())["categories"]
        listed = {str(category["name"]): int(category["id"]) for category in categories}
    except (OSError, ValueError, KeyError, TypeError):
        listed = {}
    if names is None:
        names = tuple(listed)
    if not names:
        raise InputError(
            f"{weights}: does not tell its class names, and neither does the recipe: "
            "name them with data.classes, or have data.val.annotations point to the data set's JSON"
        )
    if all(name in listed for name in names):
        return names, tuple(listed[name] for name in names)
    return names, tuple(range(1, len(names) + 1))
