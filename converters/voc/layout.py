"""Where a Pascal VOC data set keeps its files: as published, in its archives, and as people have their own.

A data set is found as

- a folder ``VOCdevkit`` with folders ``VOC2007``, ``VOC2012`` ..., or a folder that holds a ``VOCdevkit``;
- one such year, or any folder with ``Annotations`` and ``JPEGImages`` (or ``images``, or images beside that folder);
- a folder with XML files and images side by side, as labelImg leaves it;
- a folder of such folders (``train``, ``valid``, ``test``), which become the splits;
- an archive of any of these, or a folder with the published archives, ``VOC*.tar``, read as if all were unpacked there.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from converters.errors import ConversionError
from converters.reading.archives import ArchivePath, Place, open_place
from converters.reading.folders import chosen, entries, is_folder
from converters.voc.files import File, files_in

YEAR_FOLDER = re.compile(r"VOC(\d{4})")
DEVKIT = "VOCdevkit"
PUBLISHED_ARCHIVE = re.compile(r"voc.*\.(tar|zip)", re.IGNORECASE)
IMAGE_FOLDERS = ("jpegimages", "images")
# Where several images share a name, the format that Pascal VOC uses is meant.
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif")
RANKS = {ending: rank for rank, ending in enumerate(IMAGE_ENDINGS)}
ANNOTATION_ENDING = ".xml"
MASK_ENDING = ".png"


class VocImage(NamedTuple):
    """The files of one image.

    Attributes:
        annotation: The XML file, which may be missing.
        image: The image; None where none has the annotation's name.
        file_name: The image's name for the JSON; where there is no image, the folder that may hold it.
        masks: The label image of ``SegmentationObject``; None where there is none.
        folder: Where to look for an image of another name; None where there is an image.
    """

    annotation: File
    image: File | None
    file_name: str
    masks: File | None
    folder: Place | None


@dataclass(frozen=True)
class VocFolder:
    """One folder of annotations and images.

    Attributes:
        place: The folder, which has ``ImageSets`` if there are lists.
        annotations: The folder of the XML files.
        images: The folder of the images.
        prefix: What stands before an image's name in the JSON.
    """

    place: Place
    annotations: Place
    images: Place
    prefix: str


@dataclass(frozen=True)
class VocSet:
    """What belongs together: a year, in one folder or spread over archives, or a set of one's own.

    Attributes:
        year: Four digits; empty for what is not named after a year.
        folders: Its folders.
        split: The name of the one split where there are no lists.
    """

    year: str
    folders: tuple[VocFolder, ...]
    split: str = "all"


def find_sets(root: Place, years: Sequence[str] | None) -> list[VocSet]:
    """Finds the sets of a data set.

    Args:
        root: A folder or an archive.
        years: Which years; None for all.

    Raises:
        ConversionError: There is none, a named year is missing, or an archive cannot be read.
    """
    found = _sets(root)
    if not found and isinstance(root, Path):
        archives = [open_place(path) for path in entries(root) if PUBLISHED_ARCHIVE.fullmatch(path.name)]
        found = [voc_set for archive in archives for voc_set in _sets(archive)]
    if not found:
        raise ConversionError(
            f"{root}: is no Pascal VOC data set; expected folders VOC20xx, a folder Annotations, or XML files"
        )
    joined: dict[tuple[str, str], VocSet] = {}
    for voc_set in found:  # a year's archives are parts of one set
        key = (voc_set.year, voc_set.split)
        before = joined[key].folders if key in joined else ()
        joined[key] = VocSet(voc_set.year, before + voc_set.folders, voc_set.split)
    sets = [joined[key] for key in sorted(joined)]
    wanted = chosen("year", [voc_set.year for voc_set in sets], years, root)
    return [voc_set for voc_set in sets if voc_set.year in wanted]


def _sets(root: Place) -> list[VocSet]:
    """Returns what a folder is or holds; nothing where it is no data set."""
    name = root.name if isinstance(root, ArchivePath) else root.resolve().name
    match = YEAR_FOLDER.fullmatch(name)
    if folder := _as_folder(root, ""):
        return [VocSet(match[1] if match else "", (folder,))]
    inner = [place for place in entries(root) if not place.name.startswith(".") and is_folder(place)]
    years = [(YEAR_FOLDER.fullmatch(place.name), _as_folder(place, f"{place.name}/")) for place in inner]
    if of_years := [VocSet(match[1], (folder,)) for match, folder in years if match and folder]:
        return of_years
    for place in inner:
        if place.name == DEVKIT:
            return _sets(place)
    if _has_annotations(root):
        return [VocSet("", (VocFolder(root, root, root, ""),))]
    return [
        VocSet("", (VocFolder(place, place, place, f"{place.name}/"),), split=place.name)
        for place in inner
        if _has_annotations(place)
    ]


def _as_folder(place: Place, prefix: str) -> VocFolder | None:
    """Returns a folder's parts where it has one with annotations, else None."""
    inner = {child.name: child for child in entries(place) if is_folder(child)}
    annotations = inner.get("Annotations")
    if annotations is None:
        # Only with XML files in it: the converters' own output goes to a folder "annotations".
        others = [child for name, child in inner.items() if name.lower() == "annotations" and _has_annotations(child)]
        if not others:
            return None
        annotations = others[0]
    by_lower = {name.lower(): child for name, child in sorted(inner.items(), reverse=True)}
    for name in IMAGE_FOLDERS:
        if name in by_lower:
            return VocFolder(place, annotations, by_lower[name], f"{prefix}{by_lower[name].name}/")
    return VocFolder(place, annotations, place, prefix)


