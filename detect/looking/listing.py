"""What a recipe can name: parts of models and transforms by kind, shipped recipes, and what each of them takes."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from detect.config import Config, load_config
from detect.looking.docstrings import Docstring, parse_docstring
from detect.registry import MODELS
from dpipe.building.annotations import describe, parameters
from dpipe.building.build import CONTEXT
from dpipe.building.problems import nearest, shorten
from dpipe.errors import InputError
from dpipe.recipes import shipped_recipes
from dpipe.registry import TRANSFORMS

RECIPE = "recipe"
KINDS = (
    "detector",
    "backbone",
    "neck",
    "dense head",
    "RoI head",
    "RoI extractor",
    "bbox head",
    "mask head",
    "auxiliary head",
    "loss",
    "assigner",
    "sampler",
    "suppression",
    "layer",
    "transform",
    "other part",
    RECIPE,
)
"""In the order of the list. A part's kind is told by its interface, so that parts of one's own have one too."""


@dataclass(frozen=True)
class Entry:
    """Something that a recipe can name, or a recipe.

    Attributes:
        kind: One of KINDS.
        name: What ``type:`` or ``_base_:`` says.
        summary: What it is, on one line.
    """

    kind: str
    name: str
    summary: str


@dataclass(frozen=True)
class ArgumentHelp:
    """One argument of a part.

    Attributes:
        name: Its name.
        expected: What it takes, in words.
        default: Its default as a recipe writes it; ``required``; or, where the recipe may be silent, who supplies it.
        text: What it does; empty where the part does not tell.
    """

    name: str
    expected: str
    default: str
    text: str


@dataclass(frozen=True)
class Description:
    """A part in full.

    Attributes:
        name: As it was asked for.
        kind: One of KINDS.
        path: Its dotted path.
        source: File and line; empty where Python cannot tell.
        doc: Its docstring.
        arguments: Those of its constructor, in order.
    """

    name: str
    kind: str
    path: str
    source: str
    doc: Docstring
    arguments: tuple[ArgumentHelp, ...]


def list_parts(wanted: str = "", config: str | None = None) -> list[Entry]:
    """Everything that a recipe can name, by kind and name.

    Args:
        wanted: Only what has this text in its kind, name or summary, in upper or lower case.
        config: A recipe, whose own parts are listed as well: those that its ``custom_imports`` register, and those that
            it names by dotted paths.

    Raises:
        InputError: If there is no such thing, or the recipe is wrong.
    """
    found = [
        *([] if config is None else _named_by_path(load_config(config))),  # first, as this imports what registers
        *(Entry(kind_of(MODELS.get(name)), name, parse_docstring(MODELS.get(name)).summary) for name in MODELS.names()),
        *(Entry("transform", name, parse_docstring(TRANSFORMS.get(name)).summary) for name in TRANSFORMS.names()),
        *(Entry(RECIPE, name, _first_comment(path)) for name, path in shipped_recipes().items()),
    ]
    chosen = [e for e in found if any(wanted.lower() in text.lower() for text in (e.kind, e.name, e.summary))]
    if not chosen:
        names = [*KINDS, *(entry.name for entry in found)]
        raise InputError(f"nothing has {wanted!r} in its kind, name or description{_hint(wanted, names)}")
    return sorted(chosen, key=lambda entry: (KINDS.index(entry.kind), entry.name))


def _named_by_path(config: Config) -> list[Entry]:
    """The classes that a recipe names by their dotted paths."""
    nodes: list[Any] = [config.model, config.data.train_transforms, config.data.test_transforms]
    names = set()
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict):
            names |= {name for name in (str(node.get("type", "")),) if "." in name}
        nodes += node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return [Entry(kind_of(_find(name)), name, parse_docstring(_find(name)).summary) for name in names]


def describe_part(name: str) -> Description:
    """Describes a part or a transform.

    Args:
        name: A registered name, or a dotted path.

    Raises:
        InputError: If there is none; the message has the nearest name.
    """
    cls = _find(name)
    doc = parse_docstring(cls)
    try:
        known = parameters(cls)
    except ValueError:
        raise InputError(f"{name} does not tell its arguments, so a recipe cannot name it") from None
    arguments = tuple(
        ArgumentHelp(
            parameter.name,
            describe(parameter.annotation),
            "any others" if parameter.kind is inspect.Parameter.VAR_KEYWORD else _default(parameter),
            doc.arguments.get(parameter.name, ""),
        )
        for parameter in known.values()
    )
    return Description(name, kind_of(cls), f"{cls.__module__}.{cls.__qualname__}", _source(cls), doc, arguments)


def kind_of(cls: type) -> str:
    """Tells a part's kind by the methods and arguments that it has."""
    if cls in [TRANSFORMS.get(name) for name in TRANSFORMS.names()] or _is_transform(cls):
        return "transform"
    if hasattr(cls, "assign"):
        return "assigner"
    if hasattr(cls, "choose"):
        return "sampler"
    if hasattr(cls, "suppress"):
        return "suppression"
    if not issubclass(cls, nn.Module):
        return "other part"
    try:
        arguments, inputs = parameters(cls), _forward_inputs(cls)
    except ValueError:
        return "other part"
    if "backbone" in arguments:
        return "detector"
    if hasattr(cls, "loss"):
        if hasattr(cls, "sample"):
            return "RoI head"
        return "dense head" if hasattr(cls, "propose") or hasattr(cls, "predict") else "auxiliary head"
    if "avg_factor" in inputs:
        return "loss"
    if "rois" in inputs:
        return "RoI extractor"
    if "loss_mask" in arguments:
        return "mask head"
    if "loss_bbox" in arguments:
        return "bbox head"
    return _by_flow(cls, inputs)


