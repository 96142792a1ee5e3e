from __future__ import annotations

import numpy as np
import pycocotools.mask as coco_mask
import pytest

from dpipe.outlines.outline_masks import outline_masks
from dpipe.polygons import Polygons


def mask_of(rows):
    rle = coco_mask.encode(np.asfortranarray(rows, dtype=np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def test_rings_follow_the_pixel_edges():
    bar = mask_of([[0, 1, 1], [0, 0, 0]])
    touching = mask_of([[1, 0], [0, 1]])
    (ring,), parts = outline_masks([bar, touching])
    assert sorted(zip(ring[::2], ring[1::2], strict=True)) == [(1, 0), (1, 1), (3, 0), (3, 1)]
    assert [len(part) for part in parts] == [8, 8]


def test_a_mask_with_a_hole_stays_as_it_is():
    ring = mask_of([[1, 1, 1], [1, 0, 1], [1, 1, 1]])
    bar = mask_of([[1, 1, 1], [0, 0, 0], [0, 0, 0]])
    assert outline_masks([bar, ring, bar])[1] == ring
    assert isinstance(outline_masks([bar, ring, bar])[2], list)


@pytest.mark.parametrize("seed", range(5))
def test_outlines_are_the_masks_again(seed):
    rows = np.kron(np.random.default_rng(seed).random((9, 7)) < 0.6, np.ones((2, 3), np.uint8))
    mask = mask_of(rows)
    again = Polygons.from_coco(outline_masks([mask])).to_rle(*mask["size"])
    assert again == [mask]


def test_nothing_gives_nothing():
    assert outline_masks([]) == []
