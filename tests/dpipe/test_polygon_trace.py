from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from pycocotools import mask as coco_mask

from dpipe.errors import InputError
from dpipe.outlines import polygon_coco
from dpipe.polygons import Polygons

masks = npst.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 1))


def compressed(mask: np.ndarray) -> dict[str, Any]:
    packed = coco_mask.encode(np.asfortranarray(mask))
    return {"size": list(mask.shape), "counts": packed["counts"].decode()}


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    flat = mask.flatten(order="F").astype(np.int8)
    bounds = np.flatnonzero(np.diff(flat, prepend=0)) if len(flat) else []
    return {"size": list(mask.shape), "counts": np.diff([0, *bounds, len(flat)]).tolist()}


def check(mask: np.ndarray, polygons: Polygons) -> None:
    """The polygons of one instance are the mask: its pixels, its 4-connected parts, its holes, only true corners."""
    np.testing.assert_array_equal(polygons.to_bitmaps(*mask.shape)[0], mask)
    assert polygons.areas()[0] == mask.sum()
    parts = cv2.connectedComponents(mask, connectivity=4)[0] - 1
    background = cv2.connectedComponents(np.pad(1 - mask, 1, constant_values=1), connectivity=8)[0] - 1
    assert (~polygons.holes).sum() == parts
    assert polygons.holes.sum() == background - 1
    for number in range(len(polygons.holes)):
        ring = polygons.vertices[slice(*polygons.ring_offsets[number : number + 2])]
        steps = np.diff(ring, axis=0, append=ring[:1])
        across = steps[:, 0] != 0
        assert ((steps != 0).sum(axis=1) == 1).all()
        assert (across != np.roll(across, 1)).all()


@settings(max_examples=200, deadline=None)
@given(masks)
def test_tracing_then_rasterising_is_the_identity(mask: np.ndarray) -> None:
    check(mask, Polygons.from_coco([compressed(mask)], [mask.shape]))


@settings(max_examples=50, deadline=None)
@given(st.lists(masks, min_size=1, max_size=6), st.data())
def test_masks_of_all_sizes_are_traced_together(several: list[np.ndarray], data: st.DataObject) -> None:
    kinds = data.draw(
        st.lists(st.sampled_from([compressed, uncompressed]), min_size=len(several), max_size=len(several))
    )
    polygons = Polygons.from_coco([kind(mask) for kind, mask in zip(kinds, several, strict=True)])
    assert len(polygons) == len(several)
    for number, mask in enumerate(several):
        check(mask, polygons.select([number]))


def nested_frames() -> np.ndarray:
    mask = np.zeros((41, 43), dtype=np.uint8)
    for inset in range(0, 20, 2):
        mask[inset : 41 - inset, inset : 43 - inset] = (inset // 2 + 1) % 2
    return mask


@pytest.mark.parametrize(
    "mask",
    [
        np.indices((9, 10)).sum(axis=0).astype(np.uint8) % 2,
        np.ones((7, 5), dtype=np.uint8),
        nested_frames(),
        (np.random.default_rng(0).random((300, 200)) > 0.5).astype(np.uint8),
        (np.random.default_rng(1).random((100, 300)) > 0.2).astype(np.uint8),
        np.eye(30, dtype=np.uint8) | np.fliplr(np.eye(30, dtype=np.uint8)),
    ],
    ids=["checkerboard", "full", "nested", "noise", "holes", "cross"],
)
def test_difficult_masks(mask: np.ndarray) -> None:
    check(mask, Polygons.from_coco([compressed(mask)]))
    check(mask, Polygons.from_coco([uncompressed(mask)]))


def test_pixels_that_touch_by_corners_are_parts_of_their_own() -> None:
    for mask in (np.eye(2, dtype=np.uint8), np.fliplr(np.eye(2, dtype=np.uint8))):
        polygons = Polygons.from_coco([compressed(mask)])
        np.testing.assert_array_equal(polygons.ring_offsets, [0, 4, 8])
        assert not polygons.holes.any()


def test_holes_follow_their_own_outer_ring() -> None:
    # A frame with an island that has a hole itself, and a second frame beside it.
    mask = np.zeros((9, 20), dtype=np.uint8)
    mask[:, :9] = 1
    mask[1:8, 1:8] = 0
    mask[2:7, 2:7] = 1
    mask[3:6, 3:6] = 0
    mask[2:7, 12:18] = 1
    mask[3, 13] = mask[5, 14] = 0
    polygons = Polygons.from_coco([compressed(mask)])
    np.testing.assert_array_equal(polygons.holes, [False, True, False, True, False, True, True])
    areas = polygons._ring_areas()
    np.testing.assert_array_equal(areas, [81, 49, 25, 9, 30, 1, 1])


def test_rings_run_clockwise_and_holes_the_other_way() -> None:
    polygons = Polygons.from_coco([{"size": [3, 3], "counts": [0, 4, 1, 4]}])
    assert polygons.vertices[:4].tolist() == [[0, 0], [3, 0], [3, 3], [0, 3]]
    assert polygons.vertices[4:].tolist() == [[2, 1], [1, 1], [1, 2], [2, 2]]


def test_runs_of_no_length_change_nothing() -> None:
    plain = Polygons.from_coco([{"size": [4, 4], "counts": [5, 2, 9]}])
    split = Polygons.from_coco([{"size": [4, 4], "counts": [2, 0, 3, 1, 0, 1, 9, 0]}])
    np.testing.assert_array_equal(plain.vertices, split.vertices)
    np.testing.assert_array_equal(plain.ring_offsets, split.ring_offsets)


def test_a_long_file_is_traced_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    several = [(rng.random((9, 11)) > 0.5).astype(np.uint8) for _ in range(40)]
    whole = Polygons.from_coco([compressed(mask) for mask in several])
    monkeypatch.setattr(polygon_coco, "TRACE_RUNS", 100)
    pieces = Polygons.from_coco([compressed(mask) for mask in several])
    np.testing.assert_array_equal(whole.vertices, pieces.vertices)
    np.testing.assert_array_equal(whole.instance_offsets, pieces.instance_offsets)
    np.testing.assert_array_equal(pieces.to_bitmaps(9, 11), np.stack(several))


def test_large_masks_are_traced() -> None:
    # Long runs need several characters in the compressed form, and negative differences.
    mask = np.zeros((1024, 2048), dtype=np.uint8)
    cv2.ellipse(mask, (900, 500), (400, 200), 20, 0, 360, 1, -1)
    cv2.circle(mask, (900, 500), 60, 0, -1)
    mask[:, 2000:] = 1
    check(mask, Polygons.from_coco([compressed(mask)], [(1024, 2048)]))


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(max_size=30), st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=40)))
def test_damaged_text_is_refused_or_read_but_never_crashes(counts: str) -> None:
    try:
        polygons = Polygons.from_coco([{"size": [4, 6], "counts": counts}])
    except InputError:
        return
    check(polygons.to_bitmaps(4, 6)[0], polygons)
