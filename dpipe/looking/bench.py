"""What this machine gives for a recipe: the time of each stage on one core, and the loader's rate with all of them."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from converters.report import counted
from dpipe.backends.base import OnBadSample, usable_cores
from dpipe.backends.choose import checked_device
from dpipe.coco import CocoIndex, image_path
from dpipe.errors import BadSampleError, InputError
from dpipe.images.decode import decode_image
from dpipe.loader import BackendName, DetectionLoader
from dpipe.looking.bench_machine import machine_facts
from dpipe.looking.bench_stages import LEAST_REPETITIONS, STAGES, StageTime, measure_stages
from dpipe.outlines.ragged import offsets_of, ranges
from dpipe.policy import Augment

logger = logging.getLogger("dpipe")

MOST_REPETITIONS = 20
GPU_FORMATS = ("JPG", "JPEG", "JPE", "JP2")
"""What DALI decodes on a GPU, by the endings of names."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class LoaderRate:
    """What the whole loader gives.

    Attributes:
        backend: ``opencv`` or ``dali``.
        device: Where batches are made or copied to.
        threads: Of the loader.
        images_per_second: Median over repetitions.
        slowest: Of the repetitions, in images a second.
        fastest: Of the repetitions, in images a second.
    """

    backend: str
    device: str
    threads: int
    images_per_second: float
    slowest: float
    fastest: float


