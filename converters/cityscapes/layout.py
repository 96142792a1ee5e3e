"""Where the parts of a Cityscapes data set lie: in folders, or in the archives as they are published.

Labels are in ``gtFine/<split>/<city>`` or ``gtCoarse/<split>/<city>``, images in ``leftImg8bit/<split>/<city>``. Each
of the three is a folder of the data set or, where there is no such folder, the top folder of archives in it whose names
begin like the folder's (``gtFine_trainvaltest.zip``); each split is taken from the first archive that has it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from converters.errors import ConversionError
from converters.reading.archives import Place, is_archive, open_place
from converters.reading.folders import chosen, entries, existing_root, is_folder
from converters.report import counted

ROOT_VARIABLE = "CITYSCAPES_DATASET"
DEFAULT_ROOT = Path("data/cityscapes")
IMAGES = "leftImg8bit"
IMAGE_ENDING = "_leftImg8bit.png"
SPLIT_ORDER = ("train", "val", "test", "train_extra")
UNLABELLED_SPLIT = "test"
"""The split whose labels Cityscapes keeps to itself."""
CITIES_NAMED = 5

Labels = Literal["gtFine", "gtCoarse"]
ENDINGS = {"instance-ids": "instanceIds.png", "polygons": "polygons.json"}


@dataclass(frozen=True)
class Parts:
    """A data set's parts.

    Attributes:
        root: As it was named.
        home: The folder that it lies in, for the output.
        kind: Which labels.
        labels: The folders of that name, more than one if they are in archives; each has a folder for each split.
        images: The same for images; empty where the data set has no images.
    """

    root: str
    home: Path
    kind: Labels
    labels: tuple[Place, ...]
    images: tuple[Place, ...]


@dataclass(frozen=True)
class ImagePair:
    """An image and its labels; either may be missing on disk.

    Attributes:
        key: The city and the name that the two have in common, with "/" between them.
        image: The image; None where the images are not at hand.
        labels: The label image or the polygons; None in a split without labels.
    """

    key: str
    image: Place | None
    labels: Place | None

    @property
    def file(self) -> Place:
        """The image, or the labels where the images are not at hand."""
        place = self.image or self.labels
        assert place is not None
        return place

    def __str__(self) -> str:
        """Names the pair for errors."""
        return str(self.labels or self.image)


@dataclass(frozen=True)
class City:
    """A city's folder, and its files of one kind by the names that they share with their partners."""

    folder: Place
    files: dict[str, Place]


def find_parts(root: str | os.PathLike[str] | None, kind: Labels) -> Parts:
    """Finds the parts of a data set.

    Args:
        root: A folder with the parts or their archives, or one archive, whose folder may hold the images; None for
            ``$CITYSCAPES_DATASET`` or ``data/cityscapes``.
        kind: Which labels.

    Raises:
        ConversionError: There is no such place, it has no such labels, or an archive is damaged.
    """
    if root is not None and is_archive(root) and not Path(root).is_dir():
        home, tops = Path(root).parent, [open_place(root)]
    else:
        home = _existing_root(root)
        tops = [home]
    labels = _places(tops, kind)
    if not labels:
        other: Labels = "gtCoarse" if kind == "gtFine" else "gtFine"
        hint = f"; it has {other}: --labels {other}" if _places(tops, other) else ""
        raise ConversionError(f"{tops[0]}: has no folder {kind} and no archive {kind}*.zip with one{hint}")
    images = _places(tops, IMAGES) or _places([home], IMAGES)
    return Parts(str(tops[0]), home, kind, tuple(labels), tuple(images))


def _existing_root(root: str | os.PathLike[str] | None) -> Path:
    if root is not None:
        candidates: list[tuple[str, Path | None]] = [(str(root), Path(root))]
    elif value := os.environ.get(ROOT_VARIABLE):
        # Whoever sets it means that folder: another data set in its place would go unnoticed.
        candidates = [(f"${ROOT_VARIABLE} = {value}", Path(value))]
    else:
        candidates = [(f"${ROOT_VARIABLE} (not set)", None), (str(DEFAULT_ROOT), DEFAULT_ROOT)]
    return existing_root(candidates, "Cityscapes data set")


def _places(tops: Sequence[Place], name: str) -> list[Place]:
    """Returns the folder of a name right below a place; without one, those at the top of archives there."""
    for top in tops:
        if is_folder(top / name):
            return [top / name]
    archives = [
        open_place(path)
        for top in tops
        if isinstance(top, Path)
        for path in entries(top)
        if path.name.startswith(name) and is_archive(path)
    ]
    return [archive / name for archive in archives if is_folder(archive / name)]


