"""What can be known of DALI's graph for a GPU where no GPU is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from dpipe.policy import Augment, Normalize

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")

from nvidia.dali import Pipeline, backend

from dpipe.backends import dali_graph
from dpipe.backends.dali import DaliBackend
from dpipe.backends.dali_options import DaliOptions, Decoder

CAFFE = Normalize((103.53, 116.28, 123.675), (1.0, 2.0, 3.0), bgr=True)
FOR_PIXELS = {"WarpAffine", "Resize", "Cast", "Equalize", "ColorSpaceConversion", "reductions__Mean"}
REGISTERED = {
    "cpu": backend.RegisteredCPUOps(),
    "gpu": backend.RegisteredGPUOps(),
    "mixed": backend.RegisteredMixedOps(),
}


def nothing() -> list[Any]:
    """A source of inputs that is never asked."""
    raise AssertionError


def operators_of(pipeline: Pipeline) -> set[tuple[str, str]]:
    """Operators and their devices.

    DALI checks the definition on the way: which arguments an operator knows and that they are on the CPU, and that
    inputs, and what comes out of branches, are on the devices that it takes.
    """
    pipeline.serialize()
    specs = [str(operator.spec) for operator in pipeline._ops]
    return {(re.search(r"OpSpec for (\w+)", spec)[1], re.search(r" device: (\w+)", spec)[1]) for spec in specs}


@pytest.mark.parametrize("decoder", ["gpu", "cpu"])
@pytest.mark.parametrize(("slots", "halvings", "normalize"), [(0, 0, None), (2, 1, None), (1, 2, CAFFE)])
def test_the_graph_for_a_gpu_is_one_that_dali_accepts(
    decoder: Decoder, slots: int, halvings: int, normalize: Normalize | None
) -> None:
    options = DaliOptions(decoder, preallocate=(1080, 1920))
    made_for: dict[str, Any] = {"on_gpu": True, "batch_size": 2, "num_threads": 1, "device_id": None}
    dtype = dali_graph.types.UINT8 if normalize is None else dali_graph.types.FLOAT16
    with dali_graph._without_warnings_of_dali():
        pipeline = dali_graph._graph(nothing, slots, halvings, normalize, dtype, options, **made_for)
    operators = operators_of(pipeline)
    for name, device in operators:
        assert name in REGISTERED[device], f"DALI has no {name} for {device}"
    assert ("decoders__Image", "mixed" if decoder == "gpu" else "cpu") in operators
    assert ("CropMirrorNormalize", "gpu") in operators  # the last: what it is given was made on the GPU
    on_cpu = {name for name, device in operators if device == "cpu"}
    assert not FOR_PIXELS & on_cpu
    assert len(FOR_PIXELS - {name for name, _ in operators}) == (0 if slots else 3)


@pytest.mark.parametrize("decoder", ["gpu", "cpu"])
def test_the_probe_for_a_gpu_is_one_that_dali_accepts(decoder: Decoder) -> None:
    with dali_graph._without_warnings_of_dali():
        pipeline = dali_graph._probe(
            nothing, DaliOptions(decoder), on_gpu=True, batch_size=1, num_threads=1, device_id=None
        )
    assert ("decoders__Image", "mixed" if decoder == "gpu" else "cpu") in operators_of(pipeline)


def test_libraries_that_no_operator_needs_are_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    # What DALI does as it builds the first graph on a GPU.
    monkeypatch.setattr(Pipeline, "build", lambda _: backend.check_cuda_runtime())
    for library in ("Cufft", "Npp"):
        monkeypatch.setattr(backend, f"Get{library}Version", lambda: -1)
    monkeypatch.setattr(backend, "GetCudaVersion", lambda: 12000)
    options: dict[str, Any] = {"options": DaliOptions(), "device_id": 0, "threads": 1}
    rest: dict[str, Any] = {"slots": 0, "halvings": 0, "normalize": None, "half": False, "prefetch": 1}
    for build in (
        lambda: dali_graph.build_probe(nothing, **options),
        lambda: dali_graph.build_pipeline(nothing, max_batch_size=1, **rest, **options),
    ):
        monkeypatch.setattr(backend, "cuda_checked", False)
        build()  # warnings are errors here
        assert backend.cuda_checked


def test_outputs_are_bound_to_a_stream_of_their_own_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    current = [0]

    @contextmanager
    def device(wanted: torch.device) -> Iterator[None]:
        current.append(wanted.index)
        yield
        current.pop()

    class FakePipeline:
        def share_outputs(self, cuda_stream: object) -> list[object]:
            return [current[-1], cuda_stream]

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: f"stream of {device or current[-1]}")
    dali = DaliBackend([tmp_path / "a.jpg"], Augment([]), device="cuda:1")
    assert dali._outputs(FakePipeline()) == [1, "stream of 1"]  # type: ignore[arg-type]
    assert current == [0]
