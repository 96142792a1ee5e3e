"""The folders of Pascal VOC: years, splits, and the files of each image.

``ImageSets/Main/<split>.txt`` lists image names. Beside the splits that folder holds a file for each class and split
(``dog_train.txt``), with a second column; those are not splits. A split may be named like one of them
(``mini_train.txt``): only the second column tells.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from converters.errors import ConversionError
from converters.folders import chosen, entries, is_folder

CLASS_LIST_LINE = re.compile(r"\s(-1|0|1)$")
YEAR_FOLDER = re.compile(r"VOC(\d{4})")
# Splits come in this order, others after them by name.
SPLIT_ORDER = ("train", "val", "trainval", "test")
# Where several images share a name, the format that Pascal VOC uses is meant.
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp")


@dataclass(frozen=True)
class YearFolder:
    """One year's folder.

    Attributes:
        year: Four digits; empty for a folder that is not named after a year.
        path: The folder that holds Annotations, JPEGImages and ImageSets.
    """

    year: str
    path: Path


@dataclass(frozen=True)
class VocImage:
    """The files of one image.

    Attributes:
        annotation: The XML file, which may be missing on disk.
        image: The image; None where there is none.
        masks: The label image of ``SegmentationObject``; None where there is none.
    """

    annotation: Path
    image: Path | None
    masks: Path | None


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


def find_years(root: Path, years: Sequence[str] | None) -> list[YearFolder]:
    """Lists the years' folders of a data set.

    Args:
        root: The VOCdevkit folder, or one folder with Annotations and JPEGImages.
        years: Which years; None for all.

    Raises:
        ConversionError: There is none, or a named one is missing.
    """
    if is_folder(root / "Annotations"):
        match = YEAR_FOLDER.fullmatch(root.resolve().name)
        folders = [YearFolder(match[1] if match else "", root)]
    else:
        matches = [(YEAR_FOLDER.fullmatch(path.name), path) for path in entries(root) if is_folder(path)]
        folders = [YearFolder(match[1], path) for match, path in matches if match]
    if not folders:
        raise ConversionError(f"{root}: has neither a folder VOC20xx nor a folder Annotations")
    wanted = chosen("year", [folder.year for folder in folders], years, root)
    folders = [folder for folder in folders if folder.year in wanted]
    for folder in folders:
        for name in ("Annotations", "JPEGImages", "ImageSets"):
            if not is_folder(folder.path / name):
                raise ConversionError(
                    f"{folder.path}: has no folder {name}, expected Annotations, JPEGImages and ImageSets"
                )
    return folders


def find_splits(root: Path, years: Sequence[YearFolder], splits: Sequence[str] | None) -> tuple[list[Split], list[str]]:
    """Lists the splits and their images.

    Args:
        root: The data set's folder, for errors.
        years: The years' folders.
        splits: Which splits; None for all that have annotations.

    Returns:
        The splits, and a note for each that was left out.

    Raises:
        ConversionError: A named split is missing or has no annotations, a list is malformed, or nothing is left.
    """
    lists = {folder: _split_lists(folder.path) for folder in years}
    names = {name for found in lists.values() for name in found}
    if not names:
        raise ConversionError(f"{root}: has no lists of images (ImageSets/Main/<split>.txt)")
    ordered = sorted(
        names, key=lambda name: (SPLIT_ORDER.index(name) if name in SPLIT_ORDER else len(SPLIT_ORDER), name)
    )
    files = {folder: _Files(folder.path) for folder in years}
    result, notes = [], []
    for name in chosen("split", ordered, splits, root):
        images: list[VocImage] = []
        with_annotations = []
        for folder, found in lists.items():
            if name not in found:
                continue
            of_year = [files[folder].of(stem) for stem in _image_names(found[name])]
            if any(files[folder].has_annotation(image) for image in of_year):
                images += of_year
                with_annotations.append(folder.year)
                continue
            notes.append(f"left out: the split {name} of {folder.path} has no annotations")
        if splits and not images:
            raise ConversionError(f"{root}: the split {name} has no annotations")
        if images:
            file_name = "_".join(["voc", *(year for year in with_annotations if year), name]) + ".json"
            result.append(Split(name, file_name, tuple(images)))
    if not result:
        raise ConversionError(f"{root}: no split has annotations")
    return result, notes


def _split_lists(folder: Path) -> dict[str, Path]:
    """Returns the lists of a year that are splits, by name."""
    lists = folder / "ImageSets" / "Main"
    found = {path.stem: path for path in entries(lists) if path.suffix == ".txt"}
    return {
        name: path
        for name, path in found.items()
        if not (any(name.endswith(f"_{other}") for other in found) and _is_class_list(path))
    }


def _is_class_list(path: Path) -> bool:
    """Whether every line of a list has the second column; so has a list without lines, of a class without images."""
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    return all(CLASS_LIST_LINE.search(line.strip()) for line in lines if line.strip())


def _image_names(path: Path) -> list[str]:
    """Reads a list of image names; a name that occurs twice counts once.

    Raises:
        ConversionError: The list is empty or no text, is one of a class, or a line is not a plain name.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ConversionError(f"{path}: is not a text file in UTF-8") from None
    names: dict[str, None] = {}
    for number, line in enumerate(lines, 1):
        name = line.strip()
        if not name:
            continue
        if "/" in name or "\\" in name or name == "..":
            raise ConversionError(f"{path}: line {number} is {name!r}, expected the name of an image in JPEGImages")
        names[name] = None
    if not names:
        raise ConversionError(f"{path}: holds no image names")
    if all(CLASS_LIST_LINE.search(name) for name in names):
        raise ConversionError(f"{path}: lists the images of one class with a second column, expected image names only")
    return list(names)


class _Files:
    """The files of a year's folder, listed once instead of being asked for one by one.

    Args:
        folder: The year's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._annotations = folder / "Annotations"
        self._existing = {path.name for path in entries(self._annotations)}
        # The preferred ending is entered last.
        by_preference = sorted(
            entries(folder / "JPEGImages"), key=lambda path: _rank(path.suffix.lower()), reverse=True
        )
        self._images = {path.stem: path for path in by_preference}
        self._masks = {path.stem: path for path in entries(folder / "SegmentationObject") if path.suffix == ".png"}

    def of(self, stem: str) -> VocImage:
        return VocImage(self._annotations / f"{stem}.xml", self._images.get(stem), self._masks.get(stem))

    def has_annotation(self, image: VocImage) -> bool:
        return image.annotation.name in self._existing


def _rank(ending: str) -> int:
    return IMAGE_ENDINGS.index(ending) if ending in IMAGE_ENDINGS else len(IMAGE_ENDINGS)
