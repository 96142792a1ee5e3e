"""Recipes of the trainer: what a recipe may say, checked whole before anything heavy starts.

``load_config`` reads a recipe (``dpipe.recipes``: ``_base_``, overrides, interpolation), imports what
``custom_imports`` names, and checks the sections below and the constructors of every part that a ``type:`` names. All
problems come in one report. Paths to data are relative to the current directory, as in a shell.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import Field, PrivateAttr, ValidationError

from detect.registry import MODELS
from detect.sections.evaluation import Evaluation
from detect.sections.optimizer import TYPES, Optimizer, Schedule
from detect.sections.section import Count, NotNegative, Section
from detect.sections.training import Train
from dpipe.building.annotations import explain
from dpipe.building.problems import KeyPath, Problem, nearest, report, shorten
from dpipe.errors import InputError
from dpipe.recipes import Recipe, dump_yaml, load_recipe
from dpipe.registry import TRANSFORMS, import_module

if TYPE_CHECKING:
    from torch import nn

    from dpipe.policy import Augment


class DataSet(Section):
    """One data set.

    Attributes:
        annotations: COCO JSON.
        images: The folder that ``file_name`` in the JSON is relative to.
    """

    annotations: str
    images: str


class TrainSet(DataSet):
    """The data that training reads.

    Attributes:
        further: Data sets that are learned from as well, with the same classes in the same order.
        repeat: How often an epoch shows each image.
        filter_empty: Leave out images that have no object.
    """

    further: list[DataSet] = Field(default_factory=list)
    repeat: Count = 1
    filter_empty: bool = False


class ValSet(DataSet):
    """The data that evaluation reads: every image, once."""


class Data(Section):
    """Where the data is, and how it becomes batches.

    Attributes:
        root: The folder of the data set, for ``${data.root}`` in the paths below.
        train: What training reads.
        val: What evaluation reads.
        classes: The class names in order; ``null`` takes those of the training JSON.
        batch_size: Images a device and iteration.
        backend: ``opencv`` on the CPU, ``dali`` on the GPU; ``auto`` takes DALI where there is a GPU.
        threads: Decoding threads of each process; ``null`` shares the machine's cores evenly between its processes.
        prefetch: Batches prepared ahead; ``null`` takes as many as keep all threads busy, at least 2, and 3 where DALI
            prepares them on the GPU.
        group_by_aspect: Put portrait and landscape images in separate batches, which saves padding.
        boxes_from: Boxes of transformed polygons (tight) or of transformed box corners (as other toolkits).
        min_size: Objects thinner than this many output pixels are dropped in training.
        on_bad_sample: What to do about an image that cannot be used: ``fail`` ends the run; ``skip`` trains and
            evaluates without it, and tells so.
        train_transforms: Transforms of ``dpipe``, in order: operations, then ``Normalize``, then ``Pad``.
        test_transforms: The same for evaluation and prediction.
    """

    root: str | None = None
    train: TrainSet
    val: ValSet
    classes: Annotated[list[str], Field(min_length=1)] | None = None
    batch_size: Count = 1
    backend: Literal["auto", "opencv", "dali"] = "auto"
    threads: Count | None = None
    prefetch: Count | None = None
    group_by_aspect: bool = True
    boxes_from: Literal["polygons", "corners"] = "polygons"
    min_size: NotNegative = 1.0
    on_bad_sample: Literal["fail", "skip"] = "fail"
    train_transforms: list[dict[str, Any]]
    test_transforms: list[dict[str, Any]]


class Config(Section):
    """A whole recipe, resolved and checked.

    Attributes:
        custom_imports: Modules that are imported first, so that the parts they register can be named.
        model: The detector, a part (see ``dpipe.building.build``).
        data: See :class:`Data`.
        optimizer: See ``detect.sections.optimizer``.
        schedule: See ``detect.sections.optimizer``.
        train: See ``detect.sections.training``.
        evaluation: See :class:`Evaluation`.
    """

    custom_imports: list[str] = Field(default_factory=list)
    model: dict[str, Any]
    data: Data
    optimizer: Optimizer
    schedule: Schedule
    train: Train
    evaluation: Evaluation = Field(default_factory=Evaluation)

    _recipe: Recipe = PrivateAttr()

    @property
    def recipe(self) -> Recipe:
        """What the configuration was read from."""
        return self._recipe

    def to_yaml(self) -> str:
        """The recipe with everything inherited, interpolated or left to defaults written out; it loads to the same."""
        return dump_yaml(self.model_dump(mode="json"))


def load_config(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads and checks a recipe.

    Args:
        name_or_path: A recipe's file, or the name of a shipped one, with or without ``.yaml``.
        overrides: ``key.path=value``, the value in YAML; applied last.

    Returns:
        The recipe, with defaults filled in.

    Raises:
        InputError: With one line for a recipe that cannot be read, or a report of all problems in what it says.
    """
    recipe = load_recipe(name_or_path, overrides)
    values = recipe.values
    problems = _check_imports(values.get("custom_imports"))
    try:
        config = Config.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        problems += _section_problems(error)
    if isinstance(values.get("model"), dict):
        problems += MODELS.check(values["model"], ("model",))
    for path, transform in _transforms(values):
        problems += _check_transform(transform, path)
    problems += _check_normalize(values)
    if problems:
        raise InputError(report(f"recipe {recipe.name}", problems, recipe.where))
    config._recipe = recipe
    return config


