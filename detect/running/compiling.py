"""``torch.compile`` of what takes most of a detector's time and has no shapes that depend on the data.

Backbone and neck are compiled in place, so that weights keep their names. Heads are not: how many anchors, RoIs and
masks an image has differs from image to image, and would be compiled again and again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from detect.sections.training import Compile
from dpipe.building.problems import nearest
from dpipe.errors import InputError

PARTS = ("backbone", "neck")


def compile_parts(model: nn.Module, section: Compile) -> None:
    """Has a model's backbone and neck compiled when they are first called.

    Args:
        model: Changed in place; its weights and their names stay. Copies of it are not compiled.
        section: The recipe's ``train.compile``.

    Raises:
        InputError: If it has neither, the backend is not known, or lacks the compiler that it needs.
    """
    parts = [part for part in (getattr(model, name, None) for name in PARTS) if isinstance(part, nn.Module)]
    if not parts:
        raise InputError(f"train.compile: {type(model).__name__} has neither a backbone nor a neck to compile")
    known = torch.compiler.list_backends(exclude_tags=())
    if section.backend not in known:
        raise InputError(f"train.compile.backend: there is no {section.backend!r}{nearest(section.backend, known)}")
    compilers = (os.environ.get("CXX", "g++"), "clang++")
    if section.backend == "inductor" and not any(map(shutil.which, compilers)):
        raise InputError(f"train.compile: inductor needs a C++ compiler, but there is no {' and no '.join(compilers)}")
    for part in parts:
        part.compile(backend=section.backend, mode=section.mode, dynamic=section.dynamic)


@contextmanager
def not_compiled(section: Compile | None) -> Iterator[None]:
    """Calls compiled parts as they were before, such as in evaluation, which would compile them once more.

    Args:
        section: The recipe's ``train.compile``; nothing is to do where there is none.
    """
    if section is None:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
