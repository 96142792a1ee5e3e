from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from dpipe import geometry as g
from dpipe.errors import InputError
from dpipe.polygons import Polygons

SQUARE = [2.0, 3.0, 6.0, 3.0, 6.0, 7.0, 2.0, 7.0]
TRIANGLE = [0.0, 0.0, 8.0, 0.0, 0.0, 6.0]
FRAME = {"size": [5, 6], "counts": [5, 6, 3, 2, 3, 6, 5]}  # 4 wide, 5 high, with a hole of 2x3


def ring(polygons: Polygons, number: int) -> list[list[float]]:
    start, stop = polygons.ring_offsets[number : number + 2]
    return polygons.vertices[start:stop].tolist()


@pytest.fixture
def several() -> Polygons:
    """A square; nothing; a triangle and a square; a frame with a hole."""
    return Polygons.from_coco([[SQUARE], None, [TRIANGLE, SQUARE], FRAME])


def test_from_coco_keeps_rings_apart(several: Polygons) -> None:
    assert len(several) == 4
    np.testing.assert_array_equal(several.instance_offsets, [0, 1, 1, 3, 5])
    np.testing.assert_array_equal(several.holes, [False, False, False, False, True])
    assert ring(several, 1) == [[0, 0], [8, 0], [0, 6]]
    assert several.vertices.dtype == np.float32
    assert several.ring_offsets.dtype == several.instance_offsets.dtype == np.int64


def test_areas_and_boxes(several: Polygons) -> None:
    np.testing.assert_array_equal(several.areas(), [16, 0, 24 + 16, 20 - 6])
    np.testing.assert_array_equal(several.boxes(), [[2, 3, 6, 7], [0, 0, 0, 0], [0, 0, 8, 7], [1, 0, 5, 5]])
    assert several.boxes().dtype == np.float32
    assert several.areas().dtype == np.float64


def test_areas_keep_their_digits_far_from_the_origin() -> None:
    tiny = Polygons.from_coco([[[8000.0, 8000.0, 8000.5, 8000.0, 8000.5, 8000.5, 8000.0, 8000.5]]])
    assert tiny.areas()[0] == 0.25


@pytest.mark.parametrize(
    ("instances", "expected"),
    [
        ([3, 0], [3, 0]),
        ([2, 2, 1], [2, 2, 1]),
        ([-1], [3]),
        ([False, True, True, False], [1, 2]),
        (slice(1, 3), [1, 2]),
        (slice(0, 4, 2), [0, 2]),
        (slice(None, None, -1), [3, 2, 1, 0]),
    ],
)
def test_select_takes_instances_whole(several: Polygons, instances: Any, expected: list[int]) -> None:
    chosen = several.select(instances)
    assert len(chosen) == len(expected)
    np.testing.assert_array_equal(chosen.areas(), several.areas()[expected])
    np.testing.assert_array_equal(chosen.boxes(), several.boxes()[expected])
    np.testing.assert_array_equal(chosen.to_bitmaps(8, 9), several.to_bitmaps(8, 9)[expected])


def test_select_nothing(several: Polygons) -> None:
    for nothing in ([], np.zeros(4, dtype=bool), np.zeros(0, dtype=np.int64)):
        assert len(several.select(nothing)) == 0


def test_concatenate_undoes_select(several: Polygons) -> None:
    joined = Polygons.concatenate([several.select([0, 1]), Polygons.empty(), several.select([2, 3])])
    for name in ("vertices", "ring_offsets", "instance_offsets", "holes"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(several, name))
        assert getattr(joined, name).dtype == getattr(several, name).dtype
    assert len(Polygons.concatenate([])) == 0


def test_empty_polygons_go_through_everything() -> None:
    for count in (0, 3):
        empty = Polygons.empty(count)
        for polygons in (empty.transform(g.identity()), empty.clip(4, 4), empty.select(slice(None)), empty):
            assert len(polygons) == count
            assert polygons.boxes().shape == (count, 4)
            assert polygons.areas().shape == (count,)
            assert polygons.to_bitmaps(3, 4).shape == (count, 3, 4)
            assert polygons.to_grids(np.zeros((0, 4)), np.zeros(0, dtype=np.int64), 7).shape == (0, 7, 7)
    assert not Polygons.empty(1).to_grids([[0, 0, 4, 4]], [0], 7).any()
    assert len(Polygons.from_coco([])) == 0


@pytest.mark.parametrize("degrees", [90, 180, 45])
def test_rotation_keeps_area_and_moves_vertices(several: Polygons, degrees: float) -> None:
    matrix = g.rotation(degrees, (4, 4))
    moved = several.transform(matrix)
    np.testing.assert_allclose(moved.areas(), several.areas(), rtol=1e-6)
    np.testing.assert_allclose(moved.vertices, g.transform_points(several.vertices, matrix), atol=1e-6)
    np.testing.assert_allclose(moved.transform(g.invert(matrix)).vertices, several.vertices, atol=1e-5)


def test_quarter_turns_turn_bitmaps(several: Polygons) -> None:
    turned = several.transform(g.rotation(90, (4, 4))).to_bitmaps(8, 8)
    np.testing.assert_array_equal(turned, np.rot90(several.to_bitmaps(8, 8), k=-1, axes=(1, 2)))


