"""Values of a recipe against the type annotations of constructors.

Plain values are checked by pydantic in strict JSON mode: ``"1"``, ``1.0`` and ``true`` are no integers, an integer is
a number, and a list fits ``tuple``, ``list`` and ``Sequence``. Classes that no plain value can be an instance of (an
``nn.Module``, a dataclass, a protocol) stand for parts, which a recipe writes as a mapping with ``type``.
"""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from dpipe.building.problems import KeyPath, Problem, shorten

PLAIN = frozenset({Any, bool, int, float, str, type(None), object, Path, list, tuple, dict, set, frozenset})
SEQUENCES = frozenset({list, tuple, set, frozenset, Sequence, Collection, Iterable})
MAPPINGS = frozenset({dict, Mapping})
NAMES = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    type(None): "null",
    Path: "a path",
}

BOUNDS = ((Ge, "ge", "at least"), (Gt, "gt", "above"), (Le, "le", "at most"), (Lt, "lt", "below"))

# pydantic's names of errors about types.
EXPECTED = {
    "bool_type": "true or false",
    "int_type": "an integer",
    "float_type": "a number",
    "string_type": "a string",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
}


def parameters(cls: type) -> dict[str, inspect.Parameter]:
    """The parameters of a class's constructor by name, their annotations evaluated (``Any`` where that fails)."""
    found = dict(inspect.signature(cls).parameters)
    constructor = cls.__init__  # type: ignore[misc]
    try:
        hints = typing.get_type_hints(constructor, include_extras=True)
    except (NameError, TypeError, AttributeError):  # a name that only type checkers import
        scope = getattr(constructor, "__globals__", {})
        hints = {name: _evaluate(parameter.annotation, scope) for name, parameter in found.items()}
    return {
        name: parameter.replace(annotation=hints.get(name, Any) if parameter.annotation is not parameter.empty else Any)
        for name, parameter in found.items()
        if parameter.kind is not inspect.Parameter.VAR_POSITIONAL
    }


def _evaluate(annotation: Any, scope: dict[str, Any]) -> Any:
    try:
        return eval(annotation, scope) if isinstance(annotation, str) else annotation
    except (NameError, TypeError, AttributeError):
        return Any


