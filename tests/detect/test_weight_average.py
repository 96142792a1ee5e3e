"""The moving average of the weights: its formula, and that nothing interrupts it."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from detect.running import validation
from detect.running.control import TrainingInterruptedError
from detect.running.run import Run
from detect.running.state import STATE, WEIGHTS
from detect.running.weight_average import WeightAverage
from detect.sections.training import Ema
from detect.trained import load_trained
from detect.training import train
from dpipe.errors import InputError

PLAIN = ("train.eval_every=0", "schedule.warmup_iters=0")
EMA = "train.ema={decay: 0.9, warmup_iters: 4}"
# Three epochs of two iterations, the second of what three batches leave.
STEPS = ("data.train.repeat=2", "train.epochs=3", "train.accumulate=3", "train.checkpoint_every_iters=1")


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / WEIGHTS)


def state(checkpoint: Path) -> dict:
    return torch.load(checkpoint / STATE, weights_only=True)


def assert_same_bits(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def assert_same_run(first: Path, second: Path) -> None:
    """Both the averages and the weights of two checkpoints are the same."""
    assert_same_bits(weights(first), weights(second))
    one, other = state(first)["ema"], state(second)["ema"]
    assert one["updates"] == other["updates"]
    assert_same_bits(one["weights"], other["weights"])


def test_the_average_follows_its_formula():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2))
    average = WeightAverage(model, Ema(decay=0.9, warmup_iters=5))
    expected = model[0].weight.detach().double().clone()
    mean = torch.zeros(2, dtype=torch.float64)
    for update in range(1, 31):
        with torch.no_grad():
            model[0].weight.normal_()
            model[1].running_mean.normal_()
            model[1].num_batches_tracked += 2
        average.update()
        stays = 0.9 * (1 - math.exp(-update / 5))
        expected = stays * expected + (1 - stays) * model[0].weight.double()
        mean = stays * mean + (1 - stays) * model[1].running_mean.double()
    torch.testing.assert_close(average.model[0].weight.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(average.model[1].running_mean.double(), mean, rtol=1e-5, atol=1e-6)
    assert average.model[1].num_batches_tracked == 60
    assert not average.model.training
    assert not any(weight.requires_grad for weight in average.model.parameters())


def test_the_decay_rises_from_next_to_nothing():
    average = WeightAverage(nn.Linear(1, 1), Ema())
    assert average.decay(1) == pytest.approx(0.9998 / 2000, rel=1e-3)
    assert average.decay(2000) == pytest.approx(0.9998 * (1 - 1 / math.e))
    assert average.decay(10**6) == pytest.approx(0.9998)
    assert WeightAverage(nn.Linear(1, 1), Ema(warmup_iters=0)).decay(1) == 0.9998


def test_a_weight_of_two_names_is_averaged_once():
    model = nn.Sequential(nn.Linear(1, 1, bias=False))
    model.append(model[0])
    nn.init.zeros_(model[0].weight)
    average = WeightAverage(model, Ema(decay=0.75, warmup_iters=0))
    nn.init.ones_(model[0].weight)
    average.update()
    assert average.model[1].weight is average.model[0].weight
    assert average.model[0].weight.item() == 0.25


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.ema={decay: 1.0}", "train.ema.decay: expected a value less than 1"),
        ("train.ema={decay: -0.1}", "train.ema.decay: expected a value greater than or equal to 0"),
        ("train.ema={warmup_iters: -1}", "train.ema.warmup_iters: expected a value greater than or equal to 0"),
        ("train.ema={momentum: 0.1}", "train.ema.momentum: unknown key"),
        ("train.ema=true", "train.ema: expected"),
    ],
)
def test_mistakes_are_told_in_one_line(shapes, override, message):
    with pytest.raises(InputError) as caught:
        shapes.config(override)
    (line,) = str(caught.value).splitlines()
    assert message in line


def test_it_is_the_average_that_is_evaluated_saved_and_loaded(shapes, tiny, tmp_path, monkeypatch):
    seen = []
    collect = validation.collect_results

    def spy(model, *args, **kwargs):
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return collect(model, *args, **kwargs)

    monkeypatch.setattr(validation, "collect_results", spy)
    config = shapes.config(tiny, "train.epochs=1", "train.eval_every=1", EMA, "schedule.warmup_iters=0")
    last = train(config, tmp_path)
    assert_same_bits(seen[0], weights(last))
    assert_same_bits(load_trained(config, tmp_path).model.state_dict(), weights(last))
    trained, average = state(last)["ema"]["weights"], weights(last)
    different = {name for name in trained if not torch.equal(trained[name], average[name])}
    assert trained.keys() - different == {"norm.num_batches_tracked"}


def test_a_run_stopped_within_an_epoch_goes_on_to_the_same_bits(shapes, tiny, tmp_path, monkeypatch):
    options = (tiny, *STEPS, EMA, *PLAIN)
    whole = train(shapes.config(*options), tmp_path / "whole")
    original = Run.step

    def step(self, batch):
        if (self.iteration, self.parts) == (2, 1):
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch)

    monkeypatch.setattr(Run, "step", step)
    with pytest.raises(TrainingInterruptedError, match="after iteration 3 of 6"):
        train(shapes.config(*options), tmp_path / "stopped")
    monkeypatch.undo()
    assert_same_run(train(shapes.config(*options), tmp_path / "stopped", resume=True), whole)


def test_a_run_stopped_while_it_is_evaluated_saves_both(shapes, tiny, tmp_path, monkeypatch):
    # No checkpoint is due, so the signal's is written in the middle of an evaluation of the average.
    options = (tiny, "train.epochs=2", "train.eval_every=1", "train.checkpoint_every=9", EMA)
    whole = train(shapes.config(*options), tmp_path / "whole")
    collect = validation.collect_results

    def signalled(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return collect(*args, **kwargs)

    monkeypatch.setattr(validation, "collect_results", signalled)
    with pytest.raises(TrainingInterruptedError, match="after iteration 2"):
        train(shapes.config(*options), tmp_path / "stopped")
    monkeypatch.undo()
    assert_same_run(train(shapes.config(*options), tmp_path / "stopped", resume=True), whole)


def test_two_processes_average_as_one_does_and_resume(tiny, shapes, tmp_path):
    options = [tiny, *PLAIN, EMA, "data.train.repeat=2", "train.sync_bn=true"]
    alone = train(shapes.config(*options, "train.epochs=2", "data.batch_size=2"), tmp_path / "alone")

    def two(folder: str, *overrides: str) -> Path:
        command = [sys.executable, "-m", "detect", "train", str(shapes.recipe), *options, "data.batch_size=1"]
        command += [*overrides, "--devices", "2", "--accelerator", "cpu", "--work-dir", str(tmp_path / folder)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr
        return tmp_path / folder / "checkpoints" / "last"

    whole = two("two", "train.epochs=2")
    torch.testing.assert_close(weights(whole)["last.weight"], weights(alone)["last.weight"])
    assert not torch.equal(weights(whole)["last.weight"], state(whole)["ema"]["weights"]["last.weight"])
    two("parts", "train.epochs=1")
    assert_same_run(two("parts", "train.epochs=2", "--resume"), whole)


def test_a_resumed_run_can_begin_and_end_to_average(tiny, shapes, tmp_path):
    plain = train(shapes.config(tiny, *PLAIN, "train.epochs=3"), tmp_path / "plain")
    train(shapes.config(tiny, *PLAIN, "train.epochs=1"), tmp_path / "run")
    begun = train(shapes.config(tiny, *PLAIN, "train.epochs=2", EMA), tmp_path / "run", resume=True)
    assert state(begun)["ema"]["updates"] == 2
    ended = train(shapes.config(tiny, *PLAIN, "train.epochs=3"), tmp_path / "run", resume=True)
    assert_same_bits(weights(ended), weights(plain))
    assert state(ended)["ema"] is None
