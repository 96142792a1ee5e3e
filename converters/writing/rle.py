"""COCO run-length encodings of all instances of a label image, from one pass over its pixels.

COCO's compressed RLE (pycocotools, ``common/maskApi.c``) walks a mask column by column and counts runs of zeros and
ones in turn, beginning with zeros. A label image holds the runs of every instance at once: they begin where a pixel
differs from the one before it in column order. So instead of one mask per instance, encoded pixel by pixel, the breaks
of the whole image are found once, the runs between them are sorted by instance, and all counts are written to text
together.

Names: H, W image height and width; R runs of all kept instances; I instances; C counts of all instances.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class InstanceRLE:
    """One instance of a label image.

    Attributes:
        id: The value that its pixels have in the label image.
        size: Height and width of the label image in pixels.
        counts: COCO's compressed run lengths.
        area: Number of pixels.
        bbox: Tight box x, y, width, height in pixels.
    """

    id: int
    size: tuple[int, int]
    counts: str
    area: int
    bbox: tuple[float, float, float, float]

    def segmentation(self) -> dict[str, Any]:
        """Returns the ``segmentation`` of a COCO annotation."""
        return {"size": list(self.size), "counts": self.counts}


def encode_label_image(
    labels: npt.NDArray[Any], *, minimum: int = 1, excluded: Sequence[int] = ()
) -> list[InstanceRLE]:
    """Encodes every instance of a label image.

    Args:
        labels: (H, W) integers, the instance id of each pixel.
        minimum: Smaller ids are background.
        excluded: Further ids that are no instances (a void border, say).

    Returns:
        One entry per id present, in ascending order of ids. Bytes, area and box equal those of pycocotools' ``encode``,
        ``area`` and ``toBbox`` on the mask of that id.

    Raises:
        ValueError: The array is not two-dimensional, or not of integers.
    """
    if labels.ndim != 2 or labels.dtype.kind not in "iu":
        raise ValueError(f"a label image is (H, W) of integers, not {labels.shape} of {labels.dtype}")
    height, width = labels.shape
    if labels.size == 0:
        return []
    starts = _run_starts(labels)
    lengths = np.diff(starts, append=labels.size)
    columns, rows = _divided(starts, height)
    values = labels.reshape(-1).take(rows * width + columns)  # faster than by two indices

    kept = values >= minimum
    for value in excluded:
        kept &= values != value
    starts, lengths, values = starts[kept], lengths[kept], values[kept]  # (R,)
    if len(values) == 0:
        return []
    by_instance = np.argsort(values, kind="stable")  # stable: runs of an instance stay in column order
    starts, lengths, values = starts[by_instance], lengths[by_instance], values[by_instance]
    first_runs = np.concatenate(
        ([0], np.flatnonzero(values[1:] != values[:-1]) + 1)
    )  # (I,) index of each one's first run

    areas = np.add.reduceat(lengths, first_runs)
    boxes = _boxes(starts, lengths, first_runs, height)
    counts, first_counts = _counts(starts, lengths, first_runs, labels.size)
    texts = _compress(counts, first_counts)
    return [
        InstanceRLE(id=value, size=(height, width), counts=text, area=area, bbox=(box[0], box[1], box[2], box[3]))
        for value, text, area, box in zip(
            values[first_runs].tolist(), texts, areas.tolist(), boxes.tolist(), strict=True
        )
    ]


def _run_starts(labels: npt.NDArray[Any]) -> IntArray:
    """Finds where the runs of equal labels begin, as ascending positions in column order.

    The image is compared in the row order in which it lies in memory, and only the few breaks found are put into column
    order: much cheaper than transposing the image.
    """
    height, width = labels.shape
    rows, columns = _divided(np.flatnonzero(labels[1:] != labels[:-1]), width)
    within_columns = columns * height + rows + 1
    across_columns = (np.flatnonzero(labels[0, 1:] != labels[-1, :-1]) + 1) * height
    starts = np.concatenate(([0], within_columns, across_columns))
    starts.sort()
    return starts


def _divided(positions: IntArray, length: int) -> tuple[IntArray, IntArray]:
    """Returns quotients and remainders; several times as fast as ``np.divmod``, whose division is not vectorized."""
    quotients = positions // length
    return quotients, positions - quotients * length


def _boxes(starts: IntArray, lengths: IntArray, first_runs: IntArray, height: int) -> npt.NDArray[np.float64]:
    """Returns the tight boxes, (I, 4) x, y, width, height."""
    first_column, first_row = _divided(starts, height)
    last_column, last_row = _divided(starts + lengths - 1, height)
    # A run that goes on in the next column has reached the bottom of one column and the top of the next.
    wraps = last_column > first_column
    top = np.minimum.reduceat(np.where(wraps, 0, first_row), first_runs)
    bottom = np.maximum.reduceat(np.where(wraps, height - 1, last_row), first_runs)
    left = np.minimum.reduceat(first_column, first_runs)
    right = np.maximum.reduceat(last_column, first_runs)
    return np.stack([left, top, right - left + 1, bottom - top + 1], axis=1).astype(np.float64)


def _counts(starts: IntArray, lengths: IntArray, first_runs: IntArray, pixels: int) -> tuple[IntArray, IntArray]:
    """Writes the runs as COCO's alternating counts of zeros and ones.

    Returns:
        The counts of all instances one after the other, (C,), and the index of each instance's first, (I,).
    """
    ends = starts + lengths
    gaps = starts.copy()
    gaps[1:] -= ends[:-1]
    gaps[first_runs] = starts[first_runs]  # an instance's first run is counted from the image's first pixel

    last_runs = np.concatenate((first_runs[1:], [len(starts)])) - 1
    tails = pixels - ends[last_runs]  # zeros after the last run, which have a count only if there are any
    has_tail = tails > 0
    tails_before = np.cumsum(has_tail) - has_tail  # (I,)
    runs_of_instance = last_runs - first_runs + 1
    positions = 2 * np.arange(len(starts)) + np.repeat(tails_before, runs_of_instance)

    counts = np.empty(2 * len(starts) + int(has_tail.sum()), np.int64)
    counts[positions] = gaps
    counts[positions + 1] = lengths
    counts[positions[last_runs[has_tail]] + 2] = tails[has_tail]
    return counts, positions[first_runs]


def _compress(counts: IntArray, first_counts: IntArray) -> list[str]:
    """Writes counts as COCO's text, one string per instance.

    From an instance's fourth count on, the difference to the count before the last one is written. A number becomes
    groups of five bits, lowest first, each a printable character (48 + bits); bit 32 says that another group follows;
    the highest bit of the last group is the sign.
    """
    rest = counts.copy()
    rest[2:] -= counts[:-2]
    bounds = np.append(first_counts, len(counts))
    for place in range(3):
        absolute = first_counts[first_counts + place < bounds[1:]] + place
        rest[absolute] = counts[absolute]

    groups: list[npt.NDArray[np.uint8]] = []
    written: list[npt.NDArray[np.bool_]] = []
    going_on = np.ones(len(rest), bool)
    while going_on.any():
        bits = rest & 31
        rest >>= 5
        follows = going_on & (rest != np.where(bits & 16, -1, 0))
        groups.append((bits + 48 + 32 * follows).astype(np.uint8))
        written.append(going_on)
        going_on = follows
    is_written = np.stack(written, axis=1)  # (C, groups)
    text = np.stack(groups, axis=1)[is_written].tobytes().decode("ascii")
    text_ends = np.concatenate(([0], np.cumsum(is_written.sum(axis=1))))[bounds].tolist()
    return [text[begin:end] for begin, end in pairwise(text_ends)]
