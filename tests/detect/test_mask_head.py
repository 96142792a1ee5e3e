"""The mask head upsamples a few RoIs at a time where a CPU trains, and all at once elsewhere."""

from __future__ import annotations

import pytest
import torch

from detect.models.roi_heads.mask_head import TOGETHER, FCNMaskHead


@pytest.mark.parametrize("count", [0, 1, TOGETHER, 2 * TOGETHER + 1])
def test_parts_give_the_logits_and_gradients_of_all(count, monkeypatch):
    torch.manual_seed(0)
    head, features = FCNMaskHead(8, 3, num_convs=1, conv_out_channels=8), torch.randn(count, 8, 4, 4)
    inputs = [features.requires_grad_(), *head.parameters()]
    parts = []
    head.upsample.register_forward_pre_hook(lambda _, args: parts.append(len(args[0])))
    out = head(features)
    assert out.shape == (count, 3, 8, 8)
    assert max(parts) <= TOGETHER
    assert sum(parts) == count
    grads = torch.autograd.grad(out.square().sum(), inputs)
    monkeypatch.setattr("detect.models.roi_heads.mask_head.TOGETHER", max(count, 1))
    expected = head(features)
    torch.testing.assert_close(out, expected)
    for grad, wanted in zip(grads, torch.autograd.grad(expected.square().sum(), inputs), strict=True):
        torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-4)


def test_evaluation_takes_all_at_once():
    head = FCNMaskHead(8, 3, num_convs=1, conv_out_channels=8)
    parts = []
    head.upsample.register_forward_pre_hook(lambda _, args: parts.append(len(args[0])))
    with torch.no_grad():
        head(torch.randn(2 * TOGETHER, 8, 4, 4))
    assert parts == [2 * TOGETHER]
