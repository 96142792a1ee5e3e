"""The recipes and commands on the page on training are ones, and its tables tell all there is."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from typer.main import get_command

from detect.cli import app
from detect.config import build_model, load_config
from detect.running.optim import make_optimizer
from detect.sections.optimizer import TYPES, OptimizerSection, ScheduleSection
from detect.sections.training import Compile, EarlyStopping, Ema, Wandb
from detect.training import train
from dpipe.errors import InputError

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
RECIPES = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^(?:    |srun |        -m )detect train (.*)$", PAGE, re.MULTILINE)


def test_there_is_something_to_check():
    assert len(RECIPES) == 7
    assert len(COMMANDS) == 10


@pytest.mark.parametrize("number", range(len(RECIPES)))
def test_recipes(number, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPES[number])
    config = load_config(path)
    with torch.device("meta"):
        model = build_model(config, 80, pretrained=False)
    optimizer = make_optimizer(model, config.optimizer, config.recipe.where)
    assert len(optimizer.param_groups) == 1 + len(config.optimizer.groups)
    if config.optimizer.groups:
        rest, norms, biases, backbone = (
            {name for name, weight in model.named_parameters() if weight in set(group["params"])}
            for group in optimizer.param_groups
        )
        trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
        kinds = {
            f"{name}.{kind}"
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.BatchNorm2d)
            for kind in ("weight", "bias")
        }
        assert norms == kinds & trained
        assert biases == {name for name in trained if name.endswith(".bias")} - norms
        assert backbone == {name for name in trained if name.startswith("backbone.")} - norms
        assert rest == trained - norms - biases - backbone


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(command):
    words = shlex.split(command.replace("RECIPE", "faster_rcnn_r50_fpn_coco"), comments=True)
    found = get_command(app).commands["train"].make_context("train", words).params
    load_config(found["config"], found["overrides"] or [])


@pytest.mark.parametrize(("section", "common"), [("optimizer", OptimizerSection), ("schedule", ScheduleSection)])
def test_tables_name_every_type_and_key(section, common):
    for name, schema in TYPES[section].items():
        (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |")]
        own = schema.model_fields.keys() - common.model_fields.keys()
        assert {key for key in own if f"`{key}`" in row} == own
    for key in common.model_fields:
        assert key in PAGE


@pytest.mark.parametrize("section", [Compile, Ema, EarlyStopping, Wandb])
def test_sections_of_training_are_told_whole(section):
    for key in section.model_fields:
        assert f"`{key}`" in PAGE


def test_the_defaults_of_the_page():
    assert "ema: {decay: 0.9998, warmup_iters: 2000}     # the defaults" in PAGE
    assert Ema() == Ema(decay=0.9998, warmup_iters=2000)
    assert "compile: {backend: inductor, mode: default, dynamic: null}      # the defaults" in PAGE
    assert Compile() == Compile(backend="inductor", mode="default", dynamic=None)


def test_a_batch_that_was_kept_is_looked_at_as_the_page_says(shapes, tmp_path, monkeypatch, capsys):
    options = ("optimizer.lr=1.0e+30", "schedule.warmup_iters=0", "train.eval_every=0")
    with pytest.raises(InputError, match="the loss is not finite"):
        train(shapes.config(*options), tmp_path / "runs" / "mine")
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(block.replace("00000312", "00000002").replace("num_classes=80", "num_classes=2"), {})
    assert "nan" in capsys.readouterr().out.splitlines()[-1]
