"""Analyses the detections of a data set: what lies behind their average precision."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detect.analysis.calibration import Calibration, calibrate
from detect.analysis.confusion import Confusion, confuse
from detect.analysis.errors import Errors, break_down
from detect.analysis.matching import COCO_IOUS, MaskOrBox, Matches, match
from detect.analysis.precision import RECALLS
from detect.metrics.coco import ALL_AREAS, require_masks
from detect.metrics.evaluating import default_kinds
from detect.metrics.results import Results, check_ids, read_results
from dpipe.coco import CocoIndex
from dpipe.errors import InputError


@dataclass(frozen=True, eq=False)
class Curves:
    """Precision over recall, as COCO's evaluation draws it: at each recall the best precision there or beyond.

    Attributes:
        ious: (T,) COCO's ten, and the analysis' own where it is none of them.
        recalls: (101,) from 0 to 1.
        precisions: (T, 101, C) of each class; 0 at recalls that are not reached, NaN for a class without objects.
    """

    ious: NDArray[np.float64]
    recalls: NDArray[np.float64]
    precisions: NDArray[np.float64]

    def mean(self) -> NDArray[np.float64]:
        """(T, 101) the mean over the classes that have objects; NaN where there are none."""
        known = ~np.isnan(self.precisions[0, 0])
        if not known.any():
            return np.full(self.precisions.shape[:2], np.nan)
        return np.asarray(self.precisions[:, :, known].mean(axis=2))


@dataclass(frozen=True)
class ClassNumbers:
    """What is known of a class beside its errors.

    Attributes:
        name: Of the category.
        id: Of the category.
        objects: To be found; crowd regions are none.
        detections: That count.
        ap: Average precision, the mean over COCO's ten IoUs; NaN without objects.
        ap_at_iou: Average precision at the analysis' IoU; NaN without objects.
        calibration_error: ECE; NaN without detections, or where scores are no probabilities.
    """

    name: str
    id: int
    objects: int
    detections: int
    ap: float
    ap_at_iou: float
    calibration_error: float


@dataclass(frozen=True, eq=False)
class Analysis:
    """All that an analysis tells.

    Attributes:
        kind: Whether boxes or masks were compared.
        iou: From which on an object counts as found, in all but ``ap`` and ``curves``.
        images: Images.
        objects: Objects that are to be found.
        crowds: Crowd regions, which need not be found.
        detections: Detections that count.
        ap: COCO's AP: the mean over classes and ten IoUs; NaN without objects.
        ap_at_iou: The mean over classes at ``iou``; NaN without objects.
        classes: In the order of the categories.
        curves: Precision over recall.
        confusion: Classes taken for others.
        calibration: Scores against precision; None where scores are no probabilities.
        errors: What costs AP.
        matches: Detections and objects, of which all this was computed.
    """

    kind: MaskOrBox
    iou: float
    images: int
    objects: int
    crowds: int
    detections: int
    ap: float
    ap_at_iou: float
    classes: tuple[ClassNumbers, ...]
    curves: Curves
    confusion: Confusion
    calibration: Calibration | None
    errors: Errors
    matches: Matches


def analyze(
    results: str | Path | Results,
    annotations: str | Path | CocoIndex,
    *,
    kind: MaskOrBox | None = None,
    iou: float = 0.5,
    background_iou: float = 0.1,
    score: float = 0.3,
) -> Analysis:
    """Finds out what costs the average precision of detections.

    Args:
        results: A JSON file in COCO's results format, or detections.
        annotations: The data set's COCO JSON.
        kind: What is compared; by default masks where the results and all objects have them, else boxes.
        iou: From which on an object counts as found.
        background_iou: Up to which a detection counts as on the background.
        score: From which on detections count in the confusion matrix.

    Raises:
        InputError: If a file cannot be used, results have ids that the data set does not have, masks are asked for and
            not there, or an IoU makes no sense.
    """
    if kind not in (None, "bbox", "segm"):
        raise InputError(f"kind is {kind!r}; expected 'bbox' or 'segm'")
    if not 0 < iou <= 1:
        raise InputError(f"iou is {iou}; expected a number above 0, up to 1")
    if not 0 <= background_iou < iou:
        raise InputError(f"background_iou is {background_iou}; expected a number from 0 to below iou, which is {iou}")
    if not np.isfinite(score):
        raise InputError(f"score is {score}; expected a number")
    index = annotations if isinstance(annotations, CocoIndex) else CocoIndex.load(annotations)
    if kind == "segm":
        require_masks(index)
    if isinstance(results, Results):
        found = results
        check_ids(found, index)
    else:
        found = read_results(results, index)
    chosen = kind or ("segm" if "segm" in default_kinds(index, found)[0] else "bbox")
    if chosen == "segm" and found.masks is None and len(found):
        name = "the results" if isinstance(results, Results) else results
        raise InputError(f"{name}: without masks; an analysis of segm needs them, one of bbox does not")

    matches, evaluation = match(found, index, chosen, iou)
    assert evaluation.eval is not None
    # (IoUs, recalls, classes, areas, maximal detections); -1 where a class has no object
    precision = evaluation.eval["precision"][:, :, :, ALL_AREAS, -1]
    places = {category_id: place for place, category_id in enumerate(evaluation.params.cat_ids)}
    precision = precision[:, :, [places[category_id] for category_id in index.category_ids.tolist()]]
    precision = np.where(precision < 0, np.nan, precision)
    curves = Curves(matches.ious, RECALLS, precision)
    calibration = calibrate(matches, iou)
    at = matches.at(iou)
    by_iou = precision.mean(axis=1)  # (IoUs, classes)
    aps = by_iou[[matches.at(each) for each in COCO_IOUS]].mean(axis=0)
    objects = matches.objects_of_classes()
    counted = np.bincount(matches.labels[matches.counted[at]], minlength=len(objects))
    return Analysis(
        chosen,
        iou,
        images=matches.num_images,
        objects=int(objects.sum()),
        crowds=matches.num_crowds,
        detections=int(counted.sum()),
        ap=_mean(aps),
        ap_at_iou=_mean(by_iou[at]),
        classes=tuple(
            ClassNumbers(
                name,
                int(index.category_ids[label]),
                int(objects[label]),
                int(counted[label]),
                float(aps[label]),
                float(by_iou[at, label]),
                np.nan if calibration is None else float(calibration.expected_error_by_class[label]),
            )
            for label, name in enumerate(index.class_names)
        ),
        curves=curves,
        confusion=confuse(found, index, matches, chosen, iou, score),
        calibration=calibration,
        errors=break_down(matches, iou, background_iou),
        matches=matches,
    )


def _mean(values: NDArray[np.float64]) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else np.nan
