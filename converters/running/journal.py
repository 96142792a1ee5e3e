"""What a conversion has done, kept in a file, so that an interrupted one can go on.

A record is appended for each image: a digest of what its result depends on (the converter and its options, the names,
sizes and times of its files), the result, and a checksum. A record that was cut short or damaged ends the reading, and
what follows it is done anew. Results are data only (msgpack): nothing in the file is ever run.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Generic, TypeVar

import msgspec

from converters.errors import ConversionError
from converters.reading.archives import ArchivePath
from converters.reading.folders import unreadable

Item = TypeVar("Item")
Result = TypeVar("Result")

BEGINNING = b"dpipe convert 1\n"
RECORD = struct.Struct("<16sII")  # digest, length, CRC-32 of digest and result
LARGEST_RESULT = 1 << 30


class Journal(Generic[Item, Result]):
    """The results of an interrupted run and of this one; to be used in a ``with`` statement.

    Args:
        path: The file. It is made where it is missing, and taken away by ``finish``.
        options: The converter and all that its results depend on beside the files.
        files_of: The files behind an item.
        result_type: The type of the results, a dataclass of plain values.

    Raises:
        ConversionError: The file is something else, or cannot be read or written.
    """

    def __init__(
        self,
        path: Path,
        options: str,
        files_of: Callable[[Item], Iterable[str | Path | ArchivePath]],
        result_type: type[Result],
    ) -> None:
        self.path = path
        self._options = options
        self._files_of = files_of
        self._result_type = result_type
        self._results: dict[bytes, bytes] = {}
        try:
            self._file = path.open("a+b", buffering=0)
            try:
                self._read()
            except BaseException:
                self._file.close()
                raise
        except OSError as error:
            raise unreadable(path, error) from error

    def __enter__(self) -> Journal[Item, Result]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def known(self, item: Item) -> Result | None:
        """Returns an item's result; None where there is none, or its files have changed."""
        data = self._results.pop(self._digest(item), None)
        if data is None:
            return None
        try:
            return msgspec.msgpack.decode(data, type=self._result_type)
        except msgspec.DecodeError:  # of another version of this program
            return None

    def keep(self, done: Sequence[tuple[Item, Result]]) -> None:
        """Appends results.

        Raises:
            ConversionError: The file cannot be written.
        """
        records = []
        for item, result in done:
            digest, data = self._digest(item), msgspec.msgpack.encode(result)
            records += [RECORD.pack(digest, len(data), zlib.crc32(digest + data)), data]
        try:
            self._file.write(b"".join(records))
        except OSError as error:
            raise ConversionError(f"{self.path}: cannot be written ({error.strerror or error})") from error

    def finish(self) -> None:
        """Takes the file away: all is done."""
        self._file.close()
        self.path.unlink(missing_ok=True)

    def _read(self) -> None:
        """Reads the records; what follows a damaged one is cut off."""
        size = self._file.seek(0, os.SEEK_END)
        if size < len(BEGINNING):
            self._file.truncate(0)
            self._file.write(BEGINNING)
            return
        with open(self.path, "rb") as file:
            if file.read(len(BEGINNING)) != BEGINNING:
                raise ConversionError(f"{self.path}: is not what an interrupted conversion leaves; remove it")
            good = file.tell()
            while len(head := file.read(RECORD.size)) == RECORD.size:
                digest, length, checksum = RECORD.unpack(head)
                data = file.read(length) if length <= LARGEST_RESULT else b""
                if len(data) != length or zlib.crc32(digest + data) != checksum:
                    break
                self._results[digest] = data
                good = file.tell()
        self._file.truncate(good)

    def _digest(self, item: Item) -> bytes:
        parts = [self._options]
        for place in self._files_of(item):
            on_disk = place.archive if isinstance(place, ArchivePath) else place
            try:
                found = os.stat(on_disk)
                parts += [str(place), str(found.st_size), str(found.st_mtime_ns)]
            except OSError:
                parts += [str(place), "missing"]
        return hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogateescape"), digest_size=16).digest()
