"""What a run writes about itself: lines or a bar on the terminal, ``train.jsonl``, TensorBoard, its environment."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from detect.metrics.scores import Scores, main_of_record
from detect.running.boards import Board, TensorBoard
from dpipe.files import write_whole

LOG_NAME = "train.jsonl"
PACKAGES = (
    "dpipe-detect",
    "torch",
    "torchvision",
    "lightning-fabric",
    "nvidia-dali-cuda120",
    "opencv-python-headless",
    "numpy",
    "pycocotools",
    "hotcoco",
    "safetensors",
)


class RunLog:
    """Writes a run's log. On all processes but the first it does nothing.

    Args:
        work_dir: Gets ``train.jsonl`` and ``tensorboard/``.
        first_iteration: Iterations done before; what an earlier run logged beyond them is dropped.
        total: Iterations of the whole run.
        console: Where lines and the bar go.
        active: Whether this is the first process.
        more_boards: What makes boards beside TensorBoard's.
        history: The log of the iterations done before; by default the one in ``work_dir``.
    """

    def __init__(
        self,
        work_dir: Path,
        first_iteration: int,
        total: int,
        console: Console,
        active: bool = True,
        more_boards: Sequence[Callable[[], Board]] = (),
        history: Path | None = None,
    ) -> None:
        self.work_dir = work_dir
        self.console = console
        self.active = active
        self.total = total
        self.records: list[dict[str, Any]] = []
        self._damaged = 0
        self._boards: list[Board] = []
        if not active:
            return
        self._more_boards = more_boards
        self._first_iteration = first_iteration
        if first_iteration:
            records, self._damaged = _read_log(history or work_dir / LOG_NAME)
            self.records = [record for record in records if record["iteration"] <= first_iteration]
        self._bar = _Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("eta {task.fields[eta]}"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=total, completed=first_iteration, eta="?")

    @contextmanager
    def running(self) -> Iterator[None]:
        """Opens the files and shows the bar."""
        if not self.active:
            yield
            return
        path, first = self.work_dir / LOG_NAME, self._first_iteration
        write_whole(path, "".join(json.dumps(record) + "\n" for record in self.records))
        if self._damaged:
            self.say(f"{path}: damaged lines left out: {self._damaged}")
        with ExitStack() as stack:
            for make in (lambda: TensorBoard(self.work_dir / "tensorboard", first), *self._more_boards):
                board = make()
                self._boards.append(board)
                stack.push(lambda kind, error, trace, board=board: board.close(error is not None))
            # A line goes to the system at once, so that closing has nothing to write that could fail.
            self._file = stack.enter_context(path.open("ab", buffering=0))
            with self._bar:
                yield

    def say(self, *what: RenderableType) -> None:
        """Prints lines or tables."""
        if self.active:
            self.console.print(*what)

    def advance(self) -> None:
        """Moves the bar by one iteration."""
        if self.active:
            self._bar.advance(self._task)

    @contextmanager
    def counting(self, images: int) -> Iterator[Callable[[int], None]]:
        """Shows a second bar, of images.

        Yields:
            A function that is told each number of further images.
        """
        if not self.active:
            yield lambda count: None
            return
        task, seen = self._bar.add_task("evaluation", total=images, eta=""), 0

        def on_images(count: int) -> None:
            nonlocal seen
            seen = min(seen + count, images)
            self._bar.update(task, completed=seen)

        try:
            yield on_images
        finally:
            self._bar.remove_task(task)

    def training(
        self,
        epoch: int,
        epochs: int,
        iteration: int,
        lr: float,
        group_lrs: Mapping[str, float],
        values: Mapping[str, float],
        data: float,
        step: float,
    ) -> None:
        """Logs the mean of some iterations.

        Args:
            epoch: Number of the epoch, from 1.
            epochs: Epochs of the run.
            iteration: Iterations done.
            lr: Learning rate of the last one.
            group_lrs: Learning rates of those groups of weights that have their own, by the pattern of their names.
            values: Losses and other numbers by name, ``loss`` first.
            data: Seconds an iteration waited for data.
            step: Seconds an iteration took altogether.
        """
        if not self.active:
            return
        eta = str(timedelta(seconds=round(step * (self.total - iteration))))
        times = {"data_time": round(data, 4), "iteration_time": round(step, 4)}
        record = {"kind": "train", "epoch": epoch, "iteration": iteration, "lr": lr, **values, **times}
        if group_lrs:
            record["group_lrs"] = dict(group_lrs)
        memory = peak_memory_mib()
        if memory is not None:
            record["memory_mib"] = memory
        self._write(record)
        rates = {"lr": lr, **{f"lr {pattern}": group_lr for pattern, group_lr in group_lrs.items()}}
        self._scalars("train/", {**values, **rates}, iteration)
        others = "".join(f"  lr of {pattern} {group_lr:.3e}" for pattern, group_lr in group_lrs.items())
        told_memory = "" if memory is None else f"  mem {memory} MiB"
        told = f"lr {lr:.3e}{others}  {_numbers(values)}  data {data:.3f}s  time {step:.3f}s{told_memory}"
        if self.console.is_terminal:
            self._bar.update(self._task, description=f"epoch {epoch}/{epochs}", eta=eta)
            self._bar.told = told
        else:
            self.say(f"epoch {epoch}/{epochs}  iter {iteration}/{self.total}  {told}  eta {eta}")

    def epoch(self, epoch: int, epochs: int, iteration: int, values: Mapping[str, float]) -> None:
        """Logs the means of a whole epoch.

        Args:
            epoch: Number of the epoch, from 1.
            epochs: Epochs of the run.
            iteration: Iterations done.
            values: Losses and other numbers by name, ``loss`` first.
        """
        if not self.active:
            return
        self._write({"kind": "epoch", "epoch": epoch, "iteration": iteration, **values})
        self._scalars("epoch/", values, iteration)
        self.say(f"epoch {epoch}/{epochs} on average  {_numbers(values)}")

    def evaluation(self, epoch: int, iteration: int, all_scores: Sequence[Scores]) -> None:
        """Logs the scores of an evaluation."""
        if not self.active:
            return
        for scores in all_scores:
            self._scalars(f"val/{scores.kind}_", scores.metrics, iteration)
        self._write(evaluation_record(epoch, iteration, all_scores))

    def skipped(self, data_set: str, iteration: int, files: Mapping[str, str]) -> None:
        """Logs the files of a data set that cannot be used: names to reasons."""
        if self.active:
            self._write({"kind": "skipped", "iteration": iteration, "set": data_set, "files": dict(files)})

    def _write(self, record: dict[str, Any]) -> None:
        line = json.dumps(record).encode() + b"\n"
        try:
            written = self._file.write(line)
            if written < len(line):  # the rest fails, and tells why
                self._file.write(line[written:])
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.work_dir / LOG_NAME)) from error

    def _scalars(self, prefix: str, values: Mapping[str, float], iteration: int) -> None:
        for board in self._boards:
            board.scalars({f"{prefix}{name}": value for name, value in values.items()}, iteration)


class _Bar(Progress):
    """A bar with a line beneath it.

    Attributes:
        told: The line; as many as it takes where the terminal is narrow.
    """

    told = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bars, then the line."""
        yield from super().get_renderables()
        if self.told:
            yield Text(self.told, style="dim", overflow="fold", no_wrap=False)  # a console may say otherwise


