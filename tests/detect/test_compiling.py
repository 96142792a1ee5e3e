"""``train.compile``: what is compiled, that it changes no names, and what is refused."""

from __future__ import annotations

import importlib
import shutil

import pytest
import torch
from safetensors.torch import load_file

from detect.running.state import STATE, WEIGHTS
from detect.training import train
from dpipe.errors import InputError

MODEL = """
import torch
from torch import nn

from detect import Detections

CALLS = []

class Part(nn.Module):
    def __init__(self, channels_in, channels, stride):
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, 3, stride)

    def forward(self, x):
        CALLS.append((self.training, torch.compiler.is_compiling()))
        return self.conv(x).relu()

class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.neck, self.last = Part(3, 4, 8), Part(4, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, images, targets):
        out = self.last(self.neck(self.backbone(images))).mean(dim=(2, 3))
        if self.training:
            return {"loss": (out - 1).square().mean()}
        box, label = torch.tensor([[0.0, 0.0, 40.0, 40.0]]), torch.zeros(1, dtype=torch.int64)
        return [Detections(box, row[:1].sigmoid(), label) for row in out]
"""
# PyTorch's compiler silences the first by filters of its own, which a filter that makes errors of warnings overrides.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
    pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0:RuntimeWarning"),  # not on 3.13.1
]
COMPILE = "train.compile={backend: eager}"


@pytest.fixture
def options(shapes, monkeypatch) -> tuple[str, ...]:
    """Overrides of a recipe by that model, for two epochs of two iterations with evaluation."""
    (shapes.root / "compiled_model.py").write_text(MODEL)
    monkeypatch.syspath_prepend(str(shapes.root))
    monkeypatch.delitem(importlib.sys.modules, "compiled_model", raising=False)
    return ("model={_delete_: true, type: compiled_model.Model}", "train.epochs=2", "train.eval_every=1")


def assert_same_bits(first, second):
    one, other = load_file(first / WEIGHTS), load_file(second / WEIGHTS)
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("ema", ["null", "{decay: 0.9, warmup_iters: 0}"])
def test_training_is_compiled_and_evaluation_is_not(shapes, options, tmp_path, ema):
    ema = f"train.ema={ema}"
    plain = train(shapes.config(*options, ema), tmp_path / "plain")
    calls = importlib.import_module("compiled_model").CALLS
    assert set(calls) == {(True, False), (False, False)}
    calls.clear()
    compiled = train(shapes.config(*options, ema, COMPILE), tmp_path / "compiled")
    assert set(calls) == {(True, True), (False, False)}
    assert_same_bits(plain, compiled)
    assert (
        torch.load(compiled / STATE, weights_only=True)["optimizer"]["weights"].keys()
        <= load_file(plain / WEIGHTS).keys()
    )


def test_a_run_goes_on_compiled_or_not(shapes, options, tmp_path):
    whole = train(shapes.config(*options), tmp_path / "whole")
    for before, after in (((), (COMPILE,)), ((COMPILE,), ())):
        work_dir = tmp_path / f"part-{len(before)}"
        train(shapes.config(*options, "train.epochs=1", *before), work_dir)
        assert_same_bits(train(shapes.config(*options, *after), work_dir, resume=True), whole)


def test_what_cannot_be_compiled_is_told_before_training(shapes, options, tiny, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"train\.compile\.backend: there is no 'inducto'; did you mean 'inductor'\?"):
        train(shapes.config(*options, "train.compile={backend: inducto}"), tmp_path / "run")
    with pytest.raises(InputError, match=r"train\.compile: Tiny has neither a backbone nor a neck to compile"):
        train(shapes.config(tiny, COMPILE), tmp_path / "run")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("CXX", "c++-7")
    expected = r"train\.compile: inductor needs a C\+\+ compiler, but there is no c\+\+-7 and no clang\+\+"
    with pytest.raises(InputError, match=expected):
        train(shapes.config(*options, "train.compile={}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
