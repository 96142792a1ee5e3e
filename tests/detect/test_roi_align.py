"""RoIAlign as products of matrices: torchvision's values and gradients, wherever RoIs lie."""

from __future__ import annotations

import itertools

import pytest
import torch
from torchvision.ops import roi_align

from detect.models.roi_align import align_by_products, by_products, laid_out
from detect.models.roi_extractors import SingleRoIExtractor, pool_level

STRIDES = (4, 8, 16)


def some_levels(channels=5, images=2, **options):
    generator = torch.Generator().manual_seed(0)
    shapes = ((33, 50), (17, 25), (1, 9))
    return [torch.randn(images, channels, *shape, generator=generator, **options) for shape in shapes]


def some_rois(count, dtype=torch.float64):
    """RoIs of 2 to 200 pixels, many of which reach over a border or lie beyond it, and a few empty ones."""
    generator = torch.Generator().manual_seed(count)
    corners = torch.rand(count, 2, generator=generator, dtype=dtype) * 300 - 60
    sizes = torch.rand(count, 2, generator=generator, dtype=dtype).mul(4.6).exp() * 2
    sizes[::17] = -1
    images = torch.arange(count) % 2
    return torch.cat([images[:, None].to(dtype), corners, corners + sizes], dim=1)


def reference(features, rois, levels, size, ratio, aligned):
    """torchvision's, level by level."""
    out = features[0].new_zeros(len(rois), features[0].shape[1], size, size)
    for number, (feature, stride) in enumerate(zip(features, STRIDES, strict=True)):
        rows = (levels == number).nonzero().squeeze(1)
        out = out.index_put((rows,), roi_align(feature, rois[rows], size, 1 / stride, ratio or -1, aligned))
    return out


@pytest.mark.parametrize(("size", "ratio", "aligned"), list(itertools.product((1, 7), (0, 1, 2), (True, False))))
def test_values_and_gradients_are_torchvisions(size, ratio, aligned):
    features = some_levels(dtype=torch.float64, requires_grad=True)
    rois = some_rois(60)
    levels = torch.arange(60) // 2 % 3
    out = align_by_products(features, rois, levels, STRIDES, size, ratio, aligned)
    expected = reference(features, rois, levels, size, ratio, aligned)
    assert expected.flatten(1).eq(0).all(dim=1).any()
    torch.testing.assert_close(out, expected)
    weights = torch.randn_like(out)
    grads = torch.autograd.grad(out, features, weights)
    for grad, wanted in zip(grads, torch.autograd.grad(expected, features, weights), strict=True):
        torch.testing.assert_close(grad, wanted)


def test_float32_is_as_exact_as_torchvisions():
    features, rois, levels = some_levels(), some_rois(200, torch.float32), torch.arange(200) % 3
    out = align_by_products(features, rois, levels, STRIDES, 7, 0, True)
    torch.testing.assert_close(out, reference(features, rois, levels, 7, 0, True), rtol=1e-5, atol=1e-5)


def test_batches_of_rois_do_not_touch_each_other(monkeypatch):
    features, rois, levels = some_levels(), some_rois(50, torch.float32), torch.arange(50) % 3
    together = align_by_products(features, rois, levels, STRIDES, 7, 0, True)
    monkeypatch.setattr("detect.models.roi_align.BATCH_VALUES", 1)
    torch.testing.assert_close(align_by_products(features, rois, levels, STRIDES, 7, 0, True), together)


def test_what_is_not_finite_stays_where_it_is():
    features = some_levels()
    features[0][1] = torch.nan
    rois = torch.tensor([[0, 4.0, 4, 90, 90], [1, 4, 4, 90, 90], [0, 4, 4, 30, 90], [0, torch.nan, 4, 90, 90]])
    rois = torch.cat([rois, torch.tensor([[0, 4, 4, torch.inf, 90]])])
    out = align_by_products(features, rois, torch.zeros(5, dtype=torch.int64), STRIDES, 7, 0, True)
    assert out[1].isnan().all()
    assert out[[0, 2]].isfinite().all()
    assert out[3:].eq(0).all()


def test_the_same_bits_each_time():
    features = [level.requires_grad_() for level in some_levels(channels=64)]
    rois, levels = some_rois(100, torch.float32), torch.arange(100) % 3

    def run():
        out = align_by_products(features, rois, levels, STRIDES, 7, 0, True)
        return out, *torch.autograd.grad(out.square().sum(), features)

    assert all(torch.equal(one, other) for one, other in zip(run(), run(), strict=True))


def test_autocast_leaves_it_in_float32():
    features = [level.bfloat16().requires_grad_() for level in some_levels()]
    extractor, rois = SingleRoIExtractor(7, STRIDES, num_levels=3), some_rois(40, torch.float32)
    expected = extractor([level.float() for level in features], rois)
    with torch.autocast("cpu", torch.bfloat16):
        out = extractor(features, rois)
        grads = torch.autograd.grad(out, features, torch.ones_like(out))
    assert torch.equal(out, expected.bfloat16())
    for grad, wanted in zip(grads, torch.autograd.grad(expected, features, torch.ones_like(expected)), strict=True):
        assert torch.equal(grad, wanted)


def test_features_that_lie_channels_last_are_not_copied(monkeypatch):
    features = laid_out(some_levels())
    copied = []
    contiguous = torch.Tensor.contiguous
    monkeypatch.setattr(torch.Tensor, "contiguous", lambda t, **kw: copied.append(t.is_contiguous()) or contiguous(t))
    out = align_by_products(features, some_rois(5, torch.float32), torch.zeros(5).long(), STRIDES, 7, 0, True)
    assert copied == [True] * 3
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_a_second_derivative_is_refused():
    features = some_levels(requires_grad=True)
    out = align_by_products(features, some_rois(5, torch.float32), torch.zeros(5).long(), STRIDES, 7, 0, True)
    (grad, *_) = torch.autograd.grad(out.square().sum(), features, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


class OneLevel(torch.nn.Module):
    def forward(self, level, rois):
        return pool_level(level, rois, 4, 7)


def test_an_exported_model_has_torchvisions_operator():
    level, rois = some_levels()[0], some_rois(20, torch.float32)
    assert by_products(level)
    assert not by_products(level.to("meta"))
    program = torch.export.export(OneLevel(), (level, rois))
    assert "torchvision.roi_align" in str(program.graph)
    torch.testing.assert_close(program.module()(level, rois), pool_level(level, rois, 4, 7))
