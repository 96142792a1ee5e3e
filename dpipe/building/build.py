"""Parts from a recipe: checked first, all problems together, then built from the inside out.

A part is a mapping with ``type`` (a name in a registry, or a dotted path); its other keys are arguments of the class's
constructor, parts themselves or plain values. Arguments that the surroundings know need not be written: a *context*
supplies them by name wherever a constructor has such a parameter and the recipe is silent.

- ``num_classes`` comes from the caller, who knows the data; so may others, of parameters that have defaults.
- ``in_channels`` and ``strides`` (one number a level) come from the sibling built last that has both ``channels`` and
  ``strides``, such as a backbone or a neck; parts are built in the order of the constructor's parameters. A
  parameter annotated ``int`` gets the number that all levels share. A class attribute ``level_parts`` names the
  parameters whose parts have levels of their own: where one tells neither, those before it do not stand for them.
- A parameter annotated as a mapping of plain values takes a mapping as it is: a ``type`` in it is the class's own
  matter.
- A class attribute ``part_context`` overrides the context for what one parameter holds, and what the part that it
  holds has written there itself: ``part_context: ClassVar = {"rpn_head": {"num_classes": 1}}``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from dpipe.building.annotations import (
    accepts_part,
    check_plain,
    convert,
    describe,
    element,
    holds_parts,
    members,
    parameters,
    plain_annotation,
    takes_mapping,
)
from dpipe.building.problems import KeyPath, Problem, dotted, nearest, shorten
from dpipe.errors import InputError
from dpipe.registry import Registry

# What a context can hold.
CONTEXT = frozenset({"in_channels", "strides", "num_classes"})


def check(registry: Registry, node: Any, path: KeyPath = (), supplied: Collection[str] = CONTEXT) -> list[Problem]:
    """Checks a part and everything inside it against the constructors' signatures, without building.

    Args:
        registry: Where names are looked up.
        node: The part, as a recipe has it.
        path: Its key path in the recipe.
        supplied: Arguments that the context will supply, and that may therefore be missing.

    Returns:
        All problems: unknown types, unknown and missing arguments, values of a wrong type.
    """
    if not _is_part(node):
        return [Problem(path, f"expected a part, a mapping with `type`, got {shorten(node)}")]
    try:
        cls = registry.get(node["type"]) if isinstance(node["type"], str) else None
    except InputError as error:
        return [Problem((*path, "type"), str(error)), *_check_inside(registry, node, path, supplied)]
    if cls is None:
        return [Problem((*path, "type"), f"expected the name of a {registry.kind}, got {shorten(node['type'])}")]
    try:
        known = parameters(cls)
    except ValueError:  # classes written in C may not tell
        return [Problem((*path, "type"), f"{node['type']} does not tell its arguments, so a recipe cannot name it")]
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in known.values())
    unknown = [name for name in node if name != "type" and name not in known and not takes_any]
    problems = _unknown_arguments(node["type"], unknown, known, path)
    for name, value in node.items():
        if name != "type":
            annotation = known[name].annotation if name in known else Any
            problems += _check_value(registry, value, annotation, (*path, name), supplied)
    missing = [name for name in _required(known) if name not in node and name not in supplied]
    problems += [
        Problem(path, f"{node['type']} needs {name!r}: {describe(known[name].annotation)}") for name in missing
    ]
    return problems


def build(
    registry: Registry,
    node: Mapping[str, Any],
    context: Mapping[str, Any] | None = None,
    path: KeyPath = (),
    where: Callable[[KeyPath], str] | None = None,
) -> Any:
    """Builds a part that ``check`` finds no problem in, and all parts inside it.

    Args:
        registry: Where names are looked up.
        node: The part, as a recipe has it.
        context: Arguments by name for constructors whose recipe is silent about them.
        path: The part's key path in the recipe.
        where: Tells the file and line that a key path was written in, for messages.

    Raises:
        InputError: If a part refuses its arguments, or a missing one is not in the context either.
    """
    problems = check(registry, node, path)
    if problems:
        raise InputError(f"{_place(problems[0].path, where)}{problems[0].message}")
    return _build(registry, node, dict(context or {}), path, where)


def _place(path: KeyPath, where: Callable[[KeyPath], str] | None) -> str:
    return "".join(f"{part}: " for part in (where(path) if where else "", dotted(path)) if part)


def _is_part(node: Any) -> bool:
    return isinstance(node, Mapping) and "type" in node


def _has_parts(value: Any) -> bool:
    return _is_part(value) or (isinstance(value, list) and any(_has_parts(item) for item in value))


def _required(known: Mapping[str, inspect.Parameter]) -> list[str]:
    return [
        name
        for name, parameter in known.items()
        if parameter.default is parameter.empty and parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]


def _unknown_arguments(type_: str, unknown: list[str], known: Collection[str], path: KeyPath) -> list[Problem]:
    """A problem for each argument that a class does not take; one for three and more, another class's probably."""
    if len(unknown) < 3:
        return [Problem((*path, name), f"unknown argument of {type_}{nearest(name, known)}") for name in unknown]
    return [
        Problem(
            path,
            f"{type_} has no arguments {', '.join(unknown)}; with another type, `_delete_: true` beside it drops what "
            "it inherits",
        )
    ]


