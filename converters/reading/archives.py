"""Files in zip and tar archives, read in place.

``ArchivePath`` has the few methods of ``pathlib.Path`` that the converters use, so that a data set may lie in folders
or in the archives as they are published: ``open_place`` gives a ``Path`` for a folder and an ``ArchivePath`` for an
archive, and the rest of the code does not ask which.

Nothing is unpacked to the disk. Of an archive only its list of contents is read at once; that list tells where each
file's bytes lie, and a path carries this along, so that another process reads a file without reading the list again.
Names that would lead out of an archive are refused; links are never followed; a file that unpacks to more than
``LARGEST_FILE`` bytes, or to another size than the list says, is refused without being unpacked further.
"""

from __future__ import annotations

import functools
import io
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from converters.errors import ConversionError

LARGEST_FILE = 1 << 28
"""Bytes of one unpacked file; a picture, a label image or a list of either stays far below."""

ZIP_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, lengths of the name and of the extra field
ZIP_LOCAL_SIGNATURE = b"PK\3\4"
ZIP_ENCRYPTED = 1
TAR_BLOCK = 512
COMPRESSED_TAR_ENDINGS = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")


@dataclass(frozen=True)
class Member:
    """Where the bytes of a file lie in its archive.

    Attributes:
        offset: Position in the archive; in a zip that of the file's header, in a tar that of its bytes.
        size: Number of bytes, unpacked.
        packed: Number of bytes in the archive.
        method: How they are packed, as in ``zipfile``.
        crc: Their CRC-32, unpacked; None where the archive has none (tar).
        refused: Why the file cannot be read; empty where it can.
    """

    offset: int
    size: int
    packed: int
    method: int = zipfile.ZIP_STORED
    crc: int | None = None
    refused: str = ""


