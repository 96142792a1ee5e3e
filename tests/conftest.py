"""What tests of all three packages share."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import settings

# A build must not fail by chance: new counterexamples are looked for elsewhere.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

# As the detect command does, before PyTorch loads: waiting threads of two test processes must not starve each other.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
# Tests reach no network: albumentations would look for a newer version of itself.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
# A shell's background jobs ignore interrupts, and so would the programs that tests start to interrupt them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of small real data sets; the test is skipped where ``DPIPE_TEST_DATA`` does not name it."""
    value = os.environ.get("DPIPE_TEST_DATA")
    if not value:
        pytest.skip("DPIPE_TEST_DATA is not set: it names the folder of small real data sets")
    return Path(value)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips GPU tests where no CUDA device is."""
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch

    if torch.cuda.is_available():
        torch.cuda.init()  # which sees the GPUs that there are; later, in a test without, there would be none
        return
    for item in gpu_items:
        item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Runs GPU tests with GPUs, and all others, with the fixtures that they are the first to ask for, without."""
    with ExitStack() as stack:
        if not item.get_closest_marker("gpu"):
            stack.enter_context(_hidden_gpus())
        return (yield)


@contextmanager
def _hidden_gpus() -> Iterator[None]:
    """Hides GPUs from PyTorch and from other processes: what takes one by itself gives other bits there."""
    with ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ, CUDA_VISIBLE_DEVICES=""))
        if "torch" in sys.modules:
            cuda = sys.modules["torch"].cuda
            stack.enter_context(patch.object(cuda, "is_available", lambda: False))
            stack.enter_context(patch.object(cuda, "device_count", lambda: 0))
        yield