def peak_memory_mib() -> int | None:
    """The most memory that this run had so far: of the GPU where there is one, else of the process; None on Windows."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() >> 20
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit >> 20


def _numbers(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in values.items())


def evaluation_record(epoch: int, iteration: int, all_scores: Sequence[Scores]) -> dict[str, Any]:
    """The line of an evaluation in ``train.jsonl``: by kind its numbers, and those of each class, None for NaN."""
    record: dict[str, Any] = {"kind": "evaluation", "epoch": epoch, "iteration": iteration}
    for scores in all_scores:
        per_class = {
            name: {key: None if math.isnan(value) else value for key, value in numbers.items()}
            for name, numbers in scores.per_class.items()
        }
        record[scores.kind] = {**scores.metrics, "per_class": per_class}
    return record


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a ``train.jsonl``; a last line that a killed run did not finish, and damaged ones are left out."""
    return _read_log(path)[0]


def logged_evaluation(path: Path, iteration: int) -> dict[str, Any] | None:
    """The record of the last evaluation after an iteration in a ``train.jsonl``, if there was one."""
    records = (record for record in read_log(path) if record["kind"] == "evaluation")
    return {record["iteration"]: record for record in records}.get(iteration)


def _read_log(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The records, and the number of damaged lines; the unfinished last line is not counted."""
    if not path.exists():
        return [], 0
    lines = path.read_bytes().split(b"\n")[:-1]  # behind the last line's end comes nothing, or half a line
    records = [record for record in map(_record, lines) if record is not None]
    return records, len(lines) - len(records)


def _record(line: bytes) -> dict[str, Any] | None:
    """A line of ``train.jsonl``, or ``None`` if it is not one that :class:`RunLog` writes."""
    try:
        record = json.loads(line)
        whole = (
            record["kind"] in ("train", "epoch")
            or (record["kind"] == "evaluation" and math.isfinite(main_of_record(record)))
            or (record["kind"] == "skipped" and isinstance(record["files"], dict) and record["set"] in ("train", "val"))
        )
        return record if whole and isinstance(record["iteration"], int) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def environment() -> dict[str, Any]:
    """Versions, machine and command of this run."""
    installed = {found.metadata["Name"]: found.version for found in importlib.metadata.distributions()}
    cuda = torch.cuda.is_available()
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda if cuda else None,
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] if cuda else [],
        "packages": {name: installed.get(name) for name in PACKAGES},
    }
