from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detect import Results, evaluate_results
from detect.reporting.keeping import best_of_each_image, keep_evaluation, kept_evaluations, tidy_evaluations
from detect.running.state import UNFINISHED


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_last_and_the_best_are_kept_and_no_others(make: Callable[..., Any]) -> None:
    made = make()
    for iteration, best in ((10, 10), (20, 20), (30, 20), (40, 20)):
        made.evaluate(iteration, best=best)
    assert names(made.work_dir / "evaluations") == ["best", "iter_00000020", "iter_00000040", "last"]
    kept, _ = kept_evaluations(made.work_dir)
    assert [(name, each.record["iteration"]) for name, each in kept.items()] == [("best", 20), ("last", 40)]
    made.evaluate(50)
    assert names(made.work_dir / "evaluations") == ["best", "iter_00000050", "last"]
    assert list(kept_evaluations(made.work_dir)[0]) == ["best and last"]


def test_what_is_kept_gives_the_same_scores(make: Callable[..., Any]) -> None:
    made = make()
    made.evaluate(10)
    folder = made.work_dir / "evaluations" / "best"
    record = json.loads((folder / "scores.json").read_text())
    for scores in evaluate_results(folder / "results.json", made.index, ["bbox", "segm"]):
        assert {**scores.metrics, "per_class": record[scores.kind]["per_class"]} == record[scores.kind]
        assert record["settings"][scores.kind] == scores.settings
    assert record["bbox"]["AP50"] > 0


def test_an_evaluation_is_there_whole_or_not_at_all(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    made = make()
    made.evaluate(10)
    written = []

    def full_disk(path: Path, content: Any) -> None:
        written.append(path.name)
        if path.name == "scores.json":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("detect.reporting.keeping.write_whole", full_disk)
    told: list[str] = []
    nothing = Results(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0))
    keep_evaluation(made.work_dir, nothing, evaluate_results(nothing, made.index), 2, 20, told.append)
    assert written == ["results.json", "scores.json"]
    (line,) = told
    assert line.endswith("iter_00000020: what was found cannot be kept: No space left on device")
    assert names(made.work_dir / "evaluations") == ["best", "iter_00000010", "last"]
    tidy_evaluations(made.work_dir, 20, 20)
    assert [*kept_evaluations(made.work_dir)[0]] == ["last"]


def test_a_run_that_was_killed_and_goes_on_replaces_what_it_left(make: Callable[..., Any]) -> None:
    made = make()
    made.evaluate(10)
    folder = made.work_dir / "evaluations"
    lost = folder / "iter_00000010" / "of_the_lost_iterations"
    unfinished = folder / f"{UNFINISHED}iter_00000020-1"
    for left in (lost, unfinished / "results.json"):
        left.parent.mkdir(exist_ok=True)
        left.write_text("[")
    made.evaluate(10)
    assert names(folder) == ["best", "iter_00000010", "last"]
    assert names(folder / "iter_00000010") == ["results.json", "scores.json"]


def test_without_links_the_newest_is_the_last(make: Callable[..., Any]) -> None:
    made = make()
    made.evaluate(10)
    made.evaluate(20, best=10)
    for name in ("best", "last"):
        (made.work_dir / "evaluations" / name).unlink()
    ((name, kept),) = kept_evaluations(made.work_dir)[0].items()
    assert (name, kept.record["iteration"]) == ("last", 20)


def test_of_many_detections_of_an_image_those_of_the_best_scores_are_kept() -> None:
    scores = np.array([0.1, 0.9, 0.5, 0.5, 0.7, 0.3])
    images = np.array([1, 1, 2, 1, 2, 1])
    results = Results(images, np.full(6, 4), np.zeros((6, 4)), scores)
    kept = best_of_each_image(results, 2)
    assert kept.scores.tolist() == [0.9, 0.5, 0.5, 0.7]
    assert kept.image_ids.tolist() == [1, 2, 1, 2]
