"""COCO's run lengths, from the places where the pixels of a mask change.

A mask is read column after column; counts of pixels that are off and on take turns, the first being of those off. The
compressed form writes each count from the fourth on as its difference from the one two before, in groups of five bits,
lowest first, in letters from ``0`` on (pycocotools, ``common/maskApi.c``: ``rleEncode`` and ``rleToString``).

Names: M masks, T toggles, C counts.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from dpipe.outlines.ragged import Ints, group_numbers, offsets_of

CONTINUES, SIGN, GROUP = 0x20, 0x10, 0x1F


def encode_toggles(toggles: Ints, offsets: Ints, sizes: Ints, compressed: bool = True) -> list[dict[str, Any]]:
    """Run lengths of masks, each given by where its pixels change.

    Args:
        toggles: (T,) of all masks, ascending within each: the positions, column after column, of the pixels that differ
            from the one before, with pixels that are off before the first and after the last. Two that are equal cancel
            out, as where a run begins just after the one before.
        offsets: (M+1,) mask m owns ``toggles[offsets[m]:offsets[m+1]]``, an even number.
        sizes: (M, 2) heights and widths.
        compressed: Whether ``counts`` is a string of COCO's compressed form, or a list of numbers.

    Returns:
        M times ``size`` and ``counts``: the numbers and letters of ``pycocotools.mask.encode``.
    """
    counts, count_offsets = _counts(toggles, offsets, sizes.prod(axis=1))
    if compressed:
        written: list[Any] = compress(counts, count_offsets)
    else:
        flat = counts.tolist()
        written = [flat[begin:end] for begin, end in pairwise(count_offsets.tolist())]
    return [{"size": size, "counts": value} for size, value in zip(sizes.tolist(), written, strict=True)]


def _counts(toggles: Ints, offsets: Ints, pixels: Ints) -> tuple[Ints, Ints]:
    """Counts of all masks (C,), and their offsets (M+1,); ``pixels`` (M,) is how many each mask has."""
    mask = group_numbers(offsets)
    cancels = np.zeros(len(toggles) + 1, dtype=np.bool_)
    cancels[1:-1] = (toggles[1:] == toggles[:-1]) & (mask[1:] == mask[:-1])
    kept = ~(cancels[1:] | cancels[:-1])
    toggles, mask = toggles[kept], mask[kept]
    lengths = np.bincount(mask, minlength=len(pixels))
    ends = offsets_of(lengths)
    # What is off after the last run has a count if there is any; a mask without a run has no other count.
    last = np.zeros(len(pixels), dtype=np.int64)
    last[lengths > 0] = toggles[ends[1:][lengths > 0] - 1]
    tailed = (last < pixels) | (lengths == 0)
    count_offsets = offsets_of(lengths + tailed)
    counts = np.empty(count_offsets[-1], dtype=np.int64)
    counts[np.arange(len(toggles)) + (count_offsets[:-1] - ends[:-1])[mask]] = np.diff(toggles, prepend=0)
    counts[count_offsets[:-1][lengths > 0]] = toggles[ends[:-1][lengths > 0]]  # counted from the first pixel
    counts[count_offsets[1:][tailed] - 1] = (pixels - last)[tailed]
    return counts, count_offsets


def compress(counts: Ints, offsets: Ints) -> list[str]:
    """Counts in COCO's compressed form.

    Args:
        counts: (C,) of all masks.
        offsets: (M+1,) mask m owns ``counts[offsets[m]:offsets[m+1]]``.
    """
    rest = counts.copy()
    rest[2:] -= counts[:-2]
    for place in range(3):
        absolute = offsets[:-1][np.diff(offsets) > place] + place
        rest[absolute] = counts[absolute]
    letters, written = [], []
    more = np.ones(len(rest), dtype=np.bool_)
    while more.any():
        written.append(more)
        group = rest & GROUP
        rest >>= 5
        more = more & (rest != np.where(group & SIGN, -1, 0))
        letters.append((group + np.where(more, CONTINUES, 0) + ord("0")).astype(np.uint8))
    if not written:
        return [""] * (len(offsets) - 1)
    used = np.stack(written, axis=1)  # (C, groups)
    text = np.stack(letters, axis=1)[used].tobytes().decode("ascii")
    ends = offsets_of(used.sum(axis=1))[offsets].tolist()
    return [text[begin:end] for begin, end in pairwise(ends)]
