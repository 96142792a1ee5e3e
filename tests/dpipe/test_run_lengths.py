"""Run lengths from where pixels change: the bytes that pycocotools writes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from dpipe.outlines.ragged import offsets_of
from dpipe.outlines.run_lengths import encode_toggles


def runs_of(bitmap: np.ndarray) -> np.ndarray:
    """Starts and ends of the runs within each column, so that those of neighbouring columns may touch."""
    framed = np.pad(bitmap.T.astype(np.int8), ((0, 0), (1, 1)))
    steps = np.diff(framed, axis=1)
    return np.argwhere(steps != 0) @ (len(bitmap), 1)


def encode(bitmaps: list[np.ndarray], compressed: bool = True) -> list[dict[str, Any]]:
    toggles = [runs_of(bitmap) for bitmap in bitmaps]
    lengths = np.array([len(some) for some in toggles], dtype=np.int64)
    sizes = np.array([bitmap.shape for bitmap in bitmaps], dtype=np.int64).reshape(-1, 2)
    return encode_toggles(np.concatenate([*toggles, np.zeros(0, np.int64)]), offsets_of(lengths), sizes, compressed)


def expected(bitmap: np.ndarray) -> dict[str, Any]:
    packed = coco_mask.encode(np.asfortranarray(bitmap.astype(np.uint8)))
    return {"size": list(packed["size"]), "counts": packed["counts"].decode("ascii")}


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (40, 70), (700, 900)])
def test_counts_are_those_of_pycocotools(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    bitmaps = [rng.random(shape) < share for share in (0.0, 0.01, 0.5, 1.0, 0.99, 0.0, 0.0, 1.0)]
    assert encode(bitmaps) == [expected(bitmap) for bitmap in bitmaps]
    assert encode(bitmaps[:0]) == []


def test_counts_far_apart_need_several_letters() -> None:
    bitmap = np.zeros((3000, 4000), dtype=bool)
    bitmap[0, 0] = bitmap[1500:, 3999] = bitmap[7, 2000:2003] = True
    assert encode([bitmap]) == [expected(bitmap)]


def test_counts_as_numbers() -> None:
    bitmap = np.zeros((3, 4), dtype=bool)
    bitmap[1:, 1:3] = True
    plain = encode([bitmap, ~bitmap, bitmap & False, bitmap | True], compressed=False)
    assert [mask["counts"] for mask in plain] == [[4, 2, 1, 2, 3], [0, 4, 2, 1, 2, 3], [12], [0, 12]]
    assert all(mask["size"] == [3, 4] for mask in plain)
