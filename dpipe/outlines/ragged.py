"""Index arithmetic on flat arrays of groups of unequal length."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def offsets_of(counts: Ints) -> Ints:
    """(n+1,) offsets of groups that lie one after another, from their (n,) lengths."""
    offsets = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def ranges(starts: Ints, counts: Ints) -> Ints:
    """The numbers ``starts[i], ..., starts[i] + counts[i] - 1`` for every i, one group after another."""
    offsets = offsets_of(counts)
    return np.repeat(starts - offsets[:-1], counts) + np.arange(offsets[-1], dtype=np.int64)


def group_numbers(offsets: Ints) -> Ints:
    """The number of its group for every element, from (n+1,) offsets."""
    return np.repeat(np.arange(len(offsets) - 1, dtype=np.int64), np.diff(offsets))
