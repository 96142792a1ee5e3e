"""What backbones share: weights by name, and stages that are not trained."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from torch import nn

from detect.models.checkpoints import load_weights
from detect.models.pretrained import resolve_pretrained
from dpipe.errors import InputError


def load_backbone(backbone: nn.Module, pretrained: str, model_name: str, unused: str) -> None:
    """Loads a backbone's weights, all of them.

    Args:
        backbone: Takes the weights.
        pretrained: A torchvision name, a path or a URL, see :func:`detect.models.pretrained.resolve_pretrained`.
        model_name: Name of the architecture in torchvision, such as ``mobilenet_v2``.
        unused: A pattern of the names that the file may have besides, such as those of its classifier.

    Raises:
        InputError: The weights cannot be had, or do not fit.
    """
    report = load_weights(backbone, resolve_pretrained(pretrained, model_name))
    wrong = [name for name, _ in report.left_out if not re.match(unused, name)] + report.missing
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise InputError(
            f"pretrained {pretrained!r} does not fit this {type(backbone).__name__} ({model_name}): "
            f"{', '.join(wrong[:3])}{more} missing, unknown or of another shape"
        )


def hold_in_evaluation(frozen: Iterable[nn.Module], norms_of: nn.Module | None) -> None:
    """Puts parts of a backbone in training back into evaluation.

    Args:
        frozen: The parts that are not trained.
        norms_of: Of this module, every BatchNorm keeps its statistics; None for no further ones.
    """
    for part in frozen:
        part.eval()
    for module in () if norms_of is None else norms_of.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def check_stages(part: str, out_indices: Sequence[int], frozen_stages: int, num_stages: int) -> None:
    """Checks which stages are handed out, and how many are frozen.

    Raises:
        InputError: If there are no such stages, or they are out of order.
    """
    indices = list(out_indices)
    if not indices or indices != sorted(set(indices)) or not 0 <= indices[0] <= indices[-1] < num_stages:
        raise InputError(f"{part}: out_indices must be rising stage numbers from 0 to {num_stages - 1}, got {indices}")
    if not -1 <= frozen_stages <= num_stages:
        raise InputError(f"{part}: frozen_stages must be from -1 to {num_stages}, got {frozen_stages}")
