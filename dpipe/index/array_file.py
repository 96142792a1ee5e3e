"""Arrays in one file, mapped into memory instead of read.

The file begins with a magic line, the length and the checksum of a header, and the header itself: JSON with the place,
shape, type and checksum of each array, and with whatever the writer adds. Nothing in it is ever executed. The arrays
follow, each on a boundary of 64 bytes.

Reading touches the header and the arrays' checksums only. The checksum of an array above 64 MB is not looked at, as
that would take longer than everything else; such arrays should hold values of which any is harmless.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from dpipe.files import whole_file

MAGIC = b"dpipe arrays 1\r\n\0\0"
PREFIX = len(MAGIC) + 12  # and the header's length and checksum
LARGEST_HEADER = 1 << 24
ALIGNMENT = 64
CHECKED_BYTES = 64 << 20
PIECE_BYTES = 64 << 10
FLUSH_BYTES = 32 << 20
TYPES = ("<i4", "<i8", "<f4", "<f8", "|u1", "|b1")


class DamagedError(Exception):
    """A file is not one of these, or not whole."""


@dataclass(frozen=True, eq=False)
class MappedArrays:
    """What a file holds.

    Attributes:
        path: The file.
        meta: What its writer added: JSON values.
        arrays: By name; read-only. The file stays mapped for as long as one of them lives.
    """

    path: Path
    meta: dict[str, Any]
    arrays: dict[str, NDArray[Any]]


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
    """Writes arrays to a file, whole or not at all.

    Args:
        path: Replaced if it exists. Its folder exists.
        arrays: By name, of one of ``TYPES``.
        meta: JSON values to go with them.

    Raises:
        OSError: If that does not work.
    """
    entries: dict[str, dict[str, Any]] = {}
    end = 0
    contiguous = {}
    for name, array in arrays.items():
        contiguous[name] = array = np.ascontiguousarray(array)
        if array.dtype.str not in TYPES:
            raise TypeError(f"array {name!r} is of type {array.dtype}")
        entries[name] = {
            "type": array.dtype.str,
            "shape": array.shape,
            "offset": end,
            "checksum": zlib.crc32(array.data) if array.nbytes <= CHECKED_BYTES else None,
        }
        end = _aligned(end + array.nbytes)
    header = json.dumps({"arrays": entries, "bytes": end, "meta": dict(meta)}).encode()
    flushes = []
    with whole_file(path) as file, ThreadPoolExecutor(1) as disk:
        _reserve(file, _aligned(PREFIX + len(header)) + end)
        file.write(MAGIC + len(header).to_bytes(8, "little") + zlib.crc32(header).to_bytes(4, "little") + header)
        start = _aligned(PREFIX + len(header))
        for name, array in contiguous.items():
            file.seek(start + entries[name]["offset"])
            data = array.reshape(-1).view(np.uint8).data
            for first in range(0, len(data), FLUSH_BYTES):
                if first:  # what was written goes to the disk while the rest is copied
                    flushes.append(disk.submit(os.fsync, file.fileno()))
                _write(file, data[first : first + FLUSH_BYTES])
        for flush in flushes:
            flush.result()  # an error is told once only, not again at the end
        file.truncate(start + end)


def _write(file: BinaryIO, data: memoryview) -> None:
    """Writes bytes in pieces.

    For a large piece Linux looks for memory in large blocks, which virtual machines may have to ask for first: 300 MB
    then take 0.7 s instead of 0.06.
    """
    for start in range(0, len(data), PIECE_BYTES):
        file.write(data[start : start + PIECE_BYTES])


def _reserve(file: BinaryIO, size: int) -> None:
    """Takes a file's space at once, which makes writing several times as fast; not every file system can."""
    with contextlib.suppress(OSError, AttributeError):
        os.posix_fallocate(file.fileno(), 0, size)


def map_arrays(path: Path) -> MappedArrays:
    """Maps the arrays of a file.

    Raises:
        OSError: It cannot be read.
        DamagedError: It is not such a file, or not whole.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            header, start = _read_header(file, size)
            # Reading beyond the end of a mapped file kills the process: nothing is mapped that is not there.
            if start + header["bytes"] != size:
                raise DamagedError(f"has {size} bytes, not {start + header['bytes']}")
            memory = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
            arrays = {name: _array(memory, start, entry) for name, entry in header["arrays"].items()}
            return MappedArrays(path, header["meta"], arrays)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DamagedError(f"has a header that cannot be understood: {error!r}") from None


def _read_header(file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    """The header of a file of ``size`` bytes, and where the arrays begin."""
    prefix = file.read(PREFIX)
    length = int.from_bytes(prefix[len(MAGIC) : len(MAGIC) + 8], "little")
    if len(prefix) != PREFIX or not prefix.startswith(MAGIC) or length > min(LARGEST_HEADER, size):
        raise DamagedError("is no file of arrays")
    header = file.read(length)
    if zlib.crc32(header) != int.from_bytes(prefix[-4:], "little"):
        raise DamagedError("has a damaged header")
    return json.loads(header), _aligned(PREFIX + length)


def _array(memory: mmap.mmap, start: int, entry: dict[str, Any]) -> NDArray[Any]:
    if entry["type"] not in TYPES:
        raise DamagedError(f"holds an array of type {entry['type']!r}")
    count = math.prod(entry["shape"])
    array = np.frombuffer(memory, dtype=entry["type"], count=count, offset=start + entry["offset"] if count else 0)
    if entry["checksum"] is not None and zlib.crc32(array.data) != entry["checksum"]:
        raise DamagedError("holds a damaged array")
    return array.reshape(entry["shape"])


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
