"""BatchNorm whose statistics are those of the batches of all processes together, as if they were one batch."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from dpipe.errors import InputError


def synchronise_norms(model: nn.Module, device: torch.device, world_size: int) -> nn.Module:
    """Has every BatchNorm of a model that takes statistics from batches take them from those of all processes.

    On a GPU they become PyTorch's ``SyncBatchNorm``, which there is for GPUs only, elsewhere :class:`SyncedBatchNorm`.
    Weights, statistics and their names stay.

    Args:
        model: Changed in place; best before there is an optimizer.
        device: What it will be trained on.
        world_size: Number of processes; of one, nothing changes.

    Returns:
        The model.

    Raises:
        InputError: If there is no such BatchNorm.
    """
    was_training = model.training
    norms = [norm for norm in model.train().modules() if isinstance(norm, _BatchNorm) and norm.training]
    model.train(was_training)
    if not norms:
        raise InputError(
            "train.sync_bn: no BatchNorm of the model takes its statistics from batches; where a backbone has "
            "norm_eval, false lets it"
        )
    if world_size == 1:
        return model
    if device.type == "cuda":
        return cast(nn.Module, nn.SyncBatchNorm.convert_sync_batchnorm(model))
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm):
                setattr(module, name, SyncedBatchNorm.like(child))
    return model


class SyncedBatchNorm(_BatchNorm):
    """BatchNorm over the batches of all processes, by plain PyTorch, for what ``SyncBatchNorm`` does not run on."""

    @classmethod
    def like(cls, norm: _BatchNorm) -> SyncedBatchNorm:
        """One with the weights and statistics of another BatchNorm, which they share."""
        made = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        made.weight, made.bias = norm.weight, norm.bias
        made.running_mean, made.running_var = norm.running_mean, norm.running_var
        made.num_batches_tracked = norm.num_batches_tracked
        return made.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) to the same shape."""
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        others = [axis for axis in range(x.dim()) if axis != 1]
        values = x.float()
        sums = torch.cat([values.sum(others), values.new_tensor([values.numel() / x.shape[1]])])
        total = cast(Tensor, _Sum.apply(sums))
        count = total[-1].detach()
        mean = total[:-1] / count
        shape = [1, -1, *[1] * (x.dim() - 2)]
        centred = values - mean.view(shape)
        variance = cast(Tensor, _Sum.apply(centred.square().sum(others))) / count
        self._track(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        out = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(x.dtype)

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        if not self.track_running_stats:
            return
        counter = cast(Tensor, self.num_batches_tracked)
        counter += 1
        share = 1.0 / float(counter) if self.momentum is None else self.momentum
        cast(Tensor, self.running_mean).lerp_(mean, share)
        cast(Tensor, self.running_var).lerp_(variance, share)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions will do."""


class _Sum(torch.autograd.Function):
    """The sum over the processes, and, backward, of their gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        """The sum, of the same shape."""
        values = values.clone()
        torch.distributed.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """The sum of the gradients."""
        (grad,) = grads
        grad = grad.contiguous().clone()
        torch.distributed.all_reduce(grad)
        return grad
