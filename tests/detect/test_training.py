"""The training loop: what it writes, that it is repeatable, and that nothing interrupts it for good."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from detect.cli import app
from detect.config import build_model, load_config
from detect.evaluation import evaluate
from detect.running import state as state_module
from detect.running import validation
from detect.running.control import TrainingInterruptedError, iteration_seed
from detect.running.logs import read_log
from detect.running.resuming import tidy
from detect.running.run import Run
from detect.running.state import MANIFEST, STATE, WEIGHTS, checkpoint_folders, newest_intact
from detect.training import train
from dpipe.errors import InputError

# Three epochs of four iterations.
OVERRIDES = ("data.train.repeat=2", "train.epochs=3", "train.eval_every=3", "train.checkpoint_every_iters=3")


def weights(work_dir: Path, iteration: int = 12) -> dict[str, torch.Tensor]:
    # Not mapped into memory: some tests overwrite the file.
    return load((work_dir / "checkpoints" / f"iter_{iteration:08d}" / WEIGHTS).read_bytes())


def assert_same_bits(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert different == []


@pytest.fixture
def signal_after(monkeypatch):
    """A function that has the run get a signal in the middle of an iteration."""

    def arm(iteration: int, signum: int) -> None:
        original = Run.step

        def step(self, batch):
            if self.iteration == iteration - 1:
                os.kill(os.getpid(), signum)
            return original(self, batch)

        monkeypatch.setattr(Run, "step", step)

    return arm


@pytest.mark.parametrize("command", [True, False])
def test_a_recipes_file_is_trained_in_a_folder_of_its_name(shapes, tiny, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    model = {"_delete_": True, "type": tiny.split("type: ")[1].rstrip("}")}
    settings = {"epochs": 1, "eval_every": 0}
    Path("small.v2.yaml").write_text(json.dumps({"_base_": str(shapes.recipe), "model": model, "train": settings}))
    if command:
        done = CliRunner().invoke(app, ["train", "small.v2.yaml", "--accelerator", "cpu"])
        assert done.exit_code == 0, done.output
    else:
        assert train("small.v2.yaml").parent == Path("work_dirs/small.v2/checkpoints")
    assert Path("work_dirs/small.v2/checkpoints/last").is_dir()


def test_a_run_writes_its_recipe_environment_logs_and_checkpoints(shapes, tmp_path, capsys):
    work_dir = tmp_path / "run"
    config = shapes.config(*OVERRIDES)
    last = train(config, work_dir)
    assert last == work_dir / "checkpoints" / "iter_00000012"
    assert [folder.name for folder in checkpoint_folders(last.parent)] == ["iter_00000009", "iter_00000012"]
    assert load_config(work_dir / "config.yaml").model_dump() == config.model_dump()
    assert json.loads((work_dir / "environment.json").read_text())["packages"]["torch"] == metadata.version("torch")

    records = read_log(work_dir / "train.jsonl")
    steps = [record for record in records if record["kind"] == "train"]
    assert [record["iteration"] for record in steps] == list(range(1, 13))
    assert [record["epoch"] for record in steps] == [1] * 4 + [2] * 4 + [3] * 4
    assert steps[0]["lr"] == pytest.approx(0.02 * 0.001)
    for record in steps:
        parts = [value for name, value in record.items() if "loss" in name and name != "loss"]
        assert record["loss"] == pytest.approx(sum(parts), rel=1e-5)
    (evaluation,) = [record for record in records if record["kind"] == "evaluation"]
    assert evaluation["iteration"] == 12
    assert set(evaluation["bbox"]["per_class"]) == {"box", "disc"}
    assert "segm" in evaluation

    board = EventAccumulator(str(work_dir / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("train/loss")] == list(range(1, 13))
    assert len(board.Scalars("val/bbox_AP")) == 1

    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if line.startswith("epoch 2/3  iter 5/12"))
    for part in ("lr ", "loss_rpn_cls ", "data ", "time ", "mem ", "eta "):
        assert part in line
    assert "COCO segm" in printed


def test_the_state_loads_without_running_anything(shapes, tmp_path):
    train(shapes.config("train.epochs=1", "train.eval_every=0"), tmp_path / "run")
    state = torch.load(tmp_path / "run" / "checkpoints" / "last" / STATE, weights_only=True)
    assert (state["epoch"], state["iteration"], state["mid_epoch"]) == (1, 2, False)


@pytest.mark.parametrize(
    ("iteration", "signum", "code"),
    [
        pytest.param(2, signal.SIGTERM, 143, id="mid-epoch"),
        pytest.param(4, signal.SIGTERM, 143, id="end of an epoch"),
        pytest.param(9, signal.SIGINT, 130, id="at a checkpoint"),
    ],
)
def test_a_signal_saves_and_a_resumed_run_ends_with_the_same_bits(
    shapes, tmp_path, signal_after, monkeypatch, iteration, signum, code, uninterrupted
):
    arguments = ["train", str(shapes.recipe), *OVERRIDES, "--work-dir", str(tmp_path / "run")]
    signal_after(iteration, signum)
    stopped = CliRunner().invoke(app, arguments)
    assert stopped.exit_code == code
    name = signal.Signals(signum).name
    assert stopped.stderr == f"stopped by {name} after iteration {iteration} of 12; --resume goes on from there\n"
    assert checkpoint_folders(tmp_path / "run" / "checkpoints")[-1].name == f"iter_{iteration:08d}"
    monkeypatch.undo()

    resumed = CliRunner().invoke(app, [*arguments, "--resume"])
    assert resumed.exit_code == 0, resumed.output
    assert f"resumed from {tmp_path / 'run' / 'checkpoints' / f'iter_{iteration:08d}'}" in resumed.stdout
    assert_same_bits(weights(tmp_path / "run"), weights(uninterrupted))
    steps = [record["iteration"] for record in read_log(tmp_path / "run" / "train.jsonl") if record["kind"] == "train"]
    assert steps == list(range(1, 13))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, make_shapes, one_thread) -> Path:
    """The work directory of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    train(make_shapes(folder / "shapes").config(*OVERRIDES), folder / "run")
    return folder / "run"


