from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from dpipe import geometry as g
from dpipe.outlines import polygon_raster
from dpipe.polygons import Polygons


def star(rng: np.random.Generator, points: int, centre: tuple[float, float], radius: float) -> list[float]:
    """A simple ring with a wavy border."""
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    reach = radius * (1 + 0.3 * np.sin(angle * rng.integers(2, 9)) + 0.05 * rng.random(points))
    return np.stack([centre[0] + reach * np.cos(angle), centre[1] + reach * np.sin(angle)], axis=1).ravel().tolist()


def compressed(mask: np.ndarray) -> dict[str, Any]:
    packed = coco_mask.encode(np.asfortranarray(mask))
    return {"size": list(mask.shape), "counts": packed["counts"].decode()}


def test_a_pixel_is_on_when_its_centre_is_inside() -> None:
    square = Polygons.from_coco([[[0.6, 1.4, 3.6, 1.4, 3.6, 2.6, 0.6, 2.6]]])
    expected = np.zeros((4, 5), dtype=np.uint8)
    expected[1:3, 1:4] = 1
    bitmaps = square.to_bitmaps(4, 5)
    assert bitmaps.dtype == np.uint8
    np.testing.assert_array_equal(bitmaps[0], expected)


def test_a_centre_on_an_upright_or_level_edge_belongs_to_what_is_right_of_it_or_below() -> None:
    square = Polygons.from_coco([[[0.5, 0.5, 3.5, 0.5, 3.5, 2.5, 0.5, 2.5]]])
    expected = np.zeros((4, 5), dtype=np.uint8)
    expected[:2, :3] = 1
    np.testing.assert_array_equal(square.to_bitmaps(4, 5)[0], expected)


def test_bitmaps_agree_with_a_test_of_every_pixel() -> None:
    rng = np.random.default_rng(2)
    rings = [rng.uniform(-5, 35, (7, 2)) for _ in range(12)]  # rings that cross themselves and leave the image
    bitmaps = Polygons.from_coco([[ring.ravel().tolist()] for ring in rings]).to_bitmaps(24, 30)
    x, y = np.meshgrid(np.arange(30) + 0.5, np.arange(24) + 0.5)
    for ring, bitmap in zip(rings, bitmaps, strict=True):
        inside = np.zeros((24, 30), dtype=bool)
        for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            inside ^= ((y0 <= y) != (y1 <= y)) & (x0 + (y - y0) * (x1 - x0) / (y1 - y0) <= x)
        np.testing.assert_array_equal(bitmap.astype(bool), inside)


def test_parts_that_overlap_are_a_union() -> None:
    two = Polygons.from_coco([[[0, 0, 4, 0, 4, 4, 0, 4], [2, 2, 6, 2, 6, 6, 2, 6]]])
    assert two.to_bitmaps(6, 6).sum() == 16 + 16 - 4
    np.testing.assert_allclose(two.to_grids([[0, 0, 6, 6]], [0], 6)[0], two.to_bitmaps(6, 6)[0], atol=1e-6)


def test_neighbours_share_no_pixel_and_leave_none_out() -> None:
    # Whole coordinates: the diagonals run through pixel centres.
    fan = Polygons.from_coco(
        [[[0, 0, 8, 0, 8, 8]], [[0, 0, 8, 8, 0, 8]], [[8, 0, 16, 0, 8, 8]], [[16, 0, 16, 8, 8, 8]]]
    )
    np.testing.assert_array_equal(fan.to_bitmaps(8, 16).sum(axis=0), np.ones((8, 16)))


def test_what_lies_outside_the_bitmap_is_left_out() -> None:
    polygons = Polygons.from_coco([[[-10, -10, 3, -10, 3, 3, -10, 3]], [[90, 90, 99, 90, 99, 99]]])
    bitmaps = polygons.to_bitmaps(5, 5)
    assert bitmaps[0].sum() == 9
    assert bitmaps[0, :3, :3].all()
    assert not bitmaps[1].any()


def test_grids_are_the_average_of_the_bitmap() -> None:
    rng = np.random.default_rng(0)
    field = cv2.GaussianBlur(rng.random((64, 96)).astype(np.float32), (0, 0), 1.5)
    polygons = Polygons.from_coco(
        [compressed((field > 0.5).astype(np.uint8)), compressed((field > 0.45).astype(np.uint8))]
    )
    margin, size = 40, 7
    bitmaps = polygons.transform(g.translation(margin, margin)).to_bitmaps(64 + 2 * margin, 96 + 2 * margin)
    corner, cell = rng.integers(-20, 60, (50, 2)), rng.integers(1, 6, (50, 2))
    boxes, instances = np.concatenate([corner, corner + cell * size], axis=1), rng.integers(0, 2, 50)
    grids = polygons.to_grids(boxes, instances, size)
    assert grids.dtype == np.float32
    assert grids.shape == (50, size, size)
    for grid, box, instance in zip(grids, boxes + margin, instances, strict=True):
        crop = bitmaps[instance, box[1] : box[3], box[0] : box[2]].astype(np.float64)
        np.testing.assert_allclose(grid, cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA), atol=1e-6)


