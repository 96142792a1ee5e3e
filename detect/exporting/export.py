"""Exports a trained model: traces it, writes the file, and compares it with the model before it gets its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from detect.config import Config, build_augment, load_config
from detect.exporting.checks import check_exportable, check_packages, level_strides
from detect.exporting.comparing import Agreement, compare, expected_of
from detect.exporting.description import describe_export
from detect.exporting.formats import onnx_bytes, program_bytes, run_onnx, run_program, trace
from detect.exporting.graph import DetectorGraph
from detect.looking.dry_run import landscape_size, round_up
from detect.models.detectors import TwoStageDetector
from detect.predicting.inputs import source_of
from detect.trained import load_trained, say_nothing
from dpipe.building.problems import shorten
from dpipe.errors import InputError
from dpipe.files import check_writable_file, whole_file
from dpipe.plan import Size
from dpipe.policy import Augment

OPSETS = (18, 23)
"""The first and last version of ONNX's operators that can be asked for."""

MOST_PIXELS = 2**28
"""Of the images that are compared on: more would be a slip of the keyboard."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: The file.
        num_bytes: Its size.
        opset: The version of ONNX's operators, None for an exported program.
        size: (height, width) that is fixed, None where any is taken.
        batch: How many images are fixed, None where any number is taken.
        least_side: Fewest pixels of each side of an image.
        agreements: How near it came to the model, on the images that it was compared on.
    """

    path: Path
    num_bytes: int
    opset: int | None
    size: Size | None
    batch: int | None
    least_side: int
    agreements: tuple[Agreement, ...]


