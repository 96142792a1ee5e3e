"""Checkpoints of a training run: written whole or not at all, and verified when they are read.

A checkpoint is a folder, ``checkpoints/iter_00000500``, with three files; ``checkpoints/last`` links to the newest,
``checkpoints/best`` to the one with the best evaluation:

* ``model.safetensors``: the weights; the metadata tells class names, category ids, recipe, epoch and iteration.
* ``state.pt``: what else training needs to go on (optimizer, position in the data); loads with ``weights_only=True``.
* ``checkpoint.json``: the size and SHA-256 of both, so that weights and state are one pair, and damage is seen.

The folder is filled under a temporary name, flushed to the disk, and renamed: what is called ``iter_*`` was complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dpipe.errors import InputError

FORMAT_VERSION = 1
METADATA_KEY = "detect"
WEIGHTS = "model.safetensors"
STATE = "state.pt"
MANIFEST = "checkpoint.json"
UNFINISHED = ".unfinished-"
DAMAGED = "damaged-"


@dataclass(frozen=True)
class ModelInfo:
    """What the weights know about themselves.

    Attributes:
        class_names: Names of the labels 0..C-1.
        category_ids: The data set's id of each label, in the same order; None where a converted file told names only.
        recipe: The resolved recipe, as YAML; empty in converted files.
        epoch: Epochs finished.
        iteration: Iterations done.
    """

    class_names: tuple[str, ...]
    category_ids: tuple[int, ...] | None
    recipe: str
    epoch: int
    iteration: int

    def to_metadata(self) -> dict[str, str]:
        """The metadata of the safetensors file: one entry, as several would be written in a random order."""
        content = {
            "format_version": FORMAT_VERSION,
            "class_names": self.class_names,
            "category_ids": self.category_ids,
            "recipe": self.recipe,
            "epoch": self.epoch,
            "iteration": self.iteration,
        }
        return {METADATA_KEY: json.dumps(content)}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], path: Path) -> ModelInfo:
        """Reads the metadata of a safetensors file.

        Raises:
            InputError: If a later version wrote it, or it does not parse.
        """
        try:
            content = json.loads(metadata[METADATA_KEY])
            version, names, ids = (int(content["format_version"]), content["class_names"], content["category_ids"])
            if version > FORMAT_VERSION:
                raise InputError(
                    f"{path}: format {version}, written by a later version; this one reads {FORMAT_VERSION}"
                )
            if not _list_of(names, str) or not (ids is None or (_list_of(ids, int) and len(names) == len(ids))):
                raise InputError(
                    f"{path}: the metadata of the weights cannot be used: "
                    "expected class_names and category_ids, two lists of the same length"
                )
            return cls(
                class_names=tuple(names),
                category_ids=None if ids is None else tuple(ids),
                recipe=str(content["recipe"]),
                epoch=int(content["epoch"]),
                iteration=int(content["iteration"]),
            )
        except (KeyError, ValueError, TypeError, RecursionError) as error:
            raise InputError(f"{path}: the metadata of the weights cannot be read ({error!r})") from None


def checkpoint_path(folder: Path, iteration: int) -> Path:
    """Where the checkpoint of an iteration is, if there is one."""
    return folder / f"iter_{iteration:08d}"


def checkpoint_folders(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first, whether intact or not."""
    found = [path for path in folder.glob("iter_*") if path.is_dir() and path.name[5:].isdigit()]
    return sorted(found, key=_iteration_of)


