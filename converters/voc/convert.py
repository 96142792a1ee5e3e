"""Pascal VOC to COCO JSON, with masks where the data set has them.

Output files: one per split, ``voc_<year>_<year>..._<split>.json``. A split of the same name in several years is joined
into one file, whose name lists those years: ``--years 2007,2012 --splits trainval`` writes
``voc_2007_2012_trainval.json``; where only VOC2007 has a test split, that becomes ``voc_2007_test.json``. A folder that
is not named after a year gives ``voc_<split>.json``. ``file_name`` is relative to ``VOCdevkit``, or to the root where
that holds no such folder: ``VOC2007/JPEGImages/000001.jpg``, or ``JPEGImages/000001.jpg`` where the root is the VOC2007
folder itself.

Categories are Pascal VOC's 20 in its own order where no other name occurs, else the names found, sorted; category ids
count from 1. Names are looked for in all annotation files of the chosen years, whichever splits are converted, so that
an id means the same class in files that were converted one split at a time. (Other years may have other names: files
that are used together should come from the same choice of years.)
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from converters.errors import ConversionError
from converters.reading.archives import ArchivePath, Place, open_place
from converters.reading.folders import existing_root
from converters.report import ConversionReport, Repair, SplitSummary, counted
from converters.running.runner import OnError, map_files
from converters.running.signals import exit_on_sigterm
from converters.voc.classes import find_classes
from converters.voc.files import File
from converters.voc.image import Converted, Outline, convert_image
from converters.voc.layout import SetFiles, VocImage, find_sets
from converters.voc.repairs import lines_of, where
from converters.voc.splits import Split, find_splits
from converters.writing.coco_json import Document, writable_folder, write_documents

DEFAULT_ROOT = Path("data/VOCdevkit")
JOURNAL_NAME = ".voc.resume"
IMAGES_PER_GROUP = 64
FILES_PER_PROCESS = 5000
"""So many annotation files, without masks, take as long as a process takes to start."""


def convert_voc(
    root: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    *,
    years: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
    joined: bool = True,
    box_origin: int = 1,
    outline: Outline | None = None,
    strict: bool = False,
    nproc: int | None = None,
    on_error: OnError = "fail",
    resume: bool = False,
    dry_run: bool = False,
    show_progress: bool = False,
) -> ConversionReport:
    """Writes one COCO JSON for each split; see the module's text for names and categories.

    Nothing is written before every split has been converted.

    Args:
        root: A folder or an archive, as ``converters.voc.layout`` tells; by default ``data/VOCdevkit``.
        output: The folder to write into; by default ``annotations`` in the root, or beside an archive.
        years: Which years; by default all.
        splits: Which files of ``ImageSets/Main``; by default all that have annotations.
        joined: Whether splits of the same name in several years become one file; else there is a file for each year.
        box_origin: The number that the data set gives to the first pixel, 1 (Pascal VOC) or 0.
        outline: Makes polygons of masks, such as ``dpipe.outlines.outline_masks.outline_masks``; other processes import
            it by its name. By default masks are written as run lengths.
        strict: Whether to refuse what would be put right or left out.
        nproc: Number of processes; by default as many as there are cores. The files do not depend on it.
        on_error: ``"skip"`` leaves out images that cannot be converted, and lists them in the report.
        resume: Whether to keep what is done in a file of the output folder, and to go on from such a file.
        dry_run: Whether to tell what would be written instead of doing it.
        show_progress: Whether to show progress on stderr.

    Returns:
        What was written, what was left out, and what was put right or could not be matched.

    Raises:
        ConversionError: No data, a named year or split is missing or has no annotations, an image, annotation or mask
            is missing, damaged or contradicts the others, or the output folder cannot be written into.
    """
    if box_origin not in (0, 1):
        raise ConversionError(f"the box origin is {box_origin}, expected 1 or 0")
    place = _find_root(root)
    sets = [SetFiles(voc_set) for voc_set in find_sets(place, years)]
    found, notes = find_splits(place, sets, splits, joined=joined)
    output = Path(output) if output is not None else _default_output(place)
    if dry_run:
        return ConversionReport([_planned(split, output) for split in found], notes=notes, planned=True)
    # An image is converted once, however many splits it is in (train and trainval, say).
    images = list({image.annotation: image for split in found for image in split.images}.values())
    with_masks = any(image.masks for image in images)
    convert = functools.partial(convert_image, box_origin=box_origin, outline=outline, strict=strict)
    with ExitStack() as stack:
        stack.enter_context(exit_on_sigterm())
        stack.enter_context(writable_folder(output, [split.file_name for split in found]))
        journal = None
        if resume:
            from converters.running.journal import Journal

            options = f"voc {box_origin} {outline is not None} {strict}"
            journal = stack.enter_context(Journal(output / JOURNAL_NAME, options, files_of, Converted))
        if with_masks:
            from converters.reading.images import memory_kept

            stack.enter_context(memory_kept())
        results, skipped = map_files(
            convert,
            images,
            name_of=_name_of,
            title="voc",
            nproc=nproc,
            on_error=on_error,
            show_progress=show_progress,
            group_size=IMAGES_PER_GROUP,
            least_per_process=IMAGES_PER_GROUP if with_masks else FILES_PER_PROCESS,
            journal=journal,
        )
        converted = {
            image.annotation: result for image, result in zip(images, results, strict=True) if result is not None
        }
        classes, unread = find_classes(
            (file for files in sets for file in files.annotations.values()),
            known={file: result.record.classes for file, result in converted.items()},
            chosen={image.annotation for image in images},
            nproc=nproc,
            show_progress=show_progress,
            group_size=IMAGES_PER_GROUP,
            least_per_process=FILES_PER_PROCESS,
        )
        documents = make_documents(place, output, found, converted, skipped, classes)
        replaced = write_documents(documents)
        if journal is not None:
            journal.finish()
    repairs = [Repair(str(file), kind, detail) for file, result in converted.items() for kind, detail in result.repairs]
    notes += unread + lines_of(repairs, box_origin=box_origin) + maskless(converted) + replaced
    return ConversionReport([document.summary() for document in documents], skipped, notes, repairs)


def files_of(image: VocImage) -> list[File]:
    """Returns the files that an image's conversion depends on."""
    return [file for file in (image.annotation, image.image, image.masks) if file is not None]