def _check_inside(
    registry: Registry, node: Mapping[str, Any], path: KeyPath, supplied: Collection[str]
) -> list[Problem]:
    """The problems of the parts inside a part whose own class is unknown."""
    return [
        problem
        for name, value in node.items()
        if name != "type"
        for problem in _check_value(registry, value, Any, (*path, name), supplied)
    ]


def _check_value(
    registry: Registry, value: Any, annotation: Any, path: KeyPath, supplied: Collection[str]
) -> list[Problem]:
    if isinstance(value, Mapping) and takes_mapping(annotation):
        return check_plain(value, annotation, path)
    if _is_part(value):
        problems = check(registry, value, path, supplied)
        if problems and problems[0].path == (*path, "type"):
            return problems
        if not accepts_part(annotation, registry.get(value["type"])):
            problems.insert(0, Problem(path, f"expected {describe(annotation)}, got a {value['type']}"))
        return problems
    if isinstance(value, list) and (_has_parts(value) or holds_parts(annotation)):
        kinds = [element(annotation, index) for index in range(len(value))]
        if None in kinds:
            return [Problem(path, f"expected {describe(annotation)}, got a list of {len(value)}")]
        return [
            problem
            for index, (item, kind) in enumerate(zip(value, kinds, strict=True))
            for problem in _check_value(registry, item, kind, (*path, index), supplied)
        ]
    plain = [member for member in members(annotation) if not holds_parts(member)]
    if not plain or (plain == [type(None)] and value is not None):
        return [Problem(path, f"expected {describe(annotation)}: a mapping with `type`, got {shorten(value)}")]
    return check_plain(value, plain_annotation(annotation), path)


def _build(
    registry: Registry,
    node: Mapping[str, Any],
    context: dict[str, Any],
    path: KeyPath,
    where: Callable[[KeyPath], str] | None,
) -> Any:
    cls = registry.get(node["type"])
    known = parameters(cls)
    overrides: Mapping[str, Mapping[str, Any]] = getattr(cls, "part_context", {})
    arguments: dict[str, Any] = {}
    # `context` is this part's own; siblings inside it change only what the parts inside see.
    inner = dict(context)
    order = [name for name in known if name in node]
    for name in [*order, *(name for name in node if name not in known and name != "type")]:
        annotation = known[name].annotation if name in known else Any
        scope = {**inner, **overrides.get(name, {})}
        held = node[name]
        if _is_part(held):
            held = {key: overrides.get(name, {}).get(key, value) for key, value in held.items()}
        value = _build_value(registry, held, annotation, scope, (*path, name), where)
        arguments[name] = value
        if _is_part(node[name]) and hasattr(value, "channels") and hasattr(value, "strides"):
            inner.update(_levels_of(value, f"{_place((*path, name), where)}{node[name]['type']}"))
        elif _is_part(node[name]) and name in getattr(cls, "level_parts", ()):
            untold = _Untold(dotted((*path, name)), node[name]["type"])
            inner.update({"in_channels": untold, "strides": untold})
    at = f"{_place(path, where)}{node['type']}"
    for name, value in context.items():
        if name in known and name not in node:
            if not isinstance(value, _Untold):
                arguments[name] = _fit(value, known[name].annotation, name, at)
            elif name in _required(known):
                raise InputError(f"{at} needs {name!r}: {value}")
    for name in _required(known):
        if name not in arguments:
            raise InputError(f"{at} needs {name!r}: nothing before it supplies that, so write it there")
    try:
        return cls(**arguments)
    except InputError as error:
        raise InputError(f"{_place(path, where)}{error}") from error
    except Exception as error:  # such as PyTorch's RuntimeError for a layer of no channels
        what = "" if isinstance(error, TypeError | ValueError) else f"{type(error).__name__}: "
        raise InputError(f"{at}: {what}{' '.join(str(error).split())}") from error


@dataclass(frozen=True)
class _Untold:
    """Stands in a context for what a part does not tell of its levels."""

    path: str
    type: str

    def __str__(self) -> str:
        return f"{self.path}, a {self.type}, has no `channels` and `strides`, which would tell; or write it there"


def _levels_of(part: Any, at: str) -> dict[str, tuple[Any, ...]]:
    """What a part with levels supplies to those after it."""
    try:
        return {"in_channels": tuple(part.channels), "strides": tuple(part.strides)}
    except TypeError:
        raise InputError(f"{at}: expected `channels` and `strides` to have a number for each level") from None


def _build_value(
    registry: Registry,
    value: Any,
    annotation: Any,
    context: dict[str, Any],
    path: KeyPath,
    where: Callable[[KeyPath], str] | None,
) -> Any:
    if isinstance(value, Mapping) and takes_mapping(annotation):
        return convert(value, annotation)
    if _is_part(value):
        return _build(registry, value, context, path, where)
    if isinstance(value, list) and (_has_parts(value) or holds_parts(annotation)):
        return [
            _build_value(registry, item, element(annotation, index), context, (*path, index), where)
            for index, item in enumerate(value)
        ]
    return convert(value, plain_annotation(annotation))


def _fit(value: Any, annotation: Any, name: str, at: str) -> Any:
    """A context's value for one parameter: a single number where it wants one and all levels agree."""
    if isinstance(value, int) or int not in members(annotation):
        return value
    if len(set(value)) != 1:
        raise InputError(f"{at}: {name!r} is one number, but the levels before it have {list(value)}; write it there")
    return value[0]
