"""Prediction on images: pictures, and a COCO results file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import orjson
import torch
from PIL import Image, UnidentifiedImageError
from rich.console import Console

from detect.config import Config, build_augment
from detect.devices import Accelerator, make_fabric
from detect.metrics.results import Results
from detect.trained import Trained, load_trained, say_nothing
from dpipe.coco import CocoIndex
from dpipe.errors import BadSampleError, InputError
from dpipe.files import check_writable, write_whole
from dpipe.images.decode import EXIF_ORIENTATION, UNREADABLE, check_image, decode_image
from dpipe.loader import DetectionLoader
from dpipe.looking.draw import draw_instances
from dpipe.polygons import Polygons

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from detect.models.detections import Detections

RESULTS_NAME = "predictions.json"
IMAGES_NAME = "images.json"
SWAPS_SIDES = (5, 6, 7, 8)
"""EXIF orientations that turn by 90 degrees."""


def predict(
    config: Config,
    checkpoint: str | Path,
    images: Sequence[str | Path],
    out: str | Path,
    *,
    score_thr: float = 0.3,
    accelerator: Accelerator = "auto",
    console: Console | None = None,
) -> list[dict[str, Any]]:
    """Finds objects in images.

    The output folder gets a picture of each image, ``predictions.json`` in COCO's results format, with the file and
    class names beside the ids, and ``images.json``, a COCO data set of these images that the results belong to. Images
    are numbered from 1 in the order given. Proposals, of a model that only proposes, are all of the one class
    ``object``.

    Args:
        config: The recipe; its ``test_transforms`` are applied.
        checkpoint: A ``.safetensors`` or ``.pth`` file, a checkpoint folder, or a work directory.
        images: Image files.
        out: The output folder.
        score_thr: Detections with a lower score are not drawn; the results hold them.
        accelerator: ``auto`` takes a GPU where there is one.
        console: Gets a line for each image, and notes.

    Returns:
        The results.

    Raises:
        InputError: For a checkpoint, an image or an output folder that cannot be used, one line for each.
    """
    paths, out = [Path(image) for image in images], Path(out)
    index, root = index_of_images(paths)
    check_writable(out)
    pictures = picture_paths(paths, out)
    fabric = make_fabric(1, accelerator, config.train.precision)
    trained = load_trained(config, checkpoint, say=say_nothing if console is None else console.print)
    if getattr(trained.model, "proposes", False):
        trained = replace(trained, class_names=("object",), category_ids=(1,))
    results: list[dict[str, Any]] = []
    for number, detections in enumerate(_run(config, trained, index, root, fabric)):
        path, id_ = paths[number], number + 1
        found = Results.of_image(detections, id_, trained.category_ids).to_coco()
        for result, label in zip(found, detections.labels.tolist(), strict=True):
            result["file_name"] = str(path)
            result["category_name"] = trained.class_names[label]
        results += found
        shown = detections.select(detections.scores >= score_thr)
        _draw(path, index, number, shown, trained.class_names, pictures[number])
        if console is not None:
            counts = Counter(trained.class_names[label] for label in shown.labels.tolist())
            told = ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing"
            console.print(f"{path}: {told} -> {pictures[number]}")
    write_whole(out / IMAGES_NAME, orjson.dumps(_data_set(paths, index, trained)))
    write_whole(out / RESULTS_NAME, orjson.dumps(results))
    return results


def index_of_images(paths: Sequence[Path]) -> tuple[CocoIndex, Path]:
    """Makes an index of images without annotations, and the folder that its file names are relative to.

    Raises:
        InputError: If a file is missing or no image.
    """
    sizes = [_upright_size(path) for path in paths]
    absolute = [os.path.abspath(path) for path in paths]
    root = os.path.commonpath([os.path.dirname(name) for name in absolute])
    count = len(paths)
    index = CocoIndex(
        path=Path(root),
        class_names=(),
        category_ids=np.zeros(0, np.int64),
        image_ids=np.arange(1, count + 1),
        widths=np.array([width for width, _ in sizes], np.int32),
        heights=np.array([height for _, height in sizes], np.int32),
        file_names=[os.path.relpath(path, root) for path in absolute],
        offsets=np.zeros(count + 1, np.int64),
        boxes=np.zeros((0, 4), np.float32),
        labels=np.zeros(0, np.int64),
        crowd=np.zeros(0, np.bool_),
        areas=np.zeros(0),
        annotation_ids=np.zeros(0, np.int64),
        polygons=Polygons.empty(0),
    )
    return index, Path(root)


def picture_paths(paths: Sequence[Path], out: Path) -> list[Path]:
    """A name in the output folder for each image's picture: its own, with a number where that is taken.

    Raises:
        InputError: If a picture would replace its image.
    """
    taken: set[str] = set()
    pictures = []
    for path in paths:
        suffix = path.suffix if path.suffix.lower() in (".jpg", ".jpeg", ".png") else ".png"
        name, number = path.stem + suffix, 1
        while name.lower() in taken:
            number += 1
            name = f"{path.stem}_{number}{suffix}"
        taken.add(name.lower())
        pictures.append(out / name)
    given = {os.path.realpath(path) for path in paths}
    for picture in pictures:
        if os.path.realpath(picture) in given:
            raise InputError(f"{picture}: the picture would replace the image; give another output folder")
    return pictures


def _run(config: Config, trained: Trained, index: CocoIndex, root: Path, fabric: Fabric) -> Iterator[Detections]:
    """The detections of each image, in order."""
    loader = DetectionLoader(
        index,
        root,
        augment=build_augment(config, train=False),
        backend="opencv",
        device=str(fabric.device),
        shuffle=False,
        pad_last=False,
        threads=config.data.threads,
        prefetch=config.data.prefetch,
    )
    model = fabric.to_device(trained.model)
    with torch.inference_mode():
        for batch in loader:
            with fabric.autocast():
                (detections,) = model(batch.images, batch.targets)
            yield detections.to("cpu")


def _upright_size(path: Path) -> tuple[int, int]:
    """Width and height of an image as its EXIF orientation has it shown."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder; image files were expected")
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(EXIF_ORIENTATION, 1) in SWAPS_SIDES
    except FileNotFoundError:
        raise BadSampleError(path, "no such image file") from None
    except (UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise BadSampleError(path, UNREADABLE) from None
    except OSError as error:
        raise BadSampleError(path, f"cannot be read: {error.strerror or error}") from None
    upright = (height, width) if turned else (width, height)
    check_image(path, upright[::-1])  # before anything is predicted, so that the output is of all images or none
    return upright


def _draw(
    path: Path, index: CocoIndex, number: int, detections: Detections, class_names: Sequence[str], picture: Path
) -> None:
    image = decode_image(path, (int(index.heights[number]), int(index.widths[number])))
    drawn = draw_instances(
        image,
        detections.boxes.numpy(),
        detections.labels.numpy(),
        class_names,
        scores=detections.scores.numpy(),
        masks=detections.masks,
    )
    done, encoded = cv2.imencode(picture.suffix, cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))
    if not done:
        raise OSError(f"{picture}: cannot be encoded")
    write_whole(picture, encoded.tobytes())


def _data_set(paths: Sequence[Path], index: CocoIndex, trained: Trained) -> dict[str, Any]:
    sizes = zip(paths, index.widths.tolist(), index.heights.tolist(), strict=True)
    return {
        "images": [
            {"id": id_, "file_name": str(path), "width": width, "height": height}
            for id_, (path, width, height) in enumerate(sizes, 1)
        ],
        "categories": [
            {"id": id_, "name": name} for id_, name in zip(trained.category_ids, trained.class_names, strict=True)
        ],
        "annotations": [],
    }
