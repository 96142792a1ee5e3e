"""Loading a large annotation file: dpipe's index against pycocotools.

    python benchmarks/coco_train2017_like.py big.json
    python benchmarks/index.py big.json

Each load runs in a process of its own, in turn, for some rounds; a figure is the median. Peak and resident memory are
those of the whole process, interpreter and libraries included. "Made private" is what a forked worker adds to its
private, changed memory while it looks at every sample once: what each further worker costs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe
from rich.console import Console
from rich.table import Table

PEER = "pycocotools"
TARGETS = {
    "first load, stored": "4x the speed at half the peak",
    "from the cache": "300x the speed, a twentieth resident, below 10 MB private",
}


def load_with_dpipe(path: Path, *, cache: bool) -> Callable[[], None]:
    """Loads a file; returns what looks at every sample."""
    from dpipe import CocoIndex

    index = CocoIndex.load(path, cache=cache)

    def touch() -> None:
        for image in range(len(index)):
            rows = slice(int(index.offsets[image]), int(index.offsets[image + 1]))
            polygons = index.polygons.select(rows)
            values = (polygons.vertices, index.boxes[rows], index.labels[rows], index.crowd[rows])
            for value in (*values, index.areas[rows], index.annotation_ids[rows]):
                value.sum()
            assert index.file_names[image]

    return touch


def load_with_pycocotools(path: Path) -> Callable[[], None]:
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(None):
        coco = COCO(str(path))

    def touch() -> None:
        for image in coco.getImgIds():
            assert coco.loadImgs(image)[0]["file_name"]
            for record in coco.loadAnns(coco.getAnnIds(imgIds=image)):
                segmentation = record["segmentation"]
                rings = [segmentation["counts"]] if isinstance(segmentation, dict) else segmentation
                for ring in rings:
                    np.array(ring, dtype=np.float32).sum()
                np.array(
                    [*record["bbox"], record["area"], record["category_id"], record["iscrowd"], record["id"]]
                ).sum()

    return touch


CONTENDERS: dict[str, Callable[[Path], Callable[[], None]]] = {
    PEER: load_with_pycocotools,
    "first load, stored": lambda path: load_with_dpipe(path, cache=True),
    "from the cache": lambda path: load_with_dpipe(path, cache=True),
    "first load, not stored": lambda path: load_with_dpipe(path, cache=False),
}


def measure(name: str, path: Path) -> dict[str, float]:
    """Loads in this process, and touches every sample in a forked one."""
    import pycocotools.coco  # noqa: F401

    import dpipe.coco  # noqa: F401

    begin = time.perf_counter()
    touch = CONTENDERS[name](path)
    seconds = time.perf_counter() - begin
    figures = {
        "seconds": seconds,
        "peak MB": _memory("VmHWM", "status"),
        "resident MB": _memory("Rss"),
    }
    reader, writer = os.pipe()
    if not (worker := os.fork()):
        before = _memory("Private_Dirty")
        touch()
        os.write(writer, str(_memory("Private_Dirty") - before).encode())
        os._exit(0)
    os.waitpid(worker, 0)
    return {**figures, "made private MB": float(os.read(reader, 100))}


def _memory(key: str, file: str = "smaps_rollup") -> float:
    """Megabytes of this process, as Linux tells them."""
    lines = Path("/proc/self", file).read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{key}:")) / 1024


def run(path: Path, rounds: int) -> dict[str, dict[str, float]]:
    """The medians of all contenders."""
    results: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    while time.time() - path.stat().st_mtime < 3:  # a file that was just written is read again
        time.sleep(0.1)
    path.read_bytes()  # into the page cache
    for _ in range(rounds):
        folder = tempfile.mkdtemp()
        for name in CONTENDERS:
            command = [sys.executable, __file__, str(path), "--measure", name]
            environment = {**os.environ, "DPIPE_CACHE_DIR": folder}
            output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
            results[name].append(json.loads(output))
        shutil.rmtree(folder)
    return {
        name: {key: statistics.median(figures[key] for figures in several) for key in several[0]}
        for name, several in results.items()
    }


def show(results: dict[str, dict[str, float]]) -> None:
    """The figures as a table, with ratios against pycocotools."""
    table = Table("", "seconds", "faster", "peak MB", "of its peak", "resident MB", "made private MB", "wanted")
    peer = results[PEER]
    for name, figures in results.items():
        table.add_row(
            name,
            f"{figures['seconds']:.3f}",
            f"{peer['seconds'] / figures['seconds']:.1f}x",
            f"{figures['peak MB']:.0f}",
            f"1/{peer['peak MB'] / figures['peak MB']:.1f}",
            f"{figures['resident MB']:.0f} (1/{peer['resident MB'] / figures['resident MB']:.1f})",
            f"{figures['made private MB']:.1f}",
            TARGETS.get(name, ""),
        )
    Console(width=160).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="annotation file, as coco_train2017_like.py writes it")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--measure", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.path)))
        return
    results = run(arguments.path, arguments.rounds)
    show(results)
    report: dict[str, Any] = {"machine": describe(), "file MB": arguments.path.stat().st_size / 1e6, "results": results}
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
