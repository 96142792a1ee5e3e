"""Names of parts to classes: what the ``type:`` of a recipe may say.

A name is that of a registered class, or a dotted path to a class of one's own. The latter, and a recipe's
``custom_imports``, run Python code that the recipe names, found among installed packages, in the folder of the
recipe's file and in the current one: a recipe with either of them deserves the trust that its code does. Classes of the
standard library are refused under whatever name they can be imported. Nothing else in a recipe runs code.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from dpipe.building.problems import KeyPath, Problem, nearest
from dpipe.errors import InputError

T = TypeVar("T", bound=type)


class Registry:
    """Maps type names to classes.

    Args:
        kind: What the classes are, for messages.
        homes: Modules, or packages with all their modules, that register the classes; imported at the first look-up.
        bases: Dotted paths of classes, of one of which a class that is named by a dotted path must be; any will do
            without them.
    """

    def __init__(self, kind: str, homes: Sequence[str] = (), bases: Sequence[str] = ()) -> None:
        self.kind = kind
        self.homes = tuple(homes)
        self.bases = tuple(bases)
        self._classes: dict[str, type] = {}
        self._homes_imported = False

    def register(self, cls: T) -> T:
        """Registers a class under its own name; used as a decorator.

        Raises:
            InputError: If another class has that name already.
        """
        known = self._classes.get(cls.__name__)
        if known is not None and _full_name(known) != _full_name(cls):
            raise InputError(f"two {self.kind}s are named {cls.__name__}: {_full_name(known)} and {_full_name(cls)}")
        self._classes[cls.__name__] = cls
        return cls

    def names(self) -> list[str]:
        """The registered names, sorted."""
        self._import_homes()
        return sorted(self._classes)

    def get(self, name: str) -> type:
        """The class that a recipe's ``type:`` names.

        Args:
            name: A registered name, or ``package.module.Class``.

        Raises:
            InputError: If there is no such class; the message has the nearest name.
        """
        self._import_homes()
        if name in self._classes:
            return self._classes[name]
        module_name, _, class_name = name.rpartition(".")
        if not module_name:
            raise InputError(f"unknown {self.kind} {name!r}{nearest(name, self._classes)}")
        if not _is_standard(module_name):  # checked before anything is imported, and again for what was re-exported
            cls = getattr(import_module(module_name), class_name, None)
            if not isinstance(cls, type):
                raise InputError(f"module {module_name!r} has no class {class_name!r}")
            if not _is_standard(cls.__module__):
                self._check_base(cls)
                return cls
        raise InputError(f"{name!r} is in Python's standard library, which holds no {self.kind}s")

    def _check_base(self, cls: type) -> None:
        bases = [base.rpartition(".") for base in self.bases]
        if bases and not issubclass(cls, tuple(getattr(import_module(home), name) for home, _, name in bases)):
            expected = " or ".join(name for _, _, name in bases)
            raise InputError(f"{_full_name(cls)} is no {self.kind}: expected a subclass of {expected}")

    def check(self, node: Any, path: KeyPath = ()) -> list[Problem]:
        """All problems of a part as a recipe has it, see :func:`dpipe.building.build.check`."""
        from dpipe.building.build import check  # pydantic is heavy, and classes register long before one is built

        return check(self, node, path)

    def build(
        self,
        node: Mapping[str, Any],
        context: Mapping[str, Any] | None = None,
        path: KeyPath = (),
        where: Callable[[KeyPath], str] | None = None,
    ) -> Any:
        """Builds a part as a recipe has it, see :func:`dpipe.building.build.build`."""
        from dpipe.building.build import build

        return build(self, node, context, path, where)

    def _import_homes(self) -> None:
        if self._homes_imported:
            return
        for home in self.homes:
            module = importlib.import_module(home)
            for found in pkgutil.walk_packages(getattr(module, "__path__", []), f"{home}."):
                importlib.import_module(found.name)
        self._homes_imported = True


def import_module(name: str) -> ModuleType:
    """Imports a module that a recipe names, from installed packages, the recipe's folder or the current one.

    Raises:
        InputError: If it is the standard library's, cannot be found, or fails while it is imported.
    """
    if not all(part.isidentifier() for part in name.split(".")):
        raise InputError(f"{name!r} is not the dotted name of a module")
    if _is_standard(name):
        raise InputError(f"{name!r} is in Python's standard library: a recipe names modules of its own")
    folders = list(dict.fromkeys([*_recipe_folders, os.getcwd()]))
    sys.path += [folder for folder in folders if folder not in sys.path]
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # a script that is no module may end the program
        reason = " ".join(str(error).split())
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            reason += f" among installed packages, in {' or in '.join(folders)}"
        what = "" if isinstance(error, ModuleNotFoundError | InputError) else f"{type(error).__name__}: "
        raise InputError(f"cannot import {name!r}: {what}{reason}{_line(error)}") from error


def _line(error: BaseException) -> str:
    """The file and line of a module that an error stopped, as it has no traceback in a report of problems."""
    importing = (__file__, importlib.__file__)
    frames = traceback.extract_tb(error.__traceback__)
    ran = [frame for frame in frames if frame.filename not in importing and "<" not in frame.filename]
    return f" ({ran[-1].filename}:{ran[-1].lineno})" if ran else ""


_recipe_folders: list[str] = []


def search_beside(recipe: Path | None) -> None:
    """Has modules found in the folder of a recipe's file as well, until the next recipe is read; None for no folder."""
    _recipe_folders[:] = [] if recipe is None else [str(recipe.parent.resolve())]


def _is_standard(module_name: str) -> bool:
    return module_name.partition(".")[0] in sys.stdlib_module_names


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


TRANSFORMS = Registry(
    "transform",
    homes=[
        "dpipe.operations.geometric",
        "dpipe.operations.cropping",
        "dpipe.operations.colours",
        "dpipe.operations.albumentations_op",
        "dpipe.policy",
    ],
    bases=["dpipe.operations.operation.Operation", "dpipe.policy.Normalize", "dpipe.policy.Pad"],
)
