"""The files of a Pascal VOC data set, as its converter handles them by the thousand: plain strings, read by few calls.

A ``pathlib.Path`` for each of three files of an image takes longer than to parse the annotation.
"""

from __future__ import annotations

import os
from typing import TypeAlias

from converters.errors import ConversionError
from converters.reading.archives import ArchivePath, Place
from converters.reading.folders import entries, unreadable

File: TypeAlias = str | ArchivePath
"""A file's path on the disk, or its place in an archive."""

USUAL_ANNOTATION = 1 << 15
LARGEST_ANNOTATION = 1 << 25
"""Bytes; an annotation of a thousand objects has a hundredth of it."""

O_BINARY = getattr(os, "O_BINARY", 0)


def files_in(folder: Place) -> list[tuple[str, File]]:
    """Lists the names in a folder and where they are, sorted; nothing where there is no such folder.

    Raises:
        ConversionError: The folder cannot be read.
    """
    if isinstance(folder, ArchivePath):
        return [(place.name, place) for place in entries(folder)]
    try:
        prefix = os.path.join(folder, "")
        return [(name, prefix + name) for name in sorted(os.listdir(folder))]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise unreadable(folder, error) from error


def read_annotation_file(file: File) -> bytes:
    """Reads a small file.

    Raises:
        ConversionError: It is missing, cannot be read, or is larger than any annotation.
    """
    try:
        if isinstance(file, ArchivePath):
            if file.member is not None and file.member.size > LARGEST_ANNOTATION:
                raise _too_large(file, file.member.size)
            return file.read_bytes()
        descriptor = os.open(file, os.O_RDONLY | O_BINARY)
        try:
            data = os.read(descriptor, USUAL_ANNOTATION)
            if len(data) < USUAL_ANNOTATION:
                return data
            size = os.fstat(descriptor).st_size
            if size > LARGEST_ANNOTATION:
                raise _too_large(file, size)
            while more := os.read(descriptor, size):
                data += more
            return data
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise ConversionError(f"{file}: is missing") from None
    except OSError as error:
        raise ConversionError(f"{file}: cannot be read ({error.strerror or error})") from error


def _too_large(file: File, size: int) -> ConversionError:
    return ConversionError(f"{file}: has {size} bytes, expected an annotation of at most {LARGEST_ANNOTATION}; refused")