def _has_annotations(folder: Place) -> bool:
    return any(is_annotation(name) for name, _ in files_in(folder))


def is_annotation(name: str) -> bool:
    """Whether a file's name is that of an annotation; other systems leave files ``._name.xml`` beside."""
    return name.endswith(ANNOTATION_ENDING) and not name.startswith(".")


@dataclass
class SetFiles:
    """The files of a set by the names of their images, listed once instead of being asked for one by one.

    Args:
        voc_set: The set.

    Attributes:
        annotations: The XML files.
    """

    voc_set: VocSet
    annotations: dict[str, File] = field(default_factory=dict, init=False)
    _images: dict[str, tuple[File, str]] = field(default_factory=dict, init=False)
    _masks: dict[str, File] = field(default_factory=dict, init=False)
    _composed: dict[str, str] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        for folder in self.voc_set.folders:
            for name, file in files_in(folder.annotations):
                if is_annotation(name):
                    self.annotations.setdefault(name[: -len(ANNOTATION_ENDING)], file)
            ranked: dict[str, int] = {}
            for name, file in files_in(folder.images):
                stem, _, ending = name.rpartition(".")
                if (rank := RANKS.get(f".{ending}".lower(), len(RANKS))) < ranked.get(stem, len(RANKS)):
                    ranked[stem] = rank
                    self._images[stem] = (file, folder.prefix + name)
            for name, file in files_in(folder.place / "SegmentationObject"):
                if name.endswith(MASK_ENDING):
                    self._masks[name[: -len(MASK_ENDING)]] = file

    def of(self, name: str) -> VocImage:
        """Returns the files of one image; those of a missing annotation or image say where it was looked for."""
        annotation = self.annotations.get(name)
        image, file_name = self._images.get(name, (None, ""))
        folder = self.voc_set.folders[0]
        if annotation is None:
            place = folder.annotations / (name + ANNOTATION_ENDING)
            annotation = place if isinstance(place, ArchivePath) else str(place)
        if image is None:
            return VocImage(annotation, None, folder.prefix, self._masks.get(name), folder.images)
        return VocImage(annotation, image, file_name, self._masks.get(name), None)

    def resolved(self, name: str) -> str:
        """Returns the name under which the files are, of one that a list writes in another way.

        Lists are made with the ending of an image, and on systems that compose letters and accents otherwise. A name
        that is known as it is means that.
        """
        if self._knows(name):
            return name
        stem, ending = os.path.splitext(name)
        if ending.lower() in (ANNOTATION_ENDING, *IMAGE_ENDINGS) and self._knows(stem):
            return stem
        if self._composed is None:
            names = [*self._images, *self.annotations]
            self._composed = {unicodedata.normalize("NFC", known): known for known in names if not known.isascii()}
        return self._composed.get(unicodedata.normalize("NFC", name), name)

    def unannotated(self) -> int:
        """Returns how many images have no annotation."""
        return len(self._images.keys() - self.annotations.keys())

    def _knows(self, name: str) -> bool:
        return name in self.annotations or name in self._images
