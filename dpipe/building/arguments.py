"""Arguments of calls in Python against the annotations of their constructors, as those of a recipe are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import InitVar
from functools import lru_cache
from typing import Any, get_origin

import numpy as np
from pydantic import TypeAdapter, ValidationError

from dpipe.building.annotations import (
    SEQUENCES,
    accepts_part,
    adapter,
    convert,
    describe,
    holds_parts,
    members,
    parameters,
    plain_annotation,
)
from dpipe.errors import InputError


def check_arguments(cls: type, given: Mapping[str, Any]) -> None:
    """Checks what a constructor was given; numpy's numbers and arrays count as the numbers and lists that they hold.

    Args:
        cls: Whose annotations are checked against. Lists of parts are looked at no further than that they are lists.
        given: Arguments by name; others may be among them, and some may be missing.

    Raises:
        InputError: For the first that is of a wrong type.
    """
    for name, annotation, quick in _expected(cls):
        if name not in given:
            continue
        value = given[name]
        if quick is not None:
            try:
                quick.validate_python(value, strict=True)  # all that is right, but for lists in the place of tuples
                continue
            except ValidationError:
                pass
        if not _fits(value, annotation):
            expected = " or ".join(map(_described, members(annotation)))
            raise InputError(f"{cls.__name__}: {name}: expected {expected}, got {_shown(value)}")


@lru_cache(maxsize=256)
def _expected(cls: type) -> list[tuple[str, Any, TypeAdapter[Any] | None]]:
    """Names and annotations of a constructor's arguments, and what checks those that hold no parts."""
    annotations = {name: parameter.annotation for name, parameter in parameters(cls).items()}
    return [
        (name, annotation, None if holds_parts(annotation) else adapter(annotation))
        for name, annotation in annotations.items()
        if not isinstance(annotation, InitVar)  # which an instance does not keep
    ]


def _fits(value: Any, annotation: Any) -> bool:
    if holds_parts(annotation):
        if accepts_part(annotation, type(value)):
            return True
        if isinstance(value, list | tuple) and any(holds_parts(kind) for kind in members(annotation) if _is_list(kind)):
            return True
        if all(holds_parts(kind) for kind in members(annotation)):
            return False
    try:
        convert(json.loads(json.dumps(value, default=_as_plain)), plain_annotation(annotation))
    except (TypeError, ValueError):  # pydantic's errors are ValueErrors
        return False
    return True


def _as_plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError


def _is_list(kind: Any) -> bool:
    return (get_origin(kind) or kind) in SEQUENCES


def _shown(value: Any, limit: int = 60) -> str:
    """A value as Python writes it, cut to fit a line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _described(kind: Any) -> str:
    if kind is type(None):
        return "None"
    if not holds_parts(kind):
        return describe(kind)
    return "a list" if _is_list(kind) else getattr(kind, "__name__", str(kind))
