"""Convolutions trained as one with their BatchNorms: PyTorch's values and gradients, and less that is kept."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models import resnet

from detect.models.conv_norm import BasicBlock, Bottleneck, conv_norm


def some_pair(stride=1, groups=1, channels=(6, 8)):
    torch.manual_seed(0)
    conv = nn.Conv2d(*channels, 3, stride, padding=1, groups=groups, bias=False)
    norm = nn.BatchNorm2d(channels[1]).eval()
    for tensor in (norm.weight.data, norm.running_var):
        tensor.uniform_(0.3, 2)
    for tensor in (norm.bias.data, norm.running_mean):
        tensor.normal_()
    return conv, norm, torch.randn(2, channels[0], 9, 7, requires_grad=True)


def gradients(out, inputs):
    torch.manual_seed(1)
    return torch.autograd.grad(out, inputs, torch.randn(out.shape), allow_unused=True)


def assert_same(one, other):
    for mine, wanted in zip(one, other, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_are_those_of_both(stride, groups, memory_format):
    conv, norm, x = some_pair(stride, groups)
    norm.weight.data[0] = 0.0  # as branches begin
    x = x.detach().contiguous(memory_format=memory_format).requires_grad_()
    inputs = (x, conv.weight, norm.weight, norm.bias)
    out, expected = conv_norm(x, conv, norm), norm(conv(x))
    assert torch.equal(out, expected)
    assert_same(gradients(out, inputs), gradients(expected, inputs))


@pytest.mark.parametrize("frozen", [(0,), (1,), (2, 3), (0, 1), (1, 2), (0, 1, 2), (0, 2, 3)])
def test_what_is_frozen_gets_no_gradient(frozen):
    conv, norm, x = some_pair()
    inputs = [x, conv.weight, norm.weight, norm.bias]
    for number in frozen:
        inputs[number].requires_grad_(False)
    trained = [tensor for tensor in inputs if tensor.requires_grad]
    out = conv_norm(x, conv, norm)
    assert_same(gradients(out, trained), gradients(norm(conv(x)), trained))


def test_the_output_of_the_convolution_is_not_kept():
    conv, norm, x = some_pair()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda t: t):
        out = conv_norm(x, conv, norm)
    assert x.shape in kept
    assert out.shape not in kept


def test_statistics_of_the_batch_are_taken_where_they_are_asked_for():
    conv, norm, x = some_pair()
    before = norm.running_mean.clone()
    assert torch.equal(conv_norm(x, conv, norm.train()), conv_norm(x, conv, norm))
    assert not torch.equal(norm.running_mean, before)


def test_evaluation_and_autocast_are_pytorchs():
    conv, norm, x = some_pair()
    with torch.no_grad():
        assert torch.equal(conv_norm(x, conv, norm), norm(conv(x)))
    with torch.autocast("cpu", torch.bfloat16):
        out = conv_norm(x, conv, norm)
        assert out.dtype == torch.bfloat16
        assert torch.equal(out, norm(conv(x)))


@pytest.mark.parametrize(("ours", "theirs"), [(BasicBlock, resnet.BasicBlock), (Bottleneck, resnet.Bottleneck)])
@pytest.mark.parametrize("stride", [1, 2])
def test_blocks_are_torchvisions(ours, theirs, stride):
    torch.manual_seed(0)
    width = 4 * ours.expansion
    downsample = nn.Sequential(nn.Conv2d(width, width, 1, stride, bias=False), nn.BatchNorm2d(width))
    block = ours(width, 4, stride, downsample if stride > 1 else None).eval()
    expected = theirs(width, 4, stride, downsample if stride > 1 else None).eval()
    expected.load_state_dict(block.state_dict())
    x = torch.randn(2, width, 8, 6, requires_grad=True)
    out, wanted = block(x.clone()), expected(x.clone())
    assert_same([out], [wanted])
    grads = gradients(out, [x, *block.parameters()])
    assert all(grad is not None for grad in grads)
    assert_same(grads, gradients(wanted, [x, *expected.parameters()]))