def as_config(config: Config | str | Path) -> Config:
    """A recipe: what was given, or what :func:`load_config` reads."""
    return config if isinstance(config, Config) else load_config(config)


def build_model(config: Config, num_classes: int, *, pretrained: bool = True) -> nn.Module:
    """Builds the recipe's model.

    Args:
        config: The recipe.
        num_classes: How many classes the data has.
        pretrained: False leaves out what ``pretrained`` names anywhere in the model, and need not find it: a checkpoint
            of the whole model follows.

    Raises:
        InputError: If a part refuses its arguments; the message names the part's key path. Or if heads that say
            themselves how many classes they have do not fit the data.
    """
    node = config.model if pretrained else _without_pretrained(config.model)
    context = {"num_classes": num_classes, "pad_divisor": _pad_divisor(config.data.train_transforms)}
    model: nn.Module = MODELS.build(node, context, ("model",), config.recipe.where)
    for key in ("roi_head", "bbox_head"):
        told = getattr(getattr(model, key, None), "num_classes", num_classes)
        if told != num_classes and key in config.model:
            where = config.recipe.where(("model", key))
            raise InputError(f"{where}: model.{key}: has num_classes {told}, but the data has {num_classes} classes")
    return model


def build_augment(config: Config, train: bool) -> Augment:
    """Builds the recipe's transforms: those of training, or those of evaluation and prediction.

    Raises:
        InputError: If they are in an order that makes no sense, such as operations after ``Normalize``.
    """
    from dpipe.policy import Augment

    key = "train_transforms" if train else "test_transforms"
    try:
        return Augment(config.data.train_transforms if train else config.data.test_transforms)
    except InputError as error:
        raise InputError(f"{config.recipe.where(('data', key))}: data.{key}: {error}") from error


def _pad_divisor(transforms: list[dict[str, Any]]) -> int:
    """What the height and width of each image alone are padded to a multiple of, 1 without ``Pad``."""
    from dpipe.policy import Pad

    is_padded = bool(transforms) and TRANSFORMS.get(transforms[-1]["type"]) is Pad
    return TRANSFORMS.build(transforms[-1]).size_divisor if is_padded else 1


def _without_pretrained(node: Any) -> Any:
    if isinstance(node, dict):
        return {
            key: _unnamed(value) if key == "pretrained" else _without_pretrained(value) for key, value in node.items()
        }
    return [_without_pretrained(value) for value in node] if isinstance(node, list) else node


def _unnamed(pretrained: Any) -> Any:
    """What says that no weights are wanted: ``null`` where a name stands, ``false`` where a part asks for yes or no."""
    if isinstance(pretrained, bool):
        return False
    return None if isinstance(pretrained, str) else _without_pretrained(pretrained)


