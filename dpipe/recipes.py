"""Recipes: YAML files that inherit from others, interpolate, and take overrides.

    _base_: [_base_/model.yaml, _base_/data.yaml]    paths relative to this file, or names of shipped recipes
    model:
      neck: {_delete_: true, type: MyNeck}           drops what the bases say about model.neck
    data:
      train: {images: "${data.root}/train"}          the value of another key

Mappings merge key by key, later ones last; lists and scalars replace. Overrides (``key.path=value``, indices count
into lists) come after all files, interpolation after the overrides. ``${...}`` names keys only: OmegaConf's resolvers,
which read the environment among others, are refused, so that a recipe means the same everywhere.

Packages ship recipes in the folder of a module that an entry point in the group ``dpipe.recipes`` names.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dpipe.building.problems import KeyPath, Problem, dotted, nearest, report
from dpipe.building.yaml_source import Located, Origin, dump_yaml, parse_yaml, read_yaml
from dpipe.errors import InputError
from dpipe.registry import search_beside

__all__ = ["Recipe", "dump_yaml", "find_recipe", "load_recipe", "shipped_recipes"]

ENTRY_POINTS = "dpipe.recipes"
SUFFIXES = ("", ".yaml", ".yml")
COMMAND_LINE = Origin("command line", None)


@dataclass(frozen=True)
class Recipe:
    """A recipe with everything inherited, overridden and interpolated.

    Attributes:
        name: As it was asked for.
        values: Plain dicts, lists and scalars.
        origins: Where the value at each key path was written.
    """

    name: str
    values: dict[str, Any]
    origins: dict[KeyPath, Origin]

    def where(self, path: KeyPath) -> str:
        """Where a key was written, or else the innermost mapping or list around it.

        A part or a list that a file has, and that an override changed inside, was written at both places: what is wrong
        with it as a whole may be either's.
        """
        while path and path not in self.origins:
            path = path[:-1]
        origin = self.origins[path]
        if origin != COMMAND_LINE and self._is_whole(path):
            inside = (place for key, place in self.origins.items() if key[: len(path)] == path)
            if COMMAND_LINE in inside:
                return f"{origin} and {COMMAND_LINE}"
        return str(origin)

    def _is_whole(self, path: KeyPath) -> bool:
        """Whether a key holds a part or a list, whose values have to fit each other; sections are checked by key."""
        value: Any = self.values
        for key in path:
            value = value[key]
        return isinstance(value, list) or (isinstance(value, dict) and "type" in value)


def shipped_recipes() -> dict[str, Path]:
    """The recipes of all installed packages by name (``folder/name`` in subfolders); bases are left out."""
    recipes: dict[str, Path] = {}
    for entry in sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name):
        spec = importlib.util.find_spec(entry.value)
        for folder in (spec.submodule_search_locations or []) if spec is not None else []:
            for path in sorted(Path(folder).rglob("*.yaml")):
                relative = path.relative_to(folder)
                if "_base_" not in relative.parts:
                    recipes.setdefault(relative.with_suffix("").as_posix(), path)
    return recipes


def find_recipe(name_or_path: str | Path, relative_to: Path | None = None) -> Path:
    """Finds a recipe: a file first, else a shipped recipe of that name; ``.yaml`` may be left out.

    Args:
        name_or_path: The file or the name.
        relative_to: The folder that a relative path starts from; the current one by default.

    Raises:
        InputError: If there is neither.
    """
    path = (relative_to or Path()) / Path(name_or_path).expanduser()
    for suffix in SUFFIXES:
        candidate = path.with_name(path.name + suffix) if path.name else path
        if candidate.is_file():
            return candidate
    shipped = shipped_recipes()
    name = re.sub(r"\.ya?ml$", "", Path(name_or_path).as_posix())
    if name in shipped:
        return shipped[name]
    if path.is_dir():
        inside = next((f", such as {recipe}" for recipe in sorted(path.glob("*.yaml"))), "")
        raise InputError(f"{path}: is a folder; expected a recipe's file{inside}, or the name of a shipped recipe")
    raise InputError(f"{path}: no such recipe file, and no shipped recipe {name!r}{nearest(name, shipped)}")


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Loads a recipe with its bases, applies overrides, and interpolates.

    Modules that it names are looked for in the folder of its file too, so that a recipe and parts beside it are found
    from everywhere.

    Args:
        name_or_path: A file, or the name of a shipped recipe.
        overrides: ``key.path=value``; the value is YAML. A mapping merges into what is there, as in a file.

    Returns:
        The recipe. Whether its keys mean something is for the caller to check.

    Raises:
        InputError: If a file is missing or no valid YAML, bases form a circle, an override does not apply, or an
            interpolation names no key.
    """
    path = find_recipe(name_or_path)
    search_beside(None if path in shipped_recipes().values() else path)
    tree = _load_file(path, ())
    for override in overrides:
        tree = _apply_override(tree, override)
    origins: dict[KeyPath, Origin] = {}
    values = _flatten(tree, (), origins)
    recipe = Recipe(str(name_or_path), values, origins)
    return Recipe(recipe.name, _interpolate(recipe), origins)


def _load_file(path: Path, chain: tuple[Path, ...]) -> Located:
    """Reads one file and merges it over its bases; ``chain`` holds the files that led here."""
    resolved = path.resolve()
    if resolved in chain:
        circle = [*chain[chain.index(resolved) :], resolved]
        raise InputError(f"{chain[-1]}: _base_ goes in a circle: {' -> '.join(file.name for file in circle)}")
    own = read_yaml(path)
    bases = own.value.pop("_base_", None)
    merged = Located({}, own.origin)
    for name in _base_names(bases):
        try:
            base = find_recipe(name, path.parent)
        except InputError as error:
            raise InputError(f"{bases.origin}: _base_: {error}") from None
        merged = _merge(merged, _load_file(base, (*chain, resolved)))
    return _merge(merged, own)


