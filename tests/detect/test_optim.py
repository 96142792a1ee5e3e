"""The learning rate over time, and what the optimizer touches."""

from __future__ import annotations

import pytest
from torch import nn

from detect.optim import WarmupSteps, sgd


def test_warmup_rises_linearly_from_the_ratio_to_one():
    schedule = WarmupSteps(warmup_iters=500, warmup_ratio=0.001)
    assert schedule.factor(0, 0) == pytest.approx(0.001)
    assert schedule.factor(1, 0) == pytest.approx(0.001 + 0.999 / 500)
    assert schedule.factor(250, 0) == pytest.approx(0.5005)
    assert schedule.factor(499, 0) == pytest.approx(0.001 + 0.999 * 499 / 500)
    assert schedule.factor(500, 0) == 1.0


def test_steps_come_after_their_epochs():
    schedule = WarmupSteps(warmup_iters=0, steps=(8, 11), gamma=0.1)
    factors = [schedule.factor(1000 * epoch, epoch) for epoch in range(12)]
    assert factors == pytest.approx([1.0] * 8 + [0.1] * 3 + [0.01])


def test_a_warmup_longer_than_a_step_multiplies_both():
    schedule = WarmupSteps(warmup_iters=100, warmup_ratio=0.2, steps=(1,), gamma=0.5)
    assert schedule.factor(50, 1) == pytest.approx(0.6 * 0.5)


def test_no_warmup_begins_at_the_full_rate():
    assert WarmupSteps().factor(0, 0) == 1.0


def test_the_optimizer_leaves_frozen_weights_out():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    model[0].requires_grad_(False)
    (group,) = sgd(model, lr=0.1, momentum=0.9, weight_decay=1e-4).param_groups
    assert [tuple(weight.shape) for weight in group["params"]] == [(4, 3), (4,)]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.1, 0.9, 1e-4)
