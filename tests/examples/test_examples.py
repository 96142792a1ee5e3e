"""Each example as a user runs it, with small arguments."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs an example as a script, in this process, and returns what it prints on standard output."""

    def run(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        capsys.readouterr()
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_plain_loop_goes_on_where_it_was_stopped(streets: Any, run: Any, tmp_path: Path) -> None:
    words = [*streets.arguments("train"), "--size", 160, "--batch-size", 2, "--epochs", 3, "--save-every", 100]
    whole, stopped = tmp_path / "whole.pt", tmp_path / "stopped.pt"
    expected = run("plain_loop.py", *words, "--checkpoint", whole)
    first = run("plain_loop.py", *words, "--checkpoint", stopped, "--steps", 6)  # in the middle of the second epoch
    rest = run("plain_loop.py", *words, "--checkpoint", stopped)
    assert (first + rest).splitlines() == expected.splitlines()
    assert [line.partition(":")[0] for line in expected.splitlines()] == ["epoch 1", "epoch 2", "epoch 3"]
    saved, wanted = (torch.load(path, weights_only=True) for path in (stopped, whole))
    assert all(torch.equal(saved["model"][name], wanted["model"][name]) for name in wanted["model"])
    losses = [float(line.split()[-1]) for line in expected.splitlines()]
    assert losses[-1] < losses[0]


def test_plain_loop_goes_on_from_the_end_of_an_epoch(streets: Any, run: Any, tmp_path: Path) -> None:
    words = [*streets.arguments("train"), "--size", 80, "--batch-size", 4, "--checkpoint", tmp_path / "run.pt"]
    run("plain_loop.py", *words, "--steps", 2)  # the last of the first epoch
    rest = run("plain_loop.py", *words, "--epochs", 2)
    assert [line.partition(":")[0] for line in rest.splitlines()] == ["epoch 2"]


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("plain_loop.py", "torch"),
        ("torchvision_mask_rcnn.py", "torchvision"),
        ("lightning_datamodule.py", "lightning"),
        ("transformers_detr.py", "transformers"),
    ],
)
def test_a_missing_file_is_told_in_one_line(streets: Any, run: Any, tmp_path: Path, name: str, module: str) -> None:
    pytest.importorskip(module, reason=f"{module} is not installed")
    splits = ["train", "val"] if module in ("torchvision", "lightning") else ["train"]
    words = streets.arguments(*splits)
    words[0] = str(tmp_path / "nowhere.json")
    with pytest.raises(SystemExit) as caught:
        run(name, *words)
    assert caught.value.code == f"error: {words[0]}: cannot be read: No such file or directory"


def test_torchvision_mask_rcnn_trains_and_is_evaluated(streets: Any, run: Any, tmp_path: Path) -> None:
    words = [*streets.arguments("train", "val"), "--checkpoint", tmp_path / "run.pt"]
    small = ["--backbone", "resnet18", "--size", 80, "--rois", 16, "--batch-size", 4]
    printed = run("torchvision_mask_rcnn.py", *words, *small, "--epochs", 1)
    assert "epoch 0: loss " in printed
    assert printed.count("Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all") == 2  # boxes and masks
    assert run("torchvision_mask_rcnn.py", *words, *small, "--epochs", 1) == ""  # it has done it already


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")
def test_lightning_datamodule_trains_and_resumes(streets: Any, run: Any, tmp_path: Path) -> None:
    pytest.importorskip("lightning", reason="lightning is not installed")
    words = [*streets.arguments("train", "val"), "--root", tmp_path / "run", "--accelerator", "cpu", "--devices", 1]
    small = ["--backbone", "resnet18", "--size", 80, "--batch-size", 4, "--epochs", 1, "--save-every", 1]
    positions = []
    for limit in (["--steps", 1], []):
        run("lightning_datamodule.py", *words, *small, *limit)
        state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
        (loader,) = state["loops"]["fit_loop"]["state_dict"]["combined_loader"]
        positions.append((state["global_step"], loader["epoch"], loader["consumed"]))
    assert positions == [(1, 0, [[4, 1]]), (2, 0, [[4, 2]])]


def test_transformers_detr_learns(streets: Any, run: Any, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    words = [*streets.arguments("train"), "--save", tmp_path / "model"]
    small = ["--size", 80, "--width", 32, "--layers", 1, "--queries", 20, "--lr", 0.001]
    printed = run("transformers_detr.py", *words, *small, "--epochs", 3)
    losses = [float(line.split()[-1]) for line in printed.splitlines()]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    assert (tmp_path / "model" / "config.json").exists()
