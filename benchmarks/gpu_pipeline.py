"""The recipe of cascade_augfpn_autoaug.yaml on a GPU: DALI against OpenCV on all cores, and the wait in training.

    python benchmarks/gpu_pipeline.py --data cache --json gpu_pipeline.json

First images a second, for JPEG, PNG and lossless JPEG 2000 files of the same pixels: batches by DALI on the GPU, and
batches by OpenCV on all cores that are copied to it. DALI works on one batch at a time, so large ones are measured too.
Then the recipe's training step with each, and which share of its time the loop waits for the next batch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from machine import describe
from rich.console import Console
from rich.table import Table
from street_photos import Streets, make_streets

from detect.config import build_model, load_config
from detect.models.detectors import total_loss
from detect.running.optim import make_optimizer, set_lr
from dpipe import CocoIndex, DetectionLoader
from dpipe.recipes import load_recipe

RECIPE = "cascade_augfpn_autoaug"
FORMATS = ("jpeg", "png", "jp2")
WIDTH, HEIGHT = 2048, 1024
MOST_WAITING = 0.01
"""The share of a training step that may be spent waiting for data."""


def main() -> int:
    """Reads the command line, measures, prints the tables and writes the JSON."""
    args = _arguments()
    if not torch.cuda.is_available():
        print("gpu_pipeline.py needs a CUDA device, and there is none here", file=sys.stderr)
        return 2
    report: dict[str, Any] = {"machine": {**describe(), "gpu": torch.cuda.get_device_name()}, "recipe": RECIPE}
    console = Console(width=120)
    console.print(report["machine"])
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.data or Path(scratch)
        streets = {name: make_streets(folder, WIDTH, HEIGHT, args.images, name) for name in FORMATS}
        report["rates"] = {
            f"{name}, {batch_size} a batch": _rates(streets[name], args, batch_size)
            for name in FORMATS
            for batch_size in (args.batch_size, args.large_batch_size)
        }
        _show_rates(report["rates"], console)
        report["waiting"] = {
            f"{name}, {backend}": _waiting(streets[name], backend, args)
            for name in ("jpeg", "png")
            for backend in ("dali", "opencv")
        }
        _show_waiting(report["waiting"], console)
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


def _rates(streets: Streets, args: argparse.Namespace, batch_size: int) -> dict[str, float]:
    """Images a second of both backends, medians over interleaved epochs; the first epoch of each is not counted."""
    loaders = {backend: _loader(streets, backend, batch_size, args.repeat) for backend in ("dali", "opencv")}
    rates: dict[str, list[float]] = {backend: [] for backend in loaders}
    for number in range(args.rounds + 1):
        for backend, loader in loaders.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            images = sum(len(batch) for batch in loader)
            torch.cuda.synchronize()
            if number:
                rates[backend].append(images / (time.perf_counter() - start))
    for loader in loaders.values():
        loader.close()
    return {backend: statistics.median(values) for backend, values in rates.items()}


def _waiting(streets: Streets, backend: str, args: argparse.Namespace) -> dict[str, float]:
    """Trains the recipe's model from random weights in bfloat16, and times the loop.

    A batch that was handed out may still be in the making, or on its way, on the GPU: the loop waits for it there, too.
    It waits for the stream that it works on, and never for the whole GPU, where DALI is at the batches that come next.

    Returns:
        ``step``: seconds of a step with its wait; ``waited``: the part of it that the next batch was waited for.
    """
    config = load_config(RECIPE)
    with closing(_loader(streets, backend, args.batch_size, args.repeat)) as loader:
        # Pretrained weights would change the numbers of the losses, not the time.
        model = build_model(config, len(loader.index.class_names), pretrained=False).cuda().train()
        optimizer = make_optimizer(model, config.optimizer)
        set_lr(optimizer, 0.0)  # what is measured is time; random weights would diverge
        steps: list[float] = []
        waits: list[float] = []
        stream = torch.cuda.current_stream()
        began = time.perf_counter()
        while len(steps) < args.steps + args.warm_up:
            for batch in loader:
                stream.synchronize()
                waited = time.perf_counter() - began
                with torch.autocast("cuda", torch.bfloat16):
                    loss = total_loss(model(batch.images, batch.targets))
                loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                stream.synchronize()  # the GPU's work is counted in the step that asked for it
                now = time.perf_counter()
                steps.append(now - began)
                waits.append(waited)
                began = now
    steps, waits = steps[args.warm_up :], waits[args.warm_up :]
    return {"step": statistics.median(steps), "waited": sum(waits) / len(waits), "share": sum(waits) / sum(steps)}


def _loader(streets: Streets, backend: Any, batch_size: int, repeat: int) -> DetectionLoader:
    return DetectionLoader(
        CocoIndex.load(streets.annotations),
        streets.images,
        augment=load_recipe(RECIPE).values["data"]["train_transforms"],
        batch_size=batch_size,
        backend=backend,
        device="cuda",
        repeat=repeat,
    )


def _show_rates(rates: dict[str, dict[str, float]], console: Console) -> None:
    table = Table(title=f"{WIDTH}x{HEIGHT}, float32 batches on the GPU, images a second")
    for column in ("files", "DALI", "OpenCV, all cores", "DALI is"):
        table.add_column(column, justify="left" if column == "files" else "right")
    for name, rate in rates.items():
        ratio = rate["dali"] / rate["opencv"]
        table.add_row(name, f"{rate['dali']:.0f}", f"{rate['opencv']:.0f}", f"{ratio:.2f}x")
    console.print(table)


def _show_waiting(waiting: dict[str, dict[str, float]], console: Console) -> None:
    table = Table(title=f"a training step of {RECIPE}, bfloat16; at most {MOST_WAITING:.0%} of it may be waiting")
    for column in ("files, backend", "step", "waiting", "share", ""):
        table.add_column(column, justify="left" if column == "files, backend" else "right")
    for name, times in waiting.items():
        verdict = "reached" if times["share"] < MOST_WAITING else "missed"
        table.add_row(
            name, f"{1e3 * times['step']:.0f} ms", f"{1e3 * times['waited']:.2f} ms", f"{times['share']:.2%}", verdict
        )
    console.print(table)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder to keep the images in (default: made anew, not kept)")
    parser.add_argument("--images", type=int, default=48, help="images of each format (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=8, help="how often a round sees each (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds to take the median of (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=2, help="images of a batch (default: %(default)s)")
    parser.add_argument("--large-batch-size", type=int, default=16, help="and of a large one (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=60, help="training steps to time (default: %(default)s)")
    parser.add_argument("--warm-up", type=int, default=10, help="steps before those (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="file for the results")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
