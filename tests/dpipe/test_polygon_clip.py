from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dpipe import geometry as g
from dpipe.polygons import Polygons

# A shift by part of a sample, so that none lies on an edge.
OFF_GRID = g.translation(0.137, 0.211)


def samples(polygons: Polygons, width: int, height: int, per_pixel: int) -> np.ndarray:
    """Whether points on a dense grid are inside."""
    fine = polygons.transform(g.compose(g.scaling(per_pixel, per_pixel), OFF_GRID))
    return fine.to_bitmaps(height * per_pixel, width * per_pixel)


def trace(mask: np.ndarray) -> Polygons:
    flat = mask.flatten(order="F").astype(np.int8)
    bounds = np.flatnonzero(np.diff(flat, prepend=0))
    return Polygons.from_coco([{"size": list(mask.shape), "counts": np.diff([0, *bounds, len(flat)]).tolist()}])


def blobs(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    field = cv2.GaussianBlur(rng.random((height, width)).astype(np.float32), (0, 0), rng.uniform(0.5, 4))
    return (field > np.quantile(field, rng.uniform(0.1, 0.9))).astype(np.uint8)


def letter_u() -> Polygons:
    """A U, open at the top: prongs of width 2 from x = 2 to 4 and from x = 8 to 10, bottom from y = 8 to 10."""
    return Polygons.from_coco([[[2, 1, 4, 1, 4, 8, 8, 8, 8, 1, 10, 1, 10, 10, 2, 10]]])


def test_what_is_inside_is_passed_through() -> None:
    polygons = letter_u()
    assert polygons.clip(10, 10) is polygons
    assert polygons.clip(10.5, 300) is polygons


def test_what_is_outside_loses_its_rings_and_keeps_its_place() -> None:
    square = letter_u()
    several = Polygons.concatenate(
        [square.transform(g.translation(*shift)) for shift in [(50, 0), (0, 0), (0, -10), (-10, 0)]]
    )
    clipped = several.clip(20, 20)
    np.testing.assert_array_equal(np.diff(clipped.instance_offsets), [0, 1, 0, 0])
    np.testing.assert_array_equal(clipped.boxes()[[0, 2, 3]], np.zeros((3, 4)))


def test_prongs_become_parts_with_nothing_between() -> None:
    clipped = letter_u().clip(20, 5)
    np.testing.assert_array_equal(clipped.holes, [False, False])
    assert clipped.areas()[0] == 2 * 2 * 4
    np.testing.assert_array_equal(clipped.boxes(), [[2, 1, 10, 5]])
    # The other way round the prongs leave, and what joined them stays in one piece.
    below = letter_u().transform(g.translation(0, -5)).clip(20, 20)
    assert len(below.holes) == 1
    assert below.areas()[0] == 2 * 2 * 5 + 4 * 2
    # The border along the inner edge of what joins them, which lies outside then.
    along = letter_u().clip(20, 8)
    assert len(along.holes) == 2
    assert along.areas()[0] == 2 * 2 * 7
    # A second border takes one prong away: the box must not remember it.
    np.testing.assert_array_equal(letter_u().clip(8, 5).boxes(), [[2, 1, 4, 5]])


@pytest.mark.parametrize("turn", range(4))
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("start", range(7))
def test_a_notch_that_ends_on_the_border_parts_what_it_divides(start: int, backwards: bool, turn: int) -> None:
    # A block of 12 x 14 with a notch from the top to (6, 10), and the border runs along y = 10.
    block = np.array([[0, 0], [4, 0], [6, 10], [8, 0], [12, 0], [12, 14], [0, 14]], dtype=float)
    ring = np.roll(block, start, axis=0)[:: -1 if backwards else 1]
    matrix = g.compose(g.translation(-6, -5), g.rotation(90 * turn, (0, 0)), g.translation(*((6, 5), (5, 6))[turn % 2]))
    size = (12, 10) if turn % 2 == 0 else (10, 12)
    clipped = Polygons.from_coco([[ring.ravel().tolist()]]).transform(matrix).clip(*size)
    assert clipped.areas()[0] == 12 * 10 - 4 * 10 / 2
    assert len(clipped.holes) == 2
    np.testing.assert_array_equal(clipped.boxes(), [[0, 0, *size]])


@pytest.mark.parametrize("start", [0, 6])
def test_prongs_that_touch_in_a_point_are_parts(start: int) -> None:
    # The tip of one prong lies on the side of the other.
    ring = [0, 0, 8, 0, 4, 10, 10, 10, 10, 8, 6, 5, 10, 2, 12, 2, 12, 12, 0, 12]
    clipped = Polygons.from_coco([[ring[start:] + ring[:start]]]).clip(20, 9)
    np.testing.assert_array_equal(clipped.holes, [False, False])
    assert clipped.areas()[0] == pytest.approx((8 + 4.4) / 2 * 9 + 2 * 7 + 6 * 4 / 2)


@pytest.mark.parametrize("turn", range(4))
def test_edges_of_other_lengths_that_meet_on_the_border_part_what_is_on_their_sides(turn: int) -> None:
    # A notch down to (10, 0) on the border: its left side is the steeper one, and ends further to the right.
    ring = [0, -5, 0, 10, 12, 4, 10, 0, 11, 1, 20, 10, 20, -5]
    polygons = Polygons.from_coco([[ring]]).transform(g.rotation(90 * turn, (10, 10)))
    clipped = polygons.clip(20, 20)
    assert clipped.areas()[0] == 80 + 50
    assert len(clipped.holes) == 2


def test_a_hole_that_is_cut_becomes_a_notch() -> None:
    mask = np.zeros((10, 10), dtype=np.uint8)
    mask[1:9, 1:9] = 1
    mask[3:6, 3:6] = 0
    mask[7, 2] = 0
    clipped = trace(mask).clip(5, 20)
    np.testing.assert_array_equal(clipped.holes, [False, True])
    assert clipped.areas()[0] == mask[:, :5].sum()
    # Cut through the hole from two sides.
    corner = trace(mask).transform(g.translation(-4, -4)).clip(20, 20)
    np.testing.assert_array_equal(corner.holes, [False])
    assert corner.areas()[0] == mask[4:, 4:].sum()


def test_holes_stay_behind_the_part_they_are_in() -> None:
    # Two prongs with a hole each; the border cuts them apart.
    mask = np.zeros((12, 20), dtype=np.uint8)
    mask[1:11, 1:19] = 1
    mask[1:9, 8:11] = 0
    mask[3:5, 3:6] = mask[3, 13:16] = 0
    clipped = trace(mask).clip(20, 8)
    np.testing.assert_array_equal(clipped.holes, [False, True, False, True])
    for outer, hole in ((0, 1), (2, 3)):
        a, b = (clipped.vertices[slice(*clipped.ring_offsets[ring : ring + 2])] for ring in (outer, hole))
        assert (b.min(axis=0) > a.min(axis=0)).all()
        assert (b.max(axis=0) < a.max(axis=0)).all()


def test_edges_on_the_border_stay() -> None:
    mask = np.ones((6, 6), dtype=np.uint8)
    mask[2:4, 0] = 0
    polygons = trace(mask)
    assert polygons.clip(6, 6) is polygons
    half = polygons.clip(3, 6)
    assert half.areas()[0] == 16
    np.testing.assert_array_equal(half.boxes(), [[0, 0, 3, 6]])


def test_a_touch_leaves_nothing() -> None:
    # A diamond that touches the image with one vertex, a square with one edge, a sliver float32 cannot tell from it.
    shapes = [[[-5, 5, 0, 0, 0, 0, 0, 5, -3, 9]], [[10, 0, 20, 0, 20, 8, 10, 8]], [[-1, 2, 1e-30, 3, -1, 4]]]
    clipped = Polygons.from_coco(shapes).clip(10, 10)
    assert len(clipped) == 3
    assert not len(clipped.holes)


def test_an_instance_that_covers_the_image_becomes_the_image() -> None:
    square = Polygons.from_coco([[[-50, 5, 5, -50, 60, 5, 5, 60]]]).clip(10, 12)
    assert square.areas()[0] == 120
    np.testing.assert_array_equal(square.boxes(), [[0, 0, 10, 12]])


@pytest.mark.parametrize("degrees", [0, 90, 180, 45])
def test_area_of_a_turned_square_under_clipping(degrees: float) -> None:
    # A square of side 10 centred on a corner of the image: a quarter of it is seen, whichever way it is turned.
    square = Polygons.from_coco([[[-5, -5, 5, -5, 5, 5, -5, 5]]])
    seen = square.transform(g.rotation(degrees, (0, 0))).clip(100, 100)
    assert seen.areas()[0] == pytest.approx(25, rel=1e-6)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 12), st.integers(-3, 12)), min_size=3, max_size=9))