def test_grids_are_exact_areas() -> None:
    # Cell by cell, against the area of the polygon clipped to the cell.
    shape = Polygons.from_coco([[star(np.random.default_rng(1), 60, (5.1, 4.7), 3.9)]])
    grid = shape.to_grids([[0, 0, 10, 10]], [0], 5)[0]
    for row in range(5):
        for column in range(5):
            cell = shape.transform(g.translation(-2 * column, -2 * row)).clip(2, 2)
            assert grid[row, column] == pytest.approx(cell.areas()[0] / 4, abs=1e-6)
    assert grid.sum() * 4 == pytest.approx(shape.clip(10, 10).areas()[0], rel=1e-5)


def test_grids_at_the_threshold_are_mask_targets() -> None:
    rng = np.random.default_rng(4)
    shape = Polygons.from_coco([[star(rng, 200, (150, 120), 80)]])
    box = shape.boxes()
    grid = shape.to_grids(box, [0], 28)[0]
    fine = g.compose(
        g.translation(-box[0, 0], -box[0, 1]), g.scaling(280 / (box[0, 2] - box[0, 0]), 280 / (box[0, 3] - box[0, 1]))
    )
    average = cv2.resize(
        shape.transform(fine).to_bitmaps(280, 280)[0].astype(np.float32), (28, 28), interpolation=cv2.INTER_AREA
    )
    assert np.abs(grid - average).max() < 0.08
    clear = np.abs(average - 0.5) > 0.05
    np.testing.assert_array_equal(grid[clear] > 0.5, average[clear] > 0.5)


def test_grids_know_the_even_odd_rule_and_holes() -> None:
    twice_round = [0, 0, 8, 0, 8, 8, 0, 8, 0, 0, 2, 2, 6, 2, 6, 6, 2, 6, 2, 2]
    wound = Polygons.from_coco([[twice_round]])
    same = Polygons.from_coco([compressed(wound.to_bitmaps(8, 8)[0])])
    assert same.holes.any()
    np.testing.assert_allclose(wound.to_grids([[0, 0, 8, 8]], [0], 8), same.to_grids([[0, 0, 8, 8]], [0], 8), atol=1e-6)
    figure_eight = Polygons.from_coco([[[0, 0, 8, 8, 8, 0, 0, 8]]])
    assert figure_eight.to_grids([[0, 0, 8, 8]], [0], 2).tolist() == [[[0.5, 0.5], [0.5, 0.5]]]


def test_grids_of_boxes_without_extent_or_far_away_are_zero() -> None:
    square = Polygons.concatenate([Polygons.from_coco([[[2, 2, 6, 2, 6, 6, 2, 6]]]), Polygons.empty(1)])
    boxes = [
        [3, 3, 3, 5],
        [3, 3, 5, 3],
        [5, 5, 3, 3],
        [50, 50, 60, 60],
        [-9, 3, -4, 5],
        [3, -9, 5, -4],
        [3, 3, 5, 5],
        [3, 3, 5, 5],
    ]
    grids = square.to_grids(boxes, [0] * 7 + [1], 3)
    assert not grids[:6].any()
    np.testing.assert_allclose(grids[6], 1, atol=1e-6)
    assert not grids[7].any()


def test_grids_are_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    shapes = Polygons.from_coco([[star(rng, 40, tuple(rng.uniform(20, 80, 2)), 15)] for _ in range(9)])
    instances = rng.integers(0, 9, 30)
    boxes = shapes.boxes()[instances] + rng.normal(0, 3, (30, 4))
    whole = shapes.to_grids(boxes, instances, 14)
    monkeypatch.setattr(polygon_raster, "GRID_EDGES", 100)
    np.testing.assert_allclose(shapes.to_grids(boxes, instances, 14), whole, atol=1e-6)
    monkeypatch.setattr(polygon_raster, "GRID_CELLS", 10)
    np.testing.assert_allclose(shapes.to_grids(boxes, instances, 14), whole, atol=1e-6)
