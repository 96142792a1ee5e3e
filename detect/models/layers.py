"""Small layers that several parts of a detector share, and how their weights begin."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

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


class FullyConnected(nn.Linear):
    """A linear layer for many inputs, which trains faster on a CPU.

    In training in float32 there, the products are oneDNN's, as those of convolutions are, and not those of MKL, which
    take twice the time on processors of AMD. They differ by rounding. Can be differentiated once.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(R, in_features) to (R, out_features)."""
        if torch.is_grad_enabled() and _has_onednn_products(x):
            return _OneDNNLinear.apply(x, self.weight, self.bias)
        return super().forward(x)


def _has_onednn_products(x: Tensor) -> bool:
    """Whether oneDNN takes products of a matrix with others of its dtype and on its device."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.dim() == 2
        and len(x) > 0
        and not torch.is_autocast_enabled("cpu")  # whose lower precision PyTorch leaves to oneDNN by itself
        and not torch.compiler.is_compiling()
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # not in every build, and not promised to stay
    )


class _OneDNNLinear(torch.autograd.Function):
    """``F.linear`` of x (R, K), weight (O, K) and bias (O,)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(R, O)."""
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients that are asked for."""
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            _product(grad, weight.T) if needs_x else None,
            _product(grad.T, x.T) if needs_weight else None,
            grad.sum(dim=0) if needs_bias else None,
        )


def _product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """``left @ right.T + bias`` by oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")


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
