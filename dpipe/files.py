"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from dpipe.errors import InputError


def check_writable(folder: Path) -> None:
    """Makes a folder and tries to write into it, before hours of work end in front of it.

    Raises:
        InputError: If that does not work.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".writable-"):
            pass
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror or error}") from None


def check_writable_file(path: Path) -> None:
    """Checks that a file can be written, before the work for it is done.

    Raises:
        InputError: For the name of a folder, or a folder around it that is missing or cannot be written.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder, expected the name of a file")
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}")
    check_writable(path.parent)


def write_whole(path: Path, content: bytes | str) -> None:
    """Writes a file under a temporary name, flushes it to the disk and renames it.

    Args:
        path: The file, replaced if it exists. Its folder exists.
        content: All of it; text is written as UTF-8.

    Raises:
        OSError: If that does not work; it names ``path``.
    """
    data = content.encode() if isinstance(content, str) else content
    unfinished = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        with unfinished.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException as error:
        unfinished.unlink(missing_ok=True)
        if (
            isinstance(error, OSError) and error.errno is not None
        ):  # it names the temporary file, or, from a full disk, none
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
