"""The formats that graphs are written in: ONNX, and PyTorch's exported programs."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.export import Dim, ExportedProgram

from detect.exporting.description import DESCRIPTION_FILE
from detect.exporting.graph import DetectorGraph, Outputs
from dpipe.errors import InputError

ONNX_LIMIT = 2**31 - 2**20
"""Bytes that a file of ONNX can have, with some room for what is not weights."""

Run = Callable[[Tensor], list[NDArray[np.generic]]]
"""From images (N, 3, H, W) to the outputs of an exported model."""


def trace(graph: DetectorGraph, images: Tensor, least_side: int, fixed: bool) -> ExportedProgram:
    """Makes an exported program of a graph.

    Args:
        graph: The graph.
        images: (N, 3, H, W) of the shape that it is to take. Without ``fixed`` at least two, of at least
            ``least_side`` on each side, so that no size is taken for one that is always 1.
        least_side: The fewest pixels of a side that a program takes.
        fixed: Whether it takes images of this shape only.

    Raises:
        InputError: If a part of the model cannot be traced.
    """
    axes = {0: Dim.DYNAMIC(min=1), 2: Dim.DYNAMIC(min=least_side), 3: Dim.DYNAMIC(min=least_side)}
    try:
        with _quiet(), torch.no_grad():
            return torch.export.export(graph, (images,), dynamic_shapes=None if fixed else (axes,))
    except Exception as error:  # what PyTorch raises differs from one obstacle to the next
        hint = "" if fixed else "; --fixed, for one size, may do"
        raise InputError(f"the model cannot be exported: {_first_line(error)}{hint}") from error


def onnx_bytes(program: ExportedProgram, description: Mapping[str, str], opset: int, fixed: bool) -> bytes:
    """An exported program as a file of ONNX.

    Args:
        program: Of a graph.
        description: Its metadata.
        opset: The version of the operators.
        fixed: As in :func:`trace`.

    Raises:
        InputError: If ONNX has no operator for a part of the model, not in this version, or the model is too large.
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    if size > ONNX_LIMIT:
        raise InputError(f"the model has {size / 2**30:.1f} GiB, a file of ONNX holds 2; a .pt2 file has no such limit")
    names = [name for name, _ in zip(Outputs._fields, program.graph_signature.user_outputs, strict=False)]
    try:
        with _quiet():
            made = torch.onnx.export(
                program,
                opset_version=opset,
                input_names=["images"],
                output_names=names,
                dynamic_shapes=None if fixed else ({0: "batch", 2: "height", 3: "width"},),  # their names
                verbose=False,
            )
    except Exception as error:
        raise InputError(f"the model cannot be written as ONNX: {_first_line(error)}") from error
    assert made is not None
    model = made.model_proto
    versions = [one.version for one in model.opset_import if one.domain in ("", "ai.onnx")]
    if versions != [opset]:
        raise InputError(f"--opset {opset}: cannot be had for this model, but {versions[0]}")
    for key, value in description.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    return model.SerializeToString()


def run_onnx(path: str) -> Run:
    """Loads a file of ONNX into onnxruntime, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; it warns of what it optimises
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images.numpy()})


def program_bytes(program: ExportedProgram, description: Mapping[str, str]) -> bytes:
    """An exported program as a file that ``torch.export.load`` reads."""
    file = io.BytesIO()
    with _quiet():
        torch.export.save(program, file, extra_files={DESCRIPTION_FILE: json.dumps(description)})
    return file.getvalue()


def run_program(path: str) -> Run:
    """Loads an exported program."""
    with _quiet():
        # By its content, as the name of a file that is not finished does not end in .pt2.
        module = torch.export.load(io.BytesIO(Path(path).read_bytes())).module()

    def run(images: Tensor) -> list[NDArray[np.generic]]:
        with torch.no_grad():
            return [output.numpy() for output in module(images)]

    return run


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings that exporters give about themselves."""
    loggers = [logging.getLogger(name) for name in ("onnx_ir", "onnxscript", "torch.onnx")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _first_line(error: BaseException) -> str:
    """What an exporter says first, of what are often pages."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