def test_a_mirrored_matrix_mirrors_everything(several: Polygons) -> None:
    mirrored = several.transform(g.horizontal_flip(8))
    np.testing.assert_array_equal(mirrored.areas(), several.areas())
    np.testing.assert_array_equal(
        mirrored.select([0, 1, 3]).to_bitmaps(7, 8), several.select([0, 1, 3]).to_bitmaps(7, 8)[..., ::-1]
    )
    boxes = [[0, 0, 4, 4], [2, 2, 8, 6]]
    np.testing.assert_allclose(
        mirrored.to_grids(g.transform_boxes(boxes, g.horizontal_flip(8)), [2, 3], 5),
        several.to_grids(boxes, [2, 3], 5)[..., ::-1],
        atol=1e-6,
    )
    clipped = mirrored.clip(5, 5)
    np.testing.assert_allclose(clipped.areas(), several.transform(g.translation(-3, 0)).clip(5, 5).areas(), rtol=1e-6)


def test_degenerate_rings_are_dropped() -> None:
    polygons = Polygons.from_coco([[[], [1, 2], [1, 1, 5, 5], SQUARE, [0, 1, 5, 1, 9, 1]], [[1, 2, 3, 4]], [], [[]]])
    np.testing.assert_array_equal(polygons.areas(), [16, 0, 0, 0])
    np.testing.assert_array_equal(polygons.instance_offsets, [0, 1, 1, 1, 1])


def test_integers_are_numbers() -> None:
    assert Polygons.from_coco([[[0, 0, 4, 0, 4.5, 2]]]).areas()[0] == 4


def rle(counts: Any, size: Any = (5, 6)) -> dict[str, Any]:
    return {"size": list(size) if isinstance(size, tuple) else size, "counts": counts}


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 2, 3, 4, 5, 6, 7]], "polygon 0 of the segmentation has 7 coordinates; pairs of x and y were expected"),
        ([SQUARE, [1, 2, 3, "4", 5, 6]], 'polygon 1 of the segmentation holds "4" where a finite number was expected'),
        ([[1, 2, 3, None, 5, 6]], "holds null where a finite number"),
        ([[1, 2, math.nan, 4, 5, 6]], "holds NaN where a finite number"),
        ([[1, 2, math.inf, 4, 5, 6]], "holds Infinity where a finite number"),
        ([1, 2, 3, 4, 5, 6], r"polygon 0 of the segmentation is not a list \[x0, y0, x1, y1, ...\] but 1"),
        ("abc", 'neither a list of polygons nor a run-length mask but "abc"'),
        (7, "neither a list of polygons nor a run-length mask but 7"),
        (rle([5, 5]), "run lengths are damaged: they add up to 10 pixels, the mask has 5 x 6 = 30"),
        (rle([40, -10]), "run lengths are damaged"),
        (rle([20, -5, 15]), "run lengths are damaged"),
        (rle([2**62] * 4 + [30]), "run lengths are damaged"),  # 30 in 64 bits
        (rle([29.5, 0.5]), "counts that are not whole numbers"),
        (rle(["a"]), "counts that are not whole numbers"),
        (rle("]"), "run lengths are damaged"),
        (rle("\ud800"), "run lengths are damaged"),
        (rle(None), "counts null; a string or a list was expected"),
        (rle([30], size=None), r"has size null; \[height, width\] was expected"),
        (rle([30], size=(30,)), r"has size \[30\]; \[height, width\] was expected"),
        (rle([], size=(0, 0)), r"has size \[0, 0\]"),
        (rle([30], size=(6, 5)), r"run-length mask has \[height, width\] \[6, 5\], its image \[5, 6\]"),
    ],
)
def test_malformed_segmentations_are_told_in_one_line(segmentation: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Polygons.from_coco([[SQUARE], segmentation, FRAME], [(5, 6)] * 3)
    assert str(caught.value).startswith("segmentation 1: ")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"^here 1: "):
        Polygons.from_coco([[SQUARE], segmentation, FRAME], [(5, 6)] * 3, where=lambda number: f"here {number}")


def test_masks_and_lists_keep_their_places() -> None:
    bitmap = np.zeros((4, 5), dtype=np.uint8)
    bitmap[1:3, 2:4] = 1
    packed = coco_mask.encode(np.asfortranarray(bitmap))
    as_text = {"size": packed["size"], "counts": packed["counts"].decode()}
    plain = {"size": [4, 5], "counts": [9, 2, 2, 2, 5]}
    nothing = {"size": [4, 5], "counts": [20]}
    polygons = Polygons.from_coco([packed, [SQUARE], plain, nothing, None, as_text])
    np.testing.assert_array_equal(polygons.areas(), [4, 16, 4, 0, 0, 4])
    np.testing.assert_array_equal(polygons.to_bitmaps(4, 5)[[0, 2, 5]], np.stack([bitmap] * 3))


@pytest.mark.parametrize(
    "instances", [slice(None), slice(1, 3), slice(-1, None), [0, 1, 2, 3], [1, 2], np.array([True] * 4)]
)
def test_successive_instances_are_a_view(several: Polygons, instances: Any) -> None:
    chosen = several.select(instances)
    assert chosen.vertices.size == 0 or np.shares_memory(chosen.vertices, several.vertices)
    numbers = np.arange(4)[instances]
    assert len(chosen) == len(numbers)
    one_by_one = Polygons.concatenate([several.select([number]) for number in numbers])
    for field in ("vertices", "ring_offsets", "instance_offsets", "holes"):
        np.testing.assert_array_equal(getattr(chosen, field), getattr(one_by_one, field))
        assert getattr(chosen, field).dtype == getattr(several, field).dtype


def test_repr_tells_counts_instead_of_vertices() -> None:
    assert repr(Polygons.empty(3)) == "Polygons(3 instances, 0 rings, 0 vertices)"
