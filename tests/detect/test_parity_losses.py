"""Every loss against the reference's values and gradients: weights, averages, reductions and all options."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from detect import MODELS

CASES = json.loads((Path(__file__).parents[1] / "data/parity/mmdet_losses/meta.json").read_text())["cases"]


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient(parity, name):
    case, inputs, expected = CASES[name], parity("mmdet_losses").inputs, parity("mmdet_losses").expected
    loss = MODELS.build({"type": case["type"], **case["args"]})
    for call in range(case["calls"]):
        pred = (inputs[case["pred"]] * (1 + call)).requires_grad_()
        value = loss(
            pred,
            inputs[case["target"]],
            weight=None if case["weight"] is None else inputs[case["weight"]],
            avg_factor=case["avg_factor"],
            reduction_override=case["reduction_override"],
        )
    value.sum().backward()
    torch.testing.assert_close(value, expected[f"{name}/loss"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(pred.grad, expected[f"{name}/grad"], rtol=1e-4, atol=1e-6)
    if f"{name}/acc_sum" in expected:
        torch.testing.assert_close(loss.acc_sum, expected[f"{name}/acc_sum"])
        assert set(loss.state_dict()) == {"acc_sum", "edges"}  # OpenMMLab's names


def test_every_loss_has_a_case():
    import detect.models.losses

    losses = {name for name in detect.models.losses.__all__ if name in MODELS.names()}
    assert losses == {case["type"] for case in CASES.values()}
    assert len(losses) == 11


def test_values_of_the_operators(parity):
    """The reference case of operators has a few values of losses, too."""
    inputs, expected = parity("mmdet_parts").inputs, parity("mmdet_parts").expected

    def value(type_, pred, target, weight=None, avg_factor=None, **options):
        weight = None if weight is None else inputs[f"loss/{weight}"]
        loss = MODELS.build({"type": type_, **options})
        return loss(inputs[f"loss/{pred}"], inputs[f"loss/{target}"], weight, avg_factor)

    found = {
        "focal_avg17": value("FocalLoss", "logits", "labels", avg_factor=17),
        "iou_log_weighted_avg9.5": value("IoULoss", "iou_pred", "iou_target", "iou_weight", 9.5),
        "l1_avg50": value("L1Loss", "reg_pred", "reg_target", avg_factor=50),
        "smooth_l1_beta1_avg50": value("SmoothL1Loss", "reg_pred", "reg_target", avg_factor=50, beta=1.0),
        "smooth_l1_beta_1_9_avg50": value("SmoothL1Loss", "reg_pred", "reg_target", avg_factor=50, beta=1 / 9),
    }
    assert set(found) == {name.removeprefix("loss/") for name in expected if name.startswith("loss/")}
    for name, loss in found.items():
        torch.testing.assert_close(loss, expected[f"loss/{name}"].squeeze(), rtol=1e-6, atol=0)
