"""Steps of the optimizer in training: of several batches, with groups and schedules in the log, and resumed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file
from typer.testing import CliRunner

from detect.cli import app
from detect.config import Config
from detect.running.control import TrainingInterruptedError
from detect.running.logs import read_log
from detect.running.run import Run
from detect.running.state import WEIGHTS
from detect.training import train
from dpipe.errors import InputError

# A model whose loss is the mean over images, so that several batches are the same as one of all their images. The
# gradient of its first weight is the mean of a batch's images.
MEANS = """
import torch
from torch import nn

class Means(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.zeros(()))
        self.second = nn.Parameter(torch.ones(()))

    def forward(self, images, targets):
        means = images.mean(dim=(1, 2, 3))
        loss = self.first * means.mean() + ((self.second * means - 0.5) ** 2).mean()
        return {"loss": loss, "brightness": means.mean()}
"""
QUIET = ("train.eval_every=0", "optimizer.momentum=0", "optimizer.weight_decay=0", "schedule.warmup_iters=0")
# Three epochs of two iterations: three batches, and what is left.
STEPS = (
    "data.train.repeat=2",
    "train.epochs=3",
    "train.eval_every=0",
    "train.accumulate=3",
    "train.checkpoint_every_iters=1",
    "optimizer={_delete_: true, type: AdamW, lr: 0.001, weight_decay: 0.05, groups: ["
    "{pattern: '(bn|downsample.1)', decay_mult: 0}, {pattern: ^backbone, lr_mult: 0.5}]}",
    "schedule={_delete_: true, type: cosine, warmup_iters: 2, warmup_ratio: 0.1, min_ratio: 0.01}",
)


@pytest.fixture
def means(shapes, monkeypatch):
    """A function that makes a recipe of that model."""
    (shapes.root / "mean_model.py").write_text(MEANS)
    monkeypatch.setattr("sys.path", [str(shapes.root), *sys.path])

    def config(*overrides: str) -> Config:
        return shapes.config("model={_delete_: true, type: mean_model.Means}", *QUIET, *overrides)

    return config


@pytest.fixture
def gradients(monkeypatch) -> list[float]:
    """The gradients of the first weight at each step."""
    found: list[float] = []
    original = torch.optim.SGD.step

    def step(self, *args, **kwargs):
        found.append(self.param_groups[0]["params"][0].grad.item())
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    return found


@pytest.fixture
def brightness(monkeypatch) -> list[float]:
    """The means of all batches that are learned from, and the samples behind them."""
    found: list[float] = []
    original = Run.step

    def step(self, batch):
        found.append(batch.images.mean().item())
        return original(self, batch)

    monkeypatch.setattr(Run, "step", step)
    return found


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS)


def train_records(work_dir: Path) -> list[dict]:
    return [record for record in read_log(work_dir / "train.jsonl") if record["kind"] == "train"]


def test_batches_of_an_iteration_are_as_one_batch(means, tmp_path):
    options = ("train.epochs=2", "data.train.repeat=3", "optimizer.momentum=0.9", "schedule.warmup_iters=3")
    whole = train(means(*options, "data.batch_size=4"), tmp_path / "whole")
    parts = train(means(*options, "data.batch_size=2", "train.accumulate=2"), tmp_path / "parts")
    for name, weight in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], weight, rtol=1e-5, atol=1e-7)
    expected, found = train_records(tmp_path / "whole"), train_records(tmp_path / "parts")
    assert len(expected) == len(found) == 6
    for one, other in zip(expected, found, strict=True):
        for key in ("iteration", "epoch", "lr", "loss", "brightness"):
            assert one[key] == pytest.approx(other[key], rel=1e-5)


def test_the_last_iteration_of_an_epoch_takes_what_is_left(means, tmp_path, gradients, brightness):
    train(means("train.epochs=2", "data.batch_size=1", "train.accumulate=3"), tmp_path)
    assert len(brightness) == 8
    expected = [sum(brightness[:3]) / 3, brightness[3], sum(brightness[4:7]) / 3, brightness[7]]
    assert gradients == pytest.approx(expected, rel=1e-5)
    assert [record["iteration"] for record in train_records(tmp_path)] == [1, 2, 3, 4]


def test_batches_that_are_left_out_at_the_end_of_an_epoch_leave_an_iteration(
    means, shapes, tmp_path, gradients, brightness, monkeypatch
):
    last: list[str] = []
    original = Run.step

    def step(self, batch):
        last[:] = [batch.targets[0].file_name]
        return original(self, batch)

    options = ("train.epochs=1", "data.batch_size=1", "train.accumulate=2", "data.on_bad_sample=skip")
    monkeypatch.setattr(Run, "step", step)
    train(means(*options), tmp_path / "first")
    brightness.clear()
    gradients.clear()
    path = shapes.root / "images" / last[0]
    path.write_bytes(path.read_bytes()[:200])
    train(means(*options), tmp_path / "second")
    assert len(brightness) == 3
    assert gradients == pytest.approx([sum(brightness[:2]) / 2, brightness[2]], rel=1e-5)
    assert [record["iteration"] for record in train_records(tmp_path / "second")] == [1, 2]


def test_processes_wait_for_each_other_once_an_iteration(means, tmp_path, monkeypatch):
    skipped: list[bool] = []
    original = Fabric.no_backward_sync

    def no_backward_sync(self, module, enabled=True):
        skipped.append(enabled)
        return original(self, module, enabled)

    monkeypatch.setattr(Fabric, "no_backward_sync", no_backward_sync)
    train(means("train.epochs=1", "data.batch_size=1", "train.accumulate=3"), tmp_path)
    assert skipped == [True, True, False, False]


def test_two_processes_accumulate_as_one_does(means, shapes, tmp_path):
    options = ["model={_delete_: true, type: mean_model.Means}", *QUIET]
    options += ["data.train.repeat=2", "train.epochs=2", "data.batch_size=1", "optimizer.momentum=0.9"]
    alone = train(shapes.config(*options, "train.accumulate=4"), tmp_path / "alone")
    command = [sys.executable, "-m", "detect", "train", str(shapes.recipe), *options, "train.accumulate=2"]
    command += ["--devices", "2", "--accelerator", "cpu", "--work-dir", str(tmp_path / "two")]
    done = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(shapes.root)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name, weight in weights(alone).items():
        torch.testing.assert_close(weights(tmp_path / "two" / "checkpoints" / "last")[name], weight)
    for one, other in zip(train_records(tmp_path / "alone"), train_records(tmp_path / "two"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
    (first, second) = (
        [record for record in read_log(tmp_path / name / "train.jsonl") if record["kind"] == "epoch"]
        for name in ("alone", "two")
    )
    assert [record["brightness"] for record in first] == pytest.approx([record["brightness"] for record in second])


def test_a_run_stopped_within_an_iteration_ends_it_and_goes_on_to_the_same_bits(shapes, tmp_path, monkeypatch):
    whole = train(shapes.config(*STEPS), tmp_path / "whole")
    assert whole.name == "iter_00000006"
    original = Run.step

    def step(self, batch):
        if (self.iteration, self.parts) == (2, 1):
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch)

    monkeypatch.setattr(Run, "step", step)
    with pytest.raises(TrainingInterruptedError, match="after iteration 3 of 6"):
        train(shapes.config(*STEPS), tmp_path / "stopped")
    monkeypatch.undo()
    resumed = train(shapes.config(*STEPS), tmp_path / "stopped", resume=True)
    expected, found = weights(whole), weights(resumed)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []

    before, after = (read_log(tmp_path / name / "train.jsonl") for name in ("whole", "stopped"))
    assert [record["kind"] for record in before] == [record["kind"] for record in after]
    for one, other in zip(before, after, strict=True):
        for record in (one, other):
            for key in ("data_time", "iteration_time", "memory_mib"):
                record.pop(key, None)
        if one.pop("kind") == "epoch":  # of windows that were cut elsewhere
            other.pop("kind")
            assert one == pytest.approx(other, rel=1e-5)
        else:
            assert other == {"kind": "train", **one}


def test_the_log_tells_the_rates_of_groups_and_the_means_of_epochs(shapes, tmp_path, capsys):
    train(shapes.config(*STEPS), tmp_path)
    records = read_log(tmp_path / "train.jsonl")
    steps = [record for record in records if record["kind"] == "train"]
    cosine = [0.01 + 0.99 * (1 + torch.cos(torch.tensor(i * torch.pi / 6)).item()) / 2 for i in range(6)]
    warmup = [0.1, 0.55, 1, 1, 1, 1]
    expected = [0.001 * a * b for a, b in zip(cosine, warmup, strict=True)]
    assert [record["lr"] for record in steps] == pytest.approx(expected)
    assert [record["group_lrs"] for record in steps] == [{"^backbone": pytest.approx(lr / 2)} for lr in expected]
    printed = capsys.readouterr().out
    assert f"iter 3/6  lr {expected[2]:.3e}  lr of ^backbone {expected[2] / 2:.3e}  loss " in printed

    epochs = [record for record in records if record["kind"] == "epoch"]
    assert [(record["epoch"], record["iteration"]) for record in epochs] == [(1, 2), (2, 4), (3, 6)]
    for number, record in enumerate(epochs):
        first, second = steps[2 * number : 2 * number + 2]
        for name in ("loss", "s0.acc"):
            assert record[name] == pytest.approx((3 * first[name] + second[name]) / 4, rel=1e-5)  # by batches
        assert re.search(rf"epoch {number + 1}/3 on average  loss {record['loss']:.4f}  ", printed)


def test_the_rate_is_scaled_to_the_images_of_an_iteration(means, tmp_path, capsys):
    options = ("train.epochs=1", "data.batch_size=2", "train.accumulate=2", "optimizer.base_batch_size=16")
    train(means(*options, "optimizer.lr=0.02"), tmp_path / "as it is")
    assert train_records(tmp_path / "as it is")[0]["lr"] == 0.02
    assert "optimizer.lr" not in capsys.readouterr().out
    train(means(*options, "optimizer.lr=0.02", "optimizer.auto_scale_lr=true"), tmp_path / "scaled")
    assert train_records(tmp_path / "scaled")[0]["lr"] == pytest.approx(0.005)
    told = "optimizer.lr: 0.02 is for 16 images an iteration; this run has 4, so it is 0.005\n"
    assert told in capsys.readouterr().out


def test_a_run_goes_on_with_other_groups_and_not_with_another_optimizer(means, tmp_path):
    train(means("train.epochs=1"), tmp_path)
    train(means("train.epochs=2", "optimizer.groups=[{pattern: second, lr_mult: 2}]"), tmp_path, resume=True)
    with pytest.raises(InputError) as error:
        train(
            means("train.epochs=3", "optimizer={_delete_: true, type: AdamW, lr: 0.1}"),
            tmp_path,
            resume=True,
        )
    assert str(error.value).startswith(
        f'{tmp_path / "checkpoints" / "iter_00000004"}: the optimizer was "SGD", and now is AdamW: '
    )


def test_a_pattern_without_weights_is_told_before_anything_is_written(shapes, tmp_path):
    words = ["train", str(shapes.recipe), "optimizer.groups=[{pattern: ^bakbone}]", "--work-dir", str(tmp_path / "run")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert result.stderr.startswith(
        'error: command line: optimizer.groups.0.pattern: "^bakbone" matches no weight; names are such as backbone.'
    )
    assert not (tmp_path / "run" / "train.jsonl").exists()
