"""Run lengths from runs: the bytes that pycocotools writes."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from detect.models.run_lengths import run_lengths_of


def runs_of(bitmap):
    """Runs of a bitmap within its columns, so that those of neighbouring columns may touch."""
    framed = np.pad(bitmap.T.astype(np.int8), ((0, 0), (1, 1)))
    steps = np.diff(framed, axis=1)
    height = len(bitmap)
    (starts, ends) = (np.argwhere(steps == step) @ (height, 1) for step in (1, -1))
    return starts, ends


def check(bitmap):
    expected = coco_mask.encode(np.asfortranarray(bitmap.astype(np.uint8)))
    assert run_lengths_of(*runs_of(bitmap), bitmap.shape) == {
        "size": list(expected["size"]),
        "counts": expected["counts"].decode("ascii"),
    }


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (40, 70), (700, 900)])
def test_counts_are_those_of_pycocotools(shape, share):
    check(np.random.default_rng(0).random(shape) < share)


def test_counts_far_apart_need_several_letters():
    bitmap = np.zeros((3000, 4000), dtype=bool)
    bitmap[0, 0] = bitmap[1500:, 3999] = bitmap[7, 2000:2003] = True
    check(bitmap)
