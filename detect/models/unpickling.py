"""Reads old ``.pth`` files without running anything that they name.

A pickle is a program: it names functions by module and attribute, and calls them. ``torch.load(weights_only=True)``
refuses a file that names anything but tensors and plain containers, as OpenMMLab's checkpoints do: next to
``state_dict`` they hold log buffers and configurations of classes that are not installed here. For those, the reader
below resolves every unknown name to a class that does nothing, so the tensors come out and the rest is inert.
"""

from __future__ import annotations

import pickle
import struct
import tarfile
import types
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dpipe.errors import InputError

HARMFUL = {
    "os",
    "posix",
    "nt",
    "sys",
    "subprocess",
    "shutil",
    "socket",
    "importlib",
    "runpy",
    "ctypes",
    "pty",
    "webbrowser",
}
"""Modules that no checkpoint has a reason to name: a file that does is refused, though it could do nothing."""

HARMFUL_BUILTINS = {"eval", "exec", "compile", "open", "__import__", "breakpoint", "input"}


class Inert:
    """Stands for an object of a class that is not known here: takes whatever a pickle does to it, and holds nothing."""

    __slots__ = ("__weakref__",)

    def __new__(cls, *args: object, **kwargs: object) -> Inert:
        """Accepts any arguments."""
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def _ignore(self, *args: object) -> None:
        pass

    # What a pickle can call on an object while it rebuilds it.
    __setstate__ = append = extend = add = __setitem__ = _ignore


class _Rebuild:
    """A function that rebuilds tensors, wrapped so that a pickle can call it but not set attributes on it."""

    __slots__ = ("_call",)
    _call: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_call", function)

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __setattr__(self, name: str, value: object) -> None:
        raise pickle.UnpicklingError("a checkpoint may not change functions")

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a checkpoint may not change functions")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _Rebuild(torch._utils._rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Rebuild(torch._utils._rebuild_tensor_v2),
    ("torch._utils", "_rebuild_parameter"): _Rebuild(torch._utils._rebuild_parameter),
}


