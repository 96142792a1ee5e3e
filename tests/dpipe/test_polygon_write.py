"""Polygons back to COCO: the same polygons, the same masks, the same bytes."""

from __future__ import annotations

import json
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from pycocotools import mask as coco_mask

from dpipe import geometry as g
from dpipe.errors import InputError
from dpipe.outlines import polygon_write
from dpipe.polygons import Polygons

masks = npst.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 1))
FIELDS = ("vertices", "ring_offsets", "instance_offsets", "holes")


def encode(bitmap: np.ndarray) -> dict[str, Any]:
    packed = coco_mask.encode(np.asfortranarray(bitmap))
    return {"size": list(bitmap.shape), "counts": packed["counts"].decode("ascii")}


def uncompressed(bitmap: np.ndarray) -> dict[str, Any]:
    flat = bitmap.flatten(order="F").astype(np.int8)
    bounds = np.flatnonzero(np.diff(flat, prepend=0))
    counts = np.diff([0, *bounds, len(flat)]).tolist()
    return {"size": list(bitmap.shape), "counts": counts if counts[-1] or len(counts) == 1 else counts[:-1]}


def same(one: Polygons, other: Polygons) -> None:
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field))


def check_runs(bitmap: np.ndarray) -> None:
    """Run lengths to polygons and back, in both forms, are the same bytes."""
    polygons = Polygons.from_coco([encode(bitmap)])
    assert polygons.to_rle(*bitmap.shape) == [encode(bitmap)]
    assert polygons.to_rle(*bitmap.shape, compressed=False) == [uncompressed(bitmap)]


@settings(max_examples=200, deadline=None)
@given(masks)
def test_run_lengths_come_back_as_they_were(bitmap: np.ndarray) -> None:
    check_runs(bitmap)


@pytest.mark.parametrize(
    "bitmap",
    [
        np.zeros((4, 6), dtype=np.uint8),
        np.ones((4, 6), dtype=np.uint8),
        np.ones((1, 1), dtype=np.uint8),
        np.indices((9, 10)).sum(axis=0).astype(np.uint8) % 2,
        (np.random.default_rng(0).random((1024, 2048)) > 0.5).astype(np.uint8)[:, 1900:],
        cv2.circle(np.zeros((1024, 2048), dtype=np.uint8), (2000, 1000), 700, 1, 90),
    ],
    ids=["empty", "full", "pixel", "checkerboard", "noise", "ring"],
)
def test_run_lengths_of_difficult_masks_come_back(bitmap: np.ndarray) -> None:
    check_runs(bitmap)


def test_run_lengths_of_large_noise_come_back() -> None:
    bitmap = (np.random.default_rng(0).random((1024, 2048)) > 0.9).astype(np.uint8)
    assert Polygons.from_coco([encode(bitmap)]).to_rle(1024, 2048) == [encode(bitmap)]


def tangle(rng: np.random.Generator, count: int) -> Polygons:
    """Instances of one to three rings that cross themselves and each other and leave the image."""
    whole = [[rng.integers(-5, 40, 2 * rng.integers(3, 9)).tolist() for _ in range(1 + n % 3)] for n in range(count)]
    return Polygons.from_coco([[ring for ring in rings if len(set(ring)) > 2] for rings in whole])


@pytest.mark.parametrize("seed", range(5))
def test_run_lengths_are_those_of_the_bitmaps(seed: int) -> None:
    # On whole and halved coordinates borders run through the centres of pixels; turned, they do not.
    rng = np.random.default_rng(seed)
    plain = tangle(rng, 40)
    for matrix in (g.identity(), g.scaling(0.5, 0.5), g.rotation(rng.uniform(0, 360), (17, 15))):
        polygons = Polygons.concatenate([plain.transform(matrix), Polygons.empty(2)])
        assert polygons.to_rle(31, 35) == [encode(bitmap) for bitmap in polygons.to_bitmaps(31, 35)]


