"""Pixel-level transforms of the library albumentations, by name, as one more photometric operation."""

from __future__ import annotations

import difflib
import inspect
import os
import random
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
from pydantic import ValidationError

from dpipe.building.annotations import explain
from dpipe.building.problems import nearest, shorten
from dpipe.errors import InputError
from dpipe.operations.operation import Operation
from dpipe.plan import Draft
from dpipe.registry import TRANSFORMS

GROUPS = ("OneOf", "RandomOrder", "Sequential", "SomeOf")
"""Names of albumentations' groups of transforms."""

TRIAL_SIZE = (128, 160)


@TRANSFORMS.register
@dataclass(frozen=True)
class Albumentations(Operation):
    """Applies pixel-level transforms of albumentations (https://albumentations.ai, release 2.0.8), one after another.

    They act on the output pixels, in order with the other photometric ones, see ``dpipe.operations.colours``. Only what
    leaves boxes and masks where they are can be named (albumentations' ``ImageOnlyTransform``: noise, blur,
    compression, weather, colours ...), and what makes uint8 RGB of the same size of it. The OpenCV backend alone runs
    them.

    What they draw is a function of the loader's seed, the epoch and the sample, as everything in a plan.

    Args:
        transforms: A mapping for each: ``type``, its name in albumentations; ``p``, the chance that it is applied, 0.5
            where not given; and its other arguments. ``OneOf``, ``SomeOf``, ``RandomOrder`` and ``Sequential`` group
            transforms, given as their own ``transforms``.

    Raises:
        InputError: For an unknown name or argument, a value that albumentations refuses, a transform that is not
            pixel-level, and one that cannot make uint8 RGB of uint8 RGB.
    """

    transforms: Sequence[Mapping[str, Any]]
    _pipelines: _Pipelines = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.transforms, list | tuple) or not self.transforms:
            raise InputError(f"Albumentations: transforms must be a list of mappings, got {shorten(self.transforms)}")
        for number, transform in enumerate(self.transforms):
            _check(transform, f"Albumentations: transform {number}")
        object.__setattr__(self, "_pipelines", _Pipelines(self.transforms))

    def apply(self, draft: Draft) -> None:
        """See the class."""
        draft.photometric.append(AlbumentationsStep(self._pipelines, int(draft.rng.integers(2**63))))


