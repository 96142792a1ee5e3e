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
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converters.coco_json import ImageRecord, make_document, summarize, writable_folder, write_json
from converters.errors import ConversionError
from converters.folders import checked_name, chosen, entries, existing_root, is_folder
from converters.images import image_size, read_label_image
from converters.report import ConversionReport, SplitSummary, counted
from converters.rle import encode_label_image
from converters.runner import OnError, map_files
from converters.signals import exit_on_sigterm

ROOT_VARIABLE = "CITYSCAPES_DATASET"
DEFAULT_ROOT = Path("data/cityscapes")
SPLIT_ORDER = ("train", "val", "test")
IMAGE_ENDING = "_leftImg8bit.png"
INSTANCES_ENDING = "_gtFine_instanceIds.png"
LABELS_ENDING = "_gtFine_labelIds.png"

FIRST_LABEL_WITH_INSTANCES = 24
IDS_PER_LABEL = 1000


@dataclass(frozen=True)
class ImagePair:
    """An image and its label image; either may be missing on disk."""

    image: Path
    instances: Path


def convert_cityscapes(
    root: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    *,
    splits: Sequence[str] | None = None,
    nproc: int | None = None,
    on_error: OnError = "fail",
    show_progress: bool = False,
) -> ConversionReport:
    """Writes ``instancesonly_filtered_gtFine_<split>.json`` for each split.

    Nothing is written before every split has been converted.

    Args:
        root: The folder with ``leftImg8bit`` and ``gtFine``; by default ``$CITYSCAPES_DATASET``, then
            ``data/cityscapes``. Where the variable is set, only that folder is meant.
        output: The folder to write into; by default ``annotations`` in the root.
        splits: Which splits; by default all that have annotations.
        nproc: Number of processes; by default as many as there are cores. The files do not depend on it.
        on_error: ``"skip"`` leaves out images that cannot be converted, and lists them in the report.
        show_progress: Whether to show progress on stderr.

    Returns:
        What was written and what was left out.

    Raises:
        ConversionError: No data, a named split is missing or has no annotations, a folder cannot be read, an image or a
            label image is missing, damaged, of another size than its partner or of a name that is not UTF-8, an
            instance id has no label, or the output folder cannot be written into.
    """
    root = find_root(root)
    pairs, notes = find_pairs(root, splits)
    output = Path(output) if output is not None else root / "annotations"
    names = {split: f"instancesonly_filtered_gtFine_{split}.json" for split in pairs}
    with ExitStack() as stack:
        stack.enter_context(exit_on_sigterm())
        stack.enter_context(writable_folder(output, list(names.values())))
        records, skipped = map_files(
            read_pair,
            [pair for split_pairs in pairs.values() for pair in split_pairs],
            name_of=lambda pair: str(pair.instances),
            title="cityscapes",
            nproc=nproc,
            on_error=on_error,
            show_progress=show_progress,
        )
        remaining = iter(records)
        documents = {}
        for split, split_pairs in pairs.items():
            of_split = [next(remaining) for _ in split_pairs]
            documents[split] = make_document(
                [record for record in of_split if record is not None], categories(), first_image_id=0
            )
            if not documents[split]["images"]:
                raise ConversionError(
                    f"{root}: no image of the split {split} could be converted; the first: {skipped[0]}"
                )
        for split, document in documents.items():
            write_json(output / names[split], document)
    summaries = [summarize(split, document, output / names[split]) for split, document in documents.items()]
    return ConversionReport(summaries, skipped, notes + doubts(summaries))


def find_root(root: str | os.PathLike[str] | None) -> Path:
    """Returns the data set's folder.

    Raises:
        ConversionError: It does not exist, or lacks ``leftImg8bit`` or ``gtFine``.
    """
    if root is not None:
        candidates: list[tuple[str, Path | None]] = [(str(root), Path(root))]
    elif value := os.environ.get(ROOT_VARIABLE):
        # Whoever sets it means that folder: another data set in its place would go unnoticed.
        candidates = [(f"${ROOT_VARIABLE} = {value}", Path(value))]
    else:
        candidates = [(f"${ROOT_VARIABLE} (not set)", None), (str(DEFAULT_ROOT), DEFAULT_ROOT)]
    found = existing_root(candidates, "Cityscapes data set")
    for name in ("leftImg8bit", "gtFine"):
        if not is_folder(found / name):
            raise ConversionError(f"{found}: has no folder {name}, expected leftImg8bit and gtFine")
    return found


