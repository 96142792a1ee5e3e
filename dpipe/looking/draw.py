"""Boxes, masks, names and scores drawn onto an image: what previews and predictions look like.

Coordinates are continuous, as everywhere: pixel (i, j) covers [j, j+1) x [i, i+1), and boxes are xyxy edges.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from dpipe.cli_text import one_line
from dpipe.polygons import Polygons

Colour = tuple[int, int, int]
Masks = Polygons | ArrayLike | Sequence[Mapping[str, Any]]
"""Polygons, bitmaps (n, H, W), or n COCO run-length encodings."""

MASK_OPACITY = 0.4
IGNORE_COLOUR: Colour = (235, 235, 235)

# Okabe and Ito's palette ("Color Universal Design", 2008) without black: told apart with any kind of colour vision.
_SAFE_COLOURS: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (204, 121, 167),
    (0, 114, 178),
)
_GOLDEN_RATIO = (5**0.5 - 1) / 2


def class_colour(label: int) -> Colour:
    """The colour of a class: the same for the same label in every picture.

    The first seven are safe for colour-blind eyes; the rest step around the hues by the golden angle, with
    alternating lightness, so that neighbours differ most.

    Args:
        label: Class number, 0..C-1.

    Returns:
        (red, green, blue), 0..255.
    """
    if label < len(_SAFE_COLOURS):
        return _SAFE_COLOURS[label]
    step = label - len(_SAFE_COLOURS)
    lightness = (0.62, 0.45, 0.75)[step % 3]
    red, green, blue = colorsys.hls_to_rgb((0.05 + step * _GOLDEN_RATIO) % 1.0, lightness, 0.85)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_instances(
    image: NDArray[np.uint8],
    boxes: ArrayLike,
    labels: ArrayLike,
    class_names: Sequence[str],
    scores: ArrayLike | None = None,
    masks: Masks | None = None,
    ignore_boxes: ArrayLike | None = None,
) -> NDArray[np.uint8]:
    """Draws instances onto a copy of an image.

    Args:
        image: (H, W, 3) uint8, RGB.
        boxes: (n, 4) xyxy, pixels; may lie partly or wholly outside the image.
        labels: (n,) class numbers.
        class_names: Name of each class.
        scores: (n,) 0..1, written behind the name.
        masks: Outlines of the n instances, in the image's coordinates.
        ignore_boxes: (k, 4) xyxy regions that are neither object nor background: dashed and hatched.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    canvas = np.ascontiguousarray(image).copy()
    height, width = canvas.shape[:2]
    boxes = _as_boxes(boxes)
    labels = np.asarray(labels, dtype=np.int64).reshape(-1)
    thickness = max(2, round((height + width) / 600))

    for box in _as_boxes(ignore_boxes if ignore_boxes is not None else ()):
        _hatch(canvas, box, thickness)

    # The largest first, so that what lies in front of it or inside it stays visible.
    extents = np.clip(boxes, 0, [width, height, width, height])
    areas = (extents[:, 2] - extents[:, 0]) * (extents[:, 3] - extents[:, 1])
    order = np.argsort(-areas, kind="stable")
    if masks is not None:
        for instance in order:
            bitmap = _bitmap(masks, int(instance), height, width)
            _draw_mask(canvas, bitmap, class_colour(int(labels[instance])), thickness)
    for instance in order:
        _draw_box(canvas, boxes[instance], class_colour(int(labels[instance])), thickness)

    font = _font(max(11, round(0.009 * (height + width))))
    numbers = None if scores is None else np.asarray(scores, dtype=np.float64).reshape(-1)
    taken: list[tuple[int, int, int, int]] = []
    for instance in order[::-1]:  # small objects have few places for their tag: they choose first
        label = int(labels[instance])
        text = class_names[label] if numbers is None else f"{class_names[label]} {numbers[instance]:.2f}"
        _draw_tag(canvas, boxes[instance], text, class_colour(label), font, taken)
    return canvas


