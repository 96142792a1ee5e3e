"""The optimizer: what it trains, with which learning rate, and its state under the names of the weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn, optim

from detect.sections.optimizer import Optimizer, ParameterGroup, SGDSection
from dpipe.building.problems import KeyPath, Problem, report, shorten
from dpipe.errors import InputError


def make_optimizer(
    model: nn.Module, section: Optimizer, where: Callable[[KeyPath], str] = lambda path: ""
) -> optim.Optimizer:
    """Makes a recipe's optimizer of all weights that are not frozen.

    Each of its ``param_groups`` has, beside what PyTorch puts there, ``lr_mult``, and the ``pattern`` that its weights
    were found by, None for those that no pattern matches.

    Args:
        model: Its names are what patterns are searched in.
        section: The recipe's ``optimizer``.
        where: Tells the file and line that a key of the recipe came from.

    Raises:
        InputError: If a pattern decides about no weight; with the key paths of all such patterns.
    """
    rest, *matched = _grouped(model, section.groups)
    problems = [
        Problem(("optimizer", "groups", number, "pattern"), _nothing_for(group.pattern, model))
        for number, (group, weights) in enumerate(zip(section.groups, matched, strict=True))
        if not weights
    ]
    if problems:
        raise InputError(report("the recipe", problems, where))
    groups = [{"params": rest, "lr_mult": 1.0, "pattern": None}] if rest else []
    for group, weights in zip(section.groups, matched, strict=True):
        decay = section.weight_decay * group.decay_mult
        groups.append({"params": weights, "lr_mult": group.lr_mult, "pattern": group.pattern, "weight_decay": decay})
    if isinstance(section, SGDSection):
        return optim.SGD(
            groups, section.lr, section.momentum, weight_decay=section.weight_decay, nesterov=section.nesterov
        )
    first, second = section.betas
    return optim.AdamW(groups, section.lr, (first, second), section.eps, section.weight_decay)


def set_lr(optimizer: optim.Optimizer, lr: float) -> None:
    """Sets the learning rates of all groups, of which ``lr`` is the one without a multiplier."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_mult"]


def group_lrs(optimizer: optim.Optimizer) -> dict[str, float]:
    """The learning rates of those groups that have their own, by the pattern."""
    return {group["pattern"]: group["lr"] for group in optimizer.param_groups if group["lr_mult"] != 1}


def scaled_lr(section: Optimizer, images: int) -> float:
    """The learning rate for so many images an iteration, by the linear rule (arXiv 1706.02677) if the recipe asks so.

    Args:
        section: The recipe's ``optimizer``.
        images: Images an iteration, over all devices.
    """
    if not section.auto_scale_lr or section.base_batch_size is None:
        return section.lr
    return section.lr * images / section.base_batch_size


def state_by_name(optimizer: optim.Optimizer, model: nn.Module) -> dict[str, Any]:
    """What the optimizer remembers, under the names of the model's weights, for :func:`load_state_by_name`.

    Learning rates, weight decay and the like are not in it: they are the recipe's.
    """
    weights = {name: optimizer.state[weight] for name, weight in model.named_parameters() if weight in optimizer.state}
    return {"type": type(optimizer).__name__, "weights": weights}


def load_state_by_name(optimizer: optim.Optimizer, model: nn.Module, state: Mapping[str, Any]) -> None:
    """Gives an optimizer back what it remembered, also where its groups are others than then.

    Args:
        optimizer: Of the same type as then, with groups of the recipe that goes on.
        model: The model whose weights it trains.
        state: What :func:`state_by_name` returned.

    Raises:
        InputError: If the state is another optimizer's, or has weights that this one does not train.
        KeyError, TypeError, ValueError: If it is not such a state at all.
    """
    if state["type"] != type(optimizer).__name__:
        raise InputError(
            f"the optimizer was {shorten(state['type'])}, and now is {type(optimizer).__name__}: "
            "with optimizer.type as it was the run can go on; or train.load_from begins a new one with its weights"
        )
    names: dict[Tensor, str] = {weight: name for name, weight in model.named_parameters()}
    order = [names[weight] for group in optimizer.param_groups for weight in group["params"]]
    strange = [name for name in state["weights"] if name not in order]
    if strange:
        raise InputError(f"the optimizer trained {shorten(strange[0])}, which the recipe's model does not train")
    found = {number: dict(state["weights"][name]) for number, name in enumerate(order) if name in state["weights"]}
    optimizer.load_state_dict({"state": found, "param_groups": optimizer.state_dict()["param_groups"]})
    for weight, values in optimizer.state.items():
        for value in values.values():
            if isinstance(value, Tensor) and value.dim() and value.shape != weight.shape:
                raise ValueError(f"the optimizer's state of {names[weight]} has shape {tuple(value.shape)}")


def _grouped(model: nn.Module, groups: Sequence[ParameterGroup]) -> list[list[nn.Parameter]]:
    """The weights that are trained: those that no pattern matches, then those of each group."""
    found: list[list[nn.Parameter]] = [[] for _ in range(1 + len(groups))]
    for name, weight in _trained(model).items():
        matches = (number for number, group in enumerate(groups, start=1) if re.search(group.pattern, name))
        found[next(matches, 0)].append(weight)
    return found


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def _nothing_for(pattern: str, model: nn.Module) -> str:
    """Why a pattern decides about no weight."""
    matches = [(name, weight) for name, weight in model.named_parameters() if re.search(pattern, name)]
    if not matches:
        return f"{shorten(pattern)} matches no weight; names are such as {next(iter(_trained(model)))}"
    if not any(weight.requires_grad for _, weight in matches):
        return f"{shorten(pattern)} matches frozen weights only, such as {matches[0][0]}"
    return f"{shorten(pattern)} matches only weights that a pattern before it matches"
