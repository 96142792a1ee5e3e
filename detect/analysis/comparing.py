"""Compares the results of two models on one data set, and tells how much of the difference may be chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detect.analysis.analyzing import Analysis
from detect.analysis.matching import COCO_IOUS, NOTHING, Matches
from detect.analysis.precision import weighted_average_precisions
from dpipe.errors import InputError

LEVEL = 0.95
LEAST_IMAGES = 10
"""Images with objects of a class that an interval of its AP needs: draws from fewer differ too little to tell."""
CHUNK = 20
"""Resampled data sets at a time: so few fit into the processor's cache with the detections of a class."""


@dataclass(frozen=True)
class Difference:
    """A number of two results, and how sure their difference is.

    Attributes:
        name: Of the number, or of the class whose AP it is.
        first: Of the first results; NaN where there is no object.
        second: Of the second results.
        low: Of second - first: 95% of the resampled data sets lie from here ...
        high: ... to here; both are NaN where too few images have objects to tell.
    """

    name: str
    first: float
    second: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        """By how much the second is higher."""
        return self.second - self.first

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves no doubt of the sign."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two results on one data set.

    Attributes:
        first: The analysis of the first results.
        second: The analysis of the second results.
        overall: AP, AP at COCO's 0.5 and 0.75, and at the analysis' IoU where that is another.
        classes: AP of each class, in the order of the categories.
        resamples: How many data sets were drawn.
        seed: Of the draws.
    """

    first: Analysis
    second: Analysis
    overall: tuple[Difference, ...]
    classes: tuple[Difference, ...]
    resamples: int
    seed: int


def compare(first: Analysis, second: Analysis, *, resamples: int = 1000, seed: int = 0) -> Comparison:
    """Compares two analyses of the same data set, with 95% intervals of the differences.

    The intervals are those of the paired bootstrap over images (Efron and Tibshirani, An Introduction to the Bootstrap,
    1993, the percentile interval): as many images as the data set has are drawn from it with replacement, again and
    again, and both results are evaluated on each draw. A class with objects in fewer than ten images has none.

    Args:
        first: Analysis of one model's results.
        second: Analysis of another's, with the same kind and IoU.
        resamples: Draws.
        seed: Of the draws.

    Raises:
        InputError: If the analyses are not of the same data set, kind and IoU, or ``resamples`` is below 1.
    """
    a, b = first.matches, second.matches
    if (
        (first.kind, first.iou, a.num_images, a.class_names) != (second.kind, second.iou, b.num_images, b.class_names)
        or not np.array_equal(a.object_images, b.object_images)
        or not np.array_equal(a.object_labels, b.object_labels)
    ):
        raise InputError("only analyses of the same data set, kind and IoU can be compared")
    if resamples < 1:
        raise InputError(f"resamples is {resamples}; expected 1 or more")
    generator = np.random.default_rng(seed)
    share = np.full(a.num_images, 1 / max(a.num_images, 1))
    sizes = [CHUNK] * (resamples // CHUNK) + [resamples % CHUNK]
    drawn = [generator.multinomial(a.num_images, share, size=size) for size in sizes if size and a.num_images]
    # The data set itself comes first: (1 + draws, classes, IoUs)
    weights = [np.ones((1, a.num_images)), *(part.astype(np.float64) for part in drawn)]
    aps = [_aps(matches, weights) for matches in (a, b)]

    coco = [a.at(iou) for iou in COCO_IOUS]
    numbers = {"AP": coco, "AP50": [a.at(0.5)], "AP75": [a.at(0.75)]}
    if min(abs(first.iou - 0.5), abs(first.iou - 0.75)) > 1e-9:
        numbers[f"AP{100 * first.iou:g}"] = [a.at(first.iou)]
    overall = []
    for name, at in numbers.items():
        of_first, of_second = (_nan_mean(each[:, :, at].mean(axis=2)) for each in aps)
        overall.append(_difference(name, of_first, of_second))
    by_class = [each[:, :, coco].mean(axis=2) for each in aps]
    known = _images_of_classes(a) >= LEAST_IMAGES
    classes = [
        _difference(name, by_class[0][:, label], by_class[1][:, label], bool(known[label]))
        for label, name in enumerate(a.class_names)
    ]
    return Comparison(first, second, tuple(overall), tuple(classes), resamples, seed)


def _aps(matches: Matches, weights: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Average precisions in data sets that have the images so and so many times.

    Args:
        matches: Of detections and objects.
        weights: (b, N) each, how often each of b data sets has each image.

    Returns:
        (B, C, T) for all B data sets; NaN where one has no object of a class.
    """
    count = sum(map(len, weights))
    values = np.full((count, len(matches.class_names), len(matches.ious)), np.nan)
    order = np.argsort(matches.labels, kind="stable")
    bounds = np.searchsorted(matches.labels[order], np.arange(len(matches.class_names) + 1))
    for label in np.flatnonzero(matches.objects_of_classes()).tolist():
        own = order[bounds[label] : bounds[label + 1]]
        found = matches.found[:, own] != NOTHING
        # What comes after the last detection that finds an object at any IoU changes nothing.
        end = int(np.flatnonzero(found.any(axis=0))[-1]) + 1 if found.any() else 0
        own, hits = own[:end], [np.flatnonzero(row) for row in found[:, :end]]
        left_out = [np.flatnonzero(~row) for row in matches.counted[:, own]]
        object_images = matches.object_images[matches.object_labels == label]
        values[:, label] = np.concatenate(
            [weighted_average_precisions(hits, matches.images[own], left_out, object_images, part) for part in weights]
        )
    return values


def _difference(
    name: str, first: NDArray[np.float64], second: NDArray[np.float64], has_interval: bool = True
) -> Difference:
    """Of the data set itself (the first value) and of those that were drawn."""
    drawn = (second - first)[1:]
    drawn = drawn[~np.isnan(drawn)]
    low = high = np.nan
    if has_interval and len(drawn):
        low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(name, float(first[0]), float(second[0]), float(low), float(high))


def _images_of_classes(matches: Matches) -> NDArray[np.int64]:
    """(C,) images with objects of each class."""
    pairs = np.unique(np.stack([matches.object_labels, matches.object_images]), axis=1)
    return np.bincount(pairs[0], minlength=len(matches.class_names))


def _nan_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over the classes that have objects."""
    known = ~np.isnan(values)
    number = known.sum(axis=1)
    return np.divide(np.where(known, values, 0).sum(axis=1), number, out=np.full(len(values), np.nan), where=number > 0)
