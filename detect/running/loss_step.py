"""How Fabric and DDP see a training step: a module that maps images to losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from dpipe.target import Target


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
