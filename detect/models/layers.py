"""Small layers that several parts of a detector share, and how their weights begin."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from detect.registry import MODELS


@MODELS.register
class ConvModule(nn.Module):
    """A convolution, then an optional norm, then an optional ReLU.

    Its parameters are named as OpenMMLab's checkpoints name them: ``conv.weight``, ``conv.bias``, ``bn.*`` or
    ``gn.*``.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the kernel.
        stride: Step of the kernel.
        padding: Zeros on every side; None keeps the size at stride 1 (odd kernels).
        norm: ``bn`` (BatchNorm), ``gn`` (GroupNorm) or None.
        num_groups: Groups of a GroupNorm.
        activation: ``relu`` or None.
        bias: Whether the convolution has a bias; by default only where no norm follows.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int | None = None,
        norm: Literal["bn", "gn"] | None = None,
        num_groups: int = 32,
        activation: Literal["relu"] | None = None,
        bias: bool | None = None,
    ) -> None:
        super().__init__()
        if padding is None:
            padding = kernel_size // 2
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, bias=norm is None if bias is None else bias
        )
        self.norm_name = norm
        if norm == "bn":
            self.bn = nn.BatchNorm2d(out_channels)
        elif norm == "gn":
            self.gn = nn.GroupNorm(num_groups, out_channels)
        self.activate = nn.ReLU(inplace=True) if activation == "relu" else None
        kaiming_init(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H', W')."""
        x = self.conv(x)
        if self.norm_name is not None:
            x = getattr(self, self.norm_name)(x)
        return x if self.activate is None else self.activate(x)


def kaiming_init(module: nn.Module) -> None:
    """Draws the weights of all convolutions in ``module`` from He's normal distribution (fan out); biases are 0."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def xavier_init(module: nn.Module) -> None:
    """Draws the weights of all convolutions in ``module`` from Glorot's uniform distribution; biases are 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
