"""Draws a small street data set in the layout of Cityscapes, to try the whole tool chain without a download.

    python examples/street_scenes.py data/streets --train 160 --val 40

writes ``leftImg8bit/<split>/<city>/*_leftImg8bit.png`` and ``gtFine/<split>/<city>/*_gtFine_instanceIds.png`` (16 bit:
label id for stuff and groups, label id * 1000 + n for the n-th object). The same arguments give the same bytes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

# Cityscapes label ids.
SKY, BUILDING, VEGETATION, ROAD, SIDEWALK = 23, 11, 21, 7, 8
PERSON, CAR, TRUCK, BUS, BICYCLE = 24, 26, 27, 28, 33

SUPERSAMPLE = 2  # pictures are drawn at this multiple and averaged down; labels are taken at pixel centres
TYRE = (38, 36, 34)
GLASS = (196, 176, 150)

Colour = tuple[int, int, int]  # BGR
# A polygon in the object's own frame (x to the right, y up, the object is 1 high and stands on y = 0), and its colour.
Part = tuple[np.ndarray, Colour]


def box(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    """A rectangle as a polygon of shape (4, 2)."""
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], dtype=np.float64)


def disc(x: float, y: float, rx: float, ry: float | None = None, points: int = 24) -> np.ndarray:
    """An ellipse as a polygon of shape (points, 2)."""
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.stack([x + rx * np.cos(angles), y + (ry or rx) * np.sin(angles)], axis=1)


def stroke(x0: float, y0: float, x1: float, y1: float, width: float) -> np.ndarray:
    """A thick line as a polygon of shape (4, 2)."""
    along = np.array([x1 - x0, y1 - y0])
    across = np.array([-along[1], along[0]]) / np.hypot(*along) * width / 2
    start, end = np.array([x0, y0]), np.array([x1, y1])
    return np.stack([start + across, end + across, end - across, start - across])


def vivid(rng: np.random.Generator) -> Colour:
    """A saturated random colour."""
    hsv = np.uint8([[[rng.integers(0, 180), rng.integers(120, 230), rng.integers(110, 240)]]])
    blue, green, red = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0]
    return int(blue), int(green), int(red)


def darker(colour: Colour, factor: float) -> Colour:
    """The colour scaled by ``factor``."""
    return int(colour[0] * factor), int(colour[1] * factor), int(colour[2] * factor)


def car(rng: np.random.Generator) -> list[Part]:
    """A car seen from the side, 2.3 times as long as high."""
    paint = vivid(rng)
    roof = rng.uniform(0.92, 1.0)
    cabin = np.array([(-0.75, 0.55), (-0.45, roof), (0.35, roof), (0.78, 0.55)])
    window = np.array([(-0.6, 0.58), (-0.39, roof - 0.08), (0.3, roof - 0.08), (0.6, 0.58)])
    return [
        (cabin, paint),
        (np.array([(-1.15, 0.18), (-1.12, 0.56), (-0.7, 0.62), (0.75, 0.6), (1.1, 0.5), (1.15, 0.18)]), paint),
        (window, GLASS),
        (box(-0.06, 0.56, 0.0, roof - 0.05), paint),
        (disc(-0.68, 0.19, 0.19), TYRE),
        (disc(0.68, 0.19, 0.19), TYRE),
        (disc(-0.68, 0.19, 0.09), (150, 150, 150)),
        (disc(0.68, 0.19, 0.09), (150, 150, 150)),
        (box(1.04, 0.38, 1.14, 0.46), (150, 235, 250)),
    ]


def bus(rng: np.random.Generator) -> list[Part]:
    """A city bus: a long box with a row of windows."""
    paint = vivid(rng)
    parts: list[Part] = [(box(-1.3, 0.1, 1.3, 1.0), paint), (box(-1.3, 0.1, 1.3, 0.24), darker(paint, 0.6))]
    parts += [(box(x, 0.5, x + 0.36, 0.86), GLASS) for x in np.arange(-1.22, 1.0, 0.42)]
    for x in (-0.85, 0.85):
        parts += [(disc(x, 0.13, 0.13), TYRE), (disc(x, 0.13, 0.06), (150, 150, 150))]
    return parts


def truck(rng: np.random.Generator) -> list[Part]:
    """A lorry: a pale cargo box behind a coloured cab."""
    paint, cargo = vivid(rng), (int(rng.integers(190, 240)),) * 3
    parts: list[Part] = [
        (box(-1.1, 0.12, 1.05, 0.26), (60, 60, 60)),
        (box(-1.1, 0.24, 0.45, 1.0), cargo),
        (box(-1.1, 0.58, 0.45, 0.66), paint),
        (np.array([(0.52, 0.15), (0.52, 0.82), (0.85, 0.82), (1.08, 0.5), (1.08, 0.15)]), paint),
        (np.array([(0.62, 0.5), (0.62, 0.75), (0.82, 0.75), (0.98, 0.5)]), GLASS),
    ]
    for x in (-0.75, -0.4, 0.78):
        parts += [(disc(x, 0.14, 0.14), TYRE), (disc(x, 0.14, 0.06), (150, 150, 150))]
    return parts


def person(rng: np.random.Generator) -> list[Part]:
    """A pedestrian in mid-step."""
    coat, trousers = vivid(rng), darker(vivid(rng), 0.5)
    skin = (int(rng.integers(90, 180)), int(rng.integers(120, 200)), int(rng.integers(150, 230)))
    step, swing = rng.uniform(0.02, 0.14), rng.uniform(0.02, 0.12)
    return [
        (stroke(-0.03, 0.5, -0.03 - step, 0.0, 0.1), trousers),
        (stroke(0.03, 0.5, 0.03 + step, 0.0, 0.1), darker(trousers, 0.8)),
        (stroke(-0.1, 0.8, -0.12 - swing, 0.47, 0.07), darker(coat, 0.8)),
        (stroke(0.1, 0.8, 0.12 + swing, 0.47, 0.07), darker(coat, 0.8)),
        (np.array([(-0.12, 0.46), (-0.14, 0.8), (-0.07, 0.85), (0.07, 0.85), (0.14, 0.8), (0.12, 0.46)]), coat),
        (disc(0.0, 0.92, 0.065, 0.08), skin),
    ]


def bicycle(rng: np.random.Generator) -> list[Part]:
    """A parked bicycle: two rings with a hole each, joined by a frame."""
    paint = vivid(rng)
    parts: list[Part] = []
    for x in (-0.5, 0.5):
        rim, hub = disc(x, 0.36, 0.36), disc(x, 0.36, 0.25)
        parts.append((np.concatenate([rim, rim[:1], hub[:1], hub[::-1]]), TYRE))
    frame = [(-0.5, 0.36, -0.15, 0.8), (-0.5, 0.36, 0.0, 0.34), (0.0, 0.34, -0.2, 0.88), (-0.17, 0.76, 0.36, 0.78)]
    frame += [(0.0, 0.34, 0.36, 0.78), (0.5, 0.36, 0.33, 0.95)]
    parts += [(stroke(*ends, 0.09), paint) for ends in frame]
    return [*parts, (box(-0.34, 0.87, -0.08, 0.96), TYRE), (box(0.22, 0.92, 0.46, 1.0), TYRE)]


# What stands on a street: label id, how it is drawn, height in metres, how often.
KINDS: list[tuple[int, Callable[[np.random.Generator], list[Part]], float, float]] = [
    (CAR, car, 1.6, 0.34),
    (PERSON, person, 1.75, 0.28),
    (BICYCLE, bicycle, 1.15, 0.14),
    (BUS, bus, 2.9, 0.12),
    (TRUCK, truck, 2.8, 0.12),
]


class Canvas:
    """A picture and its label image, painted together from far to near.

    Args:
        width: Width of the finished picture in pixels.
        height: Height of the finished picture in pixels.
    """

    def __init__(self, width: int, height: int) -> None:
        self.picture = np.zeros((height * SUPERSAMPLE, width * SUPERSAMPLE, 3), np.uint8)
        self.labels = np.zeros((height * SUPERSAMPLE, width * SUPERSAMPLE), np.uint16)

    def fill(self, polygon: np.ndarray, colour: Colour, label: int) -> None:
        """Paints a polygon given in pixels of the finished picture, shape (n, 2)."""
        points = np.round(polygon * SUPERSAMPLE * 16).astype(np.int32)
        cv2.fillPoly(self.picture, [points], colour, lineType=cv2.LINE_8, shift=4)
        cv2.fillPoly(self.labels, [points], label, lineType=cv2.LINE_8, shift=4)

    def finish(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Averages the picture down, adds sensor noise, and samples the labels."""
        size = (self.picture.shape[1] // SUPERSAMPLE, self.picture.shape[0] // SUPERSAMPLE)
        averaged = cv2.resize(self.picture, size, interpolation=cv2.INTER_AREA).astype(np.float32)
        gain = rng.uniform(0.8, 1.1)
        noisy = averaged * gain + rng.normal(0, 4, averaged.shape)
        return np.clip(noisy, 0, 255).astype(np.uint8), self.labels[::SUPERSAMPLE, ::SUPERSAMPLE].copy()


def paint_background(canvas: Canvas, rng: np.random.Generator, width: int, height: int, horizon: float) -> None:
    """Sky, houses with windows, trees, sidewalk and road with its markings."""
    sky = (int(rng.integers(200, 250)), int(rng.integers(190, 225)), int(rng.integers(160, 205)))
    canvas.fill(box(0, 0, width, height), sky, SKY)
    x = -20.0
    while x < width:
        house_width, top = rng.uniform(0.12, 0.25) * width, horizon - rng.uniform(0.2, 0.42) * height
        grey = int(rng.integers(95, 175))
        wall = (grey - int(rng.integers(0, 30)), grey, grey + int(rng.integers(0, 25)))
        canvas.fill(box(x, top, x + house_width, horizon + 4), wall, BUILDING)
        for wx in np.arange(x + 6, x + house_width - 9, 16):
            for wy in np.arange(top + 7, horizon - 12, 18):
                canvas.fill(box(wx, wy, wx + 7, wy + 9), darker(wall, 0.62), BUILDING)
        x += house_width
    for _ in range(int(rng.integers(1, 4))):
        tree_x, size = rng.uniform(0, width), rng.uniform(0.09, 0.16) * height
        leaf = (int(rng.integers(40, 75)), int(rng.integers(95, 135)), int(rng.integers(50, 90)))
        canvas.fill(box(tree_x - 2, horizon - size, tree_x + 2, horizon + 3), (50, 68, 88), VEGETATION)
        for _ in range(5):
            dx, dy = rng.normal(0, size * 0.4, 2)
            canvas.fill(disc(tree_x + dx, horizon - 1.6 * size + dy, size * 0.62), leaf, VEGETATION)
    pavement = int(rng.integers(140, 165))
    canvas.fill(box(0, horizon, width, height), (pavement, pavement, pavement), SIDEWALK)
    kerb, asphalt = horizon + 0.06 * height, int(rng.integers(84, 112))
    canvas.fill(box(0, kerb, width, height), (asphalt, asphalt, asphalt), ROAD)
    line_y = kerb + 0.45 * (height - kerb)
    for x0 in np.arange(rng.uniform(-40, 0), width, 56):
        canvas.fill(box(x0, line_y, x0 + 28, line_y + 3), (215, 220, 220), ROAD)


def place(parts: list[Part], x: float, ground: float, size: float, mirrored: bool) -> list[Part]:
    """Moves an object's parts from its own frame into the picture."""
    scale = np.array([-size if mirrored else size, -size])
    return [(polygon * scale + (x, ground), colour) for polygon, colour in parts]


def bounds(parts: list[Part]) -> np.ndarray:
    """The box x0, y0, x1, y1 around an object's parts."""
    points = np.concatenate([polygon for polygon, _ in parts])
    return np.concatenate([points.min(axis=0), points.max(axis=0)])


def covered_share(box: np.ndarray, others: list[np.ndarray]) -> float:
    """How much of its most covered victim a box would hide, 0 to 1."""
    worst = 0.0
    for other in others:
        overlap = np.clip(np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2]), 0, None)
        worst = max(worst, float(np.prod(overlap) / np.prod(other[2:] - other[:2])))
    return worst