def save_checkpoint(folder: Path, model: nn.Module, state: Mapping[str, Any], info: ModelInfo) -> Path:
    """Writes a checkpoint, unless that of the iteration is there; if it is damaged, it is replaced.

    Args:
        folder: The folder of checkpoints; it exists.
        model: Its weights and buffers are written.
        state: Tensors, numbers, strings, lists and dicts.
        info: What the weights' metadata tells.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: If it cannot be written, such as when the disk is full; nothing is left behind then.
    """
    final = checkpoint_path(folder, info.iteration)
    if final.exists() and problem_of(final) is None:
        # Replacing it would leave a moment in which neither is there; a run gives the same bits again anyway.
        point(folder, "last", final)
        return final
    unfinished = folder / f"{UNFINISHED}{final.name}-{os.getpid()}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        try:
            save_file(own_memory(model.state_dict()), unfinished / WEIGHTS, metadata=info.to_metadata())
            with (unfinished / STATE).open("wb") as file:
                torch.save(dict(state), file)  # given a path, PyTorch 2.8 ignores that the last bytes do not fit
            shutil.copymode(unfinished / STATE, unfinished / WEIGHTS)  # safetensors lets nobody else read its files
        except (OSError, SafetensorError, RuntimeError) as error:  # how a full disk is reported
            reason = getattr(error, "strerror", None) or error
            raise OSError(f"{final}: cannot be written: {reason}") from error
        manifest = {
            "format_version": FORMAT_VERSION,
            "epoch": info.epoch,
            "iteration": info.iteration,
            "files": {name: _fingerprint(unfinished / name) for name in (WEIGHTS, STATE)},
        }
        (unfinished / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        for name in (WEIGHTS, STATE, MANIFEST):
            _flush(unfinished / name)
        _flush(unfinished)
        if final.exists():
            _remove(final)
        unfinished.rename(final)
        point(folder, "last", final)
        _flush(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return final


def problem_of(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, or ``None`` if they are as they were written."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        for name in (WEIGHTS, STATE):
            if _fingerprint(checkpoint / name) != manifest["files"][name]:
                return f"{name} is not what was written"
    except OSError as error:
        return f"{Path(error.filename or checkpoint).name}: {error.strerror or error}"
    except (ValueError, KeyError, TypeError, RecursionError):
        return f"{MANIFEST} cannot be read"
    return None


def newest_intact(folder: Path) -> tuple[Path | None, list[str]]:
    """Finds the checkpoint to go on from.

    Args:
        folder: The folder of checkpoints.

    Returns:
        The newest intact checkpoint, or ``None``; and one line for each newer one that is damaged.
    """
    damaged: list[str] = []
    for checkpoint in reversed(checkpoint_folders(folder)):
        problem = problem_of(checkpoint)
        if problem is None:
            return checkpoint, damaged
        damaged.append(f"{checkpoint}: damaged ({problem})")
    return None, damaged


def load_state(checkpoint: Path, model: nn.Module) -> dict[str, Any]:
    """Loads a training run's own checkpoint: the weights into the model, exactly, and the state.

    Args:
        checkpoint: A folder that ``newest_intact`` found.
        model: Gets the weights.

    Returns:
        What ``save_checkpoint`` was given as ``state``.

    Raises:
        InputError: If the weights are not this model's, or a file is not of the kind that it should be.
    """
    try:
        weights: dict[str, Tensor] = load_file(checkpoint / WEIGHTS)
        state: dict[str, Any] = torch.load(checkpoint / STATE, map_location="cpu", weights_only=True)
    except Exception as error:  # a crafted file can raise anything
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"{checkpoint}: cannot be read: {reason or type(error).__name__}") from error
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        details = "; ".join(line.strip() for line in str(error).splitlines()[1:3])
        raise InputError(f"{checkpoint}: its weights do not fit the recipe's model: {details}") from None
    return state


def point(folder: Path, name: str, checkpoint: Path) -> None:
    """Makes ``name`` a link to a checkpoint, where the file system has links, for people to type."""
    link = folder / f"{UNFINISHED}{name}-{os.getpid()}"
    try:
        link.symlink_to(checkpoint.name, target_is_directory=True)
        link.replace(folder / name)
    except OSError:
        link.unlink(missing_ok=True)


def unpoint(folder: Path, name: str) -> None:
    """Removes a link that :func:`point` made, as what it names is gone."""
    link = folder / name
    if link.is_symlink():
        link.unlink()


def prune(folder: Path, keep: int, best: int | None, iteration: int) -> None:
    """Removes all checkpoints up to an iteration but the newest ``keep`` and the one of iteration ``best``.

    Args:
        folder: The folder of checkpoints.
        keep: At least 1.
        best: Of the checkpoint with the best evaluation, if there is one.
        iteration: Of the run that prunes; what is later is not its own, and does not count.
    """
    for checkpoint in [path for path in checkpoint_folders(folder) if _iteration_of(path) <= iteration][:-keep]:
        if _iteration_of(checkpoint) != best:
            _remove(checkpoint)


def set_damaged_aside(folder: Path) -> list[str]:
    """Gives damaged checkpoints a name of their own, so that they never count as one to keep or to go on from.

    Args:
        folder: The folder of checkpoints; one of them is intact.

    Returns:
        A line for each.
    """
    notes = []
    for checkpoint in checkpoint_folders(folder):
        problem = problem_of(checkpoint)
        if problem is not None:
            aside = folder / f"{DAMAGED}{checkpoint.name}"
            if aside.exists():
                shutil.rmtree(aside)
            checkpoint.rename(aside)
            notes.append(f"{checkpoint}: damaged ({problem}), so it is now {aside.name}")
    return notes


def remove_unfinished(folder: Path) -> None:
    """Removes what a killed run had not finished to write."""
    for path in folder.glob(f"{UNFINISHED}*"):
        if path.is_symlink():
            path.unlink()
        else:
            shutil.rmtree(path, ignore_errors=True)


def _iteration_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("iter_"))


def _list_of(values: Any, kind: type) -> bool:
    return isinstance(values, list) and bool(values) and all(type(value) is kind for value in values)


def own_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, none sharing memory with another, as safetensors needs it."""
    seen: set[int] = set()
    owned = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        owned[name] = tensor
    return owned


def _remove(checkpoint: Path) -> None:
    """Removes a checkpoint; renamed first, so that it never stands there half removed under its name."""
    doomed = checkpoint.with_name(f"{UNFINISHED}old-{checkpoint.name}-{os.getpid()}")
    checkpoint.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _fingerprint(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _flush(path: Path) -> None:
    """Has the system write a file, or a folder's names, to the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows has no flush of folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
