from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from dpipe.looking.draw import class_colour, draw_caption, draw_instances
from dpipe.polygons import Polygons

NAMES = ["person", "bicycle"]


def blank(height: int = 120, width: int = 160, level: int = 128) -> np.ndarray:
    return np.full((height, width, 3), level, dtype=np.uint8)


def changed(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return (before != after).any(axis=-1)


def ring_with_hole() -> Polygons:
    """A square from (40, 30) to (100, 90) with a square hole from (60, 50) to (80, 70)."""
    outer = [(40, 30), (100, 30), (100, 90), (40, 90)]
    hole = [(60, 50), (60, 70), (80, 70), (80, 50)]
    return Polygons(
        vertices=np.array(outer + hole, dtype=np.float32),
        ring_offsets=np.array([0, 4, 8]),
        instance_offsets=np.array([0, 2]),
        holes=np.array([False, True]),
    )


def test_the_image_that_was_given_stays_as_it_is() -> None:
    image = blank()
    drawn = draw_instances(image, [[10, 60, 50, 100]], [0], NAMES)
    assert (image == 128).all()
    assert drawn.shape == image.shape
    assert drawn.dtype == np.uint8


def test_nothing_to_draw_changes_nothing() -> None:
    image = blank()
    empty = np.zeros((0, 4))
    assert (draw_instances(image, empty, [], NAMES) == image).all()
    nothing = draw_instances(image, empty, [], NAMES, [], np.zeros((0, 120, 160)), empty)
    assert (nothing == image).all()


def test_the_line_covers_the_outermost_pixels_of_the_box() -> None:
    box = [20, 40, 61, 90]
    drawn = draw_instances(blank(), [box], [0], NAMES)
    colour = class_colour(0)
    on_the_line = (drawn == colour).all(axis=-1)
    assert on_the_line[60, [20, 60]].all()
    assert on_the_line[[40, 89], 50].all()
    # Two pixels wide with a dark rim of a pixel on each side, and nothing further away, nor in the middle.
    difference = changed(blank(), drawn)
    assert difference[60, 18:24].tolist() == [False, True, True, True, True, False]
    assert not difference[45:85, 25:56].any()


def test_lines_are_wider_on_larger_images() -> None:
    widths = []
    for side in (100, 1000, 2000):
        drawn = draw_instances(blank(side, side), [[0.3 * side, 0.3 * side, 0.7 * side, 0.7 * side]], [0], NAMES)
        widths.append((drawn[side // 2] == class_colour(0)).all(axis=-1).sum() // 2)
    assert widths == [2, 3, 7]


@pytest.mark.parametrize("kind", ["polygons", "bitmap", "tensor", "rle"])
def test_masks_tint_their_pixels_and_leave_holes(kind: str) -> None:
    polygons = ring_with_hole()
    bitmap = polygons.to_bitmaps(120, 160)
    masks = {
        "polygons": polygons,
        "bitmap": bitmap.astype(bool),
        "tensor": torch.from_numpy(bitmap).bool(),
        "rle": [coco_mask.encode(np.asfortranarray(bitmap[0]))],
    }[kind]
    drawn = draw_instances(blank(), [[40, 30, 100, 90]], [1], NAMES, masks=masks)
    difference = changed(blank(), drawn)
    assert difference[72:88, 42:98].all()
    assert not difference[53:67, 63:77].any()
    assert not difference[95:, :].any()
    # Translucent: what lies beneath is still to be seen.
    assert (drawn[80, 50] != class_colour(1)).any()
    assert (draw_instances(blank(level=30), [[40, 30, 100, 90]], [1], NAMES, masks=masks)[80, 50] < drawn[80, 50]).all()


@pytest.mark.parametrize(
    "box",
    [
        [-500, -500, -10, -10],
        [170, 130, 300, 300],
        [-20, -20, 400, 400],
        [-1e12, 10, 1e12, 50],
        [150, 110, 180, 140],
        [50, 50, 50, 50],
        [float("nan"), 0, 10, 10],
    ],
)
def test_boxes_beyond_the_image_are_harmless(box: list[float]) -> None:
    image = blank()
    drawn = draw_instances(image, [box], [0], NAMES, scores=[0.5], ignore_boxes=[box])
    outside = not np.isfinite(box).all() or box[2] <= 0 or box[0] >= 160
    assert changed(image, drawn).any() != outside


def test_edges_beyond_the_image_are_not_drawn_at_its_rim() -> None:
    drawn = draw_instances(blank(), [[-40, 60, 200, 200]], [0], [""])
    assert not changed(blank(), drawn)[90:, :].any()


@pytest.mark.parametrize("corner", [(0, 0), (150, 0), (0, 110), (150, 110)])
def test_tags_stay_inside_the_image_and_can_be_read(corner: tuple[int, int]) -> None:
    x, y = corner
    box = [x, y, x + 10, y + 10]
    for label in range(2):
        plain = draw_instances(blank(), [box], [label], ["", ""])
        drawn = draw_instances(blank(), [box], [label], NAMES, scores=[0.87])
        tag = changed(plain, drawn)
        rows, columns = np.nonzero(tag)
        assert columns.max() - columns.min() > 40  # the whole text, at any corner
        assert rows.max() - rows.min() >= 10
        window = drawn[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].reshape(-1, 3).astype(int)
        assert np.ptp(window.sum(axis=1)) > 250  # dark on light or light on dark


def test_tags_of_objects_that_share_a_box_do_not_hide_each_other() -> None:
    boxes = [[60, 60, 110, 100], [60, 60, 110, 100]]
    drawn = draw_instances(blank(), boxes, [0, 1], NAMES)
    tag_pixels = [((drawn == class_colour(label)).all(axis=-1)).sum() for label in (0, 1)]
    assert min(tag_pixels) > 200


def test_names_beyond_ascii_and_very_long_ones_are_drawn() -> None:
    image = blank()
    plain = draw_instances(image, [[20, 40, 120, 100]], [0], ["Fugnger"])
    drawn = draw_instances(image, [[20, 40, 120, 100]], [0], ["Fußgänger"])
    assert changed(plain, drawn).any()
    draw_instances(image, [[20, 40, 120, 100]], [0], ["歩行者 🚶 пешеход"], scores=[1.0])
    draw_instances(image, [[20, 40, 120, 100]], [0], ["x" * 500])
    draw_instances(blank(3, 3), [[0, 0, 3, 3]], [0], ["person"])


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_small_objects_are_drawn_over_large_ones(order: list[int]) -> None:
    boxes, labels = np.array([[10, 10, 150, 110], [10, 40, 60, 80]])[order], np.array([0, 1])[order]
    masks = np.zeros((2, 120, 160), dtype=np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = 1
    drawn = draw_instances(blank(), boxes, labels, NAMES, masks=masks)
    assert tuple(drawn[75, 10]) == class_colour(1)  # where both have an edge
    # The small one's tint is the last.
    assert np.abs(drawn[75, 50] - (0.6 * drawn[75, 100] + 0.4 * np.array(class_colour(1)))).max() <= 1


def test_ignored_regions_are_hatched_and_dashed() -> None:
    image = blank()
    drawn = draw_instances(image, np.zeros((0, 4)), [], NAMES, ignore_boxes=[[30, 30, 110, 90]])
    difference = changed(image, drawn)
    inside = difference[33:87, 33:107]
    assert 0.05 < inside.mean() < 0.3
    outline = drawn[30, 30:110]
    assert (outline > 200).any()
    assert (outline < 60).any()
    assert not difference[:28].any()


def test_colours_are_stable_and_differ() -> None:
    colours = [class_colour(label) for label in range(80)]
    assert colours == [class_colour(label) for label in range(80)]
    assert len(set(colours)) == 80
    for first, second in itertools.pairwise(colours):
        assert np.abs(np.subtract(first, second)).sum() > 80


def test_captions_are_of_the_width_asked_for() -> None:
    strip = draw_caption(200, ["first", "a line that does not fit two hundred pixels in any way at all"])
    assert strip.shape[1] == 200
    assert strip.shape[0] > 2 * 12
    assert strip.max() > 200


def test_names_are_written_on_one_line() -> None:
    assert np.array_equal(draw_caption(200, ["a\nb\x1b.png"]), draw_caption(200, [r"a b\x1b.png"]))
