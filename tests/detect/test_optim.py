"""What the optimizer trains, with which learning rates, and that its state finds its weights again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn, optim

from detect.config import build_model, load_config
from detect.running.optim import group_lrs, load_state_by_name, make_optimizer, scaled_lr, set_lr, state_by_name
from detect.sections.optimizer import AdamWSection, ParameterGroup, SGDSection
from dpipe.errors import InputError
from dpipe.recipes import shipped_recipes


def small_model() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "backbone": nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)),
            "head": nn.Linear(4, 2),
        }
    )


def names_of(model: nn.Module, group: dict[str, Any]) -> list[str]:
    weights = set(group["params"])
    return [name for name, weight in model.named_parameters() if weight in weights]


def step(model: nn.Module, optimizer: optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        weight.grad = torch.randn(weight.shape, generator=generator) if weight.requires_grad else None
    optimizer.step()


def groups(*options: dict[str, Any]) -> list[ParameterGroup]:
    return [ParameterGroup(**option) for option in options]


class TestGroups:
    def test_frozen_weights_are_left_out(self):
        model = small_model()
        model["backbone"].requires_grad_(False)
        (group,) = make_optimizer(model, SGDSection(lr=0.1, weight_decay=1e-4)).param_groups
        assert names_of(model, group) == ["head.weight", "head.bias"]
        assert (group["lr"], group["momentum"], group["weight_decay"], group["nesterov"]) == (0.1, 0.9, 1e-4, False)

    def test_the_first_pattern_that_matches_counts(self):
        model = small_model()
        section = SGDSection(
            lr=0.1,
            weight_decay=0.01,
            groups=groups(
                {"pattern": r"backbone\.1\.", "decay_mult": 0.0},
                {"pattern": "^backbone", "lr_mult": 0.1},
                {"pattern": r"\.bias$", "lr_mult": 2.0, "decay_mult": 0.5},
            ),
        )
        optimizer = make_optimizer(model, section)
        assert [names_of(model, group) for group in optimizer.param_groups] == [
            ["head.weight"],
            ["backbone.1.weight", "backbone.1.bias"],
            ["backbone.0.weight", "backbone.0.bias"],
            ["head.bias"],
        ]
        assert [group["weight_decay"] for group in optimizer.param_groups] == pytest.approx([0.01, 0, 0.01, 0.005])
        set_lr(optimizer, 0.5)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.5, 0.5, 0.05, 1.0])
        assert group_lrs(optimizer) == pytest.approx({"^backbone": 0.05, r"\.bias$": 1.0})

    def test_patterns_may_leave_nothing(self):
        model = small_model()
        section = SGDSection(lr=0.1, groups=groups({"pattern": "", "lr_mult": 3.0}))
        (group,) = make_optimizer(model, section).param_groups
        assert len(group["params"]) == 6
        assert group["lr_mult"] == 3

    def test_patterns_that_decide_nothing_are_told_together(self):
        model = small_model()
        model["backbone"].requires_grad_(False)
        section = SGDSection(
            lr=0.1,
            groups=groups({"pattern": "neck"}, {"pattern": "^backbone"}, {"pattern": "head"}, {"pattern": "d.bias"}),
        )
        with pytest.raises(InputError) as error:
            make_optimizer(model, section, lambda path: f"recipe.yaml:{path[2]}")
        assert [line.strip() for line in str(error.value).splitlines()] == [
            "3 problems in the recipe:",
            'recipe.yaml:0: optimizer.groups.0.pattern: "neck" matches no weight; names are such as head.weight',
            'recipe.yaml:1: optimizer.groups.1.pattern: "^backbone" matches frozen weights only, such as '
            "backbone.0.weight",
            'recipe.yaml:3: optimizer.groups.3.pattern: "d.bias" matches only weights that a pattern before it matches',
        ]


class TestSteps:
    """One and two steps, against the formulas of the papers written out."""

    def test_sgd_with_momentum_and_decay(self):
        for nesterov in (False, True):
            weight = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
            model = nn.ParameterDict({"w": weight})
            section = SGDSection(lr=0.1, momentum=0.5, weight_decay=0.2, nesterov=nesterov)
            optimizer = make_optimizer(model, section)
            expected, velocity = torch.tensor([1.0, -2.0], dtype=torch.float64), 0
            for gradient in (torch.tensor([0.3, 0.7]).double(), torch.tensor([-1.0, 0.2]).double()):
                weight.grad = gradient.clone()
                optimizer.step()
                decayed = gradient + 0.2 * expected
                velocity = 0.5 * velocity + decayed
                expected = expected - 0.1 * (decayed + 0.5 * velocity if nesterov else velocity)
                torch.testing.assert_close(weight.data, expected)

    def test_adamw(self):
        weight = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
        section = AdamWSection(
            type="AdamW",
            lr=0.1,
            betas=[0.8, 0.9],
            eps=0.01,
            weight_decay=0.3,
            groups=groups({"pattern": "w", "decay_mult": 0.5}),
        )
        optimizer = make_optimizer(nn.ParameterDict({"w": weight}), section)
        expected = torch.tensor([1.0, -2.0], dtype=torch.float64)
        mean, square = torch.zeros(2).double(), torch.zeros(2).double()
        for count, gradient in enumerate((torch.tensor([0.3, 0.7]).double(), torch.tensor([-1.0, 0.2]).double()), 1):
            weight.grad = gradient.clone()
            optimizer.step()
            mean = 0.8 * mean + 0.2 * gradient
            square = 0.9 * square + 0.1 * gradient**2
            expected = expected - 0.1 * 0.15 * expected
            root = (square / (1 - 0.9**count)).sqrt()
            expected = expected - 0.1 * (mean / (1 - 0.8**count)) / (root + 0.01)
            torch.testing.assert_close(weight.data, expected)


class TestState:
    SECTIONS = (
        SGDSection(lr=0.1, weight_decay=0.01),
        AdamWSection(type="AdamW", lr=0.1, weight_decay=0.01),
    )

    @pytest.mark.parametrize("section", SECTIONS, ids=["SGD", "AdamW"])
    def test_it_finds_its_weights_in_other_groups(self, section):
        whole, first, second = small_model(), small_model(), small_model()
        optimizer = make_optimizer(whole, section)
        for seed in range(4):
            step(whole, optimizer, seed)

        optimizer = make_optimizer(first, section)
        for seed in range(2):
            step(first, optimizer, seed)
        second.load_state_dict(first.state_dict())
        # Groups in another order than that of the weights, with the same multipliers.
        grouped = section.model_copy(update={"groups": groups({"pattern": "bias"}, {"pattern": "^backbone"})})
        resumed = make_optimizer(second, grouped)
        load_state_by_name(resumed, second, state_by_name(optimizer, first))
        for seed in range(2, 4):
            step(second, resumed, seed)
        for name, weight in whole.state_dict().items():
            assert torch.equal(weight, second.state_dict()[name]), name

    def test_the_recipe_decides_about_what_it_says(self):
        model = small_model()
        optimizer = make_optimizer(model, SGDSection(lr=0.1, weight_decay=0.01, momentum=0.9))
        step(model, optimizer, 0)
        changed = make_optimizer(model, SGDSection(lr=0.2, weight_decay=0.5, momentum=0.8))
        load_state_by_name(changed, model, state_by_name(optimizer, model))
        (group,) = changed.param_groups
        assert (group["lr"], group["weight_decay"], group["momentum"]) == (0.2, 0.5, 0.8)

    def test_that_of_another_optimizer_or_model(self):
        model = small_model()
        sgd, adamw = (make_optimizer(model, section) for section in self.SECTIONS)
        step(model, sgd, 0)
        with pytest.raises(InputError, match='the optimizer was "SGD", and now is AdamW'):
            load_state_by_name(adamw, model, state_by_name(sgd, model))
        state = state_by_name(sgd, model)
        frozen = small_model()
        frozen["head"].requires_grad_(False)
        with pytest.raises(InputError, match=r'trained "head\.weight", which the recipe'):
            load_state_by_name(make_optimizer(frozen, self.SECTIONS[0]), frozen, state)
        for value in state["weights"].values():
            value["momentum_buffer"] = value["momentum_buffer"][:1]
        with pytest.raises(ValueError, match="has shape"):
            load_state_by_name(make_optimizer(model, self.SECTIONS[0]), model, state)


def test_the_rate_grows_with_the_images_only_where_that_is_asked_for():
    assert scaled_lr(SGDSection(lr=0.02, base_batch_size=16), 4) == 0.02
    assert scaled_lr(SGDSection(lr=0.02, base_batch_size=16, auto_scale_lr=True), 4) == pytest.approx(0.005)
    assert scaled_lr(SGDSection(lr=0.02, base_batch_size=16, auto_scale_lr=True), 64) == pytest.approx(0.08)


def test_fcos_trains_the_biases_of_convolutions_as_openmmlab_does():
    config = load_config("fcos_r50_caffe_fpn_gn_coco")
    with torch.device("meta"):
        model = build_model(config, 80, pretrained=False)
    optimizer = make_optimizer(model, config.optimizer, config.recipe.where)
    rest, biases = optimizer.param_groups
    # OpenMMLab's rule goes by modules: biases of all that is no normalisation.
    expected = [
        f"{name}.bias"
        for name, module in model.named_modules()
        if getattr(module, "bias", None) is not None and not isinstance(module, nn.BatchNorm2d | nn.GroupNorm)
    ]
    assert sorted(names_of(model, biases)) == sorted(expected)
    assert len(expected) == 11  # 3 lateral, 5 pyramid and 3 predicting convolutions
    assert (biases["lr_mult"], biases["weight_decay"]) == (2.0, 0.0)
    assert (rest["lr_mult"], rest["weight_decay"]) == (1.0, 1e-4)


def test_the_learning_rates_of_recipes_are_for_the_images_of_eight_devices():
    for name in sorted(shipped_recipes()):
        config = load_config(name)
        if config.optimizer.auto_scale_lr:
            pytest.fail(f"{name} scales its learning rate by itself")
        if name.endswith("_coco"):
            assert config.optimizer.base_batch_size == 8 * config.data.batch_size, name
