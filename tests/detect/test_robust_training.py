"""Runs that meet a full disk, a folder that cannot be written, or a loss that is not finite."""

from __future__ import annotations

import errno
import math
import os
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from detect.cli import app
from detect.config import build_model
from detect.running import disk, logs, not_finite
from detect.running.logs import LOG_NAME, read_log
from detect.running.not_finite import read_batch
from detect.running.run import Run
from detect.running.state import STATE, WEIGHTS, checkpoint_folders, newest_intact, problem_of
from detect.training import train
from dpipe.errors import InputError
from dpipe.polygons import Polygons

RUN = ("train.epochs=2", "train.eval_every=0")
NOT_FINITE = ("optimizer.lr=1.0e+30", "schedule.warmup_iters=0", *RUN)


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / WEIGHTS)


def assert_same_bits(first: Path, second: Path) -> None:
    one, other = weights(first), weights(second)
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


class TestNotFinite:
    def test_the_batch_is_kept_and_gives_the_same_losses(self, shapes, tmp_path):
        config = shapes.config(*NOT_FINITE)
        with pytest.raises(InputError) as caught:
            train(config, tmp_path / "run")
        path = tmp_path / "run" / "not_finite-iter_00000002-process0.pt"
        assert f"; the batch is kept in {path}; " in str(caught.value)
        saved = read_batch(path)
        assert saved.iteration == 2
        assert all(f" {target.file_name}" in str(caught.value) for target in saved.targets)
        assert isinstance(saved.targets[0].masks, Polygons)
        model = build_model(config, 2)
        model.load_state_dict(saved.weights)
        model.train()
        torch.manual_seed(saved.seed)
        with torch.no_grad():
            losses = model(saved.images, saved.targets)
        assert any(not math.isfinite(value.item()) for value in losses.values())
        for name, value in losses.items():
            torch.testing.assert_close(value, saved.losses[name], equal_nan=True, rtol=0, atol=0)

    def test_a_batch_that_cannot_be_kept_is_told_beside_the_loss(self, shapes, tmp_path, monkeypatch):
        def full(*args):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(torch, "save", full)
        with pytest.raises(InputError, match="the loss is not finite at iteration 2") as caught:
            train(shapes.config(*NOT_FINITE), tmp_path / "run")
        assert "; the batch cannot be kept ([Errno 28] No space left on device: " in str(caught.value)
        assert not list((tmp_path / "run").glob("*.pt*"))

    def test_other_files_are_refused(self, tmp_path):
        path = tmp_path / "batch.pt"
        for content in ({"images": 1}, [1], {"targets": [{}]}):
            torch.save(content, path)
            with pytest.raises(InputError, match="is no batch that a run has kept"):
                read_batch(path)
        torch.save(not_finite.SavedBatch, path)
        with pytest.raises(InputError, match="is no batch that a run has kept"):
            read_batch(path)


class TestRoom:
    @pytest.mark.parametrize("optimizer", ["{}", "{_delete_: true, type: AdamW, lr: 0.001}", "{momentum: 0.0}"])
    @pytest.mark.parametrize("ema", ["null", "{}"])
    def test_checkpoints_are_as_large_as_foretold(self, shapes, tiny, tmp_path, optimizer, ema):
        options = ("model.channels=20000", "train.epochs=1", "train.eval_every=0", f"optimizer={optimizer}")
        config = shapes.config(tiny, *options, f"train.ema={ema}")
        last = train(config, tmp_path)
        size = sum((last / name).stat().st_size for name in (WEIGHTS, STATE))
        foretold = disk.checkpoint_bytes(build_model(config, 2), config.optimizer, ema != "null")
        names = 16_000  # of weights, and what else there is
        assert foretold <= size <= foretold + names

    def test_too_little_is_told_before_training(self, shapes, tiny, tmp_path, monkeypatch):
        each = 3 << 20
        monkeypatch.setattr("detect.running.run.checkpoint_bytes", lambda *args: each)

        def free(size: int) -> None:
            monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(size, 0, size))

        free(3 * each - 1)
        config = shapes.config(tiny, "train.epochs=4", "train.eval_every=0", "train.keep=2")
        with pytest.raises(InputError) as caught:
            train(config, tmp_path / "run")
        assert str(caught.value) == (
            f"{tmp_path / 'run' / 'checkpoints'}: the disk has room for 9 MiB, expected 9 MiB: up to 3 checkpoints of "
            "3 MiB will be there at the same time (train.keep is 2)"
        )
        assert not (tmp_path / "run" / LOG_NAME).exists()
        with pytest.raises(InputError, match="up to 4 checkpoints"):
            train(shapes.config(tiny, "train.epochs=4", "train.keep=2"), tmp_path / "run")
        train(shapes.config(tiny, "train.epochs=2", "train.eval_every=0", "train.keep=2"), tmp_path / "run")
        # What is there will make room.
        size = sum(path.stat().st_size for path in (tmp_path / "run" / "checkpoints").glob("iter_*/*"))
        free(3 * each - size)
        train(
            shapes.config(tiny, "train.epochs=3", "train.eval_every=0", "train.keep=2"), tmp_path / "run", resume=True
        )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_told_before_training(shapes, tmp_path):
    (tmp_path / "run").mkdir(mode=0o500)
    with pytest.raises(InputError, match="run: cannot be written: Permission denied"):
        train(shapes.config(*RUN), tmp_path / "run")


