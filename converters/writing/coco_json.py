"""COCO JSON documents: assembled with stable ids, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from converters.errors import ConversionError
from converters.report import SplitSummary

ANNOTATIONS_PER_WRITE = 2000


class ImageRecord(NamedTuple):
    """One image and its annotations as JSON, before ids are given.

    The bytes of a large data set take far less memory than its dictionaries would, and pass between processes at once.

    Attributes:
        image: The entry of ``images`` without ``id``.
        annotations: The entries of ``annotations`` without ``id`` and ``image_id``.
        classes: For each annotation the name of its category, which is to become its ``category_id``; empty where the
            annotations have that already.
        crowd: Number of crowd regions.
        ignored: Number of annotations with ``ignore`` set.
        masks: Number of annotations with a segmentation.
    """

    image: bytes
    annotations: tuple[bytes, ...]
    classes: tuple[str, ...] = ()
    crowd: int = 0
    ignored: int = 0
    masks: int = 0


@dataclass(frozen=True)
class Document:
    """One COCO file, before it is written.

    Attributes:
        split: What it holds.
        path: The file.
        records: Its images, in order.
        categories: The entries of ``categories``.
        first_image_id: From which the ids of images count up.
    """

    split: str
    path: Path
    records: Sequence[ImageRecord]
    categories: Sequence[dict[str, Any]]
    first_image_id: int

    def summary(self) -> SplitSummary:
        """Counts what it holds."""
        return SplitSummary(
            name=self.split,
            images=len(self.records),
            instances=sum(len(record.annotations) for record in self.records),
            crowd=sum(record.crowd for record in self.records),
            ignored=sum(record.ignored for record in self.records),
            masks=sum(record.masks for record in self.records),
            categories=len(self.categories),
            path=self.path,
        )


def encode_record(
    image: dict[str, Any], annotations: Sequence[dict[str, Any]], classes: Sequence[str] = ()
) -> ImageRecord:
    """Makes a record of dictionaries.

    What orjson makes is copied, as it leaves most of a page unused behind every small text.

    Args:
        image: The entry of ``images`` without ``id``.
        annotations: The entries of ``annotations`` without ``id`` and ``image_id``.
        classes: Names of their categories where they have no ``category_id``.
    """
    return ImageRecord(
        orjson.dumps(image),
        tuple([bytes(memoryview(orjson.dumps(annotation))) for annotation in annotations]),
        tuple(classes),
        crowd=sum(annotation.get("iscrowd", 0) for annotation in annotations),
        ignored=sum(annotation.get("ignore", 0) for annotation in annotations),
        masks=sum("segmentation" in annotation for annotation in annotations),
    )


def write_documents(documents: Sequence[Document]) -> list[str]:
    """Writes files atomically: names appear only once all bytes of all files are on the disk.

    Args:
        documents: What to write. Their folders exist; files of the same name are replaced.

    Returns:
        A line for each file that was replaced.

    Raises:
        ConversionError: The file system refuses.
    """
    notes = []
    with ExitStack() as stack:
        unfinished = []
        for document in documents:
            temporary = document.path.with_name(f".{document.path.name}.{os.getpid()}.tmp")
            stack.callback(temporary.unlink, missing_ok=True)
            unfinished.append((temporary, document.path))
            with _refusals(document.path), temporary.open("xb") as file:
                for piece in _pieces(document):
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
        for temporary, path in unfinished:
            with _refusals(path):
                if path.exists():
                    notes.append(f"{path}: was there before, and has been replaced")
                temporary.replace(path)
        for folder in {document.path.parent for document in documents}:
            _sync_folder(folder)
    return notes


def _pieces(document: Document) -> Iterator[bytes]:
    """Yields a file's bytes.

    Ids of annotations count up from 1, always: pycocotools takes 0, as the id of the object that a detection found, for
    "found none".
    """
    ids = {category["name"]: category["id"] for category in document.categories}
    yield b'{"images":['
    images = [
        b'%b,"id":%d}' % (record.image[:-1], image_id)
        for image_id, record in enumerate(document.records, document.first_image_id)
    ]
    yield b",".join(images)
    yield b'],"categories":' + orjson.dumps(list(document.categories)) + b',"annotations":['
    annotation_id = 0
    entries = []
    for image_id, record in enumerate(document.records, document.first_image_id):
        if record.classes:
            for annotation, name in zip(record.annotations, record.classes, strict=True):
                annotation_id += 1
                values = (annotation[:-1], ids[name], image_id, annotation_id)
                entries.append(b'%b,"category_id":%d,"image_id":%d,"id":%d}' % values)
        else:
            for annotation in record.annotations:
                annotation_id += 1
                entries.append(b'%b,"image_id":%d,"id":%d}' % (annotation[:-1], image_id, annotation_id))
        if len(entries) >= ANNOTATIONS_PER_WRITE:
            yield (b"," if annotation_id > len(entries) else b"") + b",".join(entries)
            entries.clear()
    if entries:
        yield (b"," if annotation_id > len(entries) else b"") + b",".join(entries)
    yield b"]}"


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConversionError(f"{path}: cannot be written ({error.strerror or error})") from error


@contextmanager
def writable_folder(folder: Path, names: Sequence[str]) -> Iterator[None]:
    """Makes sure, before the work starts, that files can be written into a folder.

    The folder is created where it is missing, and taken away again if the work fails and left it empty.

    Args:
        folder: The output folder.
        names: The files that will be written into it.

    Raises:
        ConversionError: The folder cannot be created or written into, or one of the names is a folder.
    """
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    probe = folder / f".{os.getpid()}.tmp"
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe.touch(exist_ok=False)
            probe.unlink()
        except OSError as error:
            raise ConversionError(
                f"{folder}: cannot be used as the output folder ({error.strerror or error})"
            ) from error
        for name in names:
            if (folder / name).is_dir():
                raise ConversionError(f"{folder / name}: is a folder, but the output file has this name")
        yield
    except BaseException:
        for created in missing:
            with suppress(OSError):  # not empty, or never created
                created.rmdir()
        raise


def _sync_folder(folder: Path) -> None:
    """Puts a rename on the disk, where the system can open folders (Windows cannot)."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