def test_a_killed_run_goes_on_to_the_same_bits(shapes, tmp_path, uninterrupted):
    work_dir = tmp_path / "run"
    command = [sys.executable, "-m", "detect", "train", str(shapes.recipe), *OVERRIDES, "--work-dir", str(work_dir)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(read_log(work_dir / "train.jsonl")) < 5 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    train(shapes.config(*OVERRIDES), work_dir, resume=True)
    # As the script that kills many runs compares them.
    compared = runpy.run_path(str(Path(__file__).with_name("kill_runs.py")))["different_checkpoints"]
    checkpoint = Path("checkpoints", "iter_00000012")
    assert compared(work_dir / checkpoint, uninterrupted / checkpoint) == []
    assert "weights/backbone.conv1.weight" in compared(
        work_dir / checkpoint, uninterrupted / "checkpoints/iter_00000009"
    )


def test_a_run_goes_on_from_a_checkpoint_elsewhere(shapes, tiny, tmp_path, capsys):
    options = (tiny, *OVERRIDES, "train.eval_every=1")
    whole = train(shapes.config(*options), tmp_path / "whole")
    printed = capsys.readouterr().out
    assert (printed.count("COCO bbox"), printed.count("Classes, in percent")) == (3, 1)  # these after the last epoch
    before = read_log(tmp_path / "whole" / "train.jsonl")
    earlier = whole.parent / "iter_00000009"
    words = ["train", str(shapes.recipe), *options]
    result = CliRunner().invoke(
        app, [*words, "--resume-from", str(earlier), "--work-dir", str(tmp_path / "other")], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    assert f"resumed from {earlier}: epoch 2, iteration 9" in result.stdout
    assert_same_bits(weights(tmp_path / "other"), weights(tmp_path / "whole"))
    assert [folder.name for folder in checkpoint_folders(tmp_path / "other" / "checkpoints")] == ["iter_00000012"]
    after = read_log(tmp_path / "other" / "train.jsonl")
    assert [(record["kind"], record["iteration"]) for record in after] == [
        (record["kind"], record["iteration"]) for record in before
    ]
    # A work directory stands for its newest checkpoint, and the run's own one is as --resume.
    last = train(shapes.config(*options), tmp_path / "third", resume=tmp_path / "whole")
    assert last.name == whole.name
    train(shapes.config(*options, "train.epochs=4"), tmp_path / "whole", resume=whole.parent / "last")
    assert checkpoint_folders(whole.parent)[-1].name == "iter_00000016"
    (tmp_path / "link").symlink_to(tmp_path / "whole")
    train(shapes.config(*options, "train.epochs=4"), tmp_path / "link", resume=tmp_path / "whole")


def test_checkpoints_that_a_run_cannot_go_on_from(shapes, tiny, tmp_path):
    options = (tiny, *OVERRIDES)
    last = train(shapes.config(*options), tmp_path / "run")
    earlier = last.parent / "iter_00000009"
    with pytest.raises(InputError, match=r"run: has iter_00000012, which a run that goes on from .*9 would be mixed"):
        train(shapes.config(*options), tmp_path / "run", resume=earlier)
    backup = shutil.copytree(earlier, tmp_path / "backup")  # a checkpoint may be anywhere, under any name
    assert train(shapes.config(*options), tmp_path / "third", resume=backup).name == last.name
    with pytest.raises(
        InputError, match=r"third: has iter_00000012, which a run that goes on from .*12 would be mixed"
    ):
        train(shapes.config(*options), tmp_path / "third", resume=last)  # another one of the same name
    for path in (tmp_path / "nowhere", shapes.root, last / WEIGHTS):
        with pytest.raises(InputError, match=f"{path}: expected a checkpoint of a run, such as its checkpoints/last"):
            train(shapes.config(*options), tmp_path / "new", resume=path)
    (earlier / STATE).write_bytes(b"damage")
    with pytest.raises(InputError, match=f"{earlier}: damaged \\(state.pt is not what was written"):
        train(shapes.config(*options), tmp_path / "new", resume=earlier)
    assert not (tmp_path / "new").exists()


def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(shapes, tmp_path, capsys, uninterrupted):
    work_dir = tmp_path / "run"
    shutil.copytree(uninterrupted, work_dir, symlinks=True)
    last = checkpoint_folders(work_dir / "checkpoints")[-1]
    (last / WEIGHTS).write_bytes(b"damage")
    train(shapes.config(*OVERRIDES), work_dir, resume=True)
    printed = capsys.readouterr().out
    assert f"{last}: damaged ({WEIGHTS} is not what was written)" in printed
    assert_same_bits(weights(work_dir), weights(uninterrupted))


def test_the_last_checkpoint_is_the_one_that_a_run_goes_on_from(tmp_path, uninterrupted):
    folder = tmp_path / "run" / "checkpoints"
    shutil.copytree(uninterrupted, folder.parent, symlinks=True)
    before, last = checkpoint_folders(folder)
    (last / WEIGHTS).write_bytes(b"damage")
    alone: Any = SimpleNamespace(is_global_zero=True, broadcast=lambda value: value)
    none: Any = SimpleNamespace(best=None)
    (note,) = tidy(folder, before, none, alone)
    assert "is now damaged-iter_00000012" in note
    assert (folder / "last").resolve() == before.resolve()


def test_only_damaged_checkpoints_end_a_resumed_run(shapes, tmp_path):
    train(shapes.config("train.epochs=1", "train.eval_every=0"), tmp_path)
    for folder in checkpoint_folders(tmp_path / "checkpoints"):
        (folder / STATE).unlink()
    with pytest.raises(InputError, match="no other to go on from"):
        train(shapes.config("train.epochs=1"), tmp_path, resume=True)


def test_a_finished_run_resumes_to_nothing_and_can_be_prolonged(shapes, tmp_path, capsys):
    overrides = ("train.eval_every=1",)
    train(shapes.config("train.epochs=1", *overrides), tmp_path)
    before = read_log(tmp_path / "train.jsonl")
    train(shapes.config("train.epochs=1", *overrides), tmp_path, resume=True)
    assert read_log(tmp_path / "train.jsonl") == before  # neither trained nor evaluated again
    capsys.readouterr()
    train(shapes.config("train.epochs=2", *overrides), tmp_path, resume=True)
    assert "recipe: train.epochs was 1, now 2" in capsys.readouterr().out
    assert read_log(tmp_path / "train.jsonl")[-1]["epoch"] == 2


def test_an_evaluation_that_was_cut_off_is_made_up_for(shapes, tmp_path, monkeypatch):
    config = shapes.config("train.epochs=2", "train.eval_every=1")

    def signalled(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return collect(*args, **kwargs)

    collect = validation.collect_results
    monkeypatch.setattr(validation, "collect_results", signalled)
    with pytest.raises(TrainingInterruptedError, match="after iteration 2"):
        train(config, tmp_path)
    monkeypatch.undo()
    train(config, tmp_path, resume=True)
    records = read_log(tmp_path / "train.jsonl")
    assert [record["iteration"] for record in records if record["kind"] == "evaluation"] == [2, 4]


def test_resuming_where_nothing_is_begins(shapes, tmp_path, capsys):
    train(shapes.config("train.epochs=1", "train.eval_every=0"), tmp_path, resume=True)
    assert "no checkpoint yet, so training begins" in capsys.readouterr().out


def test_a_loss_that_is_not_finite_names_the_images_and_leaves_the_checkpoints(shapes, tmp_path):
    overrides = ("optimizer.lr=1.0e+30", "schedule.warmup_iters=0", "train.epochs=3")
    with pytest.raises(InputError, match="the loss is not finite at iteration 2") as caught:
        train(shapes.config(*overrides), tmp_path)
    assert "\n" not in str(caught.value)
    assert sum(f"{number:02d}.png" in str(caught.value) for number in range(4)) == 2
    assert checkpoint_folders(tmp_path / "checkpoints") == []


def test_load_from_starts_from_other_weights_and_tells_what_fits(shapes, tmp_path, capsys, monkeypatch):
    train(shapes.config("train.epochs=1", "train.eval_every=0"), tmp_path / "first")
    path = tmp_path / "first" / "checkpoints" / "last" / WEIGHTS
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self, closure=None: None)
    capsys.readouterr()
    overrides = (f"train.load_from={path}", "train.eval_every=0", "train.epochs=1", "model.backbone.norm_eval=true")
    train(shapes.config(*overrides), tmp_path / "second")
    assert f"{path}: {len(weights(tmp_path / 'first', 2))} tensors loaded" in capsys.readouterr().out
    assert_same_bits(weights(tmp_path / "second", 2), weights(tmp_path / "first", 2))


def test_gradients_are_clipped_to_the_norm(shapes, tmp_path, monkeypatch):
    norms = []
    original = torch.optim.SGD.step

    def step(self, *args, **kwargs):
        gradients = [weight.grad.flatten() for weight in self.param_groups[0]["params"] if weight.grad is not None]
        norms.append(torch.cat(gradients).norm().item())
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    train(shapes.config("train.epochs=1", "train.eval_every=0", "train.clip_norm=0.25"), tmp_path)
    assert norms == pytest.approx([0.25, 0.25], rel=1e-3)


def test_a_model_is_trained_and_evaluated_in_the_recipes_precision(shapes, tiny, tmp_path, monkeypatch):
    config = shapes.config(tiny, "train.epochs=1", "train.eval_every=1", "train.precision=bf16-mixed")
    seen = []
    convolve = torch.nn.Conv2d.forward

    def forward(self, images):
        out = convolve(self, images)
        seen.append((self.training, out.dtype))
        return out

    monkeypatch.setattr(torch.nn.Conv2d, "forward", forward)
    train(config, tmp_path / "run")
    assert set(seen) == {(True, torch.bfloat16), (False, torch.bfloat16)}
    seen.clear()
    evaluate(config, tmp_path / "run")
    assert set(seen) == {(False, torch.bfloat16)}


def test_mixed_precision_trains_and_goes_on_to_the_same_bits(shapes, tmp_path, uninterrupted):
    config = shapes.config(*OVERRIDES, "train.epochs=1", "train.eval_every=0", "train.precision=bf16-mixed")
    whole = weights(tmp_path, int(train(config, tmp_path).name[-2:]))
    first, full = (read_log(folder / "train.jsonl")[0]["loss"] for folder in (tmp_path, uninterrupted))
    assert first == pytest.approx(full, rel=0.05)
    assert first != pytest.approx(full, rel=1e-5)  # rounded to eight bits on the way
    assert {weight.dtype for weight in whole.values()} == {torch.float32, torch.int64}
    shutil.rmtree(tmp_path / "checkpoints" / "iter_00000004")
    train(config, tmp_path, resume=True)
    assert_same_bits(weights(tmp_path, 4), whole)


@pytest.mark.parametrize(("every", "expected"), [(0, []), (2, [4, 6]), (3, [6]), (5, [6])])
def test_the_last_epoch_is_evaluated_as_well(shapes, tiny, tmp_path, monkeypatch, every, expected):
    evaluated = []
    monkeypatch.setattr(Run, "evaluate", lambda self: evaluated.append(self.iteration) or 0.5)
    train(shapes.config(tiny, "train.epochs=3", f"train.eval_every={every}"), tmp_path)
    assert evaluated == expected


def test_the_best_checkpoint_stays(shapes, tmp_path, monkeypatch):
    aps = iter([0.5, 0.9, 0.1, 0.2])
    monkeypatch.setattr(Run, "evaluate", lambda self: next(aps))
    train(shapes.config("train.epochs=4", "train.eval_every=1", "train.keep=1"), tmp_path)
    assert [folder.name for folder in checkpoint_folders(tmp_path / "checkpoints")] == [
        "iter_00000004",
        "iter_00000008",
    ]
    assert (tmp_path / "checkpoints" / "best").resolve().name == "iter_00000004"


def test_the_best_evaluation_is_saved_where_no_checkpoint_is_due(shapes, tmp_path, monkeypatch, capsys):
    aps = iter([0.9, 0.5, 0.1, 0.2, 0.3, 0.95])
    monkeypatch.setattr(Run, "evaluate", lambda self: next(aps))
    overrides = ("train.eval_every=1", "train.checkpoint_every=2", "train.keep=1")
    train(shapes.config("train.epochs=4", *overrides), tmp_path)
    folder = tmp_path / "checkpoints"
    assert [path.name for path in checkpoint_folders(folder)] == ["iter_00000002", "iter_00000008"]
    assert (folder / "best").resolve().name == "iter_00000002"
    for checkpoint in checkpoint_folders(folder):
        best = torch.load(checkpoint / STATE, weights_only=True)["evaluations"]["best"]
        assert best[:2] == [2, 0.9]

    # What was best stays so in a run that goes on, until there is better.
    aps = iter([0.2, 0.3])  # the fourth epoch again, as the log does not have it
    train(shapes.config("train.epochs=5", *overrides), tmp_path, resume=True)
    assert [path.name for path in checkpoint_folders(folder)] == ["iter_00000002", "iter_00000010"]
    aps = iter([0.3, 0.95])
    train(shapes.config("train.epochs=6", *overrides), tmp_path, resume=True)
    assert [path.name for path in checkpoint_folders(folder)] == ["iter_00000012"]
    assert (folder / "best").resolve().name == "iter_00000012"

    # A best one that is gone is told.
    shutil.copytree(folder / "iter_00000012", folder / "iter_00000010")
    shutil.rmtree(folder / "iter_00000012")
    aps = iter([0.4])
    capsys.readouterr()
    train(shapes.config("train.epochs=6", *overrides), tmp_path, resume=True)
    assert "the best checkpoint, of iteration 2, is not there; the next evaluation is best" in capsys.readouterr().out
    assert (folder / "best").resolve().name == "iter_00000012"


def test_damaged_newer_checkpoints_do_not_cost_the_only_intact_one(shapes, tmp_path, monkeypatch, capsys):
    overrides = ("train.eval_every=0", "train.keep=1")
    folder = tmp_path / "checkpoints"
    train(shapes.config("train.epochs=1", *overrides), tmp_path)
    intact, newer = folder / "iter_00000002", folder / "iter_00000009"
    shutil.copytree(intact, newer)
    (newer / STATE).unlink()
    train(shapes.config("train.epochs=2", *overrides), tmp_path, resume=True)
    assert f"{newer}: damaged (state.pt: No such file or directory), so it is now damaged-iter_00000009" in (
        capsys.readouterr().out.splitlines()
    )
    assert newest_intact(folder) == (folder / "iter_00000004", [])
    assert sorted(path.name for path in folder.iterdir()) == ["damaged-iter_00000009", "iter_00000004", "last"]
    assert (folder / "last").resolve().name == "iter_00000004"


def test_a_resumed_run_needs_no_pretrained_weights_and_a_failed_one_changes_nothing(shapes, tmp_path):
    reference = build_model(shapes.config(), 2)
    pretrained = tmp_path / "backbone.pth"
    torch.save(reference.backbone.state_dict(), pretrained)
    overrides = ("train.eval_every=0", f"model.backbone.pretrained={pretrained}")
    work_dir = tmp_path / "run"
    train(shapes.config("train.epochs=1", *overrides), work_dir)
    pretrained.unlink()
    with pytest.raises(InputError, match="no such checkpoint"):
        train(shapes.config("train.epochs=3", *overrides), tmp_path / "other")
    assert not (tmp_path / "other" / "config.yaml").exists()
    before = (work_dir / "config.yaml").read_bytes()
    with pytest.raises(InputError, match="do not fit"):
        train(shapes.config("train.epochs=3", "model.rpn_head.feat_channels=24"), work_dir, resume=True)
    with pytest.raises(InputError, match="saved with seed 0, here it is 1"):
        train(shapes.config("train.epochs=3", "train.seed=1", *overrides), work_dir, resume=True)
    assert (work_dir / "config.yaml").read_bytes() == before
    train(shapes.config("train.epochs=2", *overrides), work_dir, resume=True)
    assert checkpoint_folders(work_dir / "checkpoints")[-1].name == "iter_00000004"


def test_a_state_that_lacks_something_is_told_in_one_line(shapes, tmp_path):
    train(shapes.config("train.epochs=1", "train.eval_every=0"), tmp_path)
    checkpoint = tmp_path / "checkpoints" / "iter_00000002"
    torch.save({"epoch": 1}, checkpoint / STATE)
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    manifest["files"][STATE] = state_module._fingerprint(checkpoint / STATE)
    (checkpoint / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"iter_00000002: its state does not fit the recipe's run, .* \(KeyError"):
        train(shapes.config("train.epochs=2"), tmp_path, resume=True)


def test_a_resumed_run_adds_to_what_tensorboard_has(shapes, tmp_path):
    for epochs in (1, 2):
        train(shapes.config(f"train.epochs={epochs}", "train.eval_every=1"), tmp_path, resume=True)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("train/loss")] == [1, 2, 3, 4]
    assert [event.step for event in board.Scalars("val/bbox_AP")] == [2, 4]


def test_what_is_damaged_beside_the_checkpoints_is_told_and_left(shapes, tmp_path, capsys):
    train(shapes.config("train.epochs=1", "train.eval_every=0"), tmp_path)
    (tmp_path / "config.yaml").write_text("model: [")
    log = tmp_path / "train.jsonl"
    log.write_bytes(b"\0\0\n" + log.read_bytes())
    capsys.readouterr()
    train(shapes.config("train.epochs=2", "train.eval_every=0"), tmp_path, resume=True)
    printed = capsys.readouterr().out
    assert f"the run's recipe so far is replaced, as it cannot be read: {tmp_path / 'config.yaml'}" in printed
    assert f"{log}: damaged lines left out: 1" in printed
    assert load_config(tmp_path / "config.yaml").train.epochs == 2
    assert [record["iteration"] for record in read_log(log) if record["kind"] == "train"] == [1, 2, 3, 4]


def test_masks_that_are_not_evaluated_are_told_once(shapes, tmp_path, capsys):
    shapes.edit("val.json", lambda truth: truth["annotations"][0].pop("segmentation"))
    objects = len(json.loads((shapes.root / "val.json").read_text())["annotations"])
    train(shapes.config("train.epochs=2", "train.eval_every=1", "model.roi_head.score_thr=0"), tmp_path)
    line = f"{shapes.root / 'val.json'}: segm is not evaluated, as 1 of {objects} objects have no mask"
    assert capsys.readouterr().out.splitlines().count(line) == 1


def test_more_repeats_than_an_epoch_has_room_for(shapes, tmp_path):
    with pytest.raises(InputError, match=r"data\.train\.repeat: 2000000000 times 4 images are too many"):
        train(shapes.config("data.train.repeat=2000000000"), tmp_path)


def test_a_batch_of_more_images_than_an_epoch_has_is_refused(shapes, tiny, tmp_path):
    expected = r"command line: data\.batch_size: 9 on 1 device\(s\) is more than the 8 images of an epoch"
    with pytest.raises(InputError, match=expected):
        train(shapes.config(tiny, *OVERRIDES, "data.batch_size=9"), tmp_path / "runs" / "run")
    assert not (tmp_path / "runs").exists()
    train(shapes.config(tiny, *OVERRIDES, "train.epochs=1", "data.batch_size=8"), tmp_path / "run")


def test_a_model_without_weights(shapes, tmp_path):
    with pytest.raises(InputError, match=r"model: has no weights to train$"):
        train(shapes.config("model={_delete_: true, type: torch.nn.Identity}"), tmp_path)


def test_a_run_does_not_go_on_with_other_images(shapes, tmp_path):
    config = shapes.config("train.epochs=2", "train.eval_every=0")
    train(shapes.config("train.epochs=1", "train.eval_every=0"), tmp_path)
    shapes.edit("train.json", lambda content: content["images"].reverse())
    with pytest.raises(
        InputError, match=r"train\.json: has not the images that the loader's state was saved with"
    ) as caught:
        train(config, tmp_path, resume=True)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 'checkpoints' / 'iter_00000002'}: ")
    shapes.edit("train.json", lambda content: content["images"].reverse())
    train(config, tmp_path, resume=True)


