"""Convolutions whose BatchNorm keeps its statistics, trained on a CPU without keeping what is between the two.

Such a BatchNorm multiplies each channel by ``scale = weight / sqrt(running_var + eps)`` and adds a shift. What the
scale is trained by follows from the gradient of the convolution's kernels (Tune mode, arXiv 2305.11624): the
convolution's output, which PyTorch's BatchNorm keeps for that, is a fifth of what a ResNet of 50 layers holds between
forward and backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torchvision.models import resnet


def conv_norm(x: Tensor, conv: nn.Conv2d, norm: nn.Module) -> Tensor:
    """``norm(conv(x))``. On a CPU in float32 it can be differentiated once, and hooks of the two are not called."""
    if not (
        isinstance(norm, nn.BatchNorm2d)
        and not norm.training
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and torch.is_grad_enabled()
        and (x.requires_grad or conv.weight.requires_grad)
        and conv.bias is None
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    ):
        return norm(conv(x))
    how = (list(conv.stride), list(conv.padding), list(conv.dilation), conv.groups)
    return _ConvNorm.apply(x, conv.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps, how)


class Bottleneck(resnet.Bottleneck):
    """torchvision's block, with convolutions and their norms as one."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H', W')."""
        out = self.relu(conv_norm(x, self.conv1, self.bn1))
        out = self.relu(conv_norm(out, self.conv2, self.bn2))
        out = conv_norm(out, self.conv3, self.bn3)
        return self.relu(out.add_(_shortcut(x, self.downsample)))


class BasicBlock(resnet.BasicBlock):
    """torchvision's block, with convolutions and their norms as one."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H', W')."""
        out = self.relu(conv_norm(x, self.conv1, self.bn1))
        out = conv_norm(out, self.conv2, self.bn2)
        return self.relu(out.add_(_shortcut(x, self.downsample)))


def _shortcut(x: Tensor, downsample: nn.Module | None) -> Tensor:
    """What a block adds to its branch."""
    if downsample is None:
        return x
    conv, norm = downsample.children()
    return conv_norm(x, conv, norm)  # type: ignore[arg-type]


class _ConvNorm(torch.autograd.Function):
    """A convolution of x (N, C, H, W) and what a BatchNorm does with its output in evaluation."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        kernels: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        eps: float,
        how: Any,
    ) -> Tensor:
        """(N, C', H', W'), the very bits of the two layers: a rounding can turn a ReLU, and with it gradients."""
        ctx.save_for_backward(x, kernels, weight, mean, torch.sqrt(variance + eps))
        ctx.how = how
        return F.batch_norm(F.conv2d(x, kernels, None, *how), mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients that are asked for."""
        x, kernels, weight, mean, deviations = ctx.saved_tensors
        needs_x, needs_kernels, needs_weight, needs_bias = ctx.needs_input_grad[:4]
        scale = (weight / deviations)[:, None, None, None]
        stride, padding, dilation, groups = ctx.how
        # Of the kernels as if the norm's input had the gradient of its output.
        grad_x, grad_kernels, _ = torch.ops.aten.convolution_backward(
            grad,
            x,
            kernels * scale,
            None,
            stride,
            padding,
            dilation,
            False,
            [0, 0],
            groups,
            [needs_x, needs_kernels or needs_weight, False],
        )
        grad_bias = grad.sum(dim=(0, 2, 3)) if needs_weight or needs_bias else None
        grad_weight = None
        if needs_weight:
            # The sum of gradient times convolution is that of the kernels' gradient times the kernels.
            grad_weight = ((grad_kernels * kernels).sum(dim=(1, 2, 3)) - grad_bias * mean) / deviations
        return (
            grad_x,
            grad_kernels.mul_(scale) if needs_kernels else None,
            grad_weight,
            grad_bias if needs_bias else None,
            None,
            None,
            None,
            None,
        )
