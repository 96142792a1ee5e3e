"""A page of samples to look at closely: one HTML file that needs nothing else, with boxes and masks drawn over them.

What comes from the data set (names of files and of classes) is text that the template escapes.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpipe.backends.base import OnBadSample
from dpipe.coco import CocoIndex, image_path
from dpipe.errors import InputError
from dpipe.images.decode import decode_image
from dpipe.loader import BackendName
from dpipe.looking.draw import IGNORE_COLOUR, class_colour
from dpipe.looking.page_parts import hex_colour, jpeg_base64, page_template, svg_paths
from dpipe.looking.preview_samples import PreviewSample, preview_samples
from dpipe.plan import SamplePlan
from dpipe.policy import Augment
from dpipe.polygons import Polygons
from dpipe.target import Target, make_target

LONGEST_EDGE = 1280
"""Pixels of an embedded image: sharp on a wide screen, and a page of dozens still opens at once."""
JPEG_QUALITY = 88


@dataclass(frozen=True)
class Shape:
    """Something drawn over an image.

    Attributes:
        label: Class number, for the switches.
        name: What is said of it.
        colour: ``#rrggbb``.
        box: x, y, width and height in pixels of the sample.
        paths: SVG paths, one for each part of the mask; none where there is no mask.
    """

    label: int
    name: str
    colour: str
    box: tuple[float, float, float, float]
    paths: list[str]


@dataclass(frozen=True)
class Pane:
    """An image with what lies on it.

    Attributes:
        title: What is shown.
        width: Pixels of the sample; what is embedded may be smaller.
        height: Likewise.
        data: The JPEG file, in base64.
        shapes: Objects, the largest first.
        ignored: Boxes to ignore: x, y, width and height.
    """

    title: str
    width: int
    height: int
    data: str
    shapes: list[Shape]
    ignored: list[tuple[float, float, float, float]]


def preview_page(
    index: CocoIndex,
    images: str | Path,
    augment: Augment,
    *,
    title: str,
    count: int = 12,
    columns: int = 4,
    seed: int = 0,
    epoch: int = 0,
    backend: BackendName = "opencv",
    on_bad_sample: OnBadSample = "fail",
) -> str:
    """Makes the page.

    Args:
        index: The annotations.
        images: Folder that the index's file names are relative to.
        augment: What is done to the samples; where it holds no operation they are shown as they are, else each beside
            its original.
        title: Of the page.
        count: Samples, the first of the epoch's order; all where there are fewer.
        columns: Samples in a row, to begin with.
        seed: Of the order and of the augmentation.
        epoch: Of the order and of the augmentation.
        backend: See ``DetectionLoader``.
        on_bad_sample: See ``preview_samples``.

    Returns:
        HTML.

    Raises:
        InputError: For a number out of range, and what ``DetectionLoader`` raises.
    """
    if columns < 1:
        raise InputError(f"columns must be at least 1, got {columns}")
    samples = []
    seen: Counter[int] = Counter()
    for sample in preview_samples(
        index, images, augment, count=count, seed=seed, epoch=epoch, backend=backend, on_bad_sample=on_bad_sample
    ):
        panes = [_pane("as trained on" if augment.operations else "", sample.image, sample.target, index.class_names)]
        if augment.operations:
            panes.append(_original(index, images, sample.plan))
        seen.update(sample.target.labels.tolist())
        samples.append({"name": sample.target.file_name, "facts": facts(sample), "panes": panes})
    classes = [
        {
            "label": label,
            "name": index.class_names[label],
            "colour": hex_colour(class_colour(label)),
            "count": seen[label],
        }
        for label in sorted(seen)
    ]
    return page_template("dpipe.looking", "preview.html").render(
        title=title,
        samples=samples,
        classes=classes,
        columns=columns,
        augmented=bool(augment.operations),
        ignore_colour=hex_colour(IGNORE_COLOUR),
        seed=seed,
        epoch=epoch,
    )


def facts(sample: PreviewSample) -> list[tuple[str, str]]:
    """What a plan holds, as names and texts."""
    plan, target = sample.plan, sample.target
    (height, width), (out_height, out_width) = plan.source_size, plan.size
    size = f"{width}x{height}"
    told = [
        ("image", f"id {target.image_id}, sample {target.sample}"),
        ("size", size if plan.size == plan.source_size else f"{size} to {out_width}x{out_height}"),
        (
            "objects",
            f"{len(target.boxes)}" + (f", ignored {len(target.ignore_boxes)}" * bool(len(target.ignore_boxes))),
        ),
    ]
    if sample.operations:
        told += [("drawn", ", ".join(sample.operations)), ("matrix", describe_matrix(plan))]
        halvings = "".join(
            f", halved {times} times {way}"
            for times, way in zip(plan.halvings, ("down", "across"), strict=True)
            if times
        )
        warped = "one warp" if plan.resize_flips is None else "one resize"
        told.append(("resampled", f"{warped}{halvings}"))
        if plan.resize_flips is None:
            told.append(("filled with", hex_colour(plan.fill)))
    return told


def describe_matrix(plan: SamplePlan) -> str:
    """A plan's matrix as what it does one after another: mirror, scale, shear, turn, shift.

    The shift is that of the image's middle, from the middle of the output.
    """
    (a, b, _), (c, d, _) = plan.matrix.tolist()
    mirrored = a * d - b * c < 0
    if mirrored:  # x first; a difference has no negative zero, which would turn by -180 degrees
        a, c = 0.0 - a, 0.0 - c
    scale_x = math.hypot(a, c)
    if scale_x == 0:
        return "no area"
    cosine, sine = a / scale_x, c / scale_x
    scale_y = cosine * d - sine * b
    shear = (cosine * b + sine * d) / scale_y if scale_y else 0.0
    middle = plan.matrix @ np.array([plan.source_size[1] / 2, plan.source_size[0] / 2, 1.0])
    shift_x, shift_y = (middle - np.array(plan.size[::-1]) / 2).tolist()
    across, down = f"x{scale_x:.3f}", f"x{scale_y:.3f}"
    scale = across if across == down else f"{across} across, {down} down"
    parts = [
        "mirrored" if mirrored else "",
        f"scaled {scale}",
        f"sheared {shear:+.3f}" if abs(shear) >= 5e-4 else "",
        f"turned {math.degrees(math.atan2(sine, cosine)):+.1f}°" if abs(sine) > 1e-4 or cosine < 0 else "",
        f"shifted {shift_x:+.1f}, {shift_y:+.1f} px" if max(abs(shift_x), abs(shift_y)) >= 0.05 else "",
    ]
    return ", ".join(filter(None, parts))


def _original(index: CocoIndex, images: str | Path, plan: SamplePlan) -> Pane:
    """The sample's source with all of its annotations."""
    unchanged = Augment([]).draw(plan.source_size, seed=0, epoch=0, sample=plan.sample, image=plan.image)
    target = make_target(index, unchanged, min_size=0)
    path = image_path(images, index.file_names[plan.image])
    return _pane("original", decode_image(path, plan.source_size, plan.sample), target, index.class_names)


