"""Detections as LabelMe files, so that a person can correct them (https://github.com/wkentaro/labelme).

A shape is a polygon around each part of a mask, or the rectangle of a box. Parts of one object share a ``group_id``.
LabelMe's polygons cannot have holes, so those are filled; and they are made simpler than the pixels' edges are, as
nobody corrects a staircase of hundreds of corners.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from detect.models.detections import Detections
from detect.predicting.inputs import Source
from dpipe.plan import Size
from dpipe.polygons import Polygons

VERSION = "5.5.0"
"""Of LabelMe, whose form this is."""

TOLERANCE = 1.0
"""Pixels that an outline may move by."""


def labelme_file(source: Source, size: Size, detections: Detections, names: list[str], folder: Path) -> dict[str, Any]:
    """The content of a LabelMe file, ready for JSON.

    Args:
        source: The image. That of a file is named relative to the folder; other pixels become part of the content.
        size: Its height and width.
        detections: In its coordinates.
        names: The class name of each.
        folder: Where the file will be.
    """
    shapes = []
    parts = None if detections.masks is None else _outlines(detections)
    rows = zip(names, detections.scores.tolist(), detections.boxes.tolist(), strict=True)
    for number, (name, score, (x1, y1, x2, y2)) in enumerate(rows):
        outlines = [] if parts is None else parts[number]
        group = number + 1 if len(outlines) > 1 else None
        if outlines:
            shapes += [_shape(name, outline, "polygon", score, group) for outline in outlines]
        else:
            shapes.append(_shape(name, [[x1, y1], [x2, y2]], "rectangle", score, None))
    path, data = _image(source, folder)
    return {
        "version": VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": path,
        "imageData": data,
        "imageHeight": size[0],
        "imageWidth": size[1],
    }


def _shape(name: str, points: list[list[float]], kind: str, score: float, group: int | None) -> dict[str, Any]:
    """One shape; ``score`` is a key of its own, which LabelMe keeps."""
    return {
        "label": name,
        "points": points,
        "group_id": group,
        "description": "",
        "shape_type": kind,
        "flags": {},
        "mask": None,
        "score": round(score, 4),
    }


def _image(source: Source, folder: Path) -> tuple[str, str | None]:
    """``imagePath`` and ``imageData``."""
    if source.path is not None and source.frame is None:
        return Path(os.path.relpath(source.path, folder)).as_posix(), None
    stem = "image" if source.path is None else f"{source.path.stem}_{source.frame:06d}"
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(source.read(), cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95])
    return f"{stem}.jpg", base64.b64encode(encoded.tobytes()).decode()


def _outlines(detections: Detections) -> list[list[list[list[float]]]]:
    """For each detection the points of the outlines of its parts, the largest part first."""
    polygons = Polygons.from_coco(detections.masks or [])
    outlines = []
    for instance in range(len(polygons)):
        rings = range(polygons.instance_offsets[instance], polygons.instance_offsets[instance + 1])
        parts = [
            _simpler(polygons.vertices[polygons.ring_offsets[ring] : polygons.ring_offsets[ring + 1]])
            for ring in rings
            if not polygons.holes[ring]
        ]
        outlines.append([part.tolist() for part in sorted(parts, key=cv2.contourArea, reverse=True)])
    return outlines


def _simpler(ring: NDArray[np.float32]) -> NDArray[np.float32]:
    """A ring (n, 2) with fewer corners; as it is, where too few would be left to be a polygon."""
    simpler = np.asarray(cv2.approxPolyDP(ring.reshape(-1, 1, 2), TOLERANCE, closed=True), np.float32).reshape(-1, 2)
    return simpler if len(simpler) >= 3 and cv2.contourArea(simpler) > 0 else ring
