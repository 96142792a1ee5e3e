"""Cityscapes' average precision of instances, by the evaluator of cityscapesScripts.

The evaluator reads its own layout: for each image a text file with a line for each detection (the path of a mask, a
label id, a score), the masks as PNG files, and the truth from the ``*_gtFine_instanceIds.png`` of the data set.
"""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError
from pycocotools import mask as coco_mask

from detect.metrics.scores import Scores
from dpipe.errors import InputError
from dpipe.files import check_writable

if TYPE_CHECKING:
    from detect.metrics.results import Results
    from dpipe.coco import CocoIndex

IMAGE_ENDING = "_leftImg8bit"
TRUTH_ENDING = "_gtFine_instanceIds.png"
FAST_PNG = [cv2.IMWRITE_PNG_COMPRESSION, 1]


def evaluate_cityscapes(
    results: Results,
    index: CocoIndex,
    *,
    truth: str | Path | None = None,
    out: str | Path | None = None,
    image_ids: Sequence[int] | None = None,
) -> Scores:
    """Computes Cityscapes' average precision of instances.

    Args:
        results: The detections, with masks.
        index: The data set, of classes of Cityscapes that have instances; only these are evaluated.
        truth: The folder that is searched for the images' ``*_gtFine_instanceIds.png``; by default ``gtFine`` beside
            the folder of the annotations.
        out: Keeps the text files and masks, in the layout of Cityscapes' server; by default they are temporary.
        image_ids: Ids of the images that count; all where not given.

    Returns:
        AP, the mean over the IoUs 0.5, 0.55 ... 0.95, and AP50, both the means over the classes that have objects; and
        the same two of each class.

    Raises:
        InputError: If the results have no masks, a class is not one of Cityscapes', or a truth is missing, damaged or
            not of its image's size.
    """
    if results.masks is None and len(results):
        raise InputError("the results have no masks: cityscapes evaluation needs them")
    check_classes(index)
    files = truth_files(index, truth)
    chosen = range(len(index)) if image_ids is None else np.flatnonzero(np.isin(index.image_ids, image_ids)).tolist()
    order = np.argsort(results.image_ids, kind="stable")
    first = np.searchsorted(results.image_ids, index.image_ids, sorter=order)
    end = np.searchsorted(results.image_ids, index.image_ids, side="right", sorter=order)
    with _folder(out) as folder:
        args = _arguments(folder, index.class_names)

        def matched(image: int) -> tuple[str, dict[str, Any]]:
            listing = _write_detections(folder, results, order[first[image] : end[image]].tolist(), index, image)
            try:
                size = (int(index.heights[image]), int(index.widths[image]))
                found = _match(files[image], listing, size, args)
            finally:
                if out is None:
                    shutil.rmtree(_masks_of(folder, index, image), ignore_errors=True)
            return str(files[image]), found

        with ThreadPoolExecutor() as pool:
            matches = dict(pool.map(matched, chosen))
    aps = np.array(
        [[_average_precision(matches, label, iou, args) for iou in args.overlaps] for label in args.instLabels]
    )
    return _scores(aps, index.class_names)


def check_classes(index: CocoIndex) -> None:
    """Checks that a data set has classes of Cityscapes.

    Raises:
        InputError: Naming those that are not.
    """
    known = _label_ids()
    others = [name for name in index.class_names if name not in known]
    if others:
        raise InputError(
            f"{index.path}: cityscapes evaluation knows the classes {', '.join(known)}, not {', '.join(others)}"
        )


def truth_files(index: CocoIndex, folder: str | Path | None = None) -> list[Path]:
    """Finds the instance ids of each image.

    Args:
        index: The data set, whose file names end with ``_leftImg8bit`` and any suffix.
        folder: Is searched, with all folders in it; see :func:`evaluate_cityscapes`.

    Raises:
        InputError: If the folder or an image's file is not there, or a file is there twice.
    """
    root = Path(folder) if folder is not None else index.path.parent.parent / "gtFine"
    wanted = "the folder with the *_gtFine_instanceIds.png of the data set (cityscapes_gt)"
    if not root.is_dir():
        raise InputError(f"{root}: is no folder; cityscapes evaluation needs {wanted}")
    there: dict[str, Path] = {}
    for path in sorted(root.rglob(f"*{TRUTH_ENDING}")):
        if path.name in there:
            raise InputError(f"{path}: is in {there[path.name].parent} as well; expected one file for each image")
        there[path.name] = path
    names = [Path(name).stem.removesuffix(IMAGE_ENDING) + TRUTH_ENDING for name in index.file_names]
    missing = [name for name in names if name not in there]
    if missing:
        raise InputError(
            f"{root}: has no {missing[0]}, and lacks {len(missing)} of {len(names)} in all; "
            f"cityscapes evaluation needs {wanted}"
        )
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise InputError(f"{index.path}: has several images whose truth is {repeated[0]}; expected one of each name")
    return [there[name] for name in names]


