"""What this machine gives for a recipe: the time of each stage on one core, and the loader's rate with all of them."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from dpipe.backends.base import usable_cores
from dpipe.backends.choose import checked_device
from dpipe.backends.opencv import OpenCVBackend
from dpipe.bench_machine import machine_facts
from dpipe.coco import CocoIndex, image_path
from dpipe.decode import decode_image
from dpipe.errors import InputError
from dpipe.loader import BackendName, DetectionLoader
from dpipe.memory import Scratch
from dpipe.photometric import apply_photometric
from dpipe.policy import Augment
from dpipe.ragged import offsets_of, ranges
from dpipe.resample import resample
from dpipe.target import make_target

STAGES = {
    "read": "reading the file, from memory where the system keeps it",
    "decode": "decoding, and looking whether the file is whole",
    "draw": "drawing the plan",
    "resample": "resampling: one warp or one resize",
    "photometric": "operations on colours",
    "normalise": "normalising into the batch",
    "target": "boxes and masks",
}

LEAST_REPETITIONS, MOST_REPETITIONS = 3, 20

Progress = Callable[[str], None]


@dataclass(frozen=True)
class StageTime:
    """What a stage costs.

    Attributes:
        name: A key of ``STAGES``.
        ms: Milliseconds an image, on one core: the mean over the images of the median over repetitions.
        share: Of the sum of all stages, 0..1.
    """

    name: str
    ms: float
    share: float


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
        progress: Is told what is measured next.

    Raises:
        InputError: For a number out of range, a bad image, and what ``DetectionLoader`` raises.
    """
    threads = _doubling(usable_cores()) if threads is None else threads
    for name, value in (("batch_size", batch_size), ("count", count), ("threads", min(threads, default=0))):
        if value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    if not seconds > 0:
        raise InputError(f"seconds must be above 0, got {seconds}")
    checked_device(device)
    machine = machine_facts()  # before it is busy with this
    chosen = choose_images(index, count)
    stages: tuple[StageTime, ...] = ()
    if "opencv" in backends:
        progress("stages")
        stages = measure_stages(chosen, images, augment, seconds)
    loaders = []
    for backend in backends:
        for number in threads:
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
    numbers = np.sort(np.random.default_rng(0).choice(len(index), count, replace=False))
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


def measure_stages(index: CocoIndex, images: Path, augment: Augment, seconds: float) -> tuple[StageTime, ...]:
    """Times what the OpenCV backend does with each image, and the making of targets, on one core."""
    backend = OpenCVBackend([], augment)
    loader = DetectionLoader(index, images, augment=augment, backend="opencv", threads=1)
    paths = [image_path(images, name) for name in index.file_names]
    scratch = Scratch()
    times: list[NDArray[np.float64]] = []
    started = time.perf_counter()
    try:
        while len(times) < LEAST_REPETITIONS or time.perf_counter() - started < seconds:
            times.append(
                np.array([time_image(number, path, loader, backend, scratch)[0] for number, path in enumerate(paths)])
            )
    finally:
        loader.close()
    # The first time round files come from the disk and memory is new.
    means = np.median(np.stack(times[1:]), axis=0).mean(axis=0)
    return tuple(
        StageTime(name, 1000 * float(mean), float(mean / means.sum())) for name, mean in zip(STAGES, means, strict=True)
    )


def time_image(
    number: int, path: Path, loader: DetectionLoader, backend: OpenCVBackend, scratch: Scratch
) -> tuple[list[float], np.ndarray]:
    """Takes one image through the stages, with the functions that the backend and the loader call.

    Args:
        number: Of the image in the loader's index, and of the sample.
        path: Of the image.
        loader: Draws the plan, and knows what targets are wanted.
        backend: Knows how to normalise.
        scratch: As each of the backend's threads has one.

    Returns:
        Seconds of each of the ``STAGES``, and the image as the backend makes it, without padding: (h, w, 3).
    """
    clock = _Clock()
    with clock:
        path.read_bytes()
    read = clock.seconds[-1]
    size = (int(loader.index.heights[number]), int(loader.index.widths[number]))
    with clock:
        pixels = decode_image(path, size, number, scratch)
    clock.seconds[-1] = max(clock.seconds[-1] - read, 0.0)  # it reads the file as well
    with clock:
        plan = loader.plan(number, epoch=0)
    height, width = plan.size
    resampled = scratch.array("resampled", (height, width, 3))
    with clock:
        pixels = resample(pixels, plan, resampled, scratch)
    with clock:
        pixels = apply_photometric(pixels, plan.photometric)
    out = pixels
    if backend.table is not None:
        # The kernel hands out these pages now: the backend's batches have theirs already.
        out = np.full((height, width, 3), 1, dtype=np.float32)
    with clock:
        if backend.table is not None:
            if backend.bgr:
                pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
            cv2.LUT(pixels, backend.table, out)
    with clock:
        make_target(loader.index, plan, loader.boxes_from, loader.min_size)
    return clock.seconds, out


class _Clock:
    """Notes how long each ``with`` block took."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds.append(time.perf_counter() - self._started)


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
            if device != "cpu":
                torch.cuda.synchronize()
            rates.append(loaded / (time.perf_counter() - begun))
            if len(rates) == MOST_REPETITIONS:
                break
    finally:
        batches.close()  # type: ignore[attr-defined]
        loader.close()
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
            "decode": "dpipe transcode makes files that decode faster"
            if common in ("PNG", "BMP", "TIF", "TIFF")
            else "a GPU decodes them with the dali backend; smaller images would help",
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