def export(
    config: Config | str | Path,
    checkpoint: str | Path,
    output: str | Path,
    *,
    size: Size | None = None,
    batch: int = 1,
    fixed: bool = False,
    opset: int | None = None,
    image: str | Path | NDArray[np.uint8] | None = None,
    say: Callable[[str], None] = say_nothing,
) -> Exported:
    """Writes a trained model as ONNX or as an exported program of PyTorch.

    The file is run, by onnxruntime or PyTorch, and compared with the model: it is written only if the two agree.

    Args:
        config: The recipe, or its file, or the name of a shipped one.
        checkpoint: A ``.safetensors`` or ``.pth`` file, its URL, a checkpoint folder, or a work directory.
        output: A ``.onnx`` or ``.pt2`` file; replaced if it exists.
        size: (height, width) of the images that are compared on, and of all that the file takes if ``fixed``; without
            it the size that the recipe's ``test_transforms`` resize to.
        batch: How many images at a time, likewise.
        fixed: Whether the file takes images of this number and size only; else it takes any.
        opset: The version of ONNX's operators, 18 where not given; not for a ``.pt2`` file, which has none.
        image: What is compared on: a path, or an array (H, W, 3) uint8 RGB; a drawn pattern without one.
        say: Gets notes on the checkpoint, and on what is being done.

    Raises:
        InputError: For a recipe, a checkpoint or a file that cannot be used, a model that cannot be exported, a package
            that is missing, and for a file that does not give what the model does.
    """
    output = Path(output)
    if output.suffix not in (".onnx", ".pt2"):
        raise InputError(f"{output}: the output is a .onnx or .pt2 file, and its name must end so")
    is_onnx = output.suffix == ".onnx"
    if opset is not None and not is_onnx:
        raise InputError(f"{output}: opset is a version of ONNX's operators, which a .pt2 file has not")
    opset = OPSETS[0] if opset is None else opset
    if not OPSETS[0] <= opset <= OPSETS[1]:
        raise InputError(f"opset must be from {OPSETS[0]} to {OPSETS[1]}, got {opset}")
    if is_onnx:
        check_packages()
    check_writable_file(output)
    if not isinstance(config, Config):
        config = load_config(config)
    augment = build_augment(config, train=False)
    size = _checked(size or landscape_size(augment), batch)
    picture = _pattern() if image is None else source_of(image).read()
    trained = load_trained(config, checkpoint, say=say)
    check_exportable(trained.model)

    graph = _graph_of(trained.model, augment)
    # A program is traced for levels of more than one cell: with one, some dimension would be taken for a constant.
    least_side = 1 if fixed else max(level_strides(trained.model)) + 1
    if min(size) < least_side:
        raise InputError(
            f"size {size[1]}x{size[0]}: a file for any size takes {least_side} px and more on each side, as the "
            "coarsest level needs two cells: expected such a size, or that it be fixed"
        )
    examples, traced = [_images(picture, batch, size)], (batch, 3, *size)
    if not fixed:
        # Another number of images of another size, and traced with a third.
        other = max(size[1] * 3 // 4, least_side), max(size[0] * 3 // 4, least_side)
        examples.append(_images(picture, batch + 1, other))
        traced = max(batch, 2), 3, *round_up((2 * least_side, 3 * least_side), augment.size_divisor)
    say("tracing the model")
    program = trace(graph, torch.zeros(traced), least_side, fixed)
    description = describe_export(config, trained, augment)
    if is_onnx:
        say(f"writing it as ONNX, opset {opset}")
    content = onnx_bytes(program, description, opset, fixed) if is_onnx else program_bytes(program, description)
    with whole_file(output) as file:
        file.write(content)
        file.flush()
        say(f"comparing it with the model, by {'onnxruntime' if is_onnx else 'PyTorch'}")
        run = run_onnx(file.name) if is_onnx else run_program(file.name)
        agreements = tuple(compare(expected_of(graph, images), run(images), images, str(output)) for images in examples)
    return Exported(
        output,
        len(content),
        opset if is_onnx else None,
        size if fixed else None,
        batch if fixed else None,
        least_side,
        agreements,
    )


def _checked(size: Size | None, batch: int) -> Size:
    """Raises InputError where no size is known, or no such images can be."""
    if size is None:
        raise InputError("the recipe's test_transforms resize to no size: expected one (--size WIDTHxHEIGHT)")
    if not isinstance(size, tuple | list) or len(size) != 2 or any(type(side) is not int for side in size):
        raise InputError(f"size is {shorten(size)}; expected (height, width) in pixels")
    if batch < 1:
        raise InputError(f"batch must be at least 1, got {batch}")
    if min(size) < 1 or batch * size[0] * size[1] > MOST_PIXELS:
        raise InputError(f"size {size[1]}x{size[0]}, batch {batch}: expected 1 to {MOST_PIXELS} pixels in all")
    return size


def _graph_of(detector: nn.Module, augment: Augment) -> DetectorGraph:
    """The graph of a detector, with what the recipe does to pixels."""
    if isinstance(detector, TwoStageDetector):
        detector.auxiliary_head = None  # serves training only
    normalize = augment.normalize
    assert normalize is not None  # recipes without it are refused
    return DetectorGraph(detector, normalize.mean, normalize.std, normalize.bgr, augment.size_divisor).eval()


def _pattern() -> NDArray[np.uint8]:
    """A picture (H, W, 3) of blurred blocks of all sizes and colours, always the same."""
    rng = np.random.default_rng(0)
    layers = [
        cv2.resize(rng.uniform(0, 255, (side, side, 3)), (256, 256), interpolation=cv2.INTER_CUBIC)
        for side in (4, 8, 16, 32, 64)
    ]
    return np.clip(np.mean(layers, axis=0) * 2 - 128, 0, 255).astype(np.uint8)


def _images(picture: NDArray[np.uint8], batch: int, size: Size) -> Tensor:
    """A batch (N, 3, H, W) float32 of a picture, brought to a size and in each image shifted further to the side."""
    resized = cv2.resize(picture, size[::-1], interpolation=cv2.INTER_LINEAR)
    shifted = [np.roll(resized, number * size[1] // batch, axis=1) for number in range(batch)]
    return torch.from_numpy(np.stack(shifted).transpose(0, 3, 1, 2).astype(np.float32))