def find_pairs(root: Path, splits: Sequence[str] | None) -> tuple[dict[str, list[ImagePair]], list[str]]:
    """Lists images and label images, matched by city and name.

    Args:
        root: The data set's folder.
        splits: Which splits; None for all that have annotations.

    Returns:
        For each split the pairs, sorted, and a note for each split that was left out.

    Raises:
        ConversionError: A named split is missing or has no annotations, a folder cannot be read, or nothing is left.
    """
    images, annotations = root / "leftImg8bit", root / "gtFine"
    folders = [path.name for path in entries(images) if is_folder(path)]
    found = sorted(
        folders, key=lambda name: (SPLIT_ORDER.index(name) if name in SPLIT_ORDER else len(SPLIT_ORDER), name)
    )
    pairs: dict[str, list[ImagePair]] = {}
    notes = []
    for split in chosen("split", found, splits, images):
        image_keys = _keys(images / split, IMAGE_ENDING)
        instance_keys = _keys(annotations / split, INSTANCES_ENDING)
        if not instance_keys:
            line = f"the split {split} has no annotations ({annotations / split}/*/*{INSTANCES_ENDING})"
            if splits:
                raise ConversionError(f"{root}: {line}")
            notes.append(f"left out: {line}")
            continue
        pairs[split] = [
            ImagePair(images / split / (key + IMAGE_ENDING), annotations / split / (key + INSTANCES_ENDING))
            for key in sorted(image_keys | instance_keys)
        ]
    if not pairs:
        raise ConversionError(f"{root}: no split has annotations (gtFine/<split>/<city>/*{INSTANCES_ENDING})")
    return pairs, notes


def _keys(folder: Path, ending: str) -> set[str]:
    """Returns "city/name" of all files with the ending."""
    return {
        f"{city.name}/{path.name.removesuffix(ending)}"
        for city in entries(folder)
        for path in entries(city)
        if path.name.endswith(ending)
    }


def doubts(summaries: Sequence[SplitSummary]) -> list[str]:
    """Returns a line for each split whose label images seem to be something else than instance ids."""
    return [
        f"the split {summary.name} has {counted(summary.crowd, 'crowd region')} and not one instance: its files "
        f"*{INSTANCES_ENDING} may hold label ids (*{LABELS_ENDING}) instead"
        for summary in summaries
        if summary.crowd == summary.instances > 0
    ]


def read_pair(pair: ImagePair) -> ImageRecord:
    """Converts one image.

    Raises:
        ConversionError: A file is missing or damaged or has a name that is not UTF-8, the sizes differ, or an instance
            id has no label.
    """
    city = pair.image.parent.name
    file_name = checked_name(f"{city}/{pair.image.name}", pair.image)
    for path, partner in ((pair.instances, pair.image), (pair.image, pair.instances)):
        if not path.is_file():
            raise ConversionError(f"{path}: is missing, although there is {partner}")
    labels = read_label_image(pair.instances)
    height, width = labels.shape
    image_width, image_height = image_size(pair.image)
    if (image_width, image_height) != (width, height):
        raise ConversionError(
            f"{pair.instances}: is {width}x{height}, but its image {pair.image} is {image_width}x{image_height}"
        )

    annotations: list[dict[str, Any]] = []
    for instance in encode_label_image(labels, minimum=FIRST_LABEL_WITH_INSTANCES):
        crowd = instance.id < IDS_PER_LABEL
        label = instance.id if crowd else instance.id // IDS_PER_LABEL
        if label not in _labels():
            raise ConversionError(
                f"{pair.instances}: instance id {instance.id} has no label (Cityscapes has no label {label})"
            )
        if _labels()[label] is None:
            continue
        annotations.append(
            {
                "iscrowd": int(crowd),
                "category_id": label,
                "bbox": list(instance.bbox),
                "area": instance.area,
                "segmentation": instance.segmentation(),
            }
        )
    name = pair.image.name.removesuffix(IMAGE_ENDING)
    image = {
        "file_name": file_name,
        "height": height,
        "width": width,
        "segm_file": f"{city}/{name}{LABELS_ENDING}",
    }
    return ImageRecord(image, annotations)


def categories() -> list[dict[str, Any]]:
    """Returns the categories that are evaluated with instances; their ids are Cityscapes' label ids."""
    return [{"id": label, "name": name} for label, name in _labels().items() if name is not None]


@functools.cache
def _labels() -> dict[int, str | None]:
    """Maps every label id to its name, or to None where the label has no instances or is ignored in evaluation."""
    from cityscapesscripts.helpers.labels import labels

    return {label.id: label.name if label.hasInstances and not label.ignoreInEval else None for label in labels}
