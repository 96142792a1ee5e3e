"""What pages of pictures are made of: pictures within the page, outlines as SVG, a template that escapes texts."""

from __future__ import annotations

import base64

import cv2
import jinja2
import numpy as np
from numpy.typing import NDArray

from dpipe.looking.draw import Colour
from dpipe.polygons import Polygons


def page_template(package: str, name: str) -> jinja2.Template:
    """A template of a package's folder ``templates``; what it is given is text, whatever it holds."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(name)


def jpeg_base64(image: NDArray[np.uint8], longest: int, quality: int) -> str:
    """A JPEG file for a data URI.

    Args:
        image: (H, W, 3) uint8, RGB.
        longest: Longest edge in pixels; a larger image is shrunk to it.
        quality: JPEG's, 1 to 100.
    """
    shrink = longest / max(image.shape[:2])
    if shrink < 1:
        size = [max(1, round(edge * shrink)) for edge in image.shape[1::-1]]
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return base64.b64encode(encoded.tobytes()).decode("ascii")


def svg_paths(polygons: Polygons, instance: int, tolerance: float = 0.0) -> list[str]:
    """The parts of an instance as SVG paths, holes included, to be filled by the even-odd rule.

    Args:
        polygons: The outlines.
        instance: Number of the instance.
        tolerance: How far an outline may be from the exact one, in its pixels, for fewer vertices (Douglas and
            Peucker's way); a ring that has no area left then is left out.
    """
    paths: list[str] = []
    for ring in range(int(polygons.instance_offsets[instance]), int(polygons.instance_offsets[instance + 1])):
        points = polygons.vertices[polygons.ring_offsets[ring] : polygons.ring_offsets[ring + 1]]
        if tolerance:
            simpler = cv2.approxPolyDP(np.ascontiguousarray(points)[:, None], tolerance, True)
            points = simpler[:, 0].astype(np.float32)
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points.tolist()) + "Z" if len(points) > 2 else ""
        if not (polygons.holes[ring] and paths):
            paths.append(path)
        elif paths[-1]:
            paths[-1] += path
    return list(filter(None, paths))


def hex_colour(colour: Colour) -> str:
    """A colour as ``#rrggbb``."""
    return "#{:02x}{:02x}{:02x}".format(*colour)
