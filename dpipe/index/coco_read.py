"""A COCO JSON to an index."""

from __future__ import annotations

from pathlib import Path

from dpipe.coco import CocoIndex
from dpipe.errors import InputError
from dpipe.index.coco_columns import index_of


def load_index(path: Path) -> CocoIndex:
    """Reads and checks a file whole; see ``CocoIndex.load``."""
    return read_index(path, read_content(path))


def read_content(path: Path) -> bytes:
    """Reads a file.

    Raises:
        InputError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


def read_index(path: Path, data: bytes) -> CocoIndex:
    """Reads and checks a JSON whole.

    Args:
        path: The file, for messages.
        data: Its content.

    Raises:
        InputError: See ``CocoIndex.load``.
    """
    from dpipe.index import coco_fast

    try:
        return index_of(path, coco_fast.read_columns(data))
    except (coco_fast.DeclinedError, InputError):
        pass  # outside of this block, so that the memory of the first attempt is free
    from dpipe.index import coco_careful

    return index_of(path, coco_careful.read_columns(path, data))
