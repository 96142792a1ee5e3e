"""The transforms of a recipe, for commands that need no trainer: what else it holds is the trainer's own."""

from __future__ import annotations

from typing import Any

from dpipe.building.problems import KeyPath, Problem, report, shorten
from dpipe.errors import InputError
from dpipe.policy import Augment
from dpipe.recipes import Recipe
from dpipe.registry import TRANSFORMS, import_module

TRAIN_TRANSFORMS = "train_transforms"


def recipe_augment(recipe: Recipe) -> Augment:
    """Builds the augmentation that a recipe trains with.

    Args:
        recipe: Its ``data.train_transforms`` are built, after its ``custom_imports`` were imported. All other lists of
            ``data`` whose names end in ``_transforms`` are checked with them.

    Raises:
        InputError: If they are missing or wrong; all problems are told together.
    """
    data = recipe.values.get("data")
    data = data if isinstance(data, dict) else {}
    problems = _import_all(recipe.values.get("custom_imports"))
    if not isinstance(data.get(TRAIN_TRANSFORMS), list):
        problems.append(Problem(("data",), f"expected a list of transforms in data.{TRAIN_TRANSFORMS}"))
    built = {
        key: [_build(transform, ("data", key, number), problems) for number, transform in enumerate(transforms)]
        for key, transforms in data.items()
        if str(key).endswith("_transforms") and isinstance(transforms, list)
    }
    if problems:
        raise InputError(report(recipe.name, problems, recipe.where))
    try:
        return Augment(built[TRAIN_TRANSFORMS])
    except InputError as error:  # about their order
        raise InputError(f"{recipe.where(('data', TRAIN_TRANSFORMS))}: data.{TRAIN_TRANSFORMS}: {error}") from error


def _import_all(modules: Any) -> list[Problem]:
    """Imports the modules that a recipe names; returns what is wrong with them."""
    if modules is None:
        return []
    if not isinstance(modules, list):
        return [Problem(("custom_imports",), f"expected a list of modules, got {shorten(modules)}")]
    return [
        Problem(("custom_imports", number), wrong)
        for number, module in enumerate(modules)
        if (wrong := _import(str(module))) is not None
    ]


def _import(module: str) -> str | None:
    """Imports a module; returns what is wrong with it."""
    try:
        import_module(module)
    except InputError as error:
        return str(error)
    return None


def _build(transform: Any, path: KeyPath, problems: list[Problem]) -> Any:
    """Builds a transform, or adds what is wrong with it to the problems."""
    found = TRANSFORMS.check(transform, path)
    if not found:
        try:
            return TRANSFORMS.build(transform)
        except InputError as error:  # about values, which only the class itself knows
            found = [Problem(path, str(error))]
    problems += found
    return None
