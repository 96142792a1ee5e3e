"""COCO JSON documents: assembled with stable ids, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from converters.errors import ConversionError
from converters.report import SplitSummary


@dataclass(frozen=True)
class ImageRecord:
    """One image and its annotations, before ids are given.

    Attributes:
        image: The entry of ``images`` without ``id``.
        annotations: The entries of ``annotations`` without ``id`` and ``image_id``.
    """

    image: dict[str, Any]
    annotations: list[dict[str, Any]]


def make_document(
    records: Sequence[ImageRecord], categories: Sequence[dict[str, Any]], *, first_image_id: int
) -> dict[str, Any]:
    """Joins records into a COCO document; image ids count up from ``first_image_id`` in the order of the records.

    Ids of annotations count up from 1, always: pycocotools takes 0, as the id of the object that a detection found, for
    "found none".

    The records are left as they are: the same one may be part of several documents.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, record in enumerate(records, first_image_id):
        images.append({**record.image, "id": image_id})
        for annotation in record.annotations:
            annotations.append({**annotation, "image_id": image_id, "id": 1 + len(annotations)})
    return {"images": images, "categories": list(categories), "annotations": annotations}


def summarize(name: str, document: dict[str, Any], path: Path) -> SplitSummary:
    """Counts what a COCO document holds."""
    annotations = document["annotations"]
    return SplitSummary(
        name=name,
        images=len(document["images"]),
        instances=len(annotations),
        crowd=sum(annotation["iscrowd"] for annotation in annotations),
        ignored=sum(annotation.get("ignore", 0) for annotation in annotations),
        masks=sum("segmentation" in annotation for annotation in annotations),
        categories=len(document["categories"]),
        path=path,
    )


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Writes a document atomically: the name appears only once all bytes are on the disk.

    Args:
        path: The file, replaced if it exists. Its folder exists.
        document: Anything that orjson can write.

    Raises:
        ConversionError: The file system refuses.
    """
    data = orjson.dumps(document)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)
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