@dataclass(frozen=True)
class BenchReport:
    """What was measured.

    Attributes:
        machine: Names of the processor and of versions.
        data: What was loaded: number of images, formats, sizes.
        stages: Of the OpenCV backend, in order; none where it was not measured.
        loaders: One for each backend and number of threads.
        notes: What a reader should know, one line each; the first says what bounds the rate.
    """

    machine: dict[str, str]
    data: dict[str, Any]
    stages: tuple[StageTime, ...]
    loaders: tuple[LoaderRate, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return asdict(self)


def bench(
    index: CocoIndex,
    images: Path,
    augment: Augment,
    *,
    backends: Sequence[BackendName] = ("opencv",),
    device: str = "cpu",
    threads: Sequence[int] | None = None,
    batch_size: int = 2,
    count: int = 32,
    seconds: float = 3.0,
    on_bad_sample: OnBadSample = "fail",
    progress: Progress = lambda _: None,
) -> BenchReport:
    """Measures a recipe.

    Args:
        index: The annotations.
        images: Folder that the index's file names are relative to.
        augment: The recipe's transforms.
        backends: ``opencv`` and ``dali``, one or both.
        device: See ``DetectionLoader``.
        threads: Numbers of threads to try the loader with; 1, 2, 4 ... up to all cores where not given.
        batch_size: Images of a batch.
        count: Images to measure on, drawn from the data set; all of them where there are fewer.
        seconds: What each line of the report may take, a little more where it takes that to repeat it three times.
        on_bad_sample: ``skip`` leaves images out that cannot be used, of those drawn; a log of the name ``dpipe`` names
            them.
        progress: Is told what is measured next.

    Raises:
        InputError: For a number out of range, a bad image, and what ``DetectionLoader`` raises.
    """
    threads = _doubling(usable_cores()) if threads is None else threads
    for name, value in (("batch_size", batch_size), ("count", count), ("threads", min(threads, default=0))):
        if value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    if not 0 < seconds < math.inf:
        raise InputError(f"seconds must be a finite number above 0, got {seconds}")
    checked_device(device)
    machine = machine_facts()  # before it is busy with this
    chosen = choose_images(index, count)
    if on_bad_sample == "skip":
        chosen = usable_images(chosen, images)
    stages: tuple[StageTime, ...] = ()
    if "opencv" in backends:
        progress("stages")
        stages = measure_stages(chosen, images, augment, seconds)
    loaders = []
    for backend in backends:
        # On a GPU, DALI has use for no more threads than a batch has images.
        most = batch_size if backend == "dali" and device != "cpu" else max(threads)
        for number in dict.fromkeys(min(number, most) for number in threads):
            progress(f"{backend}, {number} threads")
            loaders.append(
                measure_loader(
                    chosen,
                    images,
                    augment,
                    backend=backend,
                    device=device,
                    threads=number,
                    batch_size=batch_size,
                    seconds=seconds,
                    on_bad_sample=on_bad_sample,
                )
            )
    data = _describe_data(chosen, images, augment)
    return BenchReport(
        machine=machine,
        data={**data, "batch_size": batch_size},
        stages=stages,
        loaders=tuple(loaders),
        notes=tuple(_notes(stages, loaders, data["formats"], float(machine.get("load", 0)))),
    )


def choose_images(index: CocoIndex, count: int) -> CocoIndex:
    """Some images of a data set with their annotations, always the same ones."""
    if not len(index):
        raise InputError(f"{index.path}: expected at least one image, found none")
    if count >= len(index):
        return index
    return _select(index, np.sort(np.random.default_rng(0).choice(len(index), count, replace=False)))


def usable_images(index: CocoIndex, images: Path) -> CocoIndex:
    """The images of a data set that OpenCV can decode, and a warning in the log of each other one.

    Raises:
        InputError: If there is none.
    """
    usable = [number for number in range(len(index)) if _is_usable(index, images, number)]
    if not usable:
        raise InputError(f"{index.path}: none of the {counted(len(index), 'image')} drawn to measure on can be used")
    return _select(index, np.array(usable))


def _is_usable(index: CocoIndex, images: Path, number: int) -> bool:
    name = index.file_names[number]
    try:
        decode_image(image_path(images, name), (int(index.heights[number]), int(index.widths[number])))
    except BadSampleError as error:
        logger.warning("skipped %s: %s", name, error.reason)
        return False
    return True


def _select(index: CocoIndex, numbers: NDArray[np.int64]) -> CocoIndex:
    """Some images of a data set with their annotations, by their numbers in ascending order."""
    counts = np.diff(index.offsets)[numbers]
    rows = ranges(index.offsets[numbers], counts)
    per_instance = {
        name: getattr(index, name)[rows] for name in ("boxes", "labels", "crowd", "areas", "annotation_ids")
    }
    return replace(
        index,
        image_ids=index.image_ids[numbers],
        widths=index.widths[numbers],
        heights=index.heights[numbers],
        file_names=[index.file_names[number] for number in numbers.tolist()],
        offsets=offsets_of(counts),
        polygons=index.polygons.select(rows),
        **per_instance,
    )


def measure_loader(
    index: CocoIndex,
    images: Path,
    augment: Augment,
    *,
    backend: BackendName,
    device: str,
    threads: int,
    batch_size: int,
    seconds: float,
    on_bad_sample: OnBadSample = "fail",
) -> LoaderRate:
    """Times batches as a trainer takes them, once the queue is full; the trainer itself takes no time."""
    repetition = max(1, math.ceil(len(index) / batch_size))  # batches
    repeat = math.ceil((MOST_REPETITIONS + 2) * repetition * batch_size / len(index))
    loader = DetectionLoader(
        index,
        images,
        augment=augment,
        batch_size=batch_size,
        backend=backend,
        device=device,
        threads=threads,
        repeat=repeat,
        on_bad_sample=on_bad_sample,
    )
    rates: list[float] = []
    try:
        batches = iter(loader)
        for _ in islice(batches, repetition):  # all files have been read, all memory is there
            pass
        started = time.perf_counter()
        while len(rates) < LEAST_REPETITIONS or time.perf_counter() - started < seconds:
            begun = time.perf_counter()
            loaded = sum(len(batch) for batch in islice(batches, repetition))
            if not loaded:  # skipped batches are made up for by none
                break
            if device != "cpu":
                torch.cuda.synchronize(device)
            rates.append(loaded / (time.perf_counter() - begun))
            if len(rates) == MOST_REPETITIONS:
                break
    finally:
        batches.close()  # type: ignore[attr-defined]
        loader.close()
    if not rates:
        raise InputError(f"{index.path}: too few of the images drawn to measure on can be used by {backend}")
    return LoaderRate(backend, device, threads, float(np.median(rates)), min(rates), max(rates))


def _describe_data(index: CocoIndex, images: Path, augment: Augment) -> dict[str, Any]:
    """What was loaded."""
    paths = [image_path(images, name) for name in index.file_names]
    loader = DetectionLoader(index, images, augment=augment, backend="opencv", threads=1)
    plans = [loader.plan(number, epoch=0) for number in range(len(index))]
    loader.close()
    return {
        "annotations": str(index.path),
        "images": len(index),
        "formats": dict(Counter(path.suffix.lower().lstrip(".") or "?" for path in paths).most_common()),
        "kilobytes": sum(path.stat().st_size for path in paths) / len(paths) / 1000,
        "megapixels": float((index.widths.astype(np.float64) * index.heights).mean() / 1e6),
        "megapixels_out": float(np.mean([math.prod(plan.size) for plan in plans]) / 1e6),
        "objects": float(len(index.labels) / len(index)),
    }


def _notes(
    stages: Sequence[StageTime], loaders: Sequence[LoaderRate], formats: dict[str, int], load: float
) -> Iterator[str]:
    """What bounds the rate, and what could be done about it."""
    if stages:
        largest = max(stages, key=lambda stage: stage.share)
        common = next(iter(formats)).upper()
        advice = {
            "read": "a faster disk, or smaller files, would help",
            "decode": "a GPU decodes them with the dali backend; smaller images would help"
            if common in GPU_FORMATS
            else "dpipe transcode makes files that decode faster",
            "resample": "a smaller scale in Resize would help",
            "photometric": "fewer or cheaper operations on colours would help",
            "normalise": "normalising in the model, from uint8 images, would help",
        }
        what = f"decoding {common}" if largest.name == "decode" else STAGES[largest.name].partition(":")[0]
        tip = advice.get(largest.name)
        yield f"{largest.name}-bound: {100 * largest.share:.0f}% of the time goes to {what}" + (
            f"; {tip}" if tip else ""
        )
    of_opencv = [rate for rate in loaders if rate.backend == "opencv"]
    single = next((rate for rate in of_opencv if rate.threads == 1), None)
    if stages and single:
        possible = 1000 / sum(stage.ms for stage in stages)
        yield (
            f"one thread of the loader gives {100 * single.images_per_second / possible:.0f}% of what its stages would "
            "(over 100% where targets have a core of their own)"
        )
    most = max(of_opencv, key=lambda rate: rate.threads, default=None)
    if single and most and most is not single:
        times = most.images_per_second / single.images_per_second
        yield f"{most.threads} threads are {times:.2f} times as fast as one"
    if load > 0.5:
        yield f"the machine was busy with something else (load {load:.1f}): the figures may be too low"


def _doubling(cores: int) -> list[int]:
    """1, 2, 4 ... and the number of cores."""
    return sorted({min(2**power, cores) for power in range(cores.bit_length() + 1)})
