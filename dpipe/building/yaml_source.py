"""YAML into plain values that remember the file and line they came from. Nothing in a file is executed.

The subset is YAML 1.2's core: ``true`` and ``false`` are the only booleans (``on``, ``yes`` and ``12:30`` are
strings), ``1e-4`` is a float. Tags (``!!python/object`` and all others) and duplicate keys are errors; so are anchors
and aliases, whose place ``${key.path}`` takes.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from dpipe.errors import InputError

PLAIN_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map"))


class Origin(NamedTuple):
    """Where a value was written: a file and a line counted from 1, or an override on the command line."""

    source: str
    line: int | None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


class Located(NamedTuple):
    """A value and where it was written.

    Attributes:
        value: A scalar, a list of ``Located``, or a dict of str to ``Located``.
        origin: Where; for a member of a mapping, the line of its key.
    """

    value: Any
    origin: Origin


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2's core schema."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own name)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes what ``_Loader`` would not read as a string, and writes short lists in one line."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers

    def ignore_aliases(self, data: Any) -> bool:
        return True


_SCALARS = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+0123456789."),
    ),
)
for _name, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), _first)


def _number_free_of_octal(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    """An integer in base ten: YAML 1.1 would read ``010`` as 8."""
    return int(loader.construct_scalar(node))


_Loader.add_constructor("tag:yaml.org,2002:int", _number_free_of_octal)


def read_yaml(path: Path) -> Located:
    """Reads a YAML file whose top is a mapping (an empty file is an empty one).

    Raises:
        InputError: If the file cannot be read, is no YAML of the subset, or holds no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text file in UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    located = parse_yaml(text, str(path))
    if located.value is None:
        return Located({}, located.origin)
    if not isinstance(located.value, dict):
        raise InputError(f"{path}: expected a mapping of keys to values at the top")
    return located


def parse_yaml(text: str, source: str, *, lines: bool = True) -> Located:
    """Parses one YAML document.

    Args:
        text: The document.
        source: What it came from, for messages and origins.
        lines: Whether line numbers mean something to the reader (not for a value on the command line).

    Raises:
        InputError: With one line that names the source and the line.
    """
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            _refuse(event, source, lines)
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return Located(None, Origin(source, 1 if lines else None))
        return _locate(loader, node, source, lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark is not None and lines else ""
        raise InputError(f"{source}{line}: not valid YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{source}: not valid YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise InputError(f"{source}: nested too deeply") from None


def dump_yaml(value: Any) -> str:
    """Writes plain values as YAML that ``read_yaml`` reads back to equal ones, keys in their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=120)


def _refuse(event: yaml.Event, source: str, lines: bool) -> None:
    """Raises for anchors, aliases and tags."""
    at = Origin(source, event.start_mark.line + 1 if lines and event.start_mark is not None else None)
    if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
        raise InputError(f"{at}: anchors and aliases are not supported; write ${{key.path}} where a value repeats")
    tag = getattr(event, "tag", None)
    if tag is not None:
        raise InputError(f"{at}: tags such as {tag!r} are not supported: a recipe holds plain values only")


def _locate(loader: _Loader, node: yaml.Node, source: str, lines: bool) -> Located:
    origin = Origin(source, node.start_mark.line + 1 if lines else None)
    if isinstance(node, yaml.SequenceNode):
        return Located([_locate(loader, child, source, lines) for child in node.value], origin)
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Located] = {}
        for key_node, child in node.value:
            at = Origin(source, key_node.start_mark.line + 1 if lines else None)
            key = loader.construct_object(key_node, deep=True) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                raise InputError(f"{at}: keys must be strings, got {key_node.value!r}; quote it if it is meant as one")
            if key in mapping:
                raise InputError(f"{at}: the key {key!r} occurs twice (first on line {mapping[key].origin.line})")
            mapping[key] = Located(_locate(loader, child, source, lines).value, at)
        return Located(mapping, origin)
    return Located(loader.construct_object(node), origin)
