"""Checks of image files: all there, whole, of the right size, and no two the same."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import cv2

from dpipe.errors import BadSampleError
from dpipe.images.decode import check_image, decode_image
from dpipe.looking.check_findings import Findings
from dpipe.looking.coco_records import Records

Item = TypeVar("Item")
Result = TypeVar("Result")


def check_images(
    records: Records,
    paths: Mapping[Path, int],
    findings: Findings,
    *,
    decode: bool,
    threads: int,
    progress: Callable[[int], None],
) -> None:
    """Looks at image files, in threads.

    Args:
        records: The data set.
        paths: The files, and the image that names each.
        findings: To add to.
        decode: Decode all pixels; otherwise only the headers and the ends of files are looked at.
        threads: At least 1.
        progress: Is told how many files have been looked at since it was called last.
    """
    cv2.setNumThreads(1)

    def look(path: Path) -> tuple[str, str] | None:
        row = paths[path]
        return _look(path, (int(records.heights[row]), int(records.widths[row])), decode)

    with_size: dict[int, list[Path]] = defaultdict(list)
    for path, trouble in _in_threads(look, paths, threads):
        progress(1)
        if trouble is not None:
            findings.image(trouble[0], paths[path], trouble[1])
        if trouble is None or trouble[0] != "missing_image":
            with_size[path.stat().st_size].append(path)
    # Only files of the same length can be the same.
    alike = [path for several in with_size.values() if len(several) > 1 for path in several]
    with_content: dict[bytes, list[Path]] = defaultdict(list)
    for path, digest in _in_threads(_digest, alike, threads):
        if digest is not None:
            with_content[digest].append(path)
    for several in with_content.values():
        for path in several[1:]:
            first = records.file_names[paths[several[0]]]
            findings.image("same_content", paths[path], f"as {first}")


def _in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> Iterable[tuple[Item, Result]]:
    """Yields each item with its result, in order; what has not begun never does where the consumer breaks off."""
    items = list(items)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="dpipe-check")
    try:
        yield from zip(items, pool.map(function, items), strict=True)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _look(path: Path, size: tuple[int, int], decode: bool) -> tuple[str, str] | None:
    """The kind of finding and its detail; None for a file that is as it should be, or whose size is not known."""
    try:
        if not path.is_file():
            return "missing_image", ""
    except OSError as error:  # a name that is too long, a folder that may not be entered
        return "missing_image", error.strerror or str(error)
    try:
        (decode_image if decode else check_image)(path, size)
    except BadSampleError as error:
        if "the annotations say" not in error.reason:
            return "corrupt_image", error.reason
        return None if 0 in size else ("image_size_differs", error.reason)
    return None


def _digest(path: Path) -> bytes | None:
    """A digest of a file's bytes; None where they cannot be read, which has been told."""
    try:
        with path.open("rb") as file:
            # An image is small; blake2b is the fastest of those that nobody can find two files for.
            return hashlib.blake2b(file.read()).digest()
    except OSError:
        return None
