"""Indices of large annotation files, stored as arrays that are mapped into memory."""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpipe.coco import CocoIndex
from dpipe.errors import InputError
from dpipe.index import coco_read
from dpipe.index.array_file import DamagedError, MappedArrays, map_arrays, write_arrays
from dpipe.index.aside import computed_aside
from dpipe.index.cache import Cache, cache_folder, digest_of, looks_of
from dpipe.index.coco_read import read_content, read_index
from dpipe.index.texts import Texts
from dpipe.polygons import Polygons

log = logging.getLogger("dpipe")

SMALLEST_BYTES = 8 << 20
"""Below, reading takes less than a tenth of a second."""
KIND = "coco-1"
"""To be counted up with every change of what is read from a file, or of the names and meanings of the arrays."""

OF_IMAGES = ("category_ids", "image_ids", "widths", "heights", "offsets")
OF_INSTANCES = ("boxes", "labels", "crowd", "areas", "annotation_ids")
PLAIN = OF_IMAGES + OF_INSTANCES
OF_POLYGONS = ("vertices", "ring_offsets", "instance_offsets", "holes")


def load_index(path: Path) -> CocoIndex:
    """Loads an index from stored arrays, or reads the JSON and stores them; see ``CocoIndex.load``."""
    folder = cache_folder()
    if folder is None or not _is_large(path):
        return coco_read.load_index(path)
    cache = Cache(folder, KIND)
    begin = time.time_ns()
    index = _find(cache, path, cache.known_digest(path))
    if index is not None:
        return index
    with cache.alone():
        # While this process waited, another one may have stored it.
        index = _find(cache, path, cache.known_digest(path, since_ns=begin))
        return index if index is not None else _read_and_store(cache, path)


def restore_index(path: Path, entry: Path, changed: dict[str, NDArray[Any]], rest: dict[str, Any]) -> CocoIndex:
    """Unpickles an index; see ``reduced``."""
    try:
        mapped = map_arrays(entry)
    except (OSError, DamagedError) as error:
        log.debug("%s: %s: read again", entry, error)
        content = read_content(path)
        if digest_of(content) not in entry.name:
            raise InputError(f"{path}: has changed since the index was loaded from it") from None
        arrays = arrays_of(read_index(path, content))
        return _index_from(path, {**arrays, **changed}, rest, None)
    return _index_from(path, {**mapped.arrays, **changed}, rest, mapped)


def reduced(index: CocoIndex, mapped: MappedArrays) -> tuple[Any, ...]:
    """What pickle needs of an index whose arrays are mapped from a file: the file's name, and arrays that are not."""
    changed = {name: array for name, array in arrays_of(index).items() if array is not mapped.arrays.get(name)}
    return restore_index, (index.path, mapped.path, changed, _rest_of(index))


def arrays_of(index: CocoIndex) -> dict[str, NDArray[Any]]:
    """All arrays of an index by name."""
    names = index.file_names if isinstance(index.file_names, Texts) else Texts.of(index.file_names)
    return {
        **{name: getattr(index, name) for name in PLAIN},
        **{name: getattr(index.polygons, name) for name in OF_POLYGONS},
        "name_data": names.data,
        "name_offsets": names.offsets,
    }


def _rest_of(index: CocoIndex) -> dict[str, Any]:
    """What of an index is no array."""
    return {"class_names": list(index.class_names), "left_out": index.left_out}


def _index_from(
    path: Path, arrays: Mapping[str, NDArray[Any]], rest: Mapping[str, Any], mapped: MappedArrays | None
) -> CocoIndex:
    """The index of ``arrays_of`` and ``_rest_of``."""
    return CocoIndex(
        path=path,
        class_names=tuple(rest["class_names"]),
        left_out=rest["left_out"],
        file_names=Texts(arrays["name_data"], arrays["name_offsets"]),
        polygons=Polygons(**{name: arrays[name] for name in OF_POLYGONS}),
        mapped=mapped,
        **{name: arrays[name] for name in PLAIN},
    )


def _is_large(path: Path) -> bool:
    try:
        state = os.stat(path)
    except OSError:  # told when it is read
        return False
    return stat.S_ISREG(state.st_mode) and state.st_size >= SMALLEST_BYTES


def _find(cache: Cache, path: Path, digest: str | None) -> CocoIndex | None:
    """The stored index for a content, if there is one and it is whole."""
    if digest is None:
        return None
    try:
        return _open(cache, path, cache.entry(digest, path.stat().st_size))
    except OSError:
        return None


def _open(cache: Cache, path: Path, entry: Path) -> CocoIndex | None:
    """A stored index; None where there is none that is whole. One that is damaged will be replaced."""
    try:
        mapped = map_arrays(entry)
        index = _index_from(path, mapped.arrays, mapped.meta, mapped)
    except FileNotFoundError:
        return None
    except (OSError, DamagedError, KeyError) as error:
        log.debug("%s: cannot be used: %s", entry, error)
        return None
    cache.use(entry)
    return index


def _digest(content: bytes) -> list[NDArray[Any]]:
    return [np.array(digest_of(content))]


def _read_and_store(cache: Cache, path: Path) -> CocoIndex:
    read_ns = time.time_ns()
    try:
        looks = looks_of(path)
    except OSError:
        return coco_read.load_index(path)
    content = read_content(path)
    index = None
    with computed_aside(partial(_digest, content)) as name:
        if not cache.has_size(len(content)):
            index = read_index(path, content)
        # Otherwise one of them may be of the same content.
        digest = str(name()[0])
    entry = cache.entry(digest, len(content))
    stored = _open(cache, path, entry) if index is None else None
    if index is None and stored is None:
        index = read_index(path, content)
    del content, name  # which holds it too: its memory is wanted for what is written
    try:
        if index is not None:
            write_arrays(entry, arrays_of(index), _rest_of(index))
            stored = _open(cache, path, entry)
            cache.sweep(entry)
        if looks == looks_of(path):
            cache.remember(path, looks, digest, read_ns)
    except OSError as error:
        log.debug("%s: the index of %s is not stored: %s", entry, path, error)
    found = stored if stored is not None else index
    assert found is not None
    return found
