"""Means for the log: of windows of iterations, of epochs, and of an epoch that is interrupted."""

from __future__ import annotations

import pytest
import torch
from lightning_fabric import Fabric

from detect.running.averages import Averages


def averages_of(*batches: tuple[float, float]) -> Averages:
    averages = Averages(Fabric(accelerator="cpu", devices=1))
    for loss, error in batches:
        averages.add({"loss": torch.tensor(loss, requires_grad=True), "error": torch.tensor(error)})
    return averages


def test_a_window_has_its_own_means_and_an_epoch_those_of_all_its_batches():
    averages = averages_of((1.0, 0.5), (2.0, 0.0), (6.0, 0.1))
    averages.iterations, averages.waited = 2, 3.0
    means, waited, took = averages.end_window()
    assert means == pytest.approx({"loss": 3.0, "error": 0.2})
    assert waited == 1.5
    assert 0 <= took < 10
    averages.add({"loss": torch.tensor(11.0), "error": torch.tensor(1.0)})
    assert averages.end_epoch() == pytest.approx({"loss": 5.0, "error": 0.4})
    averages.add({"loss": torch.tensor(7.0), "error": torch.tensor(0.0)})
    assert averages.end_epoch() == {"loss": 7.0, "error": 0.0}
    assert averages.end_epoch() == {}


@pytest.mark.parametrize("ends_window", [True, False])
def test_an_interrupted_epoch_goes_on_with_what_it_had(ends_window):
    averages = averages_of((1.0, 0.5), (2.0, 0.0))
    if ends_window:
        averages.end_window()
    averages.add({"loss": torch.tensor(3.0), "error": torch.tensor(0.1)})
    state = averages.state_dict()
    resumed = averages_of()
    resumed.load_state_dict(state)
    for one in (averages, resumed):
        one.add({"loss": torch.tensor(6.0), "error": torch.tensor(0.2)})
        assert one.end_epoch() == pytest.approx({"loss": 3.0, "error": 0.2})
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