def members(annotation: Any) -> list[Any]:
    """The alternatives of a union; the annotation itself where it is none. ``Annotated`` is looked through."""
    origin = typing.get_origin(annotation)
    if origin is Annotated and holds_parts(typing.get_args(annotation)[0]):
        return members(typing.get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [member for argument in typing.get_args(annotation) for member in members(argument)]
    return [annotation]


def holds_parts(annotation: Any) -> bool:
    """Whether an annotation names a class of parts anywhere, as ``Sequence[nn.Module]`` does."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return False
    if origin is Annotated:
        return holds_parts(arguments[0])
    if origin is Callable:
        return True
    if origin is not None:
        return any(holds_parts(argument) for argument in arguments if argument is not Ellipsis)
    return isinstance(annotation, type) and annotation not in PLAIN


def takes_mapping(annotation: Any) -> bool:
    """Whether an annotation asks for a mapping of plain values, as ``Mapping[str, Any]`` does."""
    kinds = [typing.get_origin(member) or member for member in members(annotation)]
    return not holds_parts(annotation) and any(kind in MAPPINGS for kind in kinds)


def plain_annotation(annotation: Any) -> Any:
    """An annotation without the members of its union that stand for parts."""
    if not holds_parts(annotation):
        return annotation
    plain = [member for member in members(annotation) if not holds_parts(member)]
    union = plain[0]
    for member in plain[1:]:
        union = union | member
    return union


def accepts_part(annotation: Any, cls: type) -> bool:
    """Whether an instance of ``cls`` fits an annotation, as far as that can be told without making one."""
    return any(_member_accepts(member, cls) for member in members(annotation))


def _member_accepts(member: Any, cls: type) -> bool:
    if member is Any or typing.get_origin(member) is Callable or isinstance(member, typing.TypeVar):
        return True
    target = typing.get_origin(member) or member
    if not isinstance(target, type) or target in SEQUENCES | MAPPINGS:
        return False
    if typing.is_typeddict(target):
        return issubclass(cls, dict)
    if getattr(target, "_is_protocol", False):
        return all(callable(getattr(cls, name, None)) for name in _methods(target))
    return issubclass(cls, target)


def _methods(protocol: type) -> set[str]:
    """The names of the methods that a protocol asks for; its data may be set by a constructor, and is not seen yet."""
    own = [base for base in protocol.__mro__ if getattr(base, "_is_protocol", False)]
    return {name for base in own for name, value in vars(base).items() if callable(value) and not name.startswith("_")}


def element(annotation: Any, index: int) -> Any:
    """The annotation of a list's element, ``Any`` where none is given; ``None`` where no list fits at all."""
    for member in members(annotation):
        if member is Any or member is object:
            return Any
        origin, arguments = typing.get_origin(member) or member, typing.get_args(member)
        if origin not in SEQUENCES:
            continue
        if origin is tuple and arguments and arguments[-1] is not Ellipsis:
            return arguments[index] if index < len(arguments) else None
        return arguments[0] if arguments else Any
    return None


def convert(value: Any, annotation: Any) -> Any:
    """A plain value as the annotation's type: a list becomes a tuple where the constructor expects one.

    Raises:
        ValidationError: If it does not fit.
    """
    return adapter(annotation).validate_json(json.dumps(value), strict=True)


def check_plain(value: Any, annotation: Any, path: KeyPath) -> list[Problem]:
    """Checks a value that holds no parts."""
    try:
        convert(value, annotation)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        if len(errors) > 1 or errors[0]["type"] in {"missing", "too_long", "too_short"}:
            return [Problem(path, f"expected {describe(annotation)}, got {shorten(value)}")]
        return [Problem((*path, *errors[0]["loc"]), explain(errors[0]))]
    return []


def explain(error: ErrorDetails) -> str:
    """One of pydantic's errors, in the words of a recipe's writer."""
    if error["type"] in EXPECTED:
        expected = f"expected {EXPECTED[error['type']]}"
    elif error["type"] == "too_short":
        expected = f"expected a list{_length(error['ctx']['min_length'], None)}"
    elif error["type"] == "string_too_short":
        expected = "expected a string that is not empty"
    elif error["type"] == "too_long":
        expected = f"expected a list{_length(0, error['ctx']['max_length'])}"
    else:
        expected = (
            error["msg"]
            .replace("Input should be ", "expected ")
            .replace("expected greater", "expected a value greater")
        )
        expected = expected.replace("expected less", "expected a value less")
        expected = expected[0].lower() + expected[1:]
    return f"{expected}, got {shorten(error['input'])}"


def describe(annotation: Any) -> str:
    """An annotation in the words of a recipe's writer, with its limits: ``a number above 0``."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        told, limits = describe(arguments[0]), _limits(arguments[1:])
        lengths = [limit.min_length for limit in limits if isinstance(limit, MinLen)]
        most = [limit.max_length for limit in limits if isinstance(limit, MaxLen)]
        if told.startswith("a list"):
            return f"a list{_length(max(lengths, default=0), min(most, default=None))}{told.removeprefix('a list')}"
        bounds = [
            f"{words} {getattr(limit, name)}"
            for limit in limits
            for kind, name, words in BOUNDS
            if isinstance(limit, kind)
        ]
        told_bounds = " and ".join(bounds)
        return f"{told} {'of ' if told_bounds.startswith('at ') else ''}{told_bounds}" if bounds else told
    if origin in (Union, types.UnionType):
        return " or ".join(describe(argument) for argument in arguments)
    if origin is Literal:
        return " or ".join(repr(argument) for argument in arguments)
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        return f"[{', '.join(describe(argument).removeprefix('an ').removeprefix('a ') for argument in arguments)}]"
    if (origin or annotation) in SEQUENCES:
        return f"a list, each {describe(arguments[0])}" if arguments else "a list"
    if (origin or annotation) in MAPPINGS:
        return "a mapping"
    if annotation in NAMES:
        return NAMES[annotation]
    return f"a part ({getattr(annotation, '__name__', annotation)})" if holds_parts(annotation) else "any value"


def _limits(metadata: Iterable[Any]) -> list[Any]:
    """The limits in what ``Annotated`` holds, of which pydantic's ``Field`` may hold several."""
    return [limit for field in metadata for limit in getattr(field, "metadata", [field])]


def _length(least: int, most: int | None) -> str:
    """How many items a list has to have; empty where any number will do."""
    if most is not None and least in (0, most):
        return f" of {most}" if least else f" of at most {most}"
    if most is not None:
        return f" of {least} to {most}"
    return f" of {'one' if least == 1 else least} or more" if least else ""


@lru_cache(maxsize=1024)
def adapter(annotation: Any) -> TypeAdapter[Any]:
    """What checks plain values against an annotation."""
    return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