def _pane(title: str, image: NDArray[np.uint8], target: Target, class_names: tuple[str, ...]) -> Pane:
    height, width = target.size
    boxes = target.boxes.numpy().astype(np.float64)
    sides = boxes[:, 2:] - boxes[:, :2]
    order = np.argsort(-sides.prod(axis=1), kind="stable").tolist()  # what lies in front comes last
    labels = target.labels.tolist()
    polygons = target.masks if isinstance(target.masks, Polygons) else None
    return Pane(
        title=title,
        width=width,
        height=height,
        data=jpeg_base64(image, LONGEST_EDGE, JPEG_QUALITY),
        shapes=[
            Shape(
                label=labels[row],
                name=f"{class_names[labels[row]]} #{int(target.annotation_ids[row])}",
                colour=hex_colour(class_colour(labels[row])),
                box=_rounded(boxes[row, 0], boxes[row, 1], *sides[row]),
                paths=[] if polygons is None else svg_paths(polygons, row),
            )
            for row in order
        ],
        ignored=[_rounded(x1, y1, x2 - x1, y2 - y1) for x1, y1, x2, y2 in target.ignore_boxes.tolist()],
    )


def _rounded(*numbers: float) -> tuple[float, float, float, float]:
    x, y, width, height = (round(float(number), 1) for number in numbers)
    return x, y, width, height