def _base_names(bases: Located | None) -> list[str]:
    if bases is None:
        return []
    names = [item.value for item in bases.value] if isinstance(bases.value, list) else [bases.value]
    if not all(isinstance(name, str) for name in names):
        raise InputError(f"{bases.origin}: _base_: expected a path, a recipe's name, or a list of them")
    return names


def _merge(base: Located, over: Located) -> Located:
    """``over`` laid over ``base``: mappings merge, unless ``_delete_`` says otherwise; everything else replaces."""
    if not isinstance(base.value, dict) or not isinstance(over.value, dict):
        return over
    delete = over.value.get("_delete_")
    if delete is not None and not isinstance(delete.value, bool):
        raise InputError(f"{delete.origin}: _delete_: expected true or false")
    if delete is not None and delete.value:
        return over
    merged = dict(base.value)
    for key, value in over.value.items():
        merged[key] = _merge(merged[key], value) if key in merged else value
    return Located(merged, over.origin)


def _apply_override(tree: Located, override: str) -> Located:
    path, separator, text = override.partition("=")
    keys = path.split(".")
    if not separator or not all(keys):
        raise InputError(f"{override!r}: expected an override of the form key.path=value")
    value = parse_yaml(text, f"override {override!r}", lines=False)
    return _set(tree, keys, 0, _at(value, COMMAND_LINE), tree)


def _at(node: Located, origin: Origin) -> Located:
    """The same tree, every value written at ``origin``."""
    if isinstance(node.value, dict):
        return Located({key: _at(value, origin) for key, value in node.value.items()}, origin)
    if isinstance(node.value, list):
        return Located([_at(value, origin) for value in node.value], origin)
    return Located(node.value, origin)


def _set(node: Located | None, keys: list[str], depth: int, value: Located, root: Located) -> Located:
    """A copy of ``node`` with ``value`` merged in at ``keys[depth:]``; mappings that are missing are made."""
    if depth == len(keys):
        return value if node is None else _merge(node, value)
    key, before = keys[depth], dotted(keys[:depth])
    if node is None or node.value is None:
        node = Located({}, value.origin)
    node = _referenced(node, root)
    if isinstance(node.value, list):
        items = list(node.value)
        if not re.fullmatch(r"-?\d+", key) or not -len(items) <= int(key) < len(items):
            expected = f"{before} is a list of {len(items)}, expected an index into it"
            raise InputError(f"command line: {dotted(keys)}: {expected}, got {key!r}")
        items[int(key)] = _set(items[int(key)], keys, depth + 1, value, root)
        return Located(items, node.origin)
    if not isinstance(node.value, dict):
        raise InputError(f"command line: {dotted(keys)}: {before} is {node.value!r}, which has no keys ({node.origin})")
    mapping = dict(node.value)
    mapping[key] = _set(mapping.get(key), keys, depth + 1, value, root)
    return Located(mapping, node.origin)


def _referenced(node: Located, root: Located) -> Located:
    """What a node that is one ``${key.path}`` stands for, so that an override can change a part of it there alone."""
    seen: set[str] = set()
    while isinstance(node.value, str) and (match := re.fullmatch(r"\$\{([^${}:]+)\}", node.value)):
        target: Located | None = root
        for key in match[1].split("."):
            members = target.value if target is not None else None
            if isinstance(members, list):
                members = {str(index): member for index, member in enumerate(members)}
            target = members.get(key) if isinstance(members, dict) else None
        if target is None or match[1] in seen:
            return node
        seen.add(match[1])
        node = target
    return node


def _flatten(node: Located, path: KeyPath, origins: dict[KeyPath, Origin]) -> Any:
    """The plain values of a tree; ``origins`` gets where each was written. ``_delete_`` has done its work and goes."""
    origins[path] = node.origin
    if isinstance(node.value, dict):
        items = node.value.items()
        return {key: _flatten(value, (*path, key), origins) for key, value in items if key != "_delete_"}
    if isinstance(node.value, list):
        return [_flatten(value, (*path, index), origins) for index, value in enumerate(node.value)]
    return node.value


def _interpolate(recipe: Recipe) -> dict[str, Any]:
    """Replaces every ``${...}``; all that fail are reported together."""
    written = [(path, text) for path, text in _strings(recipe.values) if "${" in text]
    if not written:
        return recipe.values
    failures = [(path, text, _why_malformed(text)) for path, text in written]
    if not any(reason for *_, reason in failures):
        config = OmegaConf.create(recipe.values)
        failures = [(path, text, _why_unresolved(config, path)) for path, text in written]
    problems = [Problem(path, f"cannot interpolate {text!r}: {reason}") for path, text, reason in failures if reason]
    if problems:
        raise InputError(report(f"recipe {recipe.name}", problems, recipe.where))
    values: Any = OmegaConf.to_container(config, resolve=True)
    return values


def _why_malformed(text: str) -> str | None:
    if re.search(r"\\\$\{|\$\{[^}]*:", text):
        return "only the value of a key can be, as in ${data.root}"
    try:
        OmegaConf.create([text])
    except OmegaConfBaseException as error:
        return str(error).splitlines()[0]
    return None


def _why_unresolved(config: Any, path: KeyPath) -> str | None:
    try:
        for key in path:
            config = config[key]
        if OmegaConf.is_config(config):
            OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        return re.sub(r"^\w+ raised while resolving interpolation: ", "", str(error).splitlines()[0])
    return None


def _strings(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, child in value.items():
            yield from _strings(child, (*path, key))
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from _strings(child, (*path, index))
