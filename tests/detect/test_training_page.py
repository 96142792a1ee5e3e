"""The recipes and commands on the page on training are ones, and its tables tell all there is."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

from detect.config import build_model, load_config
from detect.optim import make_optimizer
from detect.optimizer_sections import TYPES, OptimizerSection, ScheduleSection

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
RECIPES = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^    detect train (.*)$", PAGE, re.MULTILINE)


def test_there_is_something_to_check():
    assert len(RECIPES) == 3
    assert len(COMMANDS) == 2


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
    name, *overrides = shlex.split(command)
    load_config(name, overrides)


@pytest.mark.parametrize(("section", "common"), [("optimizer", OptimizerSection), ("schedule", ScheduleSection)])
def test_tables_name_every_type_and_key(section, common):
    for name, schema in TYPES[section].items():
        (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |")]
        own = schema.model_fields.keys() - common.model_fields.keys()
        assert {key for key in own if f"`{key}`" in row} == own
    for key in common.model_fields:
        assert key in PAGE