@dataclass(frozen=True)
class AlbumentationsStep:
    """A step of a plan: the transforms of one ``Albumentations``, with the seed that they draw from.

    Args:
        pipelines: Runs the transforms.
        seed: Of all that they draw; the result is a function of it and of the image.
    """

    pipelines: Callable[[np.ndarray, int], np.ndarray]
    seed: int

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Returns the transformed image.

        Args:
            image: (H, W, 3) uint8 RGB; not changed.

        Returns:
            (H, W, 3) uint8 RGB.

        Raises:
            InputError: If a transform fails on this image, or makes something else of it.
        """
        return self.pipelines(image, self.seed)


class _Pipelines:
    """Copies of one list of transforms, as many as threads run at a time: each holds random state while it runs."""

    def __init__(self, transforms: Sequence[Mapping[str, Any]]) -> None:
        self.transforms = transforms
        self.idle: deque[Any] = deque()

    def __call__(self, image: np.ndarray, seed: int) -> np.ndarray:
        try:
            pipeline = self.idle.pop()
        except IndexError:
            pipeline = _library().Compose([_build(transform) for transform in self.transforms])
        # One stream for all: set_random_seed would give each transform the same numbers.
        pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
        result = _run(pipeline, image, f"Albumentations ({', '.join(each['type'] for each in self.transforms)})")
        self.idle.append(pipeline)
        return result

    def __reduce__(self) -> tuple[type[_Pipelines], tuple[Sequence[Mapping[str, Any]]]]:
        return _Pipelines, (self.transforms,)


def _library() -> ModuleType:
    # It asks the network for its newest release when it is imported, unless told not to.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations

    return albumentations


def _run(transform: Callable[..., Mapping[str, Any]], image: np.ndarray, name: str) -> np.ndarray:
    try:
        result = transform(image=image)["image"]
    except Exception as error:  # whatever a transform of another library raises
        size = f"{image.shape[1]}x{image.shape[0]}"
        raise InputError(f"{name}: fails on an image of {size} pixels: {' '.join(str(error).split())}") from error
    if result.dtype != np.uint8 or result.shape != image.shape:
        made = f"{result.dtype} of shape {result.shape}"
        raise InputError(f"{name}: makes {made} of an image of shape {image.shape}, expected uint8 of that shape")
    return np.ascontiguousarray(result)


def _build(transform: Mapping[str, Any]) -> Any:
    """A transform or a group that ``_check`` has found right, built."""
    arguments = {name: value for name, value in transform.items() if name != "type"}
    if transform["type"] in GROUPS:
        arguments["transforms"] = [_build(inner) for inner in arguments["transforms"]]
    return getattr(_library(), transform["type"])(**arguments)


def _check(transform: Any, where: str) -> None:
    """Raises an InputError for whatever is wrong with a transform or a group."""
    if not isinstance(transform, Mapping) or not isinstance(transform.get("type"), str):
        raise InputError(f"{where}: expected a mapping with `type`, the name of a transform, got {shorten(transform)}")
    name = transform["type"]
    where = f"{where}, {name}"
    cls = _find(name, where)
    known = {key for key in inspect.signature(cls).parameters if key not in ("always_apply", "kwargs")}
    # Albumentations itself would only warn.
    for argument in transform:
        if argument != "type" and argument not in known:
            raise InputError(f"{where}: unknown argument {argument!r}{nearest(argument, known)}")
    if name in GROUPS:
        _check_group(transform, where)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # it changes what does not suit it, and only warns
            _build(transform)
        trial = None if name in GROUPS else _build({**transform, "p": 1.0})
    except Exception as error:  # whatever a constructor of another library raises
        raise InputError(f"{where}: {_reason(error)}") from error
    if trial is not None:
        trial.set_random_seed(0)
        rng = np.random.default_rng(0)
        _run(trial, rng.integers(0, 256, (*TRIAL_SIZE, 3), dtype=np.uint8), where)


def _check_group(transform: Mapping[str, Any], where: str) -> None:
    members = transform.get("transforms")
    if not isinstance(members, list | tuple) or not members:
        raise InputError(f"{where}: needs transforms, a list of mappings, got {shorten(members)}")
    for number, member in enumerate(members):
        _check(member, f"{where}, transform {number}")
    # Albumentations does not check these.
    chance, count = transform.get("p", 1), transform.get("n", 1)
    if not isinstance(chance, int | float) or not 0 <= chance <= 1:
        raise InputError(f"{where}: p must lie in 0..1, got {shorten(chance)}")
    if not isinstance(count, int) or count < 1:
        raise InputError(f"{where}: n must be an integer above 0, got {shorten(count)}")
    if transform["type"] != "Sequential" and not any(member.get("p", 1) for member in members):
        raise InputError(f"{where}: draws transforms in proportion to their p, which are all 0")


def _find(name: str, where: str) -> type:
    library = _library()
    if name in GROUPS:
        return getattr(library, name)
    pixel_level = {
        key: value
        for key, value in vars(library).items()
        if inspect.isclass(value)
        and issubclass(value, library.ImageOnlyTransform)
        and value is not library.ImageOnlyTransform
    }
    if name in pixel_level:
        return pixel_level[name]
    found = getattr(library, name, None)
    if inspect.isclass(found) and issubclass(found, library.BasicTransform):
        raise InputError(
            f"{where}: changes boxes and masks too, or moves pixels: use dpipe's own operations for that, "
            "such as Rotate, Resize, RandomCrop and RandomFlip"
        )
    close = difflib.get_close_matches(name, [*pixel_level, *GROUPS], n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise InputError(f"{where}: albumentations has no pixel-level transform of that name{hint}")


def _reason(error: Exception) -> str:
    """What a constructor finds wrong, in one line."""
    cause = error if isinstance(error, ValidationError) else error.__cause__ or error.__context__
    if not isinstance(cause, ValidationError):
        return " ".join(str(error).split())
    # A value may fit no member of a union: the first says enough.
    found = {each["loc"][0] if each["loc"] else "": each for each in reversed(cause.errors(include_url=False))}
    said = {name: "missing" if each["type"] == "missing" else explain(each) for name, each in found.items()}
    return "; ".join(f"{name}: {text.removeprefix('value error, ')}" for name, text in said.items())