@dataclass(frozen=True)
class ArchivePath:
    """A file or folder in an archive. Two paths are equal if their archive and place in it are.

    Attributes:
        archive: The archive's path.
        inner: The place in it, with "/" between names; empty for its root.
        member: Where the bytes of a file lie, as far as known; None for folders and what does not exist.
    """

    archive: str
    inner: str = ""
    member: Member | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.archive}/{self.inner}" if self.inner else self.archive

    def __truediv__(self, name: str) -> ArchivePath:
        inner = f"{self.inner}/{name}" if self.inner else name
        return ArchivePath(self.archive, inner, _contents_of(self.archive).files.get(inner))

    def __lt__(self, other: ArchivePath) -> bool:
        return (self.archive, self.inner) < (other.archive, other.inner)

    @property
    def name(self) -> str:
        """The last name of the path."""
        return PurePosixPath(self.inner or self.archive).name

    @property
    def stem(self) -> str:
        """The name without its ending."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """The name's ending, with the dot."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> ArchivePath:
        """The folder that holds it."""
        return ArchivePath(self.archive, self.inner.rpartition("/")[0])

    def relative_to(self, other: ArchivePath) -> PurePosixPath:
        """Returns the path as seen from a folder above it."""
        return PurePosixPath(self.inner).relative_to(other.inner or ".")

    def is_file(self) -> bool:
        """Whether it is a file of the archive."""
        return self.member is not None

    def is_dir(self) -> bool:
        """Whether it is a folder of the archive."""
        return self.inner in _contents_of(self.archive).folders

    def exists(self) -> bool:
        """Whether the archive has it."""
        return self.is_file() or self.is_dir()

    def iterdir(self) -> Iterator[ArchivePath]:
        """Goes through what a folder holds, sorted; nothing where there is no such folder."""
        contents = _contents_of(self.archive)
        for name in sorted(contents.folders.get(self.inner, ())):
            inner = f"{self.inner}/{name}" if self.inner else name
            yield ArchivePath(self.archive, inner, contents.files.get(inner))

    def read_bytes(self, limit: int | None = None) -> bytes:
        """Reads a file.

        Args:
            limit: Read no more than so many bytes of its beginning; by default all, checked against the archive's
                checksum where there is one.

        Raises:
            FileNotFoundError: The archive has no such file.
            ConversionError: It is damaged, too large, a link, encrypted or packed in a way that is not known.
            OSError: The system refuses to read the archive.
        """
        member = self.member
        if member is None:
            raise FileNotFoundError(2, "No such file in the archive", str(self))
        if member.refused:
            raise ConversionError(f"{self}: {member.refused}")
        if member.size > LARGEST_FILE:
            raise ConversionError(
                f"{self}: unpacks to {member.size} bytes, expected at most {LARGEST_FILE >> 20} MiB in a file; refused"
            )
        wanted = member.size if limit is None else min(limit, member.size)
        with open(self.archive, "rb") as file:
            data = _read_at(file, member.offset, wanted) if member.crc is None else _unpack(file, member, wanted)
        if data is None or len(data) != wanted or (limit is None and member.crc not in (None, zlib.crc32(data))):
            raise ConversionError(f"{self}: is damaged: its bytes are not those that the archive was made of")
        return data

    def read_text(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Reads a text file, every line end as a single newline character."""
        with io.TextIOWrapper(io.BytesIO(self.read_bytes()), encoding=encoding, errors=errors) as file:
            return file.read()


Place: TypeAlias = Path | ArchivePath


@dataclass(frozen=True)
class Contents:
    """What an archive holds.

    Attributes:
        files: Where each file lies, by its path.
        folders: The names in each folder, by its path; the archive's root is "".
    """

    files: dict[str, Member]
    folders: dict[str, set[str]]


def is_archive(path: str | os.PathLike[str]) -> bool:
    """Whether a name is that of an archive."""
    return str(path).lower().endswith((".zip", ".tar", *COMPRESSED_TAR_ENDINGS))


def open_place(path: str | os.PathLike[str]) -> Place:
    """Returns a path as it is, or the root of an archive.

    Args:
        path: A folder, or a file whose name ends in ``.zip`` or ``.tar``.

    Raises:
        ConversionError: The archive is missing, damaged, compressed as a whole, or holds names that lead out of it.
    """
    place = Path(path)
    if not is_archive(place) or place.is_dir():
        return place
    _contents_of(str(place))
    return ArchivePath(str(place))


def _contents_of(archive: str) -> Contents:
    """Lists an archive; once, unless the file changes.

    Raises:
        ConversionError: See ``open_place``.
    """
    try:
        found = os.stat(archive)
        return _listed(archive, found.st_size, found.st_mtime_ns)
    except FileNotFoundError:
        raise ConversionError(f"{archive}: is missing") from None
    except OSError as error:
        raise ConversionError(f"{archive}: cannot be read ({error.strerror or error})") from error


@functools.lru_cache(maxsize=8)
def _listed(archive: str, size: int, changed: int) -> Contents:
    lower = archive.lower()
    if lower.endswith(COMPRESSED_TAR_ENDINGS):
        raise ConversionError(
            f"{archive}: is compressed as a whole, so that no file in it can be read in place; "
            "decompress it to a .tar, or unpack it"
        )
    try:
        members = list(_list_zip(archive) if lower.endswith(".zip") else _list_tar(archive))
    except (zipfile.BadZipFile, tarfile.TarError, NotImplementedError, ValueError, struct.error) as error:
        raise ConversionError(f"{archive}: is not a whole archive ({error}); incomplete download?") from error
    contents = Contents({}, {"": set()})
    for name, member in members:
        inner = _checked_inner(name, archive)
        if not inner:
            continue
        if member is None:
            contents.folders.setdefault(inner, set())
        else:
            contents.files[inner] = member
        while inner:
            folder, _, last = inner.rpartition("/")
            known = contents.folders.setdefault(folder, set())
            if last in known:
                break
            known.add(last)
            inner = folder
    return contents


def _checked_inner(name: str, archive: str) -> str:
    """Returns a member's path without what means nothing.

    Raises:
        ConversionError: The path leads out of the archive, or would on some system.
    """
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or "\\" in name or "\0" in name or parts[0].endswith(":"):
        raise ConversionError(f"{archive}: holds a file named {name!r}, which would lie outside the archive; refused")
    return "/".join(part for part in parts if part not in ("", "."))


def _list_zip(archive: str) -> Iterator[tuple[str, Member | None]]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            if info.is_dir():
                yield info.orig_filename, None
                continue
            refused = ""
            if stat.S_ISLNK(info.external_attr >> 16):
                refused = "is a link, which is not followed"
            elif info.flag_bits & ZIP_ENCRYPTED:
                refused = "is encrypted"
            elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                refused = f"is packed by method {info.compress_type}, expected zip's usual ones (stored, deflated)"
            yield (
                info.orig_filename,
                Member(info.header_offset, info.file_size, info.compress_size, info.compress_type, info.CRC, refused),
            )


def _list_tar(archive: str) -> Iterator[tuple[str, Member | None]]:
    end = 0
    with open(archive, "rb") as stream:
        with tarfile.open(fileobj=stream, mode="r:") as file:
            for info in file:
                end = info.offset_data + (0 if info.isdir() else -(-info.size // TAR_BLOCK) * TAR_BLOCK)
                if info.isdir():
                    yield info.name, None
                else:
                    refused = "" if info.isreg() and not info.issparse() else "is a link or no plain file; not followed"
                    yield info.name, Member(info.offset_data, info.size, info.size, refused=refused)
        # tarfile takes a header that is cut off for the end, which is a block of zeros.
        if _read_at(stream, end, TAR_BLOCK) != bytes(TAR_BLOCK):
            raise tarfile.ReadError("it ends in the middle")


def _read_at(file: io.BufferedReader, offset: int, count: int) -> bytes:
    file.seek(offset)
    return file.read(count)


def _unpack(file: io.BufferedReader, member: Member, wanted: int) -> bytes | None:
    """Returns the first bytes of a zip's member; None where they cannot be what the list says."""
    header = _read_at(file, member.offset, ZIP_LOCAL_HEADER.size)
    if len(header) < ZIP_LOCAL_HEADER.size:
        return None
    signature, name_length, extra_length = ZIP_LOCAL_HEADER.unpack(header)
    if signature != ZIP_LOCAL_SIGNATURE:
        return None
    start = member.offset + ZIP_LOCAL_HEADER.size + name_length + extra_length
    if member.method == zipfile.ZIP_STORED:
        return _read_at(file, start, wanted) if member.packed == member.size else None
    # Deflate never makes data larger by more than this, so that a lying list cannot make us read much.
    packed = _read_at(file, start, min(member.packed, wanted + wanted // 1000 + 64))
    try:
        data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, wanted + 1)
    except zlib.error:
        return None
    return None if len(data) > member.size else data[:wanted]