def test_a_file_in_place_of_the_folder_is_told_before_training(shapes, tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(InputError, match="run: is a file, expected a folder to write to"):
        train(shapes.config(*RUN), tmp_path / "run")


class TestFullDisk:
    """A disk that is full for one file; the system's own limit on the size of files fails as a full disk does."""

    def test_of_a_checkpoint(self, shapes, tiny, tmp_path):
        whole = train(shapes.config(tiny, *RUN), tmp_path / "whole")
        work_dir = tmp_path / "run"
        train(shapes.config(tiny, "train.epochs=1", "train.eval_every=0"), work_dir)
        size = (work_dir / "checkpoints" / "last" / STATE).stat().st_size
        command = [sys.executable, "-m", "detect", "train", str(shapes.recipe), tiny, *RUN, "--resume"]
        done = subprocess.run(
            [*command, "--work-dir", str(work_dir)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2)),
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"error: {work_dir / 'checkpoints' / 'iter_00000004'}: cannot be written: ")
        assert newest_intact(work_dir / "checkpoints") == (work_dir / "checkpoints" / "iter_00000002", [])
        assert sorted(path.name for path in (work_dir / "checkpoints").iterdir()) == ["iter_00000002", "last"]
        assert_same_bits(train(shapes.config(tiny, *RUN), work_dir, resume=True), whole)

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
    def test_of_the_log(self, shapes, tiny, tmp_path, monkeypatch):
        original = logs.RunLog._write

        def write(self, record):
            if record["iteration"] == 3:
                with Path("/dev/full").open("ab", buffering=0) as self._file:
                    original(self, record)
            original(self, record)

        monkeypatch.setattr(logs.RunLog, "_write", write)
        arguments = ["train", str(shapes.recipe), tiny, *RUN, "--work-dir", str(tmp_path)]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 2
        assert result.stderr == f"error: {tmp_path / LOG_NAME}: No space left on device\n"
        monkeypatch.undo()
        assert [record["iteration"] for record in read_log(tmp_path / LOG_NAME) if record["kind"] == "train"] == [1, 2]
        assert problem_of(checkpoint_folders(tmp_path / "checkpoints")[-1]) is None
        assert CliRunner().invoke(app, [*arguments, "--resume"]).exit_code == 0

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
    def test_of_tensorboard(self, shapes, tiny, tmp_path, monkeypatch, capfd):
        original = Run.train_epoch
        full = Path("/dev/full").open("ab", buffering=0)  # noqa: SIM115

        def train_epoch(self):
            if self.epoch == 1:
                writer = self.log._boards[0]._writer._get_file_writer().event_writer._async_writer._writer
                writer._writer = full
            original(self)

        monkeypatch.setattr(Run, "train_epoch", train_epoch)
        hook = threading.excepthook
        with pytest.raises(OSError, match="No space left on device") as caught:
            train(shapes.config(tiny, "data.train.repeat=20", *RUN), tmp_path)
        full.close()
        assert caught.value.filename == str(tmp_path / "tensorboard")
        assert threading.excepthook is hook
        assert "Traceback" not in capfd.readouterr().err
        assert problem_of(checkpoint_folders(tmp_path / "checkpoints")[-1]) is None