def test_run_lengths_are_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    polygons = Polygons.concatenate([Polygons.empty(1), tangle(np.random.default_rng(9), 30), Polygons.empty(1)])
    whole = polygons.to_rle(31, 35)
    pieces = []
    select = Polygons.select
    monkeypatch.setattr(Polygons, "select", lambda self, chosen: pieces.append(chosen) or select(self, chosen))
    monkeypatch.setattr(polygon_write, "ENCODE_WORK", 200)
    assert polygons.to_rle(31, 35) == whole
    assert len(pieces) > 5


def test_run_lengths_of_nothing() -> None:
    assert Polygons.empty().to_rle(3, 4) == []
    assert Polygons.empty().to_coco() == []
    assert Polygons.empty(1).to_rle(3, 4, compressed=False) == [{"size": [3, 4], "counts": [12]}]
    assert Polygons.empty(2).to_coco() == [[], []]


def test_polygons_come_back_with_the_digits_they_were_written_with() -> None:
    segmentations = [
        [[10.3, 20.07, 30, 20.51, 25.25, 60.99]],
        [],
        [[0.1, 0.2, 1999.99, 0.3, 0.4, 1023.01], [5, 5, 9, 5, 5, 9]],
    ]
    written = Polygons.from_coco(segmentations).to_coco()
    assert written == segmentations
    assert "10.3, 20.07, 30.0" in json.dumps(written)


points = st.tuples(*[st.floats(-(2.0**59), 2.0**59, width=32)] * 2)
rings = st.lists(points, min_size=3, max_size=6).map(lambda ring: [number for point in ring for number in point])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(rings, max_size=3), max_size=4))
def test_any_coordinates_come_back(segmentations: list[list[list[float]]]) -> None:
    polygons = Polygons.from_coco(segmentations)
    same(Polygons.from_coco(json.loads(json.dumps(polygons.to_coco()))), polygons)


def test_instances_with_holes_become_run_lengths() -> None:
    frame = np.zeros((9, 11), dtype=np.uint8)
    frame[1:8, 2:10] = 1
    solid = frame.copy()
    frame[3:5, 4:7] = 0
    square = [[2.0, 3.0, 6.0, 3.0, 6.0, 7.5, 2.0, 7.5]]
    polygons = Polygons.from_coco([square, encode(frame), None, encode(solid)])
    outline = [[2.0, 1.0, 10.0, 1.0, 10.0, 8.0, 2.0, 8.0]]
    written = polygons.to_coco((9, 11))
    assert written == [square, encode(frame), [], outline]
    same(Polygons.from_coco(json.loads(json.dumps(written))), polygons)
    assert polygons.to_coco([[20, 20], [9, 11], [5, 5], [7, 7]]) == written
    assert polygons.select([0, 2, 3]).to_coco() == [square, [], outline]
    with pytest.raises(InputError, match="instance 1 has a hole, which COCO can tell by run lengths only"):
        polygons.to_coco()


def test_pycocotools_reads_what_is_written() -> None:
    rng = np.random.default_rng(3)
    field = cv2.GaussianBlur(rng.random((90, 120)).astype(np.float32), (0, 0), 3)
    bitmap = (field > 0.52).astype(np.uint8)
    polygons = Polygons.from_coco([encode(bitmap)])
    for compressed in (True, False):
        (mask,) = polygons.to_rle(90, 120, compressed)
        read = mask if compressed else coco_mask.frPyObjects(mask, 90, 120)
        np.testing.assert_array_equal(coco_mask.decode(read), bitmap)


def test_each_mask_ends_where_its_own_image_does() -> None:
    """Of masks that are written together, the parts beyond a small image are not those of a large one."""
    frame = np.ones((6, 6), dtype=np.uint8)
    frame[2:4, 2:4] = 0
    large = Polygons.from_coco([encode(frame)] * 3).transform(g.compose(g.scaling(7, 7), g.translation(-3, -2)))
    sizes = [(20, 50), (50, 20), (40, 40)]
    expected = [encode(large.to_bitmaps(*size)[0]) for size in sizes]
    assert large.to_coco(sizes) == expected
    assert [large.select([0]).to_rle(*size)[0] for size in sizes] == expected
