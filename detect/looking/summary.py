"""What a recipe's model is made of: its modules with their parameters, outputs and operations.

Operations (FLOPs) are those of one image in evaluation, at the size that the recipe's ``test_transforms`` make of a
landscape image. Convolutions and matrix products are counted, a multiplication and an addition as two; norms,
activations, RoIAlign and NMS are not. RoI heads see as many proposals as the dense head hands on at most, and mask
heads as many detections as are kept at most. Heads that serve training only do nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from detect.config import Config, as_config, build_augment, build_model
from detect.looking.dry_run import blank_image, dry_run, landscape_size, round_up
from detect.models.arguments import BBOX_HEAD
from dpipe.errors import InputError
from dpipe.plan import Size

COCO_CLASSES = 80


@dataclass(frozen=True)
class Row:
    """One module.

    Attributes:
        name: Its dotted name in the model; empty for the model itself.
        type: Its class's name.
        output: The shapes of what it gives, in words; empty where it was not called.
        parameters: How many numbers it learns or holds fixed.
        trainable: How many of them it learns.
        flops: Its operations, with those of the modules inside it.
    """

    name: str
    type: str
    output: str
    parameters: int
    trainable: int
    flops: int


@dataclass(frozen=True)
class Summary:
    """A model's modules, and what they were counted for.

    Attributes:
        rows: The model first, then the modules in the order of its tree. Modules without parameters and operations,
            such as losses, are left out.
        size: Height and width of the image.
        padded: The same with padding.
        num_classes: K.
        classes_from: Where K comes from, in words.
        num_proposals: RoIs of the RoI head; None without one.
    """

    rows: tuple[Row, ...]
    size: Size
    padded: Size
    num_classes: int
    classes_from: str
    num_proposals: int | None


def summarize(config: Config | str | Path, *, size: Size | None = None, depth: int = 2) -> Summary:
    """Builds a recipe's model without any weights from elsewhere and runs it on a blank image.

    Args:
        config: The recipe, or its file, or the name of a shipped one.
        size: Height and width of the image instead of the recipe's.
        depth: Levels of modules below the model.

    Raises:
        InputError: If the model cannot be built, cannot be run at that size, or nothing tells the size.
    """
    config = as_config(config)
    augment = build_augment(config, train=False)
    size = size or landscape_size(augment)
    if size is None:
        raise InputError(
            f"{config.recipe.where(('data', 'test_transforms'))}: data.test_transforms has no Resize that tells "
            "the size: give one with --size"
        )
    num_classes, classes_from = _classes(config)
    model = build_model(config, num_classes, pretrained=False).eval()
    images, target = blank_image(size, augment.size_divisor)
    num_proposals = _fill_roi_heads(model, size)
    try:
        with dry_run(model) as run:
            model(images, [target])
    except (RuntimeError, ValueError, IndexError) as error:
        height, width = size
        raise InputError(
            f"the model cannot be run on {width}x{height} pixels: {' '.join(str(error).split())}"
        ) from error
    rows = []
    for name, module in model.named_modules():
        weights = list(module.parameters())
        inside = f"{name}." if name else ""
        flops = sum(count for own, count in run.flops.items() if own == name or own.startswith(inside))
        if (name.count(".") + 1 if name else 0) <= depth and (weights or flops):
            rows.append(
                Row(
                    name,
                    type(module).__name__,
                    _calls(run.outputs.get(name), run.calls[name]) if name else "",
                    sum(weight.numel() for weight in weights),
                    sum(weight.numel() for weight in weights if weight.requires_grad),
                    flops,
                )
            )
    return Summary(tuple(rows), size, round_up(size, augment.size_divisor), num_classes, classes_from, num_proposals)


class _Categories(msgspec.Struct):
    """Of a COCO JSON, which may have hundreds of megabytes, the part that is read."""

    categories: list[msgspec.Raw]


def _classes(config: Config) -> tuple[int, str]:
    """How many classes the recipe's data has; where there is no data yet, as many as COCO."""
    if config.data.classes is not None:
        return len(config.data.classes), "named by the recipe"
    path = config.data.train.annotations
    try:
        return len(msgspec.json.decode(Path(path).read_bytes(), type=_Categories).categories), f"of {path}"
    except FileNotFoundError:
        return COCO_CLASSES, f"as COCO has, since there is no {path}"
    except (OSError, msgspec.MsgspecError) as error:
        raise InputError(f"{path}: is no COCO JSON that tells its categories: {error}") from None


def _fill_roi_heads(model: nn.Module, size: Size) -> int | None:
    """Has RoI heads see the number of RoIs that they see at most, which a model of zeros would not find.

    The dense head's proposals become a grid of boxes, and bbox heads are certain of the first class, so that none of
    the boxes is dropped before the mask head.

    Returns:
        The number of proposals; None for a model without RoI heads.
    """
    head: Any = getattr(model, "rpn_head", None)
    if head is None or not hasattr(model, "roi_head"):
        return None
    count = int(getattr(head, "test_max_per_img", 1000))
    boxes = _grid(count, size)
    propose = head.propose

    def propose_grid(features: Sequence[Tensor], targets: Sequence[Any]) -> list[tuple[Tensor, Tensor]]:
        propose(features, targets)
        return [(boxes, torch.ones(count)) for _ in targets]

    head.propose = propose_grid
    for module in model.modules():
        if all(hasattr(module, name) for name in BBOX_HEAD):
            module.register_forward_hook(_certain)
    return count


def _grid(count: int, size: Size) -> Tensor:
    """Boxes (count, 4) side by side, none overlapping another."""
    height, width = size
    columns = math.ceil(math.sqrt(count * width / height))
    rows = math.ceil(count / columns)
    numbers = torch.arange(count)
    corner = torch.stack([numbers % columns, numbers // columns], dim=1).float()
    cell = torch.tensor([width / columns, height / rows])
    return torch.cat([corner * cell, (corner + 1) * cell], dim=1)


def _certain(_module: nn.Module, _inputs: Any, output: Any) -> Any:
    logits, deltas = output
    logits = torch.zeros_like(logits)
    logits[:, 0] = 100.0
    return logits, torch.zeros_like(deltas)


def _calls(output: Any, calls: int) -> str:
    shapes = _shapes(output)
    return f"{shapes} ({calls} calls)" if shapes and calls > 1 else shapes


def _shapes(output: Any) -> str:
    """Shapes in words: of a list of levels the first and the last."""
    if isinstance(output, Tensor):
        return "x".join(str(side) for side in output.shape)
    if is_dataclass(output) and not isinstance(output, type):
        return ", ".join(filter(None, (_shapes(getattr(output, f.name)) for f in fields(output))))
    if isinstance(output, list | tuple):
        shapes = [_shapes(item) for item in output]
        return ", ".join(shapes) if len(shapes) < 3 else f"{shapes[0]} .. {shapes[-1]}"
    return ""
