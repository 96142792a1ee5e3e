"""The splits of a Pascal VOC data set, and the files of each image.

``ImageSets/Main/<split>.txt`` lists image names. Beside the splits that folder holds a file for each class and split
(``dog_train.txt``), with a second column; those are not splits. A split may be named like one of them
(``mini_train.txt``): only the second column tells. Lists right in ``ImageSets`` count where there is no ``Main``. A set
without lists has one split, of all its annotation files.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from converters.errors import ConversionError
from converters.reading.archives import Place
from converters.reading.folders import chosen, entries, is_folder, unreadable
from converters.report import counted
from converters.voc.annotation_xml import shown
from converters.voc.layout import SetFiles, VocImage

CLASS_LIST_LINE = re.compile(r"\s(-1|0|1)$")
# Splits come in this order, others after them by name.
SPLIT_ORDER = ("train", "val", "trainval", "test")


@dataclass(frozen=True)
class Split:
    """One output file.

    Attributes:
        name: The split.
        file_name: The name of its JSON.
        images: Its images, by year, in the order of the list.
    """

    name: str
    file_name: str
    images: tuple[VocImage, ...]


def find_splits(
    root: Place, sets: Sequence[SetFiles], splits: Sequence[str] | None, *, joined: bool = True
) -> tuple[list[Split], list[str]]:
    """Lists the splits and their images.

    Args:
        root: The data set, for errors.
        sets: The years, or other sets, with their files.
        splits: Which splits; None for all that have annotations.
        joined: Whether splits of the same name in several years become one.

    Returns:
        The splits, and a note for each that was left out, and for other things that a user should know.

    Raises:
        ConversionError: A named split is missing or has no annotations, a list is malformed, or nothing is left.
    """
    lists = [_split_lists(files) for files in sets]
    names = {name for of_set in lists for name in of_set}
    ordered = sorted(
        names, key=lambda name: (SPLIT_ORDER.index(name) if name in SPLIT_ORDER else len(SPLIT_ORDER), name)
    )
    result, notes = [], []
    for name in chosen("split", ordered, splits, root):
        of_years: list[tuple[str, list[VocImage]]] = []
        for files, of_set in zip(sets, lists, strict=True):
            if name not in of_set:
                continue
            stems, of_list = _stems(files, of_set[name])
            notes += of_list
            if any(stem in files.annotations for stem in stems):
                of_years.append((files.voc_set.year, [files.of(stem) for stem in stems]))
            else:
                place = files.voc_set.folders[0].place
                notes.append(f"left out: the split {name} of {place} has no annotations")
        if splits and not of_years:
            raise ConversionError(f"{root}: the split {name} has no annotations")
        for some in [of_years] if joined else [[of_year] for of_year in of_years]:
            if some:
                file_name = "_".join(["voc", *(year for year, _ in some if year), name]) + ".json"
                result.append(Split(name, file_name, tuple(image for _, images in some for image in images)))
    if not result:
        raise ConversionError(f"{root}: no split has annotations")
    return result, notes


def _split_lists(files: SetFiles) -> Mapping[str, Sequence[Place]]:
    """Returns the lists of a set that are splits, by name; a set without any list has a split without one."""
    found: dict[str, list[Place]] = {}
    for folder in files.voc_set.folders:
        lists = folder.place / "ImageSets"
        if is_folder(lists / "Main"):
            lists = lists / "Main"
        for path in entries(lists):
            if path.suffix == ".txt" and not path.name.startswith("."):
                found.setdefault(path.stem, []).append(path)
    if not found:
        return {files.voc_set.split: ()}
    return {name: paths for name, paths in found.items() if not _belongs_to_a_class(name, paths, found)}


def _belongs_to_a_class(name: str, paths: Sequence[Place], found: Collection[str]) -> bool:
    return any(name.endswith(f"_{other}") for other in found) and all(map(_is_class_list, paths))


def _stems(files: SetFiles, lists: Sequence[Place]) -> tuple[list[str], list[str]]:
    """Returns the names of a split's images, and what is to be said about them."""
    if not lists:
        left_out = files.unannotated()
        note = f"{counted(left_out, 'image')} of {files.voc_set.folders[0].images} without an annotation file left out"
        return list(files.annotations), [note] if left_out else []
    stems: dict[str, None] = {}
    notes = []
    for path in lists:
        names = _image_names(path)
        found = [files.resolved(name) for name in names]
        stems.update(dict.fromkeys(found))
        if changed := [name for name, stem in zip(names, found, strict=True) if name != stem]:
            several = ("name is", "names are")
            notes.append(
                f"{path}: {counted(len(changed), several[0], several[1])} written otherwise than the files', "
                f"the first {shown(changed[0])}; the files were found all the same"
            )
    return list(stems), notes


def _is_class_list(path: Place) -> bool:
    """Whether every line of a list has the second column; so has a list without lines, of a class without images."""
    return all(CLASS_LIST_LINE.search(line.strip()) for line in _lines(path, errors="replace") if line.strip())


def _image_names(path: Place) -> list[str]:
    """Reads a list of image names; a name that occurs twice counts once.

    Raises:
        ConversionError: The list is empty or no text, is one of a class, or a line is not a plain name.
    """
    try:
        lines = _lines(path)
    except UnicodeDecodeError:
        raise ConversionError(f"{path}: is not a text file in UTF-8") from None
    names: dict[str, None] = {}
    for number, line in enumerate(lines, 1):
        name = line.strip()
        if not name:
            continue
        if "/" in name or "\\" in name or "\0" in name or name == "..":
            raise ConversionError(f"{path}: line {number} is {shown(name)}, expected the name of an image")
        names[name] = None
    if not names:
        raise ConversionError(f"{path}: holds no image names")
    if all(CLASS_LIST_LINE.search(name) for name in names):
        raise ConversionError(f"{path}: lists the images of one class with a second column, expected image names only")
    return list(names)


def _lines(path: Place, errors: str = "strict") -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig", errors=errors).splitlines()
    except OSError as error:
        raise unreadable(path, error) from error
