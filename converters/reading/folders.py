"""Finding a data set and its parts, in folders or archives, with errors that tell what was looked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import overload

from converters.errors import ConversionError
from converters.reading.archives import ArchivePath, Place


def is_folder(path: Place) -> bool:
    """Whether a path is a folder.

    Raises:
        ConversionError: The system does not let us look, which is not the same as there being none.
    """
    try:
        return path.is_dir()
    except OSError as error:
        raise unreadable(path, error) from error


@overload
def entries(folder: Path) -> list[Path]: ...
@overload
def entries(folder: ArchivePath) -> list[ArchivePath]: ...
def entries(folder: Place) -> Sequence[Place]:
    """Lists a folder's files and folders, sorted; where there is no such folder, none.

    ``Path.glob`` would pass over a folder that may not be read as if it were empty.

    Raises:
        ConversionError: The folder cannot be read.
    """
    if isinstance(folder, ArchivePath):
        return sorted(folder.iterdir())
    try:
        with os.scandir(folder) as found:
            return sorted(folder / entry.name for entry in found)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise unreadable(folder, error) from error


def unreadable(path: Place, error: OSError) -> ConversionError:
    """Returns the error for a place that the system refuses to show."""
    return ConversionError(f"{path}: cannot be read ({error.strerror or error})")


def checked_name(name: str, path: Place) -> str:
    """Returns a name that is to be written into JSON, which is UTF-8 and cannot hold every name of a file.

    Args:
        name: The path as it will be written, or a part of it.
        path: What it belongs to, for the error.

    Raises:
        ConversionError: The name is not valid UTF-8.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        shown = repr(os.fsencode(str(path)))  # the bytes: as text, they could not even be printed
        raise ConversionError(f"{shown}: the name is not valid UTF-8, which JSON needs; rename it") from None
    return name


def existing_root(candidates: Sequence[tuple[str, Path | None]], what: str) -> Path:
    """Returns the first candidate that is a folder.

    Args:
        candidates: How a place is called, for the error, and where it is (None where it is not set).
        what: What is looked for.

    Raises:
        ConversionError: None of them is a folder; the line lists all.
    """
    for _, path in candidates:
        if path is not None and is_folder(path):
            return path
    tried = ", ".join(name if path is None else f"{name} (no such folder)" for name, path in candidates)
    raise ConversionError(f"no {what} found; tried: {tried}")


def chosen(kind: str, found: Sequence[str], named: Sequence[str] | None, where: Place) -> list[str]:
    """Returns the parts to convert: those named, in the order found, or all that were found.

    Args:
        kind: What the parts are: "split", "year".
        found: What the data set has.
        named: What the user named; None or empty for everything.
        where: Where they were looked for, for the error.

    Raises:
        ConversionError: A named part does not exist, nothing exists, or a name is not valid UTF-8.
    """
    unknown = [name for name in named or () if name not in found]
    if unknown or not found:
        wanted = f"no {kind} {', '.join(unknown)}" if unknown else f"no {kind}"
        raise ConversionError(f"{where}: {wanted} here; found: {', '.join(found) or 'none'}")
    return [checked_name(name, where / name) for name in found if not named or name in named]
