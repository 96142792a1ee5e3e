"""torchvision's detectors under the names of ours.

``fasterrcnn_resnet50_fpn`` and ``maskrcnn_resnet50_fpn`` are the models of the recipes ``faster_rcnn_r50_fpn_coco`` and
``mask_rcnn_r50_fpn_coco``: their weights fit, under other names, and with the background as the first class instead of
the last. ``docs/checkpoints.md`` tells what a recipe sets for the same numbers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from dpipe.errors import InputError

_RENAMED = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        # Where a group is optional, files of torchvision before 0.13 lack it.
        (r"^backbone\.body\.", r"backbone."),
        (r"^backbone\.fpn\.inner_blocks\.(\d+)(?:\.0)?\.(weight|bias)$", r"neck.lateral_convs.\1.conv.\2"),
        (r"^backbone\.fpn\.layer_blocks\.(\d+)(?:\.0)?\.(weight|bias)$", r"neck.fpn_convs.\1.conv.\2"),
        (r"^rpn\.head\.conv(?:\.0\.0)?\.(weight|bias)$", r"rpn_head.rpn_conv.\1"),
        (r"^rpn\.head\.cls_logits\.", r"rpn_head.rpn_cls."),
        (r"^rpn\.head\.bbox_pred\.", r"rpn_head.rpn_reg."),
        (r"^roi_heads\.box_head\.fc6\.", r"roi_head.bbox_head.shared_fcs.0."),
        (r"^roi_heads\.box_head\.fc7\.", r"roi_head.bbox_head.shared_fcs.1."),
        (r"^roi_heads\.box_predictor\.cls_score\.", r"roi_head.bbox_head.fc_cls."),
        (r"^roi_heads\.box_predictor\.bbox_pred\.", r"roi_head.bbox_head.fc_reg."),
        (r"^roi_heads\.mask_head\.(\d+)\.0\.", r"roi_head.mask_head.convs.\1.conv."),
        (r"^roi_heads\.mask_head\.mask_fcn1\.", r"roi_head.mask_head.convs.0.conv."),
        (r"^roi_heads\.mask_head\.mask_fcn2\.", r"roi_head.mask_head.convs.1.conv."),
        (r"^roi_heads\.mask_head\.mask_fcn3\.", r"roi_head.mask_head.convs.2.conv."),
        (r"^roi_heads\.mask_head\.mask_fcn4\.", r"roi_head.mask_head.convs.3.conv."),
        (r"^roi_heads\.mask_predictor\.conv5_mask\.", r"roi_head.mask_head.upsample."),
        (r"^roi_heads\.mask_predictor\.mask_fcn_logits\.", r"roi_head.mask_head.conv_logits."),
    )
)
_OLD_FPN = re.compile(r"backbone\.fpn\.inner_blocks\.\d+\.weight")
_NORM_IN_FPN = re.compile(r"backbone\.fpn\.inner_blocks\.\d+\.1\.")

COCO_LABELS = tuple(i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
"""COCO's 80 classes in order of their ids, which are torchvision's labels: it has 91, some without a class."""

BATCH_NORM_EPS = 1e-5


def is_torchvision_detector(state: dict[str, Tensor]) -> bool:
    """Whether a checkpoint is of torchvision's ResNet detectors with FPN."""
    return "backbone.body.conv1.weight" in state and any(name.startswith("backbone.fpn.") for name in state)


def from_torchvision(state: dict[str, Tensor], num_classes: int | None) -> dict[str, Tensor]:
    """Renames the weights of torchvision's Faster or Mask R-CNN, and puts its classes in our order.

    Files in the layout of torchvision before 0.13, as those that it publishes are, come from a BatchNorm whose epsilon
    is 0. Ours is 1e-5; its scales are changed so that it does the same.

    Args:
        state: The checkpoint's tensors; they are not changed.
        num_classes: How many classes the model's RoI head has; None without one. With 80, the ones of COCO are picked
            out of torchvision's 91 labels.

    Returns:
        The tensors in their order, unknown names as they are.

    Raises:
        InputError: The FPN has BatchNorm, as torchvision's second versions have: there is no such FPN here.
    """
    if any(map(_NORM_IN_FPN.match, state)):
        raise InputError(
            "has torchvision's FPN of version 2, with BatchNorm; only the first version of its detectors can be loaded"
        )
    if any(map(_OLD_FPN.match, state)):
        state = state | _with_epsilon(state)
    renamed = {_rename(name): tensor for name, tensor in state.items()}
    logits = renamed.get("roi_head.bbox_head.fc_cls.bias")
    if logits is None:
        return renamed
    labels = COCO_LABELS if (len(logits), num_classes) == (91, 80) else tuple(range(1, len(logits)))
    for name in renamed:
        if name.startswith("roi_head.bbox_head.fc_cls."):
            renamed[name] = renamed[name][[*labels, 0]]
        elif name.startswith("roi_head.mask_head.conv_logits."):
            renamed[name] = renamed[name][list(labels)]
        elif name.startswith("roi_head.bbox_head.fc_reg."):
            renamed[name] = _of_labels(renamed[name], labels)
    return renamed


def _rename(name: str) -> str:
    for pattern, replacement in _RENAMED:
        ours, count = pattern.subn(replacement, name)
        if count:
            return ours
    return name


def _of_labels(deltas: Tensor, labels: Sequence[int]) -> Tensor:
    """The rows of some labels, where each label has four."""
    return deltas.unflatten(0, (-1, 4))[list(labels)].flatten(0, 1)


def _with_epsilon(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Scales of BatchNorms that do with an epsilon what these do without.

    A channel without variance has been divided by 0: it is left as it is.
    """
    scales = {}
    for name, variance in state.items():
        prefix, _, last = name.rpartition(".")
        if last == "running_var" and f"{prefix}.weight" in state:
            ratio = (variance.double() + BATCH_NORM_EPS) / variance.double()
            ratio = torch.where(variance > 0, ratio, 1.0).sqrt()
            scales[f"{prefix}.weight"] = (state[f"{prefix}.weight"] * ratio).to(variance.dtype)
    return scales
