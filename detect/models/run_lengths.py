"""COCO's run lengths from where the bits of a bitmap change.

A bitmap is read column after column; counts of pixels that are off and on take turns, the first being of those off. The
compressed form writes each count from the fourth on as its difference from the one two before, in groups of five bits,
lowest first, in letters from ``0`` on (pycocotools' ``rleToString``).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

CONTINUES, SIGN, GROUP = 0x20, 0x10, 0x1F
MAX_GROUPS = 7  # of five bits: pycocotools counts with 32


def run_lengths_of(starts: Ints, ends: Ints, size: tuple[int, int]) -> dict[str, object]:
    """Run lengths of the bitmap of this size that is on in the given runs.

    Args:
        starts: (r,) positions of the runs' first pixels, column after column, ascending.
        ends: (r,) positions after their last pixels. A run may begin where the one before ends.
        size: (height, width).

    Returns:
        ``size`` and ``counts``, as ``pycocotools.mask.encode`` gives them but for ``counts`` being a string.
    """
    edges = np.stack([starts, ends], axis=1).ravel()
    kept = np.ones(len(edges), dtype=bool)
    kept[1:-1] = np.repeat(starts[1:] != ends[:-1], 2)  # runs that touch are one
    counts = np.diff(edges[kept], prepend=0, append=size[0] * size[1])
    if len(counts) > 1 and counts[-1] == 0:
        counts = counts[:-1]
    return {"size": list(size), "counts": compress(counts)}


def compress(counts: Ints) -> str:
    """Counts (m,) in COCO's compressed form."""
    values = counts.copy()
    values[3:] -= counts[1:-2]
    letters = np.zeros((len(values), MAX_GROUPS), dtype=np.uint8)
    used = np.zeros(letters.shape, dtype=bool)
    more = np.ones(len(values), dtype=bool)
    for place in range(MAX_GROUPS):
        used[:, place] = more
        group = values & GROUP
        values >>= 5
        more = more & (values != np.where(group & SIGN, -1, 0))
        letters[:, place] = group + np.where(more, CONTINUES, 0) + ord("0")
    return letters[used].tobytes().decode("ascii")