class InertUnpickler(pickle._Unpickler):
    """An unpickler for which every name but those of tensors and ordered dictionaries is an :class:`Inert` class.

    The one in Python: that in C makes as much room as the highest number under which a pickle stores an object, so that
    a file of 20 bytes can take 32 GB.
    """

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Resolves a name of the pickle, never by importing it."""
        package, attribute = module_name.partition(".")[0], global_name.partition(".")[0]
        builtin = package in ("builtins", "__builtin__")  # the latter in pickles that Python 2 could read, as torch's
        if package in HARMFUL or (builtin and attribute in HARMFUL_BUILTINS):
            raise pickle.UnpicklingError(f"it names {module_name}.{global_name}, which no checkpoint needs")
        allowed = _ALLOWED.get((module_name, global_name))
        return type(global_name, (Inert,), {"__slots__": ()}) if allowed is None else allowed

    # What follows puts items into the object below them. Tensors take items as well, and their sums and selections
    # could fill the memory.

    def load_setitem(self: Any) -> None:
        """Puts an item into a dictionary."""
        _check_container(self.stack[-3])
        pickle._Unpickler.load_setitem(self)  # type: ignore[attr-defined]

    def load_setitems(self: Any) -> None:
        """Puts items into a dictionary."""
        _check_container(self.metastack[-1][-1])
        pickle._Unpickler.load_setitems(self)  # type: ignore[attr-defined]

    def load_additems(self: Any) -> None:
        """Puts items into a set."""
        _check_container(self.metastack[-1][-1])
        pickle._Unpickler.load_additems(self)  # type: ignore[attr-defined]

    dispatch = {  # noqa: RUF012
        **pickle._Unpickler.dispatch,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.ADDITEMS[0]: load_additems,
    }


def _check_container(target: object) -> None:
    """Raises UnpicklingError for what is neither a plain container nor stands for one."""
    if not isinstance(target, dict | set | Inert):
        raise pickle.UnpicklingError(f"it puts items into a {type(target).__name__}")


def _load(file: Any, **kwargs: Any) -> Any:
    """Stands for ``pickle.load``."""
    return InertUnpickler(file, **kwargs).load()


def _inert_pickle() -> Any:
    """A module for ``torch.load(pickle_module=...)``: torch derives its own unpickler from its ``Unpickler``."""
    module = types.ModuleType("inert_pickle")
    module.__dict__.update(Unpickler=InertUnpickler, load=_load, UnpicklingError=pickle.UnpicklingError)
    return module


def load_pth(path: Path) -> Any:
    """Reads a file that ``torch.save`` wrote, of any age, without running anything of it.

    Returns:
        What was saved; objects other than tensors and plain containers are :class:`Inert`.

    Raises:
        InputError: The file is no checkpoint, is damaged, names something harmful, or would unpack to more than it is.
    """
    if tarfile.is_tarfile(path):
        raise InputError(
            f"{path}: is a tar archive of an early PyTorch, which is not read; save it again with torch.save"
        )
    _check_archive(path)
    try:
        with warnings.catch_warnings():
            # Of other pickle protocols than torch.save's own, which the second reader takes as well.
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            try:
                return torch.load(path, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError:
                # TorchScript archives, whose loading could run code, never come here: above they are a RuntimeError.
                return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_inert_pickle())
    except Exception as error:  # a damaged or crafted file can raise anything
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> InputError:
    reason = str(error).strip().partition("\n")[0]
    # A KeyError's message is a key that means nothing to a reader, and so are keys of pickles.
    if not reason or isinstance(error, KeyError) or reason.startswith("invalid load key"):
        with path.open("rb") as file:
            begins_well = file.read(4).startswith((b"PK\x03\x04", b"\x80"))
        if not begins_well:
            return InputError(f"{path}: is not a checkpoint: neither a zip archive nor a pickle, as torch.save writes")
        reason = type(error).__name__
    reason = "".join(sign if sign.isprintable() else "?" for sign in reason)  # names of the file, for a terminal
    return InputError(f"{path}: is not a checkpoint that can be read: {reason}")


def _check_archive(path: Path) -> None:
    """Refuses zip archives whose records, compressed or overlapping, are larger than the file that holds them.

    ``torch.save`` never compresses, but ``torch.load`` unpacks: a few kilobytes could fill the memory. What this reads
    has to be what PyTorch reads: files that it takes for archives, and their one directory.

    Raises:
        InputError: If the file is such an archive, or cannot be read as one.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(record.file_size for record in archive.infolist())
            found_at = archive.start_dir
    except Exception as error:  # a damaged or crafted one can raise anything
        raise _unreadable(path, error) from error
    if found_at != _directory_offset(path):
        raise InputError(f"{path}: is not a checkpoint that can be read: the archive's end is not torch.save's")
    size = path.stat().st_size
    if unpacked > size:
        raise InputError(f"{path}: would unpack from {size} to {unpacked} bytes, which torch.save's files never do")


def _directory_offset(path: Path) -> int | None:
    """Where an archive's end says that its directory is, which :mod:`zipfile` looks for in front of the end instead.

    Returns:
        The offset; None where the end is not as ``torch.save`` writes it, without a comment, and in large files with
        the record of 64-bit numbers in front.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - 98))
        tail = file.read()
    end, locator, large = tail[-22:], tail[-42:-22], tail[-98:-42]
    if not end.startswith(b"PK\x05\x06"):
        return None
    if not locator.startswith(b"PK\x06\x07"):
        return int(struct.unpack_from("<I", end, 16)[0])
    if not large.startswith(b"PK\x06\x06") or struct.unpack_from("<Q", locator, 8)[0] != size - 98:
        return None
    return int(struct.unpack_from("<Q", large, 48)[0])
