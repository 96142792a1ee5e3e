"""``detect convert-checkpoint``: other checkpoints as safetensors, with their class names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner

from detect.cli import app
from detect.conversion import convert_checkpoint
from detect.running.state import ModelInfo, save_checkpoint
from detect.trained import read_info
from dpipe.errors import InputError

STATE = {"backbone.conv1.weight": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(3)}


def run(*words: object):
    return CliRunner().invoke(app, ["convert-checkpoint", *map(str, words)])


@pytest.mark.parametrize(
    "meta", [{"CLASSES": ("a", "b"), "epoch": 12, "iter": 88}, {"dataset_meta": {"classes": ["a", "b"]}, "epoch": 12}]
)
def test_weights_and_class_names_are_kept(tmp_path: Path, meta) -> None:
    out = tmp_path / "out.safetensors"
    torch.save({"meta": meta, "state_dict": STATE, "optimizer": {"state": {}}}, tmp_path / "in.pth")
    result = run(tmp_path / "in.pth", out)
    assert (result.exit_code, result.output) == (0, f"{out}: 2 tensors, 2 class names\n")
    tensors = load_file(out)
    assert set(tensors) == set(STATE)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in STATE.items())
    assert read_info(out) == ModelInfo(("a", "b"), None, "", 12, meta.get("iter", 0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.pth", "out.safetensors"]


def test_without_class_names(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "in.pth")
    result = run(tmp_path / "in.pth", tmp_path / "out.safetensors")
    assert result.output.endswith("2 tensors, class names unknown\n")
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert not file.metadata()


def test_our_own_checkpoints_keep_what_they_know(tmp_path: Path) -> None:
    info = ModelInfo(("a",), (7,), "model: {}\n", 3, 30)
    save_checkpoint(tmp_path, torch.nn.Linear(2, 2), {}, info)
    convert_checkpoint(tmp_path, tmp_path / "out.safetensors")
    assert read_info(tmp_path / "out.safetensors") == info


def test_tensors_that_share_memory(tmp_path: Path) -> None:
    whole = torch.arange(100.0)
    torch.save({"whole": whole, "tied": whole, "half": whole[50:]}, tmp_path / "in.pth")
    convert_checkpoint(tmp_path / "in.pth", tmp_path / "out.safetensors")
    tensors = load_file(tmp_path / "out.safetensors")
    assert torch.equal(tensors["tied"], whole)
    assert torch.equal(tensors["half"], whole[50:])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": torch.ones(1).expand(10**6)}, r"in.pth: its tensors repeat few bytes, .* to 4000000 bytes"),
        ({"a": torch.ones(3).to_sparse()}, "in.pth: holds a tensor that safetensors cannot store"),
        ({"a": 1}, "in.pth: holds no named tensors"),
    ],
)
@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_what_cannot_be_converted(tmp_path: Path, content, message: str) -> None:
    torch.save(content, tmp_path / "in.pth")
    with pytest.raises(InputError, match=message) as info:
        convert_checkpoint(tmp_path / "in.pth", tmp_path / "out.safetensors")
    assert "\n" not in str(info.value)
    assert not (tmp_path / "out.safetensors").exists()


def test_mistakes_are_one_line_and_exit_code_2(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "in.pth")
    convert_checkpoint(tmp_path / "in.pth", tmp_path / "in.safetensors")
    for words, message in (
        (("absent.pth", "out.safetensors"), "absent.pth: no such checkpoint"),
        (("in.pth", "out.pth"), "out.pth: the output is a .safetensors file"),
        (("in.pth", "in.pth/out.safetensors"), "in.pth: is a file, expected a folder"),
        (("in.safetensors", "in.safetensors"), "is the checkpoint itself"),
        (("in.safetensors", f"../{tmp_path.name}/in.safetensors"), "is the checkpoint itself"),
    ):
        result = run(*(tmp_path / word for word in words))
        assert result.exit_code == 2
        assert result.stderr.startswith("error: ")
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
    assert set(load_file(tmp_path / "in.safetensors")) == set(STATE)
