"""Checkpoints of other kinds written as safetensors."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from detect.models.checkpoints import read_weights
from detect.running.state import own_memory
from detect.trained import find_weights, read_info
from dpipe.errors import InputError
from dpipe.files import check_writable_file, write_whole

MOST_EXPANSION = 2
"""How many times the bytes of the file its tensors may take when none shares memory any more."""


@dataclass(frozen=True)
class Converted:
    """What was written.

    Attributes:
        num_tensors: How many tensors.
        class_names: Names of the labels, None where the checkpoint does not tell them.
    """

    num_tensors: int
    class_names: tuple[str, ...] | None


def convert_checkpoint(source: str | Path, out: str | Path) -> Converted:
    """Writes a checkpoint's named tensors, and the class names that it knows, as safetensors.

    Args:
        source: A ``.pth`` or ``.safetensors`` file, its URL, a checkpoint's folder, or a work directory.
        out: The file; it is written whole or not at all, and replaced if it exists.

    Raises:
        InputError: The checkpoint cannot be read, the output cannot be written or is not named ``.safetensors``, or is
            the input itself, or safetensors has no way to store a tensor.
    """
    out = Path(out)
    if out.suffix != ".safetensors":
        raise InputError(f"{out}: the output is a .safetensors file, and its name must end so")
    check_writable_file(out)
    path = find_weights(source)
    if os.path.realpath(path) == os.path.realpath(out):
        raise InputError(f"{out}: is the checkpoint itself; give the output another name")
    tensors = read_weights(path)
    _check_size(tensors, path)
    info = read_info(path)
    try:
        content = save(own_memory(tensors), metadata=None if info is None else info.to_metadata())
    except (SafetensorError, RuntimeError, ValueError, KeyError, NotImplementedError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: holds a tensor that safetensors cannot store: {reason}") from error
    write_whole(out, content)
    return Converted(len(tensors), None if info is None else info.class_names)


def _check_size(tensors: dict[str, Tensor], path: Path) -> None:
    """Refuses small files that describe large tensors, by repeating the same few bytes.

    Raises:
        InputError: If it is one.
    """
    needed, size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()), path.stat().st_size
    if needed > MOST_EXPANSION * size:
        raise InputError(f"{path}: its tensors repeat few bytes, and would grow from {size} to {needed} bytes")
