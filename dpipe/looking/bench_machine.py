"""The machine that something was measured on, in words."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from dpipe.backends.base import usable_cores

PACKAGES = ("dpipe-detect", "opencv-python-headless", "nvidia-dali-cuda120", "numpy", "torch")


def machine_facts() -> dict[str, str]:
    """The processor, how much of it may be used and how busy it is, the GPU, and versions."""
    facts = {"processor": _processor(), "cores": f"{usable_cores()} of {os.cpu_count()}"}
    if hasattr(os, "getloadavg"):
        facts["load"] = f"{os.getloadavg()[0]:.1f}"
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    facts["python"] = platform.python_version()
    versions = {package: _version(package) for package in PACKAGES}
    return facts | {package: number for package, number in versions.items() if number}


def _version(package: str) -> str:
    """A package's version; empty where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _processor() -> str:
    """The model's name, as Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
