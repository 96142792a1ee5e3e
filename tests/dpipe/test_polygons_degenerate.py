"""Whatever rings a file holds: nothing crashes or hangs, nothing is negative or out of bounds, and all agree."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from dpipe import geometry as g
from dpipe.outlines.polygon_torch import bitmaps_on, grids_on
from dpipe.polygons import Polygons

HEIGHT, WIDTH = 12, 15

# Few numbers, so that vertices, edges and borders coincide; and numbers that are too large, too small or too near.
near = st.sampled_from([-3.0, 0.0, 0.5, 1.0, 4.0, 4.5, 7.0, 11.5, 12.0, 15.0, 20.0])
far = st.sampled_from([-9e17, -1e9, -1e-30, 1e-45, 3.0000002, 11.999999, 1e6, 1e12, 9e17])
points = st.tuples(near | near | near | far, near | near | near | far)
rings = st.lists(points, min_size=3, max_size=8).map(lambda ring: [number for point in ring for number in point])
instances = st.lists(st.lists(rings, max_size=3), max_size=3)


def check(polygons: Polygons) -> None:
    """All that is made of polygons is sound, and the same whichever way it is made."""
    areas, boxes = polygons.areas(), polygons.boxes()
    assert (areas >= 0).all()
    assert np.isfinite(areas).all()
    assert (boxes[:, 2:] >= boxes[:, :2]).all()
    bitmaps = polygons.to_bitmaps(HEIGHT, WIDTH)
    assert set(np.unique(bitmaps)) <= {0, 1}
    decoded = [coco_mask.decode(mask) for mask in polygons.to_rle(HEIGHT, WIDTH)]
    np.testing.assert_array_equal(bitmaps, np.array(decoded, dtype=np.uint8).reshape(bitmaps.shape))
    np.testing.assert_array_equal(bitmaps, bitmaps_on(polygons, HEIGHT, WIDTH, "cpu").numpy())
    windows = np.array([[0, 0, WIDTH, HEIGHT], [-5, 4, 4.5, 4.5], [3, 3, 3.0000002, 9]], dtype=np.float32)
    boxes = np.tile(windows, (len(polygons), 1))
    looked = np.repeat(np.arange(len(polygons)), 3)
    grids = polygons.to_grids(boxes, looked, 5)
    assert ((grids >= 0) & (grids <= 1)).all()
    on_torch = grids_on(polygons, torch.from_numpy(boxes), torch.from_numpy(looked), 5).numpy()
    assert ((on_torch >= 0) & (on_torch <= 1)).all()
    if np.abs(polygons.vertices).max(initial=0.0) < 1e5:
        np.testing.assert_allclose(on_torch, grids, atol=1e-6)


@settings(max_examples=100, deadline=None)
@given(instances)
@example([[[0.0, 0.0, 15.0, 0.0, 0.0, 0.0, 15.0, 12.0]]])  # there and back again
@example([[[-9e17, -9e17, 9e17, -9e17, 9e17, 9e17, -9e17, 9e17]]])
def test_any_rings_go_through_everything(segmentations: list[list[list[float]]]) -> None:
    polygons = Polygons.from_coco(segmentations)
    check(polygons)
    clipped = polygons.clip(WIDTH, HEIGHT)
    assert ((clipped.vertices >= 0) & (clipped.vertices <= [WIDTH, HEIGHT])).all()
    assert (np.diff(clipped.ring_offsets) >= 3).all()
    assert not clipped.holes[clipped.instance_offsets[:-1][np.diff(clipped.instance_offsets) > 0]].any()
    check(clipped)
    again = clipped.clip(WIDTH, HEIGHT)
    assert again is clipped
    check(clipped.transform(g.rotation(33, (7, 6))).clip(WIDTH, HEIGHT))


def test_areas_of_rings_that_cross_are_never_negative() -> None:
    rng = np.random.default_rng(0)
    tangles = Polygons.from_coco([[rng.uniform(-20, 60, 2 * rng.integers(3, 12)).tolist()] for _ in range(600)])
    clipped = tangles.clip(40, 30)
    areas, seen = clipped.areas(), clipped.to_bitmaps(30, 40).sum(axis=(1, 2))
    assert (areas >= 0).all()
    # The largest of the rings that cross is the outer one, or many large instances would weigh nothing.
    assert ((areas < 1) & (seen > 40)).sum() < 0.01 * (seen > 40).sum()
