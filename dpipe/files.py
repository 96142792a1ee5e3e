"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from dpipe.errors import InputError


def named_folder(name: str | Path) -> Path:
    """The folder of a name.

    Raises:
        InputError: For an empty text, a slip that would be the current folder.
    """
    if name == "":
        raise InputError("expected the name of a folder, got an empty text")
    return Path(name)


def check_writable(folder: Path) -> None:
    """Makes a folder and tries to write into it, before hours of work end in front of it.

    Raises:
        InputError: If that does not work.
    """
    nearest = next((path for path in (folder, *folder.parents) if os.path.exists(path)), None)
    if nearest is not None and not nearest.is_dir():
        raise InputError(f"{nearest}: is a file, expected a folder to write to")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".writable-"):
            pass
    except FileNotFoundError:  # of file systems that are no disk's, such as /proc
        raise InputError(f"{folder}: cannot be written: nothing can be made there") from None
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror or error}") from None


@contextmanager
def writable_folder(folder: Path) -> Iterator[None]:
    """Makes a folder and tries to write into it; where what follows fails, what was made and is empty goes again.

    Raises:
        InputError: If the folder cannot be written.
    """
    made = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
    try:
        check_writable(folder)
        yield
    except BaseException:
        with suppress(OSError):  # the first that holds something, and with it all above
            for path in made:
                path.rmdir()
        raise


def check_writable_file(path: Path) -> None:
    """Checks that a file can be written, before the work for it is done, and makes its folder.

    Raises:
        InputError: For the name of a folder, or a folder around it that cannot be written.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder, expected the name of a file")
    check_writable(path.parent)


def write_whole(path: Path, content: bytes | str) -> None:
    """Writes a file, whole or not at all.

    Args:
        path: The file, replaced if it exists. Its folder exists.
        content: All of it; text is written as UTF-8.

    Raises:
        OSError: If that does not work; it names ``path``.
    """
    with whole_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to under a temporary name, which is flushed to the disk and renamed at the end.

    Args:
        path: The file, replaced if it exists. Its folder exists.

    Raises:
        OSError: If that does not work; it names ``path``.
    """
    # A number too, as process ids are those of one machine, and folders are shared by several.
    unfinished = path.with_name(f".{path.name}-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with unfinished.open("xb") as file:
            yield file
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