def find_pairs(parts: Parts, splits: Sequence[str] | None, source: str) -> tuple[dict[str, list[ImagePair]], list[str]]:
    """Lists images and labels, matched by city and name.

    A city that has its folder among the labels or among the images only is left out: people keep some cities. Within a
    city that has both, a file without its partner is listed, and is an error once it is converted.

    Args:
        parts: The data set.
        splits: Which splits; None for all that have labels and, if there are any images, images.
        source: Which labels, a key of ``ENDINGS``.

    Returns:
        For each split the pairs, sorted by city and name, and a note for each split or city that was left out.

    Raises:
        ConversionError: A named split is missing or has no labels, a folder cannot be read, or nothing is left.
    """
    ending = f"_{parts.kind}_{ENDINGS[source]}"
    found = sorted(
        {path.name for place in (*parts.labels, *parts.images) for path in entries(place) if is_folder(path)},
        key=lambda name: (SPLIT_ORDER.index(name) if name in SPLIT_ORDER else len(SPLIT_ORDER), name),
    )
    pairs: dict[str, list[ImagePair]] = {}
    notes = []
    if not parts.images:
        notes.append(f"{parts.home}: has no {IMAGES}: sizes are those of the labels, and no image was looked at")
    for split in chosen("split", found, splits, (parts.images or parts.labels)[0]):
        labels = _cities(_of_split(parts.labels, split), ending)
        images = _cities(_of_split(parts.images, split), IMAGE_ENDING)
        lack = _lack(parts, split, labels, images, ending)
        if lack and splits and split == UNLABELLED_SPLIT and images and not _has_files(labels):
            notes.append(f"{lack}: its file lists images only")
            labels = {}
        elif lack and splits:
            raise ConversionError(f"{parts.root}: {lack}")
        elif lack:
            notes.append(f"left out: {lack}")
            continue
        elif parts.images:
            notes += [
                f"left out: {_listed(alone)} of the split {split}, without {what}"
                for one, other, what in ((labels, images, "images"), (images, labels, "annotations"))
                if (alone := sorted(one.keys() - other.keys()))
            ]
        pairs[split] = _matched(labels, images, ending)
    if not pairs:
        raise ConversionError(f"{parts.root}: no split has annotations ({parts.kind}/<split>/<city>/*{ending})")
    return pairs, notes


def _lack(parts: Parts, split: str, labels: dict[str, City], images: dict[str, City], ending: str) -> str:
    """Returns the line that tells why a split cannot be converted; empty where it can."""
    if not _has_files(labels):
        return f"the split {split} has no annotations ({_of_split(parts.labels, split)}/*/*{ending})"
    if parts.images and not images:
        return f"the split {split} has no images ({_of_split(parts.images, split)}/*/*{IMAGE_ENDING})"
    if images and not labels.keys() & images.keys():
        return f"the split {split} has no city with both annotations and images"
    return ""


def _has_files(cities: dict[str, City]) -> bool:
    return any(city.files for city in cities.values())


def _of_split(places: Sequence[Place], split: str) -> Place | None:
    """Returns the split's folder in the first place that has it; else where it would be."""
    folders = [place / split for place in places]
    return next((folder for folder in folders if is_folder(folder)), folders[0] if folders else None)


def _cities(folder: Place | None, ending: str) -> dict[str, City]:
    """Returns the cities of a split; their files are those with the ending."""
    if folder is None:
        return {}
    return {
        city.name: City(
            city, {path.name.removesuffix(ending): path for path in entries(city) if path.name.endswith(ending)}
        )
        for city in entries(folder)
        if is_folder(city)
    }


def _matched(labels: dict[str, City], images: dict[str, City], ending: str) -> list[ImagePair]:
    """Pairs the files of the cities on both sides; where one side has no cities, the other's stand alone."""
    pairs = []
    for name in sorted(labels.keys() & images.keys() if labels and images else labels.keys() | images.keys()):
        with_labels, with_images = labels.get(name), images.get(name)
        keys = {key for city in (with_labels, with_images) if city is not None for key in city.files}
        pairs += [
            ImagePair(
                f"{name}/{key}",
                _file(with_images, key, IMAGE_ENDING),
                _file(with_labels, key, ending),
            )
            for key in sorted(keys)
        ]
    return pairs


def _file(city: City | None, key: str, ending: str) -> Place | None:
    """Returns a file; where it is missing, the place where it was expected."""
    if city is None:
        return None
    return city.files.get(key) or city.folder / (key + ending)


def _listed(cities: Sequence[str]) -> str:
    """Returns "1 city (ulm)", "7 cities (aachen, bochum ...)"."""
    more = " ..." if len(cities) > CITIES_NAMED else ""
    return f"{counted(len(cities), 'city', 'cities')} ({', '.join(cities[:CITIES_NAMED])}{more})"