def make_documents(
    root: Place,
    output: Path,
    splits: Sequence[Split],
    converted: dict[File, Converted],
    skipped: Sequence[str],
    classes: Sequence[str],
) -> list[Document]:
    """Returns the COCO document of each split; their categories are the same.

    Raises:
        ConversionError: A split has no image that could be converted.
    """
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, 1)]
    documents = []
    for split in splits:
        records = [converted[image.annotation].record for image in split.images if image.annotation in converted]
        if not records:
            raise ConversionError(
                f"{root}: no image of the split {split.name} could be converted; the first: {skipped[0]}"
            )
        documents.append(Document(split.name, output / split.file_name, records, categories, first_image_id=1))
    return documents


def maskless(converted: dict[File, Converted]) -> list[str]:
    """Returns a line where objects have no mask although their image has masks."""
    counts = {str(file): result.maskless for file, result in converted.items() if result.maskless}
    if not counts:
        return []
    line = counted(
        sum(counts.values()),
        "object has no mask although its image has masks; it keeps its box only",
        "objects have no mask although their image has masks; they keep their box only",
    )
    return [f"{line} ({where(list(counts))})"]


def _name_of(image: VocImage) -> str:
    return str(image.annotation)


def _find_root(root: str | os.PathLike[str] | None) -> Place:
    place = open_place(root or DEFAULT_ROOT)
    if isinstance(place, ArchivePath):
        return place
    return existing_root([(str(place), place)], "Pascal VOC data set")


def _default_output(root: Place) -> Path:
    return Path(root.archive).parent / "annotations" if isinstance(root, ArchivePath) else root / "annotations"


def _planned(split: Split, output: Path) -> SplitSummary:
    return SplitSummary(split.name, len(split.images), 0, 0, 0, 0, 0, output / split.file_name)
