"""The learning rate over time, against PyTorch's schedulers and against the formulas written out."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from torch import nn, optim
from torch.optim import lr_scheduler

from detect.running.schedules import Progress, Schedule, make_schedule
from detect.sections.optimizer import ConstantSection, CosineSection, MultiStepSection, StepSection
from dpipe.errors import InputError

EPOCHS, LENGTH = 12, 50


def factors(schedule: Schedule) -> list[float]:
    """The factor of every iteration of a run."""
    return [
        schedule.factor(Progress(iteration, EPOCHS * LENGTH, iteration // LENGTH, EPOCHS))
        for iteration in range(EPOCHS * LENGTH)
    ]


def pytorch(make: Callable[[optim.Optimizer], lr_scheduler.LRScheduler], count: int, lr: float = 1.0) -> list[float]:
    """The learning rates that one of PyTorch's schedulers gives."""
    optimizer = optim.SGD(nn.Linear(1, 1).parameters(), lr=lr)
    scheduler, found = make(optimizer), []
    for _ in range(count):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def by_epoch(values: list[float]) -> list[float]:
    return [value for value in values for _ in range(LENGTH)]


def test_linear_warmup():
    found = factors(make_schedule(ConstantSection(type="none", warmup_iters=100, warmup_ratio=0.001)))
    assert found == pytest.approx(pytorch(lambda o: lr_scheduler.LinearLR(o, 0.001, total_iters=100), 600))
    assert found[:2] == pytest.approx([0.001, 0.001 + 0.999 / 100])
    assert found[99] == pytest.approx(0.001 + 0.999 * 99 / 100)
    assert found[100:] == [1.0] * 500


def test_constant_warmup():
    schedule = make_schedule(ConstantSection(type="none", warmup="constant", warmup_iters=100, warmup_ratio=1 / 3))
    found = factors(schedule)
    assert found == pytest.approx(pytorch(lambda o: lr_scheduler.ConstantLR(o, 1 / 3, total_iters=100), 600))
    assert found == [pytest.approx(1 / 3)] * 100 + [1.0] * 500


def test_steps_by_epoch():
    found = factors(make_schedule(MultiStepSection(steps=[8, 11], gamma=0.1)))
    assert found == pytest.approx(by_epoch(pytorch(lambda o: lr_scheduler.MultiStepLR(o, [8, 11], 0.1), EPOCHS)))
    assert found == pytest.approx(by_epoch([1.0] * 8 + [0.1] * 3 + [0.01]))


def test_steps_by_iteration():
    found = factors(make_schedule(MultiStepSection(steps=[120, 410], gamma=0.5, by="iteration")))
    assert found == pytest.approx(pytorch(lambda o: lr_scheduler.MultiStepLR(o, [120, 410], 0.5), 600))
    assert found == [1.0] * 120 + [0.5] * 290 + [0.25] * 190


def test_a_step_again_and_again():
    found = factors(make_schedule(StepSection(type="step", step_size=5, gamma=0.3)))
    assert found == pytest.approx(by_epoch(pytorch(lambda o: lr_scheduler.StepLR(o, 5, 0.3), EPOCHS)))
    assert found == pytest.approx(by_epoch([1.0] * 5 + [0.3] * 5 + [0.09] * 2))
    found = factors(make_schedule(StepSection(type="step", step_size=70, gamma=0.3, by="iteration")))
    assert found == pytest.approx([0.3 ** (iteration // 70) for iteration in range(600)])


def test_cosine_by_iteration():
    found = factors(make_schedule(CosineSection(type="cosine", min_ratio=0.05)))
    expected = pytorch(lambda o: lr_scheduler.CosineAnnealingLR(o, 600, eta_min=0.05), 600)
    assert found == pytest.approx(expected, rel=1e-6)
    assert found == pytest.approx([0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * i / 600)) for i in range(600)])
    assert found[300] == pytest.approx(0.525)


def test_cosine_by_epoch():
    found = factors(make_schedule(CosineSection(type="cosine", by="epoch")))
    assert found == pytest.approx(by_epoch(pytorch(lambda o: lr_scheduler.CosineAnnealingLR(o, EPOCHS), EPOCHS)))
    assert found == pytest.approx(by_epoch([0.5 * (1 + math.cos(math.pi * epoch / 12)) for epoch in range(12)]))


def test_the_warmup_multiplies_what_else_there_is():
    found = factors(make_schedule(MultiStepSection(steps=[1], gamma=0.5, warmup_iters=100, warmup_ratio=0.2)))
    assert found[75] == pytest.approx((0.2 + 0.8 * 75 / 100) * 0.5)
    found = factors(make_schedule(CosineSection(type="cosine", warmup_iters=100, warmup_ratio=0)))
    assert found[50] == pytest.approx(0.5 * 0.5 * (1 + math.cos(math.pi * 50 / 600)))


def test_nothing_is_the_full_rate():
    assert factors(make_schedule(ConstantSection(type="none"))) == [1.0] * 600


@pytest.mark.parametrize("steps", [[11, 8], [8, 8]])
def test_steps_that_do_not_rise_are_told(shapes, steps):
    with pytest.raises(InputError) as caught:
        shapes.config(f"schedule.steps={steps}")
    assert f"schedule.steps: expected numbers that rise, got {steps}" in str(caught.value)
