"""Kills training runs at random moments, lets them go on, and compares what they end with, bit by bit.

    python tests/detect/kill_runs.py                      # twenty kills, five of each kind of run
    python tests/detect/kill_runs.py --kills 3 --seed 7 --only two-processes

Each kind is run once from start to end; then again, killed by SIGKILL and resumed until it has been killed so often.
Weights, their average, the optimizer's state, the position in the data and the evaluations of both must be the same.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from detect.running.logs import read_log
from detect.running.state import STATE, WEIGHTS, checkpoint_folders

COMMON = (
    "data.train.repeat=24", "train.epochs=2", "train.eval_every=1", "train.keep=1", "evaluation.kinds=[bbox]",
    "data.batch_size=1", "train.checkpoint_every_iters=5",
)  # fmt: skip
ADAMW = "optimizer={_delete_: true, type: AdamW, lr: 0.001, weight_decay: 0.05}"
KINDS: dict[str, tuple[str, ...]] = {
    "sgd": (),
    "accumulated-ema": ("train.accumulate=2", "train.ema={decay: 0.99, warmup_iters: 10}", "train.log_every=3"),
    "bf16-adamw-cosine": (
        "train.precision=bf16-mixed", ADAMW, "schedule={_delete_: true, type: cosine, warmup_iters: 5}",
    ),
    "two-processes": ("train.ema={decay: 0.99, warmup_iters: 10}", "--devices", "2", "--accelerator", "cpu"),
}  # fmt: skip


def differences(first: Any, second: Any, name: str = "") -> Iterator[str]:
    """The names of what is not the same in two states, to the last bit."""
    if isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
        for key, value in first.items():
            yield from differences(value, second[key], f"{name}/{key}")
    elif isinstance(first, list | tuple) and type(first) is type(second) and len(first) == len(second):
        for number, pair in enumerate(zip(first, second, strict=True)):
            yield from differences(*pair, f"{name}/{number}")
    elif isinstance(first, Tensor) and isinstance(second, Tensor):
        same = first.dtype == second.dtype and first.shape == second.shape
        if not same or first.contiguous().numpy().tobytes() != second.contiguous().numpy().tobytes():
            yield name
    elif type(first) is not type(second) or first != second:
        yield name


def different_checkpoints(first: Path, second: Path) -> list[str]:
    """The names of what is not the same in two checkpoints."""
    weights = differences(load_file(first / WEIGHTS), load_file(second / WEIGHTS), "weights")
    states = (torch.load(folder / STATE, weights_only=True) for folder in (first, second))
    return [*weights, *differences(*states, "state")]


def start(recipe: Path, overrides: tuple[str, ...], work_dir: Path, *more: str) -> subprocess.Popen[bytes]:
    """Starts a run in a process group of its own."""
    command = [sys.executable, "-m", "detect", "train", str(recipe), *overrides, *more, "--work-dir", str(work_dir)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (work_dir.parent / f"{work_dir.name}.txt").open("ab") as output:
        return subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)


def logged(work_dir: Path) -> int:
    """The last iteration that a run has logged."""
    return max((record["iteration"] for record in read_log(work_dir / "train.jsonl")), default=0)


def wait_for_moment(process: subprocess.Popen[bytes], work_dir: Path, last: int, chance: random.Random) -> bool:
    """Waits for a random moment of a run: within its start, or after some iterations.

    Args:
        process: The run.
        work_dir: Its work directory.
        last: Iterations of the whole run.
        chance: Draws the moment.

    Returns:
        Whether the run had not ended before.
    """
    before = logged(work_dir)
    target = before + int(chance.uniform(-last / 8, last / 2))
    pause = chance.uniform(0, 0.2) if target > before else chance.uniform(0, 12)
    while process.poll() is None and target > before and logged(work_dir) < target:
        time.sleep(0.05)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=pause)
    return process.poll() is None


def kill(process: subprocess.Popen[bytes], chance: random.Random) -> str:
    """Kills a run: all its processes at once, or one of them, which the others must not survive."""
    members = process_group(process.pid)
    victims = members if len(members) < 2 or chance.random() < 0.5 else [chance.choice(members)]
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(timeout=60)
    deadline = time.monotonic() + 60
    while process_group(process.pid):
        if time.monotonic() > deadline:
            raise SystemExit(f"{victims} of {members} were killed, and others still wait after 60 s")
        time.sleep(0.05)
    return f"killed {len(victims)} of {len(members)} processes"


def process_group(leader: int) -> list[int]:
    """The processes of a group that are alive."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():  # one for each process
            with contextlib.suppress(OSError):
                state, _, group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
                if int(group) == leader and state != "Z":
                    found.append(int(folder.name))
    return found


def newest(work_dir: Path) -> str:
    folders = checkpoint_folders(work_dir / "checkpoints")
    return folders[-1].name if folders else "no checkpoint"


def try_kind(recipe: Path, overrides: tuple[str, ...], folder: Path, kills: int, chance: random.Random) -> list[str]:
    """Runs one kind without and with kills, and returns the names of what differs in the end."""
    whole, killed = folder / "whole", folder / "killed"
    process = start(recipe, overrides, whole)
    if process.wait():
        raise SystemExit((folder / "whole.txt").read_text())
    done, last = 0, logged(whole)
    while done < kills:
        process = start(recipe, overrides, killed, "--resume")
        if wait_for_moment(process, killed, last, chance):
            how = kill(process, chance)
            done += 1
            print(f"  {done}: {how} after iteration {logged(killed)}, at {newest(killed)}", flush=True)
            continue
        if process.returncode:
            raise SystemExit((folder / "killed.txt").read_text())
        different = different_checkpoints(whole / "checkpoints" / "last", killed / "checkpoints" / "last")
        print(f"  ended after {done} kills, {len(different)} differences; begins anew", flush=True)
        if different:
            return different
        shutil.rmtree(killed)
    if start(recipe, overrides, killed, "--resume").wait():
        raise SystemExit((folder / "killed.txt").read_text())
    return different_checkpoints(whole / "checkpoints" / "last", killed / "checkpoints" / "last")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=5, help="of each kind of run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--only", choices=KINDS, nargs="*", default=list(KINDS))
    options = parser.parse_args()
    write_shapes = runpy.run_path(str(Path(__file__).with_name("conftest.py")))["write_shapes"]
    failed = False
    for kind in options.only:
        print(kind, flush=True)
        with tempfile.TemporaryDirectory() as name:
            shapes = write_shapes(Path(name) / "shapes")
            chance = random.Random(f"{options.seed} {kind}")
            different = try_kind(shapes.recipe, (*COMMON, *KINDS[kind]), Path(name), options.kills, chance)
        print(f"  {options.kills} kills, {len(different)} differences {' '.join(different[:5])}", flush=True)
        failed |= bool(different)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
