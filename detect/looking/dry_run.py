"""Running models without their work: convolutions and matrix products give zeros of the right shape, and are counted.

What is left takes some seconds for a large detector on one core. Shapes are those of a real run, as is everything else
that does not depend on values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from detect.models.roi_align import as_one_operator
from dpipe.operations.geometric import Resize
from dpipe.plan import Size
from dpipe.policy import Augment
from dpipe.target import Target

_aten = torch.ops.aten
PRODUCTS = frozenset({_aten.convolution, _aten.mm, _aten.addmm, _aten.bmm, _aten.baddbmm})


@dataclass
class DryRun:
    """What a run did.

    Attributes:
        flops: By module, by its dotted name ("" for the whole model), the operations of its own, those of modules
            inside it apart; a multiplication and an addition are two.
        outputs: What each module gave when it was called first.
        calls: How often each was called.
    """

    flops: Counter[str] = field(default_factory=Counter)
    outputs: dict[str, Any] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)


@contextmanager
def dry_run(model: nn.Module) -> Iterator[DryRun]:
    """Within it, without gradients, products of tensors are counted and not computed.

    Args:
        model: Whose modules the counts are told by; called within.
    """
    run = DryRun()
    active: list[str] = [""]
    handles = []
    for name, module in model.named_modules():

        def enter(_module: nn.Module, _inputs: Any, name: str = name) -> None:
            active.append(name)

        def leave(_module: nn.Module, _inputs: Any, output: Any, name: str = name) -> None:
            active.pop()
            run.outputs.setdefault(name, output)
            run.calls[name] += 1

        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        with torch.no_grad(), as_one_operator(), _SkipProducts(run, active):
            yield run
    finally:
        for handle in handles:
            handle.remove()


class _SkipProducts(TorchDispatchMode):
    def __init__(self, run: DryRun, active: Sequence[str]) -> None:
        super().__init__()
        self.run = run
        self.active = active

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        operation = func.overloadpacket
        if operation in PRODUCTS:
            like = next(value for value in args if isinstance(value, Tensor))
            shapes = [value.to("meta") if isinstance(value, Tensor) else value for value in args]
            output = torch.zeros_like(func(*shapes, **kwargs), device=like.device)
        else:
            output = func(*args, **kwargs)
        if operation in flop_registry:
            self.run.flops[self.active[-1]] += flop_registry[operation](*args, **kwargs, out_val=output)
        return output


def landscape_size(augment: Augment) -> Size | None:
    """Height and width of an image as transforms make it, which is in landscape format and as large as they ask for.

    Returns:
        None where there is no ``Resize``, so that sizes are those of the data.
    """
    for operation in augment.operations:
        if isinstance(operation, Resize):
            scale: Any = operation.scale
            width, height = scale if isinstance(scale[0], int) else max(scale, key=lambda pair: pair[0] * pair[1])
            if operation.keep_ratio:
                width, height = max(width, height), min(width, height)
            return augment.draw((height, width), seed=0, epoch=0, sample=0).size
    return None


def round_up(size: Size, divisor: int) -> Size:
    """Height and width rounded up to multiples of a number."""
    return -(-size[0] // divisor) * divisor, -(-size[1] // divisor) * divisor


def blank_image(size: Size, divisor: int) -> tuple[Tensor, Target]:
    """A batch of one black image, padded, and its target without objects."""
    return torch.zeros(1, 3, *round_up(size, divisor)), blank_target(size)


def blank_target(size: Size) -> Target:
    """The target of an image that is its own original, without objects."""
    none = torch.zeros(0, dtype=torch.int64)
    return Target(
        image_id=0,
        sample=0,
        file_name="",
        size=size,
        original_size=size,
        matrix=np.eye(2, 3),
        boxes=torch.zeros(0, 4),
        labels=none,
        masks=None,
        annotation_ids=none,
        ignore_boxes=torch.zeros(0, 4),
    )