@example([(1, 0), (2, 0), (0, 1), (-1, 0), (2, 0), (0, 1)])  # cut into a triangle within another, which share two edges
def test_any_polygon_on_whole_coordinates_keeps_what_is_inside(points: list[tuple[int, int]]) -> None:
    polygons = Polygons.from_coco([[[float(value) for point in points for value in point]]])
    clipped = polygons.clip(8, 7)
    assert (samples(polygons, 8, 7, 16) != samples(clipped, 8, 7, 16)).sum() <= 2
    assert ((clipped.vertices >= 0) & (clipped.vertices <= [8, 7])).all()


@pytest.mark.parametrize("seed", range(30))
def test_turned_masks_and_self_crossing_polygons_keep_what_is_inside(seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = g.compose(
        g.rotation(rng.uniform(-180, 180), (20, 15), rng.uniform(0.5, 2)),
        g.shear(rng.uniform(-0.5, 0.5), 0),
        g.translation(*rng.uniform(-15, 15, 2)),
        g.horizontal_flip(40) if seed % 2 else g.identity(),
    )
    tangle = Polygons.from_coco(
        [[rng.uniform(-20, 60, 2 * rng.integers(3, 12)).tolist() for _ in range(2)] for _ in range(10)]
    )
    polygons = Polygons.concatenate([trace(blobs(rng, 30, 40)).transform(matrix), tangle])
    clipped = polygons.clip(40, 30)
    assert ((clipped.vertices >= 0) & (clipped.vertices <= [40, 30])).all()
    before, after = samples(polygons, 40, 30, 8), samples(clipped, 40, 30, 8)
    assert (before != after).sum() <= 2


@pytest.mark.parametrize("seed", range(30))
def test_edges_on_the_border_are_where_the_inside_meets_it(seed: int) -> None:
    # Where a ring crosses the border, sorted, lie the ends of its inside there; any other edge on it would be a bridge.
    ring = np.random.default_rng(seed).uniform(-20, 60, (9, 2)).astype(np.float32).astype(np.float64)
    start, end = ring, np.roll(ring, -1, axis=0)
    across = (start[:, 0] < 40) != (end[:, 0] < 40)
    a, b = start[across], end[across]
    ends = np.sort(a[:, 1] + (b[:, 1] - a[:, 1]) * (40 - a[:, 0]) / (b[:, 0] - a[:, 0])).clip(0, 30).reshape(-1, 2)
    clipped = Polygons.from_coco([[ring.ravel().tolist()]]).clip(40, 30)
    length = 0.0
    for number in range(len(clipped.holes)):
        points = clipped.vertices[slice(*clipped.ring_offsets[number : number + 2])].astype(np.float64)
        following = np.roll(points, -1, axis=0)
        on_border = (points[:, 0] == 40) & (following[:, 0] == 40)
        length += np.abs(following - points)[on_border, 1].sum()
    assert length == pytest.approx((ends[:, 1] - ends[:, 0]).sum(), abs=1e-4)


@pytest.mark.parametrize("seed", range(20))
def test_upright_masks_keep_their_parts_and_holes(seed: int) -> None:
    # Noise: rings touch themselves, and holes have corners level with those of the ring around them.
    rng = np.random.default_rng(seed)
    mask = (rng.random((16, 18)) < 0.75).astype(np.uint8)
    left, top, right, bottom = 0.5 * rng.integers([1, 1, 24, 20], [8, 8, 35, 31])
    inside = np.kron(mask, np.ones((2, 2), dtype=np.uint8))[
        int(2 * top) : int(2 * bottom), int(2 * left) : int(2 * right)
    ]
    clipped = trace(mask).transform(g.translation(-left, -top)).clip(right - left, bottom - top)
    assert clipped.areas()[0] == inside.sum() / 4
    np.testing.assert_array_equal(clipped.transform(g.scaling(2, 2)).to_bitmaps(*inside.shape)[0], inside)


@pytest.mark.parametrize("seed", range(20))
def test_area_is_neither_lost_nor_invented(seed: int) -> None:
    # The plane is cut in four at a point with whole coordinates; the quarters add up to the whole.
    rng = np.random.default_rng(seed)
    whole = trace(blobs(rng, 40, 50)).transform(
        g.compose(g.rotation(rng.uniform(0, 90), (25, 20)), g.translation(40, 40))
    )
    x, y = rng.integers(45, 85), rng.integers(45, 75)
    left, top = whole.clip(x, 1000), whole.clip(1000, y)
    right = whole.transform(g.translation(-x, 0)).clip(1000, 1000)
    bottom = whole.transform(g.translation(0, -y)).clip(1000, 1000)
    for one, other in ((left, right), (top, bottom)):
        assert one.areas()[0] + other.areas()[0] == pytest.approx(whole.areas()[0], rel=1e-6)
    assert (whole.areas() >= left.areas()).all()


def test_rings_that_overlap_without_crossing_stay_one_part() -> None:
    # After the cut, they share corners and parts of edges, and one reaches into the other from there.
    outer = [[-2, -3], [6, -1], [-3, 4], [3, 2], [1, 6]]
    inner = [[7, -2], [5, -3], [0, 3], [1, 6], [3, 2]]
    vertices = np.array(outer + inner, dtype=np.float32)
    polygons = Polygons(vertices, np.array([0, 5, 10]), np.array([0, 2]), np.array([False, True]))
    np.testing.assert_array_equal(samples(polygons.clip(6, 6), 6, 6, 8), samples(polygons, 6, 6, 8))


@pytest.mark.parametrize("seed", range(10))
def test_boxes_are_those_of_what_is_seen(seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    points: list[Any] = [rng.uniform(-10, 50, 6).tolist() for _ in range(4)]
    clipped = Polygons.from_coco([[triangle] for triangle in points]).clip(40, 30)
    fine = clipped.transform(g.scaling(32, 32)).to_bitmaps(30 * 32, 40 * 32)
    for bitmap, box in zip(fine, clipped.boxes(), strict=True):
        x, y, width, height = cv2.boundingRect(bitmap)
        # A corner thinner than a sample is seen by the box only.
        np.testing.assert_allclose(np.array([x, y, x + width, y + height]) / 32, box, atol=0.6)


def test_many_cut_parts_do_not_take_long() -> None:
    rng = np.random.default_rng(0)
    field = cv2.GaussianBlur(rng.random((512, 1024)).astype(np.float32), (0, 0), 2)
    polygons = trace((field > 0.5).astype(np.uint8)).transform(
        g.compose(g.rotation(17, (512, 256)), g.translation(50, 30))
    )
    clipped = polygons.clip(1024, 512)
    assert len(clipped.holes) > 300
    np.testing.assert_array_equal(polygons.to_bitmaps(512, 1024), clipped.to_bitmaps(512, 1024))