def draw_scene(rng: np.random.Generator, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws one street.

    Args:
        rng: Where every choice comes from.
        width: Picture width in pixels.
        height: Picture height in pixels.

    Returns:
        The picture (height, width, 3) uint8 BGR and the instance ids (height, width) uint16.
    """
    canvas = Canvas(width, height)
    horizon = height * rng.uniform(0.42, 0.5)
    paint_background(canvas, rng, width, height, horizon)

    if rng.random() < 0.3:  # a group of people too far away to tell apart: a crowd region, its id below 1000
        left = rng.uniform(0.05, 0.8) * width
        for _ in range(int(rng.integers(5, 9))):
            far = place(
                person(rng), left + rng.uniform(0, 0.1) * width, horizon + 4, 0.09 * height, bool(rng.random() < 0.5)
            )
            for polygon, colour in far:
                canvas.fill(polygon, colour, PERSON)

    weights = np.array([kind[3] for kind in KINDS])
    taken: dict[int, int] = {}
    boxes: list[np.ndarray] = []
    # From far to near, so that nearer objects cover farther ones.
    for nearness in np.sort(rng.uniform(0.12, 1.0, int(rng.integers(4, 9)))):
        label, draw, metres, _ = KINDS[rng.choice(len(KINDS), p=weights / weights.sum())]
        ground = horizon + 4 + nearness * (height * 0.94 - horizon - 4)
        size = metres * height * (0.055 + 0.1 * nearness) * rng.uniform(0.9, 1.1)
        parts, mirrored = draw(rng), bool(rng.random() < 0.5)
        places = [place(parts, x, ground, size, mirrored) for x in rng.uniform(0.03, 0.97, 6) * width]
        placed = min(places, key=lambda candidate: covered_share(bounds(candidate), boxes))
        boxes.append(bounds(placed))
        number = taken.get(label, 0)
        taken[label] = number + 1
        for polygon, colour in placed:
            canvas.fill(polygon, colour, label * 1000 + number)
    return canvas.finish(rng)


def write_streets(root: Path, counts: dict[str, int], *, width: int = 480, height: int = 240, seed: int = 0) -> None:
    """Writes a data set in the layout of Cityscapes.

    Args:
        root: The folder that gets ``leftImg8bit`` and ``gtFine``.
        counts: Number of pictures by split; each split is a city of its own.
        width: Picture width in pixels.
        height: Picture height in pixels.
        seed: Same seed, same pictures.
    """
    for split_number, (split, count) in enumerate(sorted(counts.items())):
        city = f"{split}ville"
        images, labels = root / "leftImg8bit" / split / city, root / "gtFine" / split / city
        images.mkdir(parents=True, exist_ok=True)
        labels.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            picture, ids = draw_scene(np.random.default_rng([seed, split_number, number]), width, height)
            name = f"{city}_{number:06d}_000019"
            cv2.imwrite(str(images / f"{name}_leftImg8bit.png"), picture)
            cv2.imwrite(str(labels / f"{name}_gtFine_instanceIds.png"), ids)


def main() -> None:
    """Reads the command line and writes the data set."""
    parser = argparse.ArgumentParser(description="Draw a small street data set in the layout of Cityscapes.")
    parser.add_argument("root", type=Path, help="folder to write")
    parser.add_argument("--train", type=int, default=160, help="pictures in the train split (default: %(default)s)")
    parser.add_argument("--val", type=int, default=40, help="pictures in the val split (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same pictures (default: %(default)s)")
    args = parser.parse_args()
    write_streets(args.root, {"train": args.train, "val": args.val}, seed=args.seed)
    print(f"wrote {args.train} train and {args.val} val pictures to {args.root}")


if __name__ == "__main__":
    main()
