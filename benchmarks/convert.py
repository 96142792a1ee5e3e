"""Converters of published data sets, against the usual ways.

    python benchmarks/convert.py cityscapes --data cache
    python benchmarks/convert.py voc --data cache

On one core, contenders take turns for some rounds; a figure is the median. Then the converter alone, on one core and by
two processes on two, twice in turns. Everything runs from files in the page cache to a file on the disk, and the files
are compared: a run in which they differ ends with an error.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
from machine import describe, on_cores

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@dataclass(frozen=True)
class Contender:
    """What is measured, and on how many cores."""

    run: Callable[[], object]
    cores: int = 1


def in_turns(contenders: Mapping[str, Contender], rounds: int, *, warm: bool = True) -> dict[str, float]:
    """Runs all in turns, before that (if ``warm``) each once unmeasured; returns the medians in seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(-warm, rounds):
        for name, contender in contenders.items():
            with on_cores(contender.cores):
                began = time.perf_counter()
                contender.run()
                took = time.perf_counter() - began
            if number >= 0:
                seconds[name].append(took)
    return {name: statistics.median(found) for name, found in seconds.items()}


def cityscapes(folder: Path, rounds: int, images: int) -> None:
    """Prints the figures of Cityscapes.

    Args:
        folder: Where the data set is written, and found again.
        rounds: Of all contenders.
        images: For the comparison of one process with two, whose start is part of the time.
    """
    from converting import cityscapes as part

    with tempfile.TemporaryDirectory() as temporary:
        output = Path(temporary)
        root = part.make_set(folder, part.DISTINCT)
        files = part.label_files(root)
        found = in_turns({name: Contender(run) for name, run in part.contenders(files, root, output).items()}, rounds)
        objects = part.check_equal(output / part.NAME, output / "theirs.json")
        print(f"{len(files)} images of {part.WIDTH}x{part.HEIGHT}, {objects} objects, identical: one core")
        ours = next(iter(found.values()))
        for name, seconds in found.items():
            print(f"  {name:34} {1000 * seconds / len(files):7.1f} ms an image {seconds / ours:6.2f}x dpipe's time")

        root = part.make_set(folder, images)
        processes = in_turns(
            {
                "one": Contender(lambda: part.ours(root, output / "one")),
                "two": Contender(lambda: part.ours(root, output / "two", nproc=2), cores=2),
            },
            2,
            warm=False,
        )
        one, two = processes["one"], processes["two"]
        assert (output / "one" / part.NAME).read_bytes() == (output / "two" / part.NAME).read_bytes()
        print(f"{images} images: --nproc 1 {one:.2f} s, --nproc 2 {two:.2f} s, {one / two:.2f} times as fast")


def voc(folder: Path, rounds: int) -> None:
    """Prints the figures of Pascal VOC.

    Args:
        folder: Where the data set is written, and found again.
        rounds: Of all contenders.
    """
    from converting import voc as part

    root = part.make_set(folder)
    with tempfile.TemporaryDirectory() as temporary, part.terminal() as screen:
        output = Path(temporary)
        contenders = part.contenders(root, output, screen)
        found = in_turns({name: Contender(run, cores) for name, (run, cores, _) in contenders.items()}, rounds)
        print(f"{part.COUNT} files, {part.check_equal(output)} objects, equal boxes")
        for name, (_, _, other) in contenders.items():
            seconds, theirs = found[name], found[other]
            print(
                f"  {name:40} {seconds:7.3f} s {part.COUNT / seconds:8.0f} files/s {theirs / seconds:6.2f}x OpenMMLab's"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_set", choices=["cityscapes", "voc"])
    parser.add_argument("--data", type=Path, default=Path("benchmark_data"), help="cache of the generated files")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=2975, help="for one process against two")
    arguments = parser.parse_args()
    sys.path.insert(0, str(EXAMPLES))
    cv2.setNumThreads(1)
    print(describe())
    if arguments.data_set == "voc":
        voc(arguments.data, arguments.rounds)
    else:
        cityscapes(arguments.data, arguments.rounds, arguments.images)


if __name__ == "__main__":
    main()
