"""The classes of a Pascal VOC data set, and their order, which gives them their category ids.

They depend on the years that are converted, not on the splits, so that a category id means the same class in files that
were converted one split at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from converters.report import counted
from converters.running.runner import ITEMS_PER_GROUP, map_files
from converters.voc.annotation_xml import read_names
from converters.voc.files import File

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


def find_classes(
    files: Iterable[File],
    known: Mapping[File, Collection[str]],
    chosen: Collection[File],
    *,
    nproc: int | None = None,
    show_progress: bool = False,
    group_size: int = ITEMS_PER_GROUP,
    least_per_process: int = ITEMS_PER_GROUP,
) -> tuple[list[str], list[str]]:
    """Collects the classes of all annotation files of some years.

    Args:
        files: All annotation files of the years.
        known: The annotation files that have been read, with their classes; all others are read here.
        chosen: The annotation files of the chosen splits, whose errors end the conversion or are listed anyway.
        nproc: Number of processes.
        show_progress: Whether to show progress on stderr.
        group_size: How many files are handed to a process at a time.
        least_per_process: How many files are worth the start of a process.

    Returns:
        The classes in the order of their category ids, all 20 of Pascal VOC or, where another name occurs, the names
        found, sorted; and a note where files outside the chosen splits could not be read.
    """
    others = [file for file in files if file not in known]
    found, errors = map_files(
        read_names,
        others,
        name_of=str,
        title="voc: classes of other splits",
        nproc=nproc,
        on_error="skip",
        show_progress=show_progress,
        group_size=group_size,
        least_per_process=least_per_process,
    )
    names = set().union(*known.values(), *(of_file for of_file in found if of_file is not None))
    unread = [file for file, of_file in zip(others, found, strict=True) if of_file is None]
    lines = [line for file, line in zip(unread, errors, strict=True) if file not in chosen]
    notes = []
    if lines:
        unsearched = counted(len(lines), "annotation file")
        notes.append(f"{unsearched} outside the chosen splits could not be searched for classes; the first: {lines[0]}")
    return class_order(names), notes


def class_order(names: set[str]) -> list[str]:
    """Returns the classes in the order of their category ids: all 20 of Pascal VOC, or the names found, sorted."""
    return list(VOC_CLASSES) if names <= set(VOC_CLASSES) else sorted(names)
