"""How Fabric and DDP see a training step: a module that maps images to losses."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from dpipe.target import Target


@contextmanager
def without_stride_warnings() -> Iterator[None]:
    """Silences what DDP says of gradients whose strides are not its own, which images in channels_last give."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
        yield


class LossStep(nn.Module):
    """The model as Fabric wraps it: takes sealed targets."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, sealed: Sealed) -> Any:
        """Returns the losses of a batch."""
        return self.model(images, sealed.targets)


class Sealed:
    """Targets that Fabric and DDP pass through as they are; they would copy dataclasses and make float64 float32."""

    def __init__(self, targets: Sequence[Target]) -> None:
        self.targets = targets
