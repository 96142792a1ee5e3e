"""What a figure was measured on, and on how many of its cores."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LIBRARIES = (
    "opencv-python-headless",
    "nvidia-dali-cuda120",
    "torch",
    "torchvision",
    "albumentations",
    "numpy",
    "simplejpeg",
    "rasterio",
)


def describe() -> dict[str, object]:
    """The processor, the cores that this process may use, and the versions of what is compared."""
    versions = {"python": platform.python_version(), **{library: _version(library) for library in LIBRARIES}}
    return {"cpu": cpu_model(), "cores": len(os.sched_getaffinity(0)), "versions": versions}


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:  # some are optional, and change what is measured
        return "not installed"


def cpu_model() -> str:
    """The processor's name as Linux tells it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@contextmanager
def on_cores(number: int) -> Iterator[None]:
    """Keeps this thread, and those that it starts, on the first so many of the cores that it may use.

    One thread's figure is then one core's: helpers of a library share that core instead of taking another.
    """
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:number])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
