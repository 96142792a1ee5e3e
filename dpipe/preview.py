"""A contact sheet of augmented samples: what a trainer will see, with the boxes and masks it is told to find."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from dpipe.coco import CocoIndex
from dpipe.colours import Brightness, Color, Contrast, Equalize
from dpipe.draw import draw_caption, draw_instances
from dpipe.errors import InputError
from dpipe.files import check_writable_file, write_whole
from dpipe.geometric import RandomFlip, Resize, Rotate, Shear, Translate
from dpipe.geometry import compose, invert, scaling
from dpipe.loader import BackendName, DetectionLoader
from dpipe.operation import Operation
from dpipe.plan import Draft, SamplePlan, Size
from dpipe.policy import Augment, AutoAugment
from dpipe.polygons import Polygons
from dpipe.problems import Problem, report
from dpipe.recipes import Recipe
from dpipe.registry import TRANSFORMS, import_module
from dpipe.target import Target

TILE_WIDTH, TILE_HEIGHT = 480, 400
GAP = 8
BACKGROUND = 18
PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")

DEFAULT_AUGMENT = Augment(
    [
        AutoAugment(
            [
                [Rotate(7.0, prob=1.0)],
                [Rotate(5.0, prob=1.0), Translate(4.0, prob=1.0)],
                [Shear(5.0, prob=1.0), Color(9.0, prob=1.0)],
                [Brightness(7.0, prob=1.0), Contrast(7.0, prob=1.0)],
                [Equalize(prob=1.0)],
                [],
            ]
        ),
        Resize((800, 600)),
        RandomFlip(0.5),
    ]
)
"""What is shown where no recipe is given: each operation in one of the policies, and one policy without any."""


def contact_sheet(
    index: CocoIndex,
    images: str | Path,
    augment: Augment = DEFAULT_AUGMENT,
    *,
    count: int = 12,
    columns: int = 4,
    seed: int = 0,
    epoch: int = 0,
    backend: BackendName = "opencv",
) -> NDArray[np.uint8]:
    """Draws samples of an epoch as a trainer is given them, but for the normalisation.

    Args:
        index: The annotations.
        images: Folder that the index's file names are relative to.
        augment: What is done to the samples.
        count: Samples, the first of the epoch's order; all where there are fewer.
        columns: Tiles in a row.
        seed: Of the order and of the augmentation.
        epoch: Of the order and of the augmentation.
        backend: See ``DetectionLoader``.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        InputError: For a number out of range, and what ``DetectionLoader`` raises.
    """
    for name, value, least in (("count", count, 1), ("columns", columns, 1), ("epoch", epoch, 0)):
        if value < least:
            raise InputError(f"{name} must be at least {least}, got {value}")
    visible = Augment(augment.operations)
    loader = DetectionLoader(
        index, images, augment=visible, backend=backend, seed=seed, group_by_aspect=False, pad_last=False
    )
    loader.set_epoch(epoch)
    try:
        tiles = []
        for batch in islice(loader, count):
            (target,) = batch.targets
            image = np.ascontiguousarray(batch.images[0].permute(1, 2, 0).numpy())
            operations = describe_operations(visible, loader.plan(target.sample, epoch), seed)
            tiles.append(_tile(image, target, index.class_names, operations))
    finally:
        loader.close()
    return _arrange(tiles, min(columns, len(tiles)))


def describe_operations(augment: Augment, plan: SamplePlan, seed: int) -> list[str]:
    """Says what was drawn for a sample, by drawing it once more.

    Args:
        augment: What the plan was drawn from.
        plan: The sample's.
        seed: That it was drawn with.

    Returns:
        A text for each operation that did something, in order: ``Rotate -21.0°``, ``Translate 100 px left`` ...
    """
    log: list[str] = []
    logging = Augment([_logged(operation, log) for operation in augment.operations])
    logging.draw(plan.source_size, seed=seed, epoch=plan.epoch, sample=plan.sample, image=plan.image)
    return log


def recipe_augment(recipe: Recipe) -> Augment:
    """Builds the augmentation that a recipe trains with.

    Args:
        recipe: Its ``data.train_transforms`` are built, after its ``custom_imports`` were imported.

    Raises:
        InputError: If they are missing or wrong; all problems are told together.
    """
    transforms = recipe.values.get("data")
    transforms = transforms.get("train_transforms") if isinstance(transforms, dict) else None
    if not isinstance(transforms, list):
        raise InputError(f"{recipe.name}: expected a list of transforms in data.train_transforms")
    for module in recipe.values.get("custom_imports") or []:
        import_module(str(module))
    problems: list[Problem] = []
    for number, transform in enumerate(transforms):
        problems += TRANSFORMS.check(transform, ("data", "train_transforms", number))
    if problems:
        raise InputError(report(recipe.name, problems, recipe.where))
    return Augment(
        [
            TRANSFORMS.build(transform, path=("data", "train_transforms", number), where=recipe.where)
            for number, transform in enumerate(transforms)
        ]
    )


def check_picture_name(path: Path) -> None:
    """Checks that a picture can be written, before it is drawn.

    Args:
        path: The picture's file.

    Raises:
        InputError: For a name that does not end in ``.png``, ``.jpg`` or ``.webp``, a folder of that name, or a folder
            around it that is missing or cannot be written.
    """
    if path.suffix.lower() not in PICTURE_ENDINGS:
        raise InputError(f"{path}: expected a name that ends in .png, .jpg or .webp")
    check_writable_file(path)


def write_image(path: Path, image: NDArray[np.uint8]) -> None:
    """Writes a picture, whole or not at all.

    Args:
        path: The picture's file, see ``check_picture_name``.
        image: (H, W, 3) uint8 RGB.

    Raises:
        InputError: For a name that cannot be used, or a picture that is too large for its format.
        OSError: If the file cannot be written.
    """
    check_picture_name(path)
    done, encoded = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not done:
        size = f"{image.shape[1]}x{image.shape[0]}"
        raise InputError(f"{path}: {size} pixels are too many for {path.suffix}: use .png, or fewer samples")
    write_whole(path, encoded.tobytes())


@dataclass(frozen=True)
class _Logged(Operation):
    """An operation that writes down what it did."""

    operation: Operation
    log: list[str]

    def apply(self, draft: Draft) -> None:
        matrix, size, steps = draft.matrix, draft.size, len(draft.photometric)
        self.operation.apply(draft)
        if draft.matrix is not matrix:
            self.log.append(_describe(self.operation, compose(invert(matrix), draft.matrix), size, draft.size))
        for _, magnitude in draft.photometric[steps:]:
            name = type(self.operation).__name__
            self.log.append(name if isinstance(self.operation, Equalize) else f"{name} {magnitude:.2f}")


def _logged(operation: Operation, log: list[str]) -> Operation:
    if isinstance(operation, AutoAugment):
        policies = [[_logged(inner, log) for inner in policy] for policy in operation.policies]
        return replace(operation, policies=policies)
    return _Logged(operation, log)


def _describe(operation: Operation, step: NDArray[np.float64], before: Size, after: Size) -> str:
    """One geometric operation in words.

    Args:
        operation: Which.
        step: What it did, (2, 3).
        before: Height and width of the image that came to it.
        after: Height and width of the image that it left.
    """
    (a, b, dx), (c, _, dy) = step.tolist()
    match operation:
        case Rotate():
            zoom = f" x{math.hypot(a, c):.2f}" if operation.scale != 1 else ""
            return f"Rotate {math.degrees(math.atan2(c, a)):+.1f}°{zoom}"
        case Translate() if operation.direction == "horizontal":
            return f"Translate {abs(dx):.0f} px {'right' if dx > 0 else 'left'}"
        case Translate():
            return f"Translate {abs(dy):.0f} px {'down' if dy > 0 else 'up'}"
        case Shear():
            return f"Shear {b if operation.direction == 'horizontal' else c:+.2f} {operation.direction}"
        case Resize():
            return f"Resize {before[1]}x{before[0]} to {after[1]}x{after[0]}"
        case RandomFlip():
            return f"Flip {operation.direction}"
        case _:
            return type(operation).__name__


def _tile(
    image: NDArray[np.uint8], target: Target, class_names: Sequence[str], operations: list[str]
) -> NDArray[np.uint8]:
    """One sample, shrunk to a tile before anything is drawn, so that lines and letters stay sharp."""
    height, width = target.size
    shrink = min(1.0, TILE_WIDTH / width, TILE_HEIGHT / height)
    tile_width, tile_height = max(1, round(width * shrink)), max(1, round(height * shrink))
    matrix = scaling(tile_width / width, tile_height / height)
    sides = np.array([tile_width / width, tile_height / height] * 2)
    shrunk = cv2.resize(image[:height, :width], (tile_width, tile_height), interpolation=cv2.INTER_AREA)
    tile = draw_instances(
        shrunk.astype(np.uint8, copy=False),
        target.boxes.numpy() * sides,
        target.labels.numpy(),
        class_names,
        masks=target.masks.transform(matrix) if isinstance(target.masks, Polygons) else None,
        ignore_boxes=target.ignore_boxes.numpy() * sides,
    )
    left = (TILE_WIDTH - tile_width) // 2
    framed = np.full((tile_height, TILE_WIDTH, 3), BACKGROUND, dtype=np.uint8)
    framed[:, left : left + tile_width] = tile
    lines = [Path(target.file_name).name, ", ".join(operations) or "as it is"]
    return np.concatenate([framed, draw_caption(TILE_WIDTH, lines)])


def _arrange(tiles: Sequence[NDArray[np.uint8]], columns: int) -> NDArray[np.uint8]:
    """Tiles of one width in rows, each row as high as its highest tile."""
    sheet_width = columns * (TILE_WIDTH + GAP) + GAP
    rows = []
    for start in range(0, len(tiles), columns):
        row = tiles[start : start + columns]
        band = np.full((max(len(tile) for tile in row) + GAP, sheet_width, 3), BACKGROUND, dtype=np.uint8)
        for column, tile in enumerate(row):
            left = GAP + column * (TILE_WIDTH + GAP)
            band[GAP : GAP + len(tile), left : left + TILE_WIDTH] = tile
        rows.append(band)
    return np.concatenate([*rows, np.full((GAP, sheet_width, 3), BACKGROUND, dtype=np.uint8)])