def _by_flow(cls: type[nn.Module], inputs: Mapping[str, Any]) -> str:
    """Backbones take a tensor and give levels, necks take levels and give levels, layers neither."""
    first = next(iter(inputs.values()), Any)
    given = typing.get_type_hints(cls.forward).get("return", Any)
    if _is_levels(first):
        return "neck"
    return "backbone" if _is_levels(given) else "layer" if first is torch.Tensor else "other part"


def _is_levels(annotation: Any) -> bool:
    origin = typing.get_origin(annotation)
    return isinstance(origin, type) and issubclass(origin, Sequence)


def _forward_inputs(cls: type[nn.Module]) -> dict[str, Any]:
    try:
        hints = typing.get_type_hints(cls.forward)
    except (NameError, TypeError, AttributeError):  # a name that only type checkers import
        hints = {}
    return {name: hints.get(name, Any) for name in list(inspect.signature(cls.forward).parameters)[1:]}


def _is_transform(cls: type) -> bool:
    from dpipe.operations.operation import Operation

    return issubclass(cls, Operation)


def _find(name: str) -> type:
    for registry in (MODELS, TRANSFORMS):
        if name in registry.names():
            return registry.get(name)
    if "." in name:
        return MODELS.get(name)
    if name in shipped_recipes():
        raise InputError(f"{name} is a recipe: `detect config {name}` prints it")
    names = [*MODELS.names(), *TRANSFORMS.names()]
    raise InputError(f"there is no part or transform {name!r}{_hint(name, names)}")


def _hint(name: str, names: Sequence[str]) -> str:
    """The nearest name; where none is near, where to find all of them, which are too many for a line."""
    hint = nearest(name, names)
    return hint if "did you mean" in hint else "; `detect list` prints all there is"


def _first_comment(path: Path) -> str:
    """The first paragraph of a recipe's leading comment, on one line."""
    words: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.removeprefix("#").strip()
        if not line.startswith("#") or not text:
            break
        words.append(text)
    return " ".join(words).removesuffix(":")


def _default(parameter: inspect.Parameter) -> str:
    if parameter.default is not parameter.empty:
        default = parameter.default
        return shorten(list(default) if isinstance(default, tuple) else default)
    return (
        "from the data"
        if parameter.name == "num_classes"
        else ("from the part before" if parameter.name in CONTEXT else "required")
    )


def _source(cls: type) -> str:
    try:
        return f"{inspect.getsourcefile(cls)}:{inspect.getsourcelines(cls)[1]}"
    except (OSError, TypeError):
        return ""
