"""A COCO instances JSON as flat arrays."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dpipe.building.problems import shorten
from dpipe.errors import InputError
from dpipe.outlines.ragged import offsets_of
from dpipe.polygons import Polygons

if TYPE_CHECKING:
    from dpipe.index.array_file import MappedArrays


@dataclass(frozen=True, eq=False, repr=False)
class CocoIndex:
    """Images and instances of a COCO JSON.

    N images, in the file's order; M instances, ordered by image and within an image as in the file. Image i owns rows
    ``offsets[i]:offsets[i+1]`` of every per-instance array.

    Attributes:
        path: The JSON file.
        class_names: C names in the order of ``categories``; a label is a position in it.
        category_ids: (C,) int64, the file's ids in the same order.
        image_ids: (N,) int64.
        widths: (N,) int32 pixels.
        heights: (N,) int32 pixels.
        file_names: N names relative to the image root.
        offsets: (N+1,) int64.
        boxes: (M, 4) float32 xyxy as written in the file, not clipped.
        labels: (M,) int64 in 0..C-1.
        crowd: (M,) bool: ignore regions (``iscrowd``, ``ignore`` or ``difficult``), never positives.
        areas: (M,) float64 ``area`` of the file; where it is missing, that of the polygons, else of the box.
        annotation_ids: (M,) int64.
        polygons: M instances; no rings where the file has no segmentation.
        left_out: How many annotations have no row, because their box is empty or wholly outside of the image.
        mapped: The file that the arrays are mapped from, read-only; None where they are in memory.
    """

    path: Path
    class_names: tuple[str, ...]
    category_ids: NDArray[np.int64]
    image_ids: NDArray[np.int64]
    widths: NDArray[np.int32]
    heights: NDArray[np.int32]
    file_names: Sequence[str]
    offsets: NDArray[np.int64]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    areas: NDArray[np.float64]
    annotation_ids: NDArray[np.int64]
    polygons: Polygons
    left_out: int = 0
    mapped: MappedArrays | None = None

    def __len__(self) -> int:
        return len(self.image_ids)

    def __repr__(self) -> str:
        return (
            f"CocoIndex({str(self.path)!r}: {len(self)} images, {len(self.labels)} instances, "
            f"{len(self.class_names)} classes)"
        )

    @property
    def has_masks(self) -> bool:
        """Whether any instance has a polygon."""
        return len(self.polygons.holes) > 0

    @property
    def left_out_note(self) -> str:
        """What a user is to be told of ``left_out``, in one line; empty where nothing was left out."""
        if not self.left_out:
            return ""
        return f"annotations left out, as their boxes are empty or outside of their images: {self.left_out}"

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, classes: Sequence[str] | None = None, cache: bool = True
    ) -> CocoIndex:
        """Reads a COCO instances JSON and checks it whole.

        An annotation whose box has no width or no height, or lies wholly outside of its image, has nothing to learn
        from and gets no row (``left_out`` counts them). Everything else that is wrong is an error.

        The arrays of a file of 8 MB or more are stored, and mapped read-only from there the next time: in
        milliseconds, and shared by all processes. They are known by the JSON's content, so a copy or a touched file
        finds them too; while size, times and inode stay as they were, the content is not read to tell. They lie in
        ``$DPIPE_CACHE_DIR``, by default ``$XDG_CACHE_HOME/dpipe`` or ``~/.cache/dpipe``; what was not used for two
        months, or is the oldest of more than 4 GB, is removed. Where that folder cannot be written (or the variable
        is empty), everything works without. It may be shared by users who trust each other.

        Args:
            path: The JSON file.
            classes: The class names that are expected, in order.
            cache: Whether to use stored arrays, and to store them.

        Raises:
            InputError: ``path`` is no path or ``classes`` no list; the file cannot be read or is not COCO JSON; a
                record lacks a key or holds a value of the wrong kind; an id or a category's name occurs twice; an
                annotation points to an image or category that is not there; a box has a negative width or height; a
                coordinate is too large for float32; a segmentation is malformed; the categories are not ``classes``.
        """
        if not isinstance(path, str | os.PathLike):
            raise InputError(f"CocoIndex: expected the path of a JSON, got {shorten(path)}")
        if isinstance(classes, str):
            raise InputError(f"CocoIndex: classes must be a list of names, got {classes!r}")
        # These modules make an index; they build on this one.
        if cache:
            from dpipe.index.coco_cache import load_index
        else:
            from dpipe.index.coco_read import load_index
        index = load_index(Path(path))
        if classes is not None and tuple(classes) != index.class_names:
            raise InputError(f"{path}: {class_difference(index.class_names, tuple(classes))}")
        return index

    def with_classes(self, names: Sequence[str]) -> CocoIndex:
        """Returns the index of these classes, in this order: labels count them, category ids stay the file's.

        Objects and crowd regions of other classes have no rows; all images are kept, and ``left_out`` stays what it is.

        Args:
            names: Of classes of this index.

        Raises:
            InputError: If it is no list, is empty, or has a name that is unknown or occurs twice.
        """
        from dpipe.index.combining import choose_classes

        return choose_classes(self, names)

    @classmethod
    def concatenate(
        cls, indexes: Sequence[CocoIndex], *, folders: Sequence[str | os.PathLike[str]] | None = None
    ) -> CocoIndex:
        """Makes one index of several, whose images come one after another.

        Image ids stay as they are where no two are equal, else images are numbered anew from 1; so do annotation ids.
        Category ids are those of the first index, and ``path`` names all files. The arrays are copies in memory, also
        where those of the indices are mapped.

        Args:
            indexes: With the same classes in the same order, see ``with_classes``.
            folders: For each index the folder of its images, relative to one that all of them lie in, which is then the
                folder of images. Where not given, all file names are relative to the same folder.

        Raises:
            InputError: If there is no index, their classes differ, an image file is in two of them, or there is not a
                folder for each, or one leads out.
        """
        from dpipe.index.combining import concatenate

        return concatenate(indexes, folders)

    def __reduce__(self) -> tuple[Any, ...]:
        """Arrays that are mapped from a file are mapped again by who unpickles them, not copied."""
        if self.mapped is not None:
            from dpipe.index.coco_cache import reduced

            return reduced(self, self.mapped)
        return type(self), tuple(getattr(self, field.name) for field in fields(self))

    def aspect_groups(self) -> NDArray[np.int64]:
        """(N,) int64: 0 for portrait images (narrower than high), 1 for all others."""
        return (self.widths >= self.heights).astype(np.int64)

    def non_empty(self) -> NDArray[np.bool_]:
        """(N,) bool: the image has an instance that is not a crowd region."""
        before = offsets_of((~self.crowd).astype(np.int64))
        return before[self.offsets[1:]] > before[self.offsets[:-1]]


def class_difference(found: tuple[str, ...], expected: tuple[str, ...]) -> str:
    """How two lists of classes differ: both, where they are short, else where they first do."""
    if len(found) + len(expected) <= 20:
        return f"has the classes {list(found)}, expected were {list(expected)}, in this order"
    place = next(
        (place for place, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]),
        min(len(found), len(expected)),
    )
    here, there = (repr(names[place]) if place < len(names) else "no more" for names in (found, expected))
    return (
        f"has {len(found)} classes, expected were {len(expected)}; they differ first at label {place}: "
        f"{here}, expected was {there}"
    )


def image_path(root: str | os.PathLike[str], file_name: str) -> Path:
    """The path of an image, which has to stay below the image root.

    Names are judged as they are written; symbolic links inside the root are the user's own and are followed.

    Raises:
        InputError: The name is empty or absolute, or has ``..`` in it.
    """
    if "\0" not in file_name and ".." in file_name.replace("\\", "/").split("/"):
        raise InputError(
            f"image file name {file_name!r}: '..' is not allowed, expected a path straight down from {root}"
        )
    absolute = file_name.startswith(("/", "\\")) or PureWindowsPath(file_name).drive != ""
    if not file_name or absolute or "\0" in file_name:
        raise InputError(f"image file name {file_name!r}: expected a relative path below the image folder {root}")
    return Path(root, file_name)


class ImagePaths(Sequence[Path]):
    """The image files of an index, each name checked against leaving the folder when it is asked for.

    Args:
        root: Folder of the images.
        file_names: Relative to it.
    """

    def __init__(self, root: str | os.PathLike[str], file_names: Sequence[str]) -> None:
        self.root = Path(root)
        self.file_names = file_names

    def __len__(self) -> int:
        return len(self.file_names)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [image_path(self.root, name) for name in self.file_names[number]]
        return image_path(self.root, self.file_names[number])
