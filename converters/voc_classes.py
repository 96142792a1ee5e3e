"""The classes of a Pascal VOC data set, and their order, which gives them their category ids.

They depend on the years that are converted, not on the splits, so that a category id means the same class in files that
were converted one split at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from converters.folders import entries
from converters.report import counted
from converters.runner import map_files
from converters.voc_splits import YearFolder
from converters.voc_xml import read_names

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


def find_classes(
    years: Sequence[YearFolder],
    known: Mapping[Path, Collection[str]],
    chosen: Collection[Path],
    *,
    nproc: int | None = None,
    show_progress: bool = False,
) -> tuple[list[str], list[str]]:
    """Collects the classes of all annotation files of some years.

    Args:
        years: The years' folders.
        known: The annotation files that have been read, with their classes; all others are read here.
        chosen: The annotation files of the chosen splits, whose errors end the conversion or are listed anyway.
        nproc: Number of processes.
        show_progress: Whether to show progress on stderr.

    Returns:
        The classes in the order of their category ids, all 20 of Pascal VOC or, where another name occurs, the names
        found, sorted; and a note where files outside the chosen splits could not be read.
    """
    others = [
        path
        for folder in years
        for path in entries(folder.path / "Annotations")
        if path.suffix == ".xml" and not path.name.startswith(".") and path not in known
    ]
    found, errors = map_files(
        read_names,
        others,
        name_of=str,
        title="voc: classes of other splits",
        nproc=nproc,
        on_error="skip",
        show_progress=show_progress,
    )
    names = set().union(*known.values(), *(of_file for of_file in found if of_file is not None))
    unread = [path for path, of_file in zip(others, found, strict=True) if of_file is None]
    lines = [line for path, line in zip(unread, errors, strict=True) if path not in chosen]
    notes = []
    if lines:
        files = counted(len(lines), "annotation file")
        notes.append(f"{files} outside the chosen splits could not be searched for classes; the first: {lines[0]}")
    return class_order(names), notes


def class_order(names: set[str]) -> list[str]:
    """Returns the classes in the order of their category ids: all 20 of Pascal VOC, or the names found, sorted."""
    return list(VOC_CLASSES) if names <= set(VOC_CLASSES) else sorted(names)