def test_annotations_that_are_left_out_are_told(shapes, tmp_path, capsys):
    config = shapes.config("train.epochs=1", "train.eval_every=0")
    train(config, tmp_path / "whole")
    assert "left out" not in capsys.readouterr().out

    def empty_two(content):
        content["annotations"][0]["bbox"][2] = content["annotations"][1]["bbox"][3] = 0

    shapes.edit("train.json", empty_two)
    train(config, tmp_path / "part")
    line = f"{shapes.root / 'train.json'}: annotations left out, as their boxes are empty or outside of their images: 2"
    assert line in capsys.readouterr().out.splitlines()


def test_data_of_which_some_objects_have_masks_train_and_of_which_none_has_do_not(shapes, tmp_path):
    config = shapes.config("train.epochs=1", "train.eval_every=0")
    shapes.edit("train.json", lambda content: content["annotations"][0].pop("segmentation"))
    train(config, tmp_path / "some")
    assert read_log(tmp_path / "some" / "train.jsonl")[0]["s0.loss_mask"] > 0
    shapes.edit("train.json", lambda content: [row.pop("segmentation", None) for row in content["annotations"]])
    expected = r"train\.json: its objects are boxes only, but the model has mask heads; leave out roi_head\.mask_head"
    with pytest.raises(InputError, match=expected):
        train(config, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    shapes.edit("train.json", lambda content: content["annotations"].clear())
    train(config, tmp_path / "nothing to find")  # images without objects are kept
    assert read_log(tmp_path / "nothing to find" / "train.jsonl")[0]["s0.loss_mask"] == 0


def test_seeds_differ_between_iterations_and_processes():
    seeds = {iteration_seed(seed, iteration, rank) for seed in (0, 1) for iteration in range(50) for rank in range(4)}
    assert len(seeds) == 400
    assert iteration_seed(3, 7, 1) == iteration_seed(3, 7, 1)
    assert max(seeds) < 2**63