def _check_imports(modules: Any) -> list[Problem]:
    """Imports what a recipe asks for; values of a wrong type are left to the schema."""
    problems = []
    for index, module in enumerate(modules if isinstance(modules, list) else []):
        if isinstance(module, str):
            try:
                import_module(module)
            except InputError as error:
                problems.append(Problem(("custom_imports", index), str(error)))
    return problems


def _transforms(values: dict[str, Any]) -> list[tuple[KeyPath, Any]]:
    """The transforms with their key paths, as far as they are where they belong."""
    data = values.get("data")
    return [
        (("data", key, index), transform)
        for key in ("train_transforms", "test_transforms")
        if isinstance(data, dict) and isinstance(data.get(key), list)
        for index, transform in enumerate(data[key])
        if isinstance(transform, dict)
    ]


def _check_transform(transform: dict[str, Any], path: KeyPath) -> list[Problem]:
    """Checks a transform. Those of this toolkit are light enough to be built for it, which checks the values too."""
    problems = TRANSFORMS.check(transform, path)
    if not problems and not _names_own_class(transform):
        try:
            TRANSFORMS.build(transform)
        except InputError as error:
            problems.append(Problem(path, str(error)))
    return problems


def _names_own_class(node: Any) -> bool:
    """Whether a class of the user's own is named by its dotted path anywhere in a part."""
    if isinstance(node, dict):
        return "." in str(node.get("type", "")) or any(map(_names_own_class, node.values()))
    return isinstance(node, list) and any(map(_names_own_class, node))


def _check_normalize(values: dict[str, Any]) -> list[Problem]:
    """Checks that images will be normalised, as models take floating-point images only."""
    types: dict[str, list[Any]] = {}
    for (_, key, _), transform in _transforms(values):
        types.setdefault(str(key), []).append(transform.get("type"))
    data = values.get("data")
    return [
        Problem(("data", key), "has no Normalize, which the model needs")
        for key in ("train_transforms", "test_transforms")
        if isinstance(data, dict) and isinstance(data.get(key), list) and not any(map(_normalizes, types.get(key, [])))
    ]


def _normalizes(type_: Any) -> bool:
    """Whether a transform's type is ``Normalize``; also where that cannot be told, which is a problem of its own."""
    from dpipe.policy import Normalize

    try:
        return not isinstance(type_, str) or issubclass(TRANSFORMS.get(type_), Normalize)
    except InputError:
        return True


def _section_problems(error: ValidationError) -> list[Problem]:
    """What pydantic found, with the nearest valid key for each that is unknown."""
    problems = []
    for found in error.errors(include_url=False):
        location: KeyPath = found["loc"]
        typed = TYPES.get(str(location[0]), {}) if location else {}
        # pydantic puts the type of a section behind its key.
        path = location[:1] + location[2:] if typed else location
        if found["type"] == "union_tag_invalid":
            got = shorten(found["input"].get("type"))
            problems.append(Problem((*path, "type"), f"expected {' or '.join(map(repr, typed))}, got {got}"))
        elif found["type"] == "extra_forbidden":
            problems.append(Problem(path, _unknown_key(location)))
        elif found["type"] == "missing":
            problems.append(Problem(path[:-1], f"the key {str(path[-1])!r} is missing"))
        else:
            problems.append(Problem(path, explain(found)))
    return problems


def _unknown_key(location: KeyPath) -> str:
    """What is wrong with a key that a section does not have."""
    key, typed = str(location[-1]), TYPES.get(str(location[0]), {})
    if len(location) == 3 and typed:
        others = [name for name, section in typed.items() if key in section.model_fields]
        if others:
            return (
                f"a key of {' and '.join(others)}, not of {location[1]}; "
                f"`_delete_: true` in {location[0]} drops what it inherits"
            )
    return f"unknown key{nearest(key, _section_at(location[:-1]).model_fields)}"


def _section_at(location: KeyPath) -> type[Section]:
    """The schema of the section at a place that pydantic tells."""
    section: type[Section] = Config
    keys = iter(location)
    for key in keys:
        if str(key) in TYPES and section is Config:
            section = TYPES[str(key)][str(next(keys))]
        elif not isinstance(key, int):
            annotation = section.model_fields[key].annotation
            section = next(kind for kind in (annotation, *get_args(annotation)) if _is_section(kind))
    return section


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)
