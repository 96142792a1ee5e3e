"""A contact sheet of augmented samples: what a trainer will see, with the boxes and masks it is told to find."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from dpipe.backends.base import OnBadSample
from dpipe.coco import CocoIndex
from dpipe.errors import InputError
from dpipe.files import check_writable_file, write_whole
from dpipe.geometry import scaling
from dpipe.loader import BackendName
from dpipe.looking.draw import draw_caption, draw_instances
from dpipe.looking.preview_samples import PreviewSample, preview_samples
from dpipe.operations.colours import Brightness, Color, Contrast, Equalize
from dpipe.operations.geometric import RandomFlip, Resize, Rotate, Shear, Translate
from dpipe.policy import Augment, AutoAugment
from dpipe.polygons import Polygons

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
    on_bad_sample: OnBadSample = "fail",
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
        on_bad_sample: See ``preview_samples``.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        InputError: For a number out of range, and what ``DetectionLoader`` raises.
    """
    if columns < 1:
        raise InputError(f"columns must be at least 1, got {columns}")
    samples = preview_samples(
        index, images, augment, count=count, seed=seed, epoch=epoch, backend=backend, on_bad_sample=on_bad_sample
    )
    tiles = [_tile(sample, index.class_names) for sample in samples]
    return _arrange(tiles, min(columns, len(tiles)))


def check_picture_name(path: Path) -> None:
    """Checks that a picture can be written, before it is drawn.

    Args:
        path: The picture's file.

    Raises:
        InputError: For a name that does not end in ``.png``, ``.jpg`` or ``.webp``, a folder of that name, or a folder
            around it that cannot be written.
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


def _tile(sample: PreviewSample, class_names: Sequence[str]) -> NDArray[np.uint8]:
    """One sample, shrunk to a tile before anything is drawn, so that lines and letters stay sharp."""
    target = sample.target
    height, width = target.size
    shrink = min(1.0, TILE_WIDTH / width, TILE_HEIGHT / height)
    tile_width, tile_height = max(1, round(width * shrink)), max(1, round(height * shrink))
    matrix = scaling(tile_width / width, tile_height / height)
    sides = np.array([tile_width / width, tile_height / height] * 2)
    shrunk = cv2.resize(sample.image, (tile_width, tile_height), interpolation=cv2.INTER_AREA)
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
    lines = [Path(target.file_name).name, ", ".join(sample.operations) or "as it is"]
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
