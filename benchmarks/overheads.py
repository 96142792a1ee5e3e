"""What training costs beside learning: the start of a command, and logging, progress and checks in an iteration.

    OMP_NUM_THREADS=1 python benchmarks/overheads.py

Draws street scenes (``examples/street_scenes.py``) and trains ``demo_streets`` on them on the CPU. In an iteration, the
whole is timed, and the functions that do what is not learning.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

from machine import describe
from rich.console import Console

PARTS = ("help", "start", "iteration")
EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "street_scenes.py"


def seconds_to_help(command: str, rounds: int) -> float:
    """The median time of a command's ``--help``, in seconds."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        subprocess.run([Path(sys.executable).with_name(command), "--help"], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def make_data(folder: Path) -> list[str]:
    """Draws and converts the scenes; returns the recipe and the override that names them."""
    quiet: dict[str, Any] = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([sys.executable, EXAMPLE, folder, "--train", "40", "--val", "8"], **quiet)
    subprocess.run([Path(sys.executable).with_name("dpipe"), "convert", "cityscapes", folder], **quiet)
    return ["demo_streets", f"data.root={folder}"]


def seconds_to_first_iteration(words: list[str], work_dir: Path) -> float:
    """From the command to the log's first line, which is that of the first iteration."""
    command = [Path(sys.executable).with_name("detect"), "train", *words, "train.log_every=1", "--accelerator", "cpu"]
    began = time.perf_counter()
    process = subprocess.Popen([*command, "--work-dir", work_dir], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = work_dir / "train.jsonl"
    try:
        while not (log.is_file() and log.stat().st_size):
            if process.poll() is not None:
                raise SystemExit("training failed")
            time.sleep(0.005)
        return time.perf_counter() - began
    finally:
        process.terminate()
        process.wait()


def cost_beside_learning(words: list[str], work_dir: Path, every: int) -> dict[str, float]:
    """Trains, and returns the milliseconds of an iteration, and of what in it is not learning.

    Args:
        words: The recipe and its overrides.
        work_dir: Where the run's files go.
        every: Iterations between lines of the log.
    """
    from detect import load_config, train
    from detect.models import single_stage
    from detect.running import run as loop
    from detect.running.averages import Averages
    from detect.running.logs import RunLog, read_log

    spent: dict[str, float] = defaultdict(float)
    kinds = {
        "seeds and learning rate": [(loop, "iteration_seed"), (loop, "set_lr"), (loop.Run, "progress")],
        "means of losses": [(Averages, "add"), (Averages, "end_window"), (Averages, "end_epoch")],
        "log and bar": [(RunLog, "training"), (RunLog, "epoch"), (RunLog, "advance"), (loop, "group_lrs")],
        "signals": [(loop.Run, "agree_to_stop")],
        "checks of what parts return": [(single_stage, "check_output")],
    }

    def measured(kind: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            result = original(*args, **kwargs)
            spent[kind] += time.perf_counter() - began
            return result

        return call

    with contextlib.ExitStack() as stack, Path(os.devnull).open("w") as nowhere:
        for kind, functions in kinds.items():
            for owner, name in functions:
                stack.enter_context(mock.patch.object(owner, name, measured(kind, getattr(owner, name))))
        options = ("train.epochs=2", "train.eval_every=0", f"train.log_every={every}")
        bar = Console(file=nowhere, force_terminal=True)
        train(load_config(words[0], [*words[1:], *options]), work_dir, accelerator="cpu", console=bar)
    records = [record for record in read_log(work_dir / "train.jsonl") if record["kind"] == "train"]
    times = [record["iteration_time"] for record in records]
    windows = [second - first for first, second in pairwise([0, *(record["iteration"] for record in records)])]
    iterations = sum(windows)
    whole = sum(map(math.prod, zip(times, windows, strict=True)))
    return {
        "iteration_ms": 1000 * whole / iterations,
        **{kind: 1000 * seconds / iterations for kind, seconds in spent.items()},
        "share": sum(spent.values()) / whole,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="of the commands' --help; the median counts")
    parser.add_argument(
        "--only", nargs="*", choices=("help", "start", "iteration"), default=["help", "start", "iteration"]
    )
    parser.add_argument("--json", type=Path, help="also write the figures there")
    options = parser.parse_args()
    figures: dict[str, Any] = {"machine": describe()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = make_data(folder / "streets") if {"start", "iteration"} & set(options.only) else []
        if "help" in options.only:
            figures["help_s"] = {name: seconds_to_help(name, options.rounds) for name in ("detect", "dpipe")}
        if "start" in options.only:
            figures["first_iteration_s"] = [seconds_to_first_iteration(words, folder / f"start-{n}") for n in range(3)]
        if "iteration" in options.only:
            figures["beside_learning"] = {
                f"log_every={every}": cost_beside_learning(words, folder / f"run-{every}", every) for every in (1, 50)
            }
    print(json.dumps(figures, indent=2))
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
