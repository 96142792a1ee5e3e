from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from detect.reporting.history import History, read_history


def step(iteration: int, loss: float, **more: Any) -> dict[str, Any]:
    return {"kind": "train", "epoch": 1, "iteration": iteration, "lr": 0.1, "loss": loss, **more}


def evaluation(iteration: int, ap: float) -> dict[str, Any]:
    return {"kind": "evaluation", "epoch": 1, "iteration": iteration, "bbox": {"AP": ap, "APs": -1, "per_class": {}}}


def history_of(tmp_path: Path, records: Iterable[dict[str, Any]]) -> History:
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return read_history(path)


def test_iterations_that_were_done_again_count_as_they_were_done_last(tmp_path: Path) -> None:
    lost = [step(10, 5.0), step(20, 4.0), evaluation(20, 0.1), step(25, 3.0), step(30, 2.0), evaluation(30, 0.2)]
    history = history_of(tmp_path, [*lost, step(20, 4.5), evaluation(20, 0.3), step(28, 2.5)])
    (loss,) = history.losses
    assert (loss.iterations, loss.values) == ([10, 20, 28], [5.0, 4.5, 2.5])
    (ap,) = history.metrics("bbox")
    assert (ap.name, ap.iterations, ap.values) == ("AP", [20], [0.3])
    assert history_of(tmp_path, [*lost, step(15, 4.5)]).evaluations == []  # those to come are not there yet


def test_curves_are_of_losses_and_rates_by_their_names(tmp_path: Path) -> None:
    times = {"data_time": 0.1, "iteration_time": 0.2, "memory_mib": 5}
    rows = [
        step(1, 9.0, acc=50.0, is_last=False, group_lrs={"backbone": 0.01}, **times),
        step(2, math.nan, acc="many", group_lrs={"backbone": 0.02}, **times),
    ]
    history = history_of(tmp_path, rows)
    assert [(curve.name, curve.iterations) for curve in history.losses] == [("loss", [1, 2]), ("acc", [1])]
    assert math.isnan(history.losses[0].values[1])
    assert [(curve.name, curve.values) for curve in history.rates] == [("lr", [0.1, 0.1]), ("backbone", [0.01, 0.02])]


def test_files_that_were_skipped_are_told_once(tmp_path: Path) -> None:
    rows = [
        {"kind": "skipped", "iteration": 1, "set": "train", "files": {"a.png": "truncated", "b.png": "empty"}},
        {"kind": "skipped", "iteration": 2, "set": "val", "files": {"a.png": "no such file"}},
        {"kind": "skipped", "iteration": 2, "set": "train", "files": {"b.png": "empty"}},
    ]
    assert history_of(tmp_path, rows).skipped == [
        ("train", "a.png", "truncated"),
        ("train", "b.png", "empty"),
        ("val", "a.png", "no such file"),
    ]


def test_without_a_log_there_is_no_history(tmp_path: Path) -> None:
    history = read_history(tmp_path / "train.jsonl")
    assert (history.training, history.evaluations, history.skipped) == ([], [], [])
