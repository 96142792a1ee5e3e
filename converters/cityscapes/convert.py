"""Cityscapes instance annotations to COCO JSON.

The label image ``*_gtFine_instanceIds.png`` holds one number per pixel: 1000 * label + n for the n-th instance of a
label, or the label alone, which for a label with instances marks a region of several that could not be told apart (a
crowd). The files written equal those of OpenMMLab's ``tools/dataset_converters/cityscapes.py``, instance by instance.
Ids count up in the order of city and file name: those of images from 0, as OpenMMLab's; those of annotations from 1,
since pycocotools counts a detection of the annotation 0 as a wrong one.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from converters.cityscapes.image import Choices, Converted, Outline, Source, convert_pair
from converters.cityscapes.labels import chosen_labels
from converters.cityscapes.layout import ENDINGS, ImagePair, Labels, find_pairs, find_parts
from converters.errors import ConversionError
from converters.reading.archives import Place
from converters.reading.images import memory_kept
from converters.report import ConversionReport, SplitSummary, counted
from converters.running.runner import OnError, map_files
from converters.running.signals import exit_on_sigterm
from converters.writing.coco_json import Document, writable_folder, write_documents

PUBLISHED = {
    "gtFine": {"train": 2975, "val": 500, "test": 1525},
    "gtCoarse": {"train": 2975, "val": 500, "train_extra": 19998},
}
"""Number of images of each split (https://www.cityscapes-dataset.com/downloads)."""
JOURNAL_NAME = ".cityscapes.resume"
LABELS_ENDING = "labelIds.png"


def convert_cityscapes(
    root: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    *,
    splits: Sequence[str] | None = None,
    labels: Labels = "gtFine",
    source: Source = "instance-ids",
    classes: Sequence[str] | None = None,
    min_area: int = 0,
    outline: Outline | None = None,
    nproc: int | None = None,
    on_error: OnError = "fail",
    resume: bool = False,
    dry_run: bool = False,
    show_progress: bool = False,
) -> ConversionReport:
    """Writes ``instancesonly_filtered_<labels>_<split>.json`` for each split.

    Nothing is written before every split has been converted.

    Args:
        root: A folder with ``leftImg8bit`` and ``gtFine`` or the archives of these, or one such archive, as
            ``converters.cityscapes.layout`` tells; by default ``$CITYSCAPES_DATASET``, then ``data/cityscapes``. Where
            the variable is set, only that folder is meant. Without images, sizes are those of the labels.
        output: The folder to write into; by default ``annotations`` in the root, or beside an archive.
        splits: Which splits; by default all that have annotations. The split "test" may be named without having any:
            its file then lists images only.
        labels: Which annotations, ``"gtFine"`` or ``"gtCoarse"``.
        source: From which files: ``"instance-ids"``, the label images, or ``"polygons"``, the annotators' polygons,
            which give the same where the label images were made of them.
        classes: Names of the labels to convert; by default those that Cityscapes evaluates.
        min_area: Objects of fewer pixels are left out; crowd regions are not.
        outline: Makes polygons of the objects' masks, such as ``dpipe.outlines.outline_masks.outline_masks``: takes
            run-length masks and returns what is to be their ``segmentation``. Other processes import it by its name.
            By default masks are written as run lengths, and those of crowd regions always.
        nproc: Number of processes; by default as many as there are cores. The files do not depend on it.
        on_error: ``"skip"`` leaves out images that cannot be converted, and lists them in the report.
        resume: Whether to keep what is done in a file of the output folder, and to go on from such a file.
        dry_run: Whether to tell what would be written instead of doing it.
        show_progress: Whether to show progress on stderr.

    Returns:
        What was written and what was left out.

    Raises:
        ConversionError: No data, a named split or class is missing, a split has no annotations, a folder or archive
            cannot be read, an image or its labels are missing, damaged, of different sizes or of a name that is not
            UTF-8, an instance id has no label, an argument is wrong, or the output folder cannot be written into.
    """
    if labels not in PUBLISHED or source not in ENDINGS or min_area < 0:
        raise ConversionError(
            f"labels, source and min_area are {labels!r}, {source!r} and {min_area!r}, expected one of "
            f"{', '.join(PUBLISHED)}, one of {', '.join(ENDINGS)} and a number of pixels"
        )
    choices = Choices(labels, source, chosen_labels(classes), min_area, outline)
    categories = [{"id": label.id, "name": label.name} for label in choices.labels]
    parts = find_parts(root, labels)
    pairs, notes = find_pairs(parts, splits, source)
    notes += differences(labels, pairs)
    output = Path(output) if output is not None else parts.home / "annotations"
    paths = {split: output / f"instancesonly_filtered_{labels}_{split}.json" for split in pairs}
    if dry_run:
        planned = [
            SplitSummary(split, len(of_split), 0, 0, 0, 0, len(categories), paths[split])
            for split, of_split in pairs.items()
        ]
        return ConversionReport(planned, notes=notes, planned=True)
    with ExitStack() as stack:
        stack.enter_context(exit_on_sigterm())
        stack.enter_context(writable_folder(output, [path.name for path in paths.values()]))
        journal = None
        if resume:
            from converters.running.journal import Journal

            journal = stack.enter_context(Journal(output / JOURNAL_NAME, _described(choices), files_of, Converted))
        stack.enter_context(memory_kept())
        results, skipped = map_files(
            functools.partial(convert_pair, choices=choices),
            [pair for of_split in pairs.values() for pair in of_split],
            name_of=str,
            title="cityscapes",
            nproc=nproc,
            on_error=on_error,
            show_progress=show_progress,
            journal=journal,
        )
        remaining = iter(results)
        documents = []
        for split, of_split in pairs.items():
            records = [result.record for result in (next(remaining) for _ in of_split) if result is not None]
            if not records:
                raise ConversionError(
                    f"{parts.root}: no image of the split {split} could be converted; the first: {skipped[0]}"
                )
            documents.append(Document(split, paths[split], records, categories, first_image_id=0))
        replaced = write_documents(documents)
        if journal is not None:
            journal.finish()
    summaries = [document.summary() for document in documents]
    converted = [result for result in results if result is not None]
    notes += doubts(summaries, choices) + left_out(converted, choices) + replaced
    return ConversionReport(summaries, skipped, notes)


def files_of(pair: ImagePair) -> list[Place]:
    """Returns the files that an image's conversion depends on."""
    return [place for place in (pair.labels, pair.image) if place is not None]


def _described(choices: Choices) -> str:
    """Returns all that an image's conversion depends on beside its files."""
    ids = [label.id for label in choices.labels]
    return f"cityscapes {choices.kind} {choices.source} {ids} {choices.min_area} {choices.outline is not None}"


def differences(labels: Labels, pairs: Mapping[str, Sequence[ImagePair]]) -> list[str]:
    """Returns a line for each split that has another number of images than Cityscapes published."""
    published = PUBLISHED[labels]
    return [
        f"the split {split} has {counted(len(found), 'image')}; Cityscapes published {published[split]}"
        for split, found in pairs.items()
        if split in published and len(found) != published[split]
    ]


def doubts(summaries: Sequence[SplitSummary], choices: Choices) -> list[str]:
    """Returns a line for each split whose label images seem to be something else than instance ids."""
    return [
        f"the split {summary.name} has {counted(summary.crowd, 'crowd region')} and not one instance: its files "
        f"*_{choices.kind}_{ENDINGS[choices.source]} may hold label ids (*_{choices.kind}_{LABELS_ENDING}) instead"
        for summary in summaries
        if choices.source == "instance-ids" and summary.crowd == summary.instances > 0
    ]


def left_out(converted: Sequence[Converted], choices: Choices) -> list[str]:
    """Returns lines for objects that were too small, and for masks that could not be written as polygons."""
    lines = []
    if small := sum(result.small for result in converted):
        lines.append(f"left out: {counted(small, 'object')} of fewer than {choices.min_area} pixels")
    if kept := sum(result.masks_kept for result in converted):
        lines.append(
            counted(
                kept,
                "object has holes, which COCO's polygons cannot tell: its mask is written as run lengths",
                "objects have holes, which COCO's polygons cannot tell: their masks are written as run lengths",
            )
        )
    return lines
