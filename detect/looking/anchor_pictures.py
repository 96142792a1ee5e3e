"""Pictures of what a dense head's anchors or points become for given objects: positive, negative or ignored.

The head itself assigns and samples, as its loss does. Nothing of this depends on weights, so none are read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn

from detect.config import Config, as_config, build_augment, build_model
from detect.data import train_index
from detect.looking.dry_run import blank_image, dry_run
from detect.models.prior_roles import IGNORED, NEGATIVE_ROLE, OUTSIDE, POSITIVE_ROLE, PriorRoles, TellsRoles
from detect.predicting.files import picture_paths
from dpipe.coco import CocoIndex
from dpipe.errors import InputError
from dpipe.files import check_writable
from dpipe.loader import DetectionLoader
from dpipe.looking.draw import draw_caption, draw_instances
from dpipe.looking.preview import write_image
from dpipe.plan import Size
from dpipe.policy import Augment
from dpipe.target import Target, make_target

PANEL_WIDTH, PANEL_HEIGHT, GAP, COLUMNS = 640, 640, 8, 3
BACKGROUND = 18
# Of Okabe and Ito's palette: told apart with any kind of colour vision.
POSITIVE_COLOUR, NEGATIVE_COLOUR, IGNORED_COLOUR = (86, 180, 233), (213, 94, 0), (240, 228, 66)
LEGEND = "blue: positive (pale: not sampled); orange: negative, if sampled; yellow: ignored (centres)"


@dataclass(frozen=True)
class Counts:
    """How many priors are what, of one level or of all.

    Attributes:
        positive: Those that are an object's.
        positive_sampled: Those of them that the loss looks at.
        negative: Background.
        negative_sampled: Those of them that the loss looks at.
        ignored: Neither.
        outside: Not assigned, as they reach beyond the border.
    """

    positive: int
    positive_sampled: int
    negative: int
    negative_sampled: int
    ignored: int
    outside: int

    def __str__(self) -> str:
        """In words."""
        told = [
            _sampled("positive", self.positive, self.positive_sampled),
            _sampled("negative", self.negative, self.negative_sampled),
            f"{self.ignored} ignored",
        ]
        return ", ".join([*told, f"{self.outside} beyond the border"] if self.outside else told)


def draw_anchors(
    config: Config | str | Path,
    images: Sequence[str | Path],
    out: str | Path,
    *,
    annotations: str | Path | None = None,
    console: Console | None = None,
) -> list[Counts]:
    """Draws a picture for each image: its objects, and what each level's anchors or points are to them.

    Images are resized as the recipe's ``test_transforms`` say, and sampling begins with the recipe's seed for each.

    Args:
        config: The recipe, or its file, or the name of a shipped one.
        images: Image files that the annotations name.
        out: The folder of the pictures, which have the images' names.
        annotations: COCO JSON; the recipe's training set where not given.
        console: Gets a line for each image.

    Returns:
        What all levels together have, for each image.

    Raises:
        InputError: If an image is not in the annotations or cannot be used, the folder cannot be written, or the
            model's dense head does not tell what its priors become.
    """
    config = as_config(config)
    paths, out = [Path(image) for image in images], Path(out)
    index = train_index(config) if annotations is None else CocoIndex.load(annotations)
    numbers = _find(index, paths)
    check_writable(out)
    pictures = picture_paths(paths, out)
    model = build_model(config, len(index.class_names), pretrained=False).eval()
    head = _dense_head(model)
    grids: dict[Size, list[Size]] = {}
    counts = []
    for path, (number, root), picture in zip(paths, numbers, pictures, strict=True):
        image, target, divisor = _sample(config, index, number, root)
        if target.size not in grids:
            grids[target.size] = _grid_sizes(model, head, target.size, divisor)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.train.seed)
            roles = cast(TellsRoles, head).prior_roles(grids[target.size], target)
        counts.append(count_roles(roles))
        missed = len(target.boxes) - len(roles.gt_indices[roles.roles == POSITIVE_ROLE].unique())
        total = f"{counts[-1]}; {missed} of {len(target.boxes)} objects have no positive"
        write_image(picture, _picture(image, target, roles, len(grids[target.size]), index.class_names, total))
        if console is not None:
            console.print(f"{path}: {total} -> {picture}")
    return counts


def count_roles(roles: PriorRoles, level: int | None = None) -> Counts:
    """Counts the priors of one level, or of all."""
    chosen = torch.ones_like(roles.sampled) if level is None else roles.levels == level

    def count(role: int, also: Tensor | None = None) -> int:
        found = chosen & (roles.roles == role)
        return int((found if also is None else found & also).sum())

    return Counts(
        count(POSITIVE_ROLE),
        count(POSITIVE_ROLE, roles.sampled),
        count(NEGATIVE_ROLE),
        count(NEGATIVE_ROLE, roles.sampled),
        count(IGNORED),
        count(OUTSIDE),
    )


def _sampled(name: str, count: int, sampled: int) -> str:
    return f"{count} {name}" if count == sampled else f"{count} {name} ({sampled} sampled)"


def _find(index: CocoIndex, paths: Sequence[Path]) -> list[tuple[int, Path]]:
    """For each image its number in the index, and the folder that the index's name for it is relative to.

    Raises:
        InputError: If there is no such file, or the index does not name it.
    """
    numbers = {name: number for number, name in enumerate(index.file_names)}
    found = []
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path}: no such image file")
        absolute = path.absolute()
        for start in range(1, len(absolute.parts)):  # the longest name first: it says most
            number = numbers.get("/".join(absolute.parts[start:]))
            if number is not None:
                found.append((number, Path(*absolute.parts[:start])))
                break
        else:
            raise InputError(f"{path}: {index.path} has no image of that name")
    return found


def _dense_head(model: nn.Module) -> nn.Module:
    for name in ("rpn_head", "bbox_head"):
        head = getattr(model, name, None)
        if isinstance(head, TellsRoles):
            return cast(nn.Module, head)
        if head is not None:
            raise InputError(f"a {type(head).__name__} does not tell what its anchors become (it has no prior_roles)")
    raise InputError(f"a {type(model).__name__} has no dense head: expected an rpn_head or a bbox_head")


def _sample(config: Config, index: CocoIndex, number: int, root: Path) -> tuple[NDArray[np.uint8], Target, int]:
    """An image (h, w, 3) RGB as the recipe resizes it, its target, and what it is padded to multiples of."""
    augment = build_augment(config, train=False)
    loader = DetectionLoader(
        index, root, augment=Augment(augment.operations), backend="opencv", shuffle=False, threads=1, prefetch=1
    )
    try:
        plan = loader.plan(number, 0)
        (made,) = loader.backend.stream([[plan]])
    finally:
        loader.close()
    target = make_target(index, plan, config.data.boxes_from, config.data.min_size)
    return np.ascontiguousarray(made.images[0].permute(1, 2, 0).numpy()), target, augment.size_divisor


class _HeadReachedError(Exception):
    """Ends a run of the model where its dense head begins; holds what the head reads."""


def _grid_sizes(model: nn.Module, head: nn.Module, size: Size, divisor: int) -> list[Size]:
    """(H, W) of each level that the head reads of an image of this size."""
    images, target = blank_image(size, divisor)

    def stop(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        raise _HeadReachedError(inputs[0])

    handle = head.register_forward_pre_hook(stop)
    try:
        with dry_run(model):
            model(images, [target])
    except _HeadReachedError as reached:
        return [(level.shape[2], level.shape[3]) for level in reached.args[0]]
    finally:
        handle.remove()
    raise InputError(f"the model does not call its {type(head).__name__}")


def _picture(
    image: NDArray[np.uint8],
    target: Target,
    roles: PriorRoles,
    num_levels: int,
    class_names: Sequence[str],
    total: str,
) -> NDArray[np.uint8]:
    """The objects, then a panel for each level."""
    height, width = image.shape[:2]
    scale = min(PANEL_WIDTH / width, PANEL_HEIGHT / height)
    fitted = cv2.resize(
        image,
        (max(1, round(width * scale)), max(1, round(height * scale))),
        interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR,
    )
    sides = np.array([fitted.shape[1] / width, fitted.shape[0] / height])
    objects = draw_instances(
        fitted.astype(np.uint8, copy=False),
        target.boxes.numpy() * np.tile(sides, 2),
        target.labels.numpy(),
        class_names,
        ignore_boxes=target.ignore_boxes.numpy() * np.tile(sides, 2),
    )
    panels = [_framed(objects, [f"{Path(target.file_name).name}: {len(target.boxes)} objects", LEGEND])]
    grey = cv2.cvtColor(cv2.cvtColor(fitted, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)  # so that colours are the priors'
    faded = (grey // 2 + 30).astype(np.uint8)
    for level in range(num_levels):
        drawn = _draw_level(faded, target, roles, level, sides)
        counted = count_roles(roles, level)
        panels.append(_framed(drawn, [f"level {level}: {int((roles.levels == level).sum())} in all", str(counted)]))
    sheet = _arrange(panels)
    return np.concatenate([sheet, draw_caption(sheet.shape[1], [f"all levels: {total}"], size=14)])


def _draw_level(
    faded: NDArray[np.uint8], target: Target, roles: PriorRoles, level: int, sides: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """The level's priors: negatives, ignored ones, and positives over them; on top the objects' boxes in white.

    Anchors are drawn as boxes with their centres, ignored ones, often hundreds that overlap, as their centres alone.
    """
    canvas = faded.copy()
    of_level = roles.levels == level
    # Dots of a size that leaves room between those of neighbouring cells, which may be as many as the pixels.
    gap = math.sqrt(canvas.shape[0] * canvas.shape[1] / max(int(of_level.sum()), 1))
    large = min(max(round(gap / 5), 1), 5)
    ways = (
        (NEGATIVE_ROLE, True, NEGATIVE_COLOUR, 0.9, large // 2),
        (IGNORED, False, IGNORED_COLOUR, 0.9, large),
        (POSITIVE_ROLE, False, POSITIVE_COLOUR, 0.4, large),
        (POSITIVE_ROLE, True, POSITIVE_COLOUR, 1.0, large),
    )
    for role, sampled, colour, opacity, radius in ways:
        chosen = of_level & (roles.roles == role) & (roles.sampled == sampled)
        priors = roles.priors[chosen].numpy()
        boxed = priors.shape[1] == 4 and role != IGNORED
        layer = canvas.copy()
        for prior in (priors * np.tile(sides, priors.shape[1] // 2)).tolist():
            if boxed:
                corners = [round(edge) for edge in prior]
                thickness = 2 if role == POSITIVE_ROLE else 1
                cv2.rectangle(layer, tuple(corners[:2]), tuple(corners[2:]), colour, thickness)
            centre = [round((a + b) / 2) for a, b in zip(prior[:2], prior[-2:], strict=True)]
            cv2.circle(layer, tuple(centre), radius, colour, -1)
        canvas = cv2.addWeighted(layer, opacity, canvas, 1 - opacity, 0.0).astype(np.uint8)
    for box in np.rint(target.boxes.numpy() * np.tile(sides, 2)).astype(int).tolist():
        cv2.rectangle(canvas, tuple(box[:2]), tuple(box[2:]), (255, 255, 255), 1)
    return canvas


def _framed(panel: NDArray[np.uint8], lines: Sequence[str]) -> NDArray[np.uint8]:
    framed = np.full((len(panel), PANEL_WIDTH, 3), BACKGROUND, dtype=np.uint8)
    left = (PANEL_WIDTH - panel.shape[1]) // 2
    framed[:, left : left + panel.shape[1]] = panel
    return np.concatenate([framed, draw_caption(PANEL_WIDTH, lines)])


def _arrange(panels: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Panels of one size in rows."""
    columns = min(COLUMNS, len(panels))
    height, width = panels[0].shape[:2]
    rows = math.ceil(len(panels) / columns)
    sheet = np.full((rows * (height + GAP), columns * (width + GAP) - GAP, 3), BACKGROUND, dtype=np.uint8)
    for number, panel in enumerate(panels):
        top, left = number // columns * (height + GAP), number % columns * (width + GAP)
        sheet[top : top + height, left : left + width] = panel
    return sheet
