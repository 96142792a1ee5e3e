"""Losses against the reference's values and against their definitions."""

from __future__ import annotations

import pytest
import torch

from detect.models.losses import CrossEntropyLoss, L1Loss, SmoothL1Loss, accuracy


@pytest.mark.parametrize(
    ("loss", "name"),
    [(L1Loss(), "l1"), (SmoothL1Loss(1.0), "smooth_l1_beta1"), (SmoothL1Loss(1 / 9), "smooth_l1_beta_1_9")],
)
def test_box_losses_equal_the_reference(parity, loss, name):
    case = parity("mmdet_parts")
    value = loss(case.inputs["loss/reg_pred"], case.inputs["loss/reg_target"], avg_factor=50)
    torch.testing.assert_close(value, case.expected[f"loss/{name}_avg50"].squeeze(), rtol=1e-5, atol=0)


def test_cross_entropies_by_hand():
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 1.0, -2.0]])
    labels = torch.tensor([0, 2])
    by_hand = -(logits.log_softmax(1)[0, 0] + logits.log_softmax(1)[1, 2])
    torch.testing.assert_close(CrossEntropyLoss()(logits, labels), by_hand / 2)
    torch.testing.assert_close(CrossEntropyLoss(loss_weight=3.0)(logits, labels, avg_factor=4), by_hand * 3 / 4)

    objectness = torch.tensor([[1.5], [-0.5]])  # one class: label 0 is on, label 1 is the background
    by_hand = -(objectness[0].sigmoid().log() + (1 - objectness[1].sigmoid()).log()).sum()
    torch.testing.assert_close(
        CrossEntropyLoss(use_sigmoid=True)(objectness, torch.tensor([0, 1]), avg_factor=2), by_hand / 2
    )

    pixels, mask = torch.randn(2, 4, 4), torch.randint(0, 2, (2, 4, 4))
    chosen = torch.where(mask == 1, pixels.sigmoid(), 1 - pixels.sigmoid())
    torch.testing.assert_close(CrossEntropyLoss(use_sigmoid=True)(pixels, mask), -chosen.log().mean())


@pytest.mark.parametrize(
    ("loss", "pred", "target"),
    [
        (CrossEntropyLoss(), torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)),
        (CrossEntropyLoss(use_sigmoid=True), torch.zeros(0, 1), torch.zeros(0, dtype=torch.int64)),
        (SmoothL1Loss(), torch.zeros(0, 4), torch.zeros(0, 4)),
        (L1Loss(), torch.zeros(0, 4), torch.zeros(0, 4)),
    ],
)
def test_nothing_costs_nothing_and_keeps_the_graph(loss, pred, target):
    pred = pred.requires_grad_()
    value = loss(pred, target, avg_factor=1)
    assert value.item() == 0
    value.backward()
    assert pred.grad.shape == pred.shape


def test_accuracy_is_a_percentage():
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 1.0], [0.0, 5.0]])
    assert accuracy(logits, torch.tensor([0, 1, 1, 1])).item() == 75
    assert accuracy(logits[:0], torch.zeros(0, dtype=torch.int64)).item() == 0
