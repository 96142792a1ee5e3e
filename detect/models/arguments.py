"""Types of arguments that parts share, and checks of what their types cannot tell.

A recipe is checked against the types before anything is built, so that values out of range are reported with their key
paths, all together. What depends on another part is checked by the part that gets both.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from typing import Annotated, Any

from pydantic import Field
from torch import nn

from dpipe.errors import InputError

Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1)]
Stds = tuple[Positive, Positive, Positive, Positive]
Counts = Annotated[Sequence[Count], Field(min_length=1)]
Positives = Annotated[Sequence[Positive], Field(min_length=1)]

BBOX_HEAD = ("num_classes", "reg_class_agnostic", "coder", "loss_cls", "loss_bbox")
MASK_HEAD = ("loss_mask",)
ROI_EXTRACTOR = ("output_size",)


def require(part: Any, names: Collection[str], argument: str) -> None:
    """Checks that a part has what its place needs.

    Args:
        part: The part.
        names: Attributes or methods that it needs.
        argument: ``Class: argument``, for the message.

    Raises:
        InputError: If one is missing.
    """
    missing = [name for name in names if not hasattr(part, name)]
    if missing:
        raise InputError(f"{argument} cannot be a {type(part).__name__}, which has no {', '.join(missing)}")


def check_loss(loss: nn.Module, argument: str, *, sigmoid: bool | None = None, num_logits: int | None = None) -> None:
    """Checks that a loss can be called as heads call it.

    Losses of classes tell themselves by ``use_sigmoid``, losses of boxes by ``takes_boxes``; one with neither is taken
    for what its place needs.

    Args:
        loss: The loss.
        argument: ``Class: argument``, for the message.
        sigmoid: What ``use_sigmoid`` has to be in a loss of classes; None where a loss of boxes is needed.
        num_logits: How many numbers a ``class_weight`` has to have, where the loss has one.

    Raises:
        InputError: If it cannot.
    """
    name = type(loss).__name__
    known = inspect.signature(loss.forward).parameters.values()
    if not any(p.name == "avg_factor" or p.kind is inspect.Parameter.VAR_KEYWORD for p in known):
        raise InputError(f"{argument} cannot be a {name}, whose forward has no avg_factor")
    if sigmoid is None and hasattr(loss, "use_sigmoid"):
        raise InputError(f"{argument} cannot be a {name}, which is a loss of classes")
    if sigmoid is not None and hasattr(loss, "takes_boxes"):
        raise InputError(f"{argument} cannot be a {name}, which is a loss of boxes")
    if sigmoid is not None and getattr(loss, "use_sigmoid", sigmoid) != sigmoid:
        raise InputError(f"{argument} needs use_sigmoid {str(sigmoid).lower()}, got {str(loss.use_sigmoid).lower()}")
    if getattr(loss, "reduction", "mean") != "mean":
        raise InputError(f"{argument} needs the reduction mean, got {loss.reduction}")
    weights = getattr(loss, "class_weight", None)
    if weights is not None and num_logits is not None and len(weights) != num_logits:
        raise InputError(f"{argument} needs a class_weight of {num_logits} numbers, got {len(weights)}")


def check_roi_parts(extractor: nn.Module, head: nn.Module, names: Collection[str], owner: str, kind: str) -> None:
    """Checks that a head fits the extractor that it reads from.

    Args:
        extractor: Cuts out RoI features.
        head: A bbox head or a mask head.
        names: What the head needs, BBOX_HEAD or MASK_HEAD.
        owner: The class that got both.
        kind: ``bbox`` or ``mask``.

    Raises:
        InputError: If it does not, or if one of them is something else.
    """
    require(extractor, ROI_EXTRACTOR, f"{owner}: {kind}_roi_extractor")
    require(head, names, f"{owner}: {kind}_head")
    check_side(head, extractor.output_size, f"{owner}: {kind}_roi_extractor has output_size", f"{kind}_head")


def check_side(head: nn.Module, side: Any, told: str, name: str) -> None:
    """Checks the side of RoI features against a head's ``roi_feat_size``, where it has one.

    Raises:
        InputError: If they differ.
    """
    expected = getattr(head, "roi_feat_size", side)
    if expected != side:
        raise InputError(f"{told} {side}, but the {name}'s roi_feat_size is {expected}")


def check_classes(heads: Sequence[nn.Module], owner: str) -> None:
    """Checks that all heads of a part have equally many classes.

    Raises:
        InputError: If they differ.
    """
    counts = [head.num_classes for head in heads if hasattr(head, "num_classes")]
    if len(set(counts)) > 1:
        raise InputError(f"{owner}: all heads need the same num_classes, got {counts}")
