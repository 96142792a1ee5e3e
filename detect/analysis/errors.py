"""What costs average precision: the errors of TIDE (Bolya et al., arXiv 2008.08115), by class and by size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from detect.analysis.matching import NOTHING, Matches
from detect.analysis.precision import average_precisions

ErrorKind = Literal["classification", "localisation", "both", "duplicate", "background", "missed"]
ERROR_KINDS: tuple[ErrorKind, ...] = get_args(ErrorKind)
Size = Literal["small", "medium", "large"]
SIZES: tuple[Size, ...] = get_args(Size)
SIZE_LIMITS = (0.0, 32.0**2, 96.0**2, np.inf)
"""Square pixels: objects below the second are small, from the third on they are large."""


@dataclass(frozen=True, eq=False)
class Errors:
    """Errors, and what each kind of them costs: by how much AP would rise if it were mended, nothing else.

    Attributes:
        iou: The IoU from which on an object counts as found.
        background_iou: The IoU up to which a detection counts as on the background.
        ap: The mean of the classes' average precisions at ``iou``; NaN without objects.
        counts: Errors of each kind.
        cost: AP lost by each kind, from 0 to 1.
        counts_by_class: (C, 6) errors of each kind; those of detections under the class that was predicted.
        cost_by_class: (C, 6) AP that the class loses; NaN for a class without objects.
        counts_by_size: (3, 6) errors of each kind that concern small, medium and large objects.
        cost_by_size: (3, 6) AP lost by these alone.
        objects_by_size: (3,) objects.
        false_positives: AP lost by all wrong detections together.
        false_negatives: AP lost by all objects that are not found together.
    """

    iou: float
    background_iou: float
    ap: float
    counts: dict[ErrorKind, int]
    cost: dict[ErrorKind, float]
    counts_by_class: NDArray[np.int64]
    cost_by_class: NDArray[np.float64]
    counts_by_size: NDArray[np.int64]
    cost_by_size: NDArray[np.float64]
    objects_by_size: NDArray[np.int64]
    false_positives: float
    false_negatives: float


def break_down(matches: Matches, iou: float, background_iou: float) -> Errors:
    """Finds the errors of detections, and what they cost.

    A detection that finds no object is, by the first of these that holds: ``localisation``, if the object of its class
    that it overlaps most has an IoU from ``background_iou`` to below ``iou``; ``classification``, if it overlaps an
    object of another class by ``iou``; ``duplicate``, if it overlaps one of its class by ``iou`` (another detection has
    found it); ``background``, if it overlaps nothing by more than ``background_iou``; else ``both``: an object of
    another class, badly placed. An object is ``missed`` if nothing finds it, and no error of localisation or
    classification aims at it.

    Mending an error of localisation or classification makes the detection find its object, if it is the best of those
    that aim at it and nothing else finds it; otherwise, and for the other kinds, it takes the detection away. Mending
    missed objects takes them away. This is what the authors' program tidecv does; unlike it, classes without objects
    are left out of the mean, as in COCO's metric, detections that lie in crowd regions are no errors, and a class of
    which all objects are missed and nothing is detected counts as perfect without them.

    Args:
        matches: Of detections and objects.
        iou: One of ``matches.ious``.
        background_iou: Below ``iou``.
    """
    cause = _Causes(matches, iou, background_iou)
    base = cause.aps()
    kinds, sizes = len(ERROR_KINDS), len(SIZES)
    by_class = np.stack([cause.aps(mended=kind) for kind in range(kinds)], axis=1) - base[:, None]
    by_size = [
        [_mean(cause.aps(mended=kind, size=size)) - _mean(base) for kind in range(kinds)] for size in range(sizes)
    ]
    counts_by_class, counts_by_size = cause.count()
    return Errors(
        iou=iou,
        background_iou=background_iou,
        ap=_mean(base),
        counts=dict(zip(ERROR_KINDS, counts_by_class.sum(axis=0).tolist(), strict=True)),
        cost={kind: _mean(by_class[:, place]) for place, kind in enumerate(ERROR_KINDS)},
        counts_by_class=counts_by_class,
        cost_by_class=by_class,
        counts_by_size=counts_by_size,
        cost_by_size=np.array(by_size),
        objects_by_size=np.bincount(sizes_of(matches.object_areas), minlength=sizes),
        false_positives=_mean(cause.aps_without_false_positives()) - _mean(base),
        false_negatives=_mean(cause.aps_without_false_negatives()) - _mean(base),
    )


def sizes_of(areas: NDArray[np.float64]) -> NDArray[np.int64]:
    """Places in ``SIZES``."""
    return np.searchsorted(SIZE_LIMITS[1:-1], areas, side="right")


CLASSIFICATION, LOCALISATION, BOTH, DUPLICATE, BACKGROUND, MISSED = range(len(ERROR_KINDS))
NO_ERROR = -1


class _Causes:
    """Why each detection is wrong, and what would be if it were mended.

    Attributes:
        kinds: (D,) places in ``ERROR_KINDS``, or -1 for what is right or does not count.
        aims: (D,) the object that an error concerns, or -1.
        mends: (D,) whether mending the error makes the detection find the object.
        missed: (M,) whether an object is missed.
    """

    def __init__(self, matches: Matches, iou: float, background_iou: float) -> None:
        self.matches = matches
        place = matches.at(iou)
        self.counted = matches.counted[place]
        self.correct = matches.found[place] != NOTHING
        same, other = matches.same_iou, matches.other_iou
        self.kinds = np.select(
            [
                ~self.counted | self.correct,
                (same >= background_iou) & (same < iou),
                other >= iou,
                same >= iou,
                np.maximum(same, other) <= background_iou,
            ],
            [NO_ERROR, LOCALISATION, CLASSIFICATION, DUPLICATE, BACKGROUND],
            BOTH,
        )
        self.aims = np.select(
            [
                np.isin(self.kinds, (LOCALISATION, DUPLICATE)),
                np.isin(self.kinds, (CLASSIFICATION, BOTH)),
            ],
            [matches.same_object, matches.other_object],
            NOTHING,
        )
        found = np.zeros(len(matches.object_labels), np.bool_)
        found[matches.found[place][self.correct]] = True
        self.found = found
        aiming = np.flatnonzero(np.isin(self.kinds, (LOCALISATION, CLASSIFICATION)))
        aimed, best = np.unique(self.aims[aiming], return_index=True)  # the first is the one of the highest score
        self.mends = np.zeros(len(self.kinds), np.bool_)
        self.mends[aiming[best[~found[aimed]]]] = True
        self.missed = ~found
        self.missed[aimed] = False
        self.totals = matches.objects_of_classes()
        areas = np.concatenate([matches.object_areas, [0.0]])[self.aims]
        self.sizes = sizes_of(np.where(self.aims == NOTHING, matches.areas, areas))
        self.object_sizes = sizes_of(matches.object_areas)

    def count(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Errors by class and kind, and by size and kind."""
        tables = []
        wrong = self.kinds != NO_ERROR
        for groups, object_groups, number in (
            (self.matches.labels, self.matches.object_labels, len(self.totals)),
            (self.sizes, self.object_sizes, len(SIZES)),
        ):
            table = np.zeros((number, len(ERROR_KINDS)), np.int64)
            np.add.at(table, (groups[wrong], self.kinds[wrong]), 1)
            table[:, MISSED] = np.bincount(object_groups[self.missed], minlength=number)
            tables.append(table)
        return tables[0], tables[1]

    def aps(self, mended: int | None = None, size: int | None = None) -> NDArray[np.float64]:
        """(C,) average precisions, with errors of a kind mended: all of them, or those that concern a size."""
        chosen = np.zeros(len(self.kinds), np.bool_) if mended is None else self.kinds == mended
        gone = self.missed if mended == MISSED else np.zeros_like(self.missed)
        if size is not None:
            chosen = chosen & (self.sizes == size)
            gone = gone & (self.object_sizes == size)
        turned = chosen & self.mends
        labels = self.matches.labels
        if turned.any():
            labels = labels.copy()
            labels[turned] = self.matches.object_labels[self.aims[turned]]
        kept = self.counted & (~chosen | turned)
        totals = self.totals - np.bincount(self.matches.object_labels[gone], minlength=len(self.totals))
        return self._precisions(labels, self.correct | turned, kept, totals)

    def aps_without_false_positives(self) -> NDArray[np.float64]:
        """(C,) average precisions, if only right detections were there."""
        return self._precisions(self.matches.labels, self.correct, self.counted & self.correct, self.totals)

    def aps_without_false_negatives(self) -> NDArray[np.float64]:
        """(C,) average precisions, if objects that are not found were not there."""
        totals = np.bincount(self.matches.object_labels[self.found], minlength=len(self.totals))
        return self._precisions(self.matches.labels, self.correct, self.counted, totals)

    def _precisions(
        self, labels: NDArray[np.int64], correct: NDArray[np.bool_], kept: NDArray[np.bool_], totals: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        values = average_precisions(labels[kept], correct[kept], totals)
        emptied = (totals == 0) & (self.totals > 0)
        detected = np.bincount(labels[kept], minlength=len(totals)) > 0
        return np.where(emptied, np.where(detected, 0.0, 1.0), values)


def _mean(values: NDArray[np.float64]) -> float:
    """The mean over the classes with objects; NaN where there are none."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")
