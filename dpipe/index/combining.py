"""Indices made of other ones: a choice of classes, and several data sets in one."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dpipe.building.problems import nearest, shorten
from dpipe.coco import CocoIndex, class_difference, image_path
from dpipe.errors import InputError
from dpipe.index.texts import Texts
from dpipe.outlines.ragged import Ints, offsets_of
from dpipe.polygons import Polygons


def choose_classes(index: CocoIndex, names: Sequence[str]) -> CocoIndex:
    """See ``CocoIndex.with_classes``."""
    names = _checked_names(index, names)
    if names == index.class_names:
        return index
    label_of = {name: label for label, name in enumerate(names)}
    new_labels = np.array([label_of.get(name, -1) for name in index.class_names], dtype=np.int64)
    labels = new_labels[index.labels]
    category_ids = index.category_ids[[index.class_names.index(name) for name in names]]
    chosen = labels >= 0
    if chosen.all():
        return replace(index, class_names=names, category_ids=category_ids, labels=labels)
    return replace(
        index,
        class_names=names,
        category_ids=category_ids,
        offsets=offsets_of(chosen.astype(np.int64))[index.offsets],
        boxes=index.boxes[chosen],
        labels=labels[chosen],
        crowd=index.crowd[chosen],
        areas=index.areas[chosen],
        annotation_ids=index.annotation_ids[chosen],
        polygons=index.polygons.select(chosen),
    )


def _checked_names(index: CocoIndex, names: Sequence[str]) -> tuple[str, ...]:
    """The names, in a tuple.

    Raises:
        InputError: If they are no list of different names of the index's classes.
    """
    if isinstance(names, str) or not isinstance(names, Sequence) or not names:
        raise InputError(f"{index.path}: expected a list of names of classes, got {shorten(names)}")
    for number, name in enumerate(names):
        if name not in index.class_names:
            raise InputError(f"{index.path}: has no class {name!r}{nearest(str(name), index.class_names)}")
        if name in names[:number]:
            raise InputError(f"{index.path}: class {name!r} is named twice, expected each once")
    return tuple(names)


def concatenate(indexes: Sequence[CocoIndex], folders: Sequence[str | os.PathLike[str]] | None) -> CocoIndex:
    """See ``CocoIndex.concatenate``."""
    if not isinstance(indexes, list | tuple) or not all(isinstance(index, CocoIndex) for index in indexes):
        raise InputError(f"concatenate: expected a list of indices, got {shorten(indexes)}")
    if not indexes:
        raise InputError("concatenate: expected at least one index, got none")
    first = indexes[0]
    for index in indexes[1:]:
        if index.class_names != first.class_names:
            difference = class_difference(index.class_names, first.class_names)
            raise InputError(f"{index.path}: {difference}, as {first.path} has; with_classes chooses and orders them")
    return CocoIndex(
        path=Path(" + ".join(str(index.path) for index in indexes)),
        class_names=first.class_names,
        category_ids=first.category_ids,
        image_ids=_unique([index.image_ids for index in indexes]),
        widths=np.concatenate([index.widths for index in indexes]),
        heights=np.concatenate([index.heights for index in indexes]),
        file_names=Texts.of(_joined_names(indexes, _checked_folders(folders, len(indexes)))),
        offsets=offsets_of(np.concatenate([np.diff(index.offsets) for index in indexes])),
        boxes=np.concatenate([index.boxes for index in indexes]),
        labels=np.concatenate([index.labels for index in indexes]),
        crowd=np.concatenate([index.crowd for index in indexes]),
        areas=np.concatenate([index.areas for index in indexes]),
        annotation_ids=_unique([index.annotation_ids for index in indexes]),
        polygons=Polygons.concatenate([index.polygons for index in indexes]),
        left_out=sum(index.left_out for index in indexes),
    )


def _unique(several: Sequence[Ints]) -> Ints:
    """All ids, numbered anew from 1 where one occurs twice."""
    ids = np.concatenate(several)
    return ids if len(np.unique(ids)) == len(ids) else np.arange(1, len(ids) + 1, dtype=np.int64)


def _checked_folders(folders: Sequence[str | os.PathLike[str]] | None, count: int) -> list[str]:
    """A folder for each index, with slashes.

    Raises:
        InputError: If there are not as many as indices, or one does not lie below the image folder.
    """
    if folders is None:
        return [""] * count
    if not isinstance(folders, list | tuple) or not all(isinstance(each, str | os.PathLike) for each in folders):
        raise InputError(f"concatenate: folders must be a list of folders, got {shorten(folders)}")
    if len(folders) != count:
        raise InputError(f"concatenate: expected a folder for each of the {count} indices, got {len(folders)}")
    return [_checked_folder(os.fspath(folder).replace(os.sep, "/")) for folder in folders]


def _checked_folder(folder: str) -> str:
    if folder:
        try:
            image_path("", folder)
        except InputError:
            raise InputError(f"concatenate: expected folders below the image folder, got {folder!r}") from None
    return folder


def _joined_names(indexes: Sequence[CocoIndex], folders: Sequence[str]) -> list[str]:
    """The file names of all, relative to what the folders lie in.

    Raises:
        InputError: If two indices name the same file.
    """
    names: list[str] = []
    owner: dict[str, CocoIndex] = {}
    for index, folder in zip(indexes, folders, strict=True):
        own = [posixpath.join(folder, name) for name in index.file_names]  # an absolute name stays one, to be refused
        for name in own:
            if owner.setdefault(name, index) is not index:
                raise InputError(
                    f"{index.path}: image {name} is in {owner[name].path} as well: expected other images, or folders"
                )
        names += own
    return names