def draw_caption(width: int, lines: Sequence[str], size: int = 12) -> NDArray[np.uint8]:
    """Light text on a dark strip; a line that is too long ends in an ellipsis.

    Args:
        width: Width of the strip in pixels.
        lines: What to write.
        size: Height of the letters in pixels.

    Returns:
        (height, width, 3) uint8, RGB; the height depends on the number of lines.
    """
    font = _font(size)
    pitch = round(size * 1.4)
    strip = Image.new("RGB", (width, pitch * len(lines) + 6), (32, 32, 32))
    pen = ImageDraw.Draw(strip)
    for number, line in enumerate(lines):
        pen.text((5, 3 + number * pitch), _shorten(line, font, width - 10), fill=(240, 240, 240), font=font)
    return np.array(strip)


def _as_boxes(boxes: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(boxes, dtype=np.float64).reshape(-1, 4)


def _bitmap(masks: Masks, instance: int, height: int, width: int) -> NDArray[np.uint8]:
    """One instance's mask, (height, width); one at a time, since a hundred of a large image take hundreds of MB."""
    if isinstance(masks, Polygons):
        return masks.select(np.array([instance])).to_bitmaps(height, width)[0]
    mask = masks[instance]  # type: ignore[index]
    if isinstance(mask, Mapping):
        from pycocotools import mask as coco_mask

        return coco_mask.decode(mask)
    return np.asarray(mask).astype(np.uint8)


def _draw_mask(canvas: NDArray[np.uint8], bitmap: NDArray[np.uint8], colour: Colour, thickness: int) -> None:
    """Tints a mask's pixels and draws its edge, holes included."""
    x, y, width, height = cv2.boundingRect(bitmap)
    if width == 0 or height == 0:
        return
    window = canvas[y : y + height, x : x + width]
    inside = bitmap[y : y + height, x : x + width].astype(bool)
    window[inside] = np.rint(window[inside] * (1 - MASK_OPACITY) + np.array(colour) * MASK_OPACITY).astype(np.uint8)
    edges, _ = cv2.findContours(bitmap, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, edges, -1, colour, max(1, thickness // 2), cv2.LINE_AA)


def _draw_box(canvas: NDArray[np.uint8], box: NDArray[np.float64], colour: Colour, thickness: int) -> None:
    """The outline of a box, dark at its rims so that it shows on any background."""
    corners = _pixel_corners(canvas, box, thickness)
    if corners is None:
        return
    dark = (colour[0] // 4, colour[1] // 4, colour[2] // 4)
    _frame(canvas, corners, thickness + 2, dark)
    _frame(canvas, corners, thickness, colour)


def _frame(canvas: NDArray[np.uint8], corners: tuple[int, int, int, int], thickness: int, colour: Colour | int) -> None:
    """A rectangle with a line exactly as wide as asked for, as OpenCV's is not, centred on the outermost pixels."""
    x1, y1, x2, y2 = corners
    outward, inward = (thickness - 1) // 2, thickness // 2
    left, top, right, bottom = (
        max(edge, 0) for edge in (x1 - outward, y1 - outward, x2 + outward + 1, y2 + outward + 1)
    )
    in_left, in_top, in_right, in_bottom = (
        max(edge, 0) for edge in (x1 + inward + 1, y1 + inward + 1, x2 - inward, y2 - inward)
    )
    canvas[top:in_top, left:right] = colour
    canvas[in_bottom:bottom, left:right] = colour
    canvas[top:bottom, left:in_left] = colour
    canvas[top:bottom, in_right:right] = colour


def _pixel_corners(
    canvas: NDArray[np.uint8], box: NDArray[np.float64], thickness: int
) -> tuple[int, int, int, int] | None:
    """The first and last pixel (x, y, x, y) that a box covers, or None where nothing of it is in the image.

    Edges outside the image are moved to just beyond its rim: not drawn, and small enough for OpenCV's integers.
    """
    height, width = canvas.shape[:2]
    if not np.isfinite(box).all() or box[2] <= 0 or box[3] <= 0 or box[0] >= width or box[1] >= height:
        return None
    beyond = thickness + 2
    x1, y1 = max(-beyond, int(np.floor(box[0] + 0.5))), max(-beyond, int(np.floor(box[1] + 0.5)))
    x2 = min(width + beyond, max(x1, int(np.floor(box[2] + 0.5)) - 1))
    y2 = min(height + beyond, max(y1, int(np.floor(box[3] + 0.5)) - 1))
    return x1, y1, x2, y2


def _hatch(canvas: NDArray[np.uint8], box: NDArray[np.float64], thickness: int) -> None:
    """Diagonal strokes over a box, and a dashed outline."""
    corners = _pixel_corners(canvas, box, thickness)
    if corners is None:
        return
    height, width = canvas.shape[:2]
    left, top = max(corners[0], 0), max(corners[1], 0)
    window = canvas[top : min(corners[3] + 1, height), left : min(corners[2] + 1, width)]
    rows, columns = np.ogrid[: window.shape[0], : window.shape[1]]
    strokes = (rows + columns) % (10 * thickness) < thickness
    window[strokes] = np.rint(window[strokes] * 0.4 + np.array(IGNORE_COLOUR) * 0.6).astype(np.uint8)

    outline = np.zeros(canvas.shape[:2], dtype=np.uint8)
    _frame(outline, corners, thickness, 1)
    rows, columns = np.nonzero(outline)
    dashes = ((rows + columns) // (6 * thickness)) % 2 == 0
    canvas[rows, columns] = np.where(dashes[:, None], np.array(IGNORE_COLOUR), np.array((40, 40, 40))).astype(np.uint8)


def _draw_tag(
    canvas: NDArray[np.uint8],
    box: NDArray[np.float64],
    text: str,
    colour: Colour,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    taken: list[tuple[int, int, int, int]],
) -> None:
    """A name on its class's colour, where it hides no other tag if there is such a place, always inside the image."""
    height, width = canvas.shape[:2]
    corners = _pixel_corners(canvas, box, 1)
    if corners is None:
        return
    coverage = _text_coverage(_shorten(text, font, width - 6), font)
    tag_height, tag_width = min(coverage.shape[0] + 4, height), min(coverage.shape[1] + 6, width)
    x1, y1, x2, y2 = corners
    places = [(x1, y1 - tag_height), (x1, y1), (x1, y2 + 1), (x2 + 1 - tag_width, y1), (x1, y2 + 1 - tag_height)]
    tags = []
    for x, y in places:
        x, y = min(max(x, 0), width - tag_width), min(max(y, 0), height - tag_height)
        tags.append((x, y, x + tag_width, y + tag_height))
    tag = next((tag for tag in tags if not any(_overlap(tag, other) for other in taken)), tags[0])
    taken.append(tag)

    window = canvas[tag[1] : tag[3], tag[0] : tag[2]]
    window[:] = colour
    ink = (0, 0, 0) if _luminance(colour) > 0.18 else (255, 255, 255)
    letters = window[2 : 2 + coverage.shape[0], 3 : 3 + coverage.shape[1]]
    alpha = coverage[: letters.shape[0], : letters.shape[1], None] / 255
    letters[:] = np.rint(letters * (1 - alpha) + np.array(ink) * alpha).astype(np.uint8)


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _luminance(colour: Colour) -> float:
    """Relative luminance (WCAG 2): at 0.18 black and white contrast equally well."""
    linear = [(c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4) for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _text_coverage(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> NDArray[np.uint8]:
    """The ink of a text, (height, width) uint8. Pillow writes what OpenCV cannot: letters beyond ASCII."""
    _, _, right, bottom = font.getbbox(text)
    # A full line's height, with or without letters that hang below it, so that all tags are of one height.
    bottom = max(bottom, font.getbbox("Ag")[3])
    sheet = Image.new("L", (max(1, int(np.ceil(right))), max(1, int(np.ceil(bottom)))))
    ImageDraw.Draw(sheet).text((0, 0), text, fill=255, font=font)
    return np.array(sheet)


def _shorten(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The text on one line, or as much of its head as fits ``width`` pixels with an ellipsis behind it."""
    text = one_line(text)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
