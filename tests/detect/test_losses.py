"""Losses against the reference's values and against their definitions."""

from __future__ import annotations

import pytest
import torch

from detect.models.losses import CrossEntropyLoss, FocalLoss, GIoULoss, IoULoss, L1Loss, SmoothL1Loss, accuracy


@pytest.mark.parametrize(
    ("loss", "name"),
    [(L1Loss(), "l1"), (SmoothL1Loss(1.0), "smooth_l1_beta1"), (SmoothL1Loss(1 / 9), "smooth_l1_beta_1_9")],
)
def test_box_losses_equal_the_reference(parity, loss, name):
    case = parity("mmdet_parts")
    value = loss(case.inputs["loss/reg_pred"], case.inputs["loss/reg_target"], avg_factor=50)
    torch.testing.assert_close(value, case.expected[f"loss/{name}_avg50"].squeeze(), rtol=1e-5, atol=0)


def test_focal_and_iou_losses_equal_the_reference(parity):
    inputs, expected = parity("mmdet_parts").inputs, parity("mmdet_parts").expected
    focal = FocalLoss()(inputs["loss/logits"], inputs["loss/labels"], avg_factor=17)
    torch.testing.assert_close(focal, expected["loss/focal_avg17"].squeeze(), rtol=1e-5, atol=0)
    pred, target, weight = (inputs[f"loss/iou_{name}"] for name in ("pred", "target", "weight"))
    iou = IoULoss()(pred, target, weight, avg_factor=9.5)
    torch.testing.assert_close(iou, expected["loss/iou_log_weighted_avg9.5"].squeeze(), rtol=1e-5, atol=0)


def test_losses_of_overlaps_by_hand():
    """Unit squares: the same, half over each other, and one unit apart."""
    pred = torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]])
    target = torch.tensor([[0.0, 0, 1, 1], [0.5, 0, 1.5, 1], [2, 0, 3, 1]])
    ious = torch.tensor([1, 1 / 3, 0])
    for mode, values in (("linear", 1 - ious), ("square", 1 - ious**2), ("log", -ious.clamp(min=1e-6).log())):
        torch.testing.assert_close(
            IoULoss(mode=mode, reduction="none", eps=1e-6)(pred, target), values, atol=2e-6, rtol=0
        )
    torch.testing.assert_close(GIoULoss(reduction="none")(pred, target), torch.tensor([0, 2 / 3, 1 + 1 / 3]))


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