def _match(truth: Path, listing: Path, size: tuple[int, int], args: Any) -> dict[str, Any]:
    """What the evaluator finds out about one image: which detections overlap which instances, and by how much."""
    evaluator = _evaluator()
    try:
        with Image.open(truth) as image:
            ids = np.array(image)
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError) as error:
        raise InputError(f"{truth}: is not an image that can be read: {error}") from None
    if ids.shape != size:
        raise InputError(f"{truth}: has the shape {ids.shape}; expected {size}, the height and width of its image")
    try:
        instances = evaluator.instances2dict([str(truth)])[os.path.abspath(truth)]
    except KeyError as error:
        raise InputError(f"{truth}: has the label id {error}, which Cityscapes does not have") from None
    instances = evaluator.filterGtInstances(instances, args)
    found, detected = evaluator.assignGt2Preds(instances, ids, evaluator.readPredInfo(str(listing), args), args)
    return {"groundTruth": found, "prediction": detected}


def _average_precision(matches: dict[str, Any], label: str, iou: float, args: Any) -> float:
    """AP of one class at one IoU; NaN where it has no object."""
    one = _copied(args, instLabels=[label], overlaps=np.array([iou]))
    try:
        return float(_evaluator().evaluateMatches(matches, one)[0, 0, 0])
    except IndexError:  # which it raises where there are objects, and all detections lie in regions to ignore
        return 0.0


def _scores(aps: np.ndarray, class_names: Sequence[str]) -> Scores:
    """Means of APs (classes, IoUs)."""
    per_class = {
        name: {"AP": float(row.mean()), "AP50": float(row[0])} for name, row in zip(class_names, aps, strict=True)
    }
    known = aps[~np.isnan(aps[:, 0])]
    means = {"AP": float(known.mean()), "AP50": float(known[:, 0].mean())} if len(known) else {"AP": -1.0, "AP50": -1.0}
    return Scores("cityscapes", means, per_class, "IoU 0.50:0.95")


def _masks_of(folder: Path, index: CocoIndex, image: int) -> Path:
    return folder / "masks" / str(index.image_ids[image])


def _write_detections(folder: Path, results: Results, rows: Sequence[int], index: CocoIndex, image: int) -> Path:
    """Writes one image's masks and its text file, and returns that file's path."""
    masks = _masks_of(folder, index, image)
    masks.mkdir(parents=True, exist_ok=True)
    label_ids = _label_ids()
    names = dict(zip(index.category_ids.tolist(), index.class_names, strict=True))
    lines = []
    for number, row in enumerate(rows):
        assert results.masks is not None
        path = masks / f"{number}.png"
        if not cv2.imwrite(str(path), coco_mask.decode(results.masks[row]) * np.uint8(255), FAST_PNG):
            raise OSError(f"{path}: cannot be written")
        label_id = label_ids[names[int(results.category_ids[row])]]
        lines.append(f"{path.relative_to(folder)} {label_id} {float(results.scores[row])!r}\n")
    listing = folder / f"{Path(index.file_names[image]).stem}.txt"
    listing.write_text("".join(lines))
    return listing


@contextmanager
def _folder(out: str | Path | None) -> Iterator[Path]:
    """The folder that the evaluator reads, which is kept where a name is given."""
    if out is None:
        with tempfile.TemporaryDirectory(prefix="cityscapes-") as temporary:
            yield Path(temporary).resolve()
        return
    check_writable(Path(out))
    yield Path(out).resolve()


def _arguments(folder: Path, class_names: Sequence[str]) -> Any:
    """The evaluator's settings."""
    return _copied(
        _evaluator().args, predictionPath=str(folder), quiet=True, distanceAvailable=False, instLabels=list(class_names)
    )


def _copied(args: Any, **changes: Any) -> Any:
    copy = type(args)()
    copy.__dict__.update(vars(args) | changes)
    return copy


@cache
def _label_ids() -> dict[str, int]:
    """Ids of the labels that are evaluated with instances."""
    from cityscapesscripts.helpers.labels import labels

    return {label.name: label.id for label in labels if label.hasInstances and not label.ignoreInEval}


@cache
def _evaluator() -> Any:
    """The module of the evaluator."""
    evaluator = importlib.import_module("cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling")
    vars(evaluator)["np"] = _NumPy()
    return evaluator


class _NumPy:
    """NumPy as the evaluator knows it: with ``in1d``, which NumPy 2.4 has no more."""

    in1d = staticmethod(np.isin)

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)
