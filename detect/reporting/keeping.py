"""The evaluations that a run keeps: what was found in the validation set, and what that scored.

An evaluation is a folder, ``evaluations/iter_00000500``, with two files; ``evaluations/last`` links to the newest,
``evaluations/best`` to the best one, and there are no others:

* ``results.json``: the detections in COCO's results format, for ``detect eval`` and whatever else reads it.
* ``scores.json``: the record of the evaluation in ``train.jsonl``, and what its numbers depend on.

The folder is filled under a temporary name and renamed, as that of a checkpoint is.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from numpy.typing import NDArray

from detect.metrics.results import Results
from detect.running.logs import evaluation_record
from detect.running.state import UNFINISHED, checkpoint_folders, checkpoint_path, point, remove_unfinished, unpoint
from dpipe.files import write_whole

if TYPE_CHECKING:
    from detect.metrics.scores import Scores

FOLDER = "evaluations"
RESULTS, SCORES = "results.json", "scores.json"
MOST_PER_IMAGE = 100
"""Detections of an image that are kept, those of the best scores: as many as COCO's AP looks at."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Kept:
    """An evaluation that is there.

    Attributes:
        results: The file of detections.
        record: What ``scores.json`` holds.
    """

    results: Path
    record: Mapping[str, Any]


def keep_evaluation(
    work_dir: Path, results: Results, all_scores: Sequence[Scores], epoch: int, iteration: int, say: Say
) -> None:
    """Writes an evaluation whole or not at all; what cannot be written is told and ends no run.

    Args:
        work_dir: The run's.
        results: The detections.
        all_scores: What they scored.
        epoch: Epochs finished.
        iteration: Iterations done.
        say: Is told where it does not work.
    """
    folder = work_dir / FOLDER
    final = checkpoint_path(folder, iteration)
    unfinished = folder / f"{UNFINISHED}{final.name}-{os.getpid()}"
    record = evaluation_record(epoch, iteration, all_scores)
    record["settings"] = {scores.kind: scores.settings for scores in all_scores}
    try:
        remove_unfinished(folder)  # of a run that was killed
        unfinished.mkdir(parents=True)
        write_whole(unfinished / RESULTS, orjson.dumps(best_of_each_image(results, MOST_PER_IMAGE).to_coco()))
        write_whole(unfinished / SCORES, json.dumps(record, indent=1) + "\n")
        shutil.rmtree(final, ignore_errors=True)  # of a run that was resumed from before it
        unfinished.rename(final)
        point(folder, "last", final)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        say(f"{final}: what was found cannot be kept: {error.strerror or error}")


def tidy_evaluations(work_dir: Path, last: int, best: int | None) -> None:
    """Removes all evaluations but the last and the best.

    Args:
        work_dir: The run's.
        last: Iteration of the last evaluation.
        best: Iteration of the best one, if there is one.
    """
    folder = work_dir / FOLDER
    folders = checkpoint_folders(folder)
    wanted = [checkpoint_path(folder, iteration) for iteration in (last, best) if iteration is not None]
    if best is not None and wanted[-1] in folders:
        point(folder, "best", wanted[-1])
    else:
        unpoint(folder, "best")
    # Where the last could not be written, the one before it is better than none.
    kept = [path for path in wanted if path in folders] or folders[-1:]
    for path in folders:
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)


def kept_evaluations(work_dir: Path) -> tuple[dict[str, Kept], list[str]]:
    """The evaluations that are there: ``best`` and ``last``, or one ``best and last``.

    Returns:
        Those that can be read, and a line for each of the others.
    """
    folder = work_dir / FOLDER
    found = {name: (folder / name).resolve() for name in ("best", "last") if (folder / name / SCORES).is_file()}
    folders = checkpoint_folders(folder)
    if not found and folders:  # on a file system without links
        found["last"] = folders[-1]
    if len(found) == 2 and found["best"] == found["last"]:
        found = {"best and last": found["best"]}
    records = {name: _read_record(path / SCORES) for name, path in found.items()}
    kept = {
        name: Kept(found[name] / RESULTS, record) for name, record in records.items() if not isinstance(record, str)
    }
    return kept, [record for record in records.values() if isinstance(record, str)]


def best_of_each_image(results: Results, most: int) -> Results:
    """At most so many detections of each image, those of the best scores, in the order in which they were."""
    order = np.lexsort((-results.scores, results.image_ids))
    _, firsts, counts = np.unique(results.image_ids[order], return_index=True, return_counts=True)
    rank = np.arange(len(results)) - np.repeat(firsts, counts)
    return select(results, np.sort(order[rank < most]))


def select(results: Results, rows: NDArray[np.int64]) -> Results:
    """Some of the detections, in the order asked for."""
    masks = None if results.masks is None else [results.masks[row] for row in rows.tolist()]
    return Results(
        results.image_ids[rows], results.category_ids[rows], results.boxes[rows], results.scores[rows], masks
    )


def _read_record(path: Path) -> dict[str, Any] | str:
    """The record of an evaluation, or why it cannot be read."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return f"{path}: cannot be read: {error}"
    if not isinstance(record, dict) or type(record.get("iteration")) is not int:
        return f"{path}: is not the record of an evaluation"
    return record
