"""Fully connected layers: PyTorch's values and gradients, by oneDNN where a CPU trains in float32."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from detect.models.layers import FullyConnected

needs_onednn = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")),
    reason="PyTorch was built without oneDNN, or without its products",
)


class Names(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


def by_onednn(layer, x):
    with Names() as names:
        layer(x)
    assert names.seen
    return any("mkldnn" in name for name in names.seen)


@pytest.mark.parametrize("rows", [0, 1, 70])
def test_values_and_gradients_are_those_of_linear(rows):
    torch.manual_seed(0)
    layer, x = FullyConnected(300, 40), torch.randn(rows, 300, requires_grad=True)
    out = layer(x)
    weights = torch.randn_like(out)
    inputs = (x, layer.weight, layer.bias)
    expected = F.linear(*inputs)
    torch.testing.assert_close(out, expected)
    grads = torch.autograd.grad(out, inputs, weights)
    for grad, wanted in zip(grads, torch.autograd.grad(expected, inputs, weights), strict=True):
        torch.testing.assert_close(grad, wanted)
        assert grad.stride() == wanted.stride()


def test_gradients_laid_out_otherwise():
    layer, x = FullyConnected(30, 20), torch.randn(10, 30)
    layer(x).T.contiguous().square().sum().backward()
    expected = nn.Linear(30, 20)
    expected.load_state_dict(layer.state_dict())
    expected(x).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, expected.weight.grad)


@pytest.mark.parametrize("frozen", ["weight", "bias", "x"])
def test_what_is_frozen_gets_no_gradient(frozen):
    layer, x = FullyConnected(30, 20), torch.randn(10, 30)
    inputs = {"weight": layer.weight, "bias": layer.bias, "x": x}
    for name, tensor in inputs.items():
        tensor.requires_grad_(name != frozen)
    layer(x).sum().backward()
    assert {name for name, tensor in inputs.items() if tensor.grad is None} == {frozen}


@needs_onednn
def test_onednn_is_for_training_in_float32():
    layer, x = FullyConnected(30, 20), torch.randn(10, 30)
    assert by_onednn(layer, x)
    assert not by_onednn(layer, x[:0])
    assert not by_onednn(layer.double(), x.double())
    with torch.no_grad():
        assert not by_onednn(layer.float(), x)
    with torch.device("meta"):
        assert not by_onednn(FullyConnected(30, 20), torch.zeros(10, 30))


@pytest.mark.parametrize("autocast", [False, True])
def test_autocast_decides_about_the_dtype(autocast):
    layer, x = FullyConnected(30, 20), torch.randn(10, 30)
    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        out = layer(x)
    assert out.dtype == (torch.bfloat16 if autocast else torch.float32)


def test_without_the_product_it_is_linear(monkeypatch):
    layer, x = FullyConnected(30, 20), torch.randn(10, 30)
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: False)
    assert not by_onednn(layer, x)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
