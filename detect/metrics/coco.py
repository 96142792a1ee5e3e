"""COCO's metrics: average precision of boxes and masks, and average recall of proposals.

Computed by hotcoco, whose numbers equal pycocotools' (tests hold it to that).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import hotcoco
import numpy as np

from detect.metrics.scores import Scores
from dpipe.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from detect.metrics.results import Results
    from dpipe.coco import CocoIndex

MAX_DETECTIONS = (1, 10, 100)
MAX_PROPOSALS = (100, 300, 1000)
ALL_AREAS = 0
LARGEST_EXACT = 2**53
"""Ids beyond are not exact as float64, as which a table holds them."""
RECALLS = ("AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""hotcoco's names of the six average recalls, whatever the numbers of detections are."""


def evaluate_coco(
    results: Results, index: CocoIndex, kind: Literal["bbox", "segm"], image_ids: Sequence[int] | None = None
) -> Scores:
    """Computes COCO's average precision and recall.

    Args:
        results: The detections; for ``segm`` with masks.
        index: The data set. The truth is what its JSON says, also where the index says it otherwise: objects that are
            ``difficult`` or to ``ignore`` count, as in pycocotools, which knows ``iscrowd`` only.
        kind: What is compared: boxes or masks.
        image_ids: Ids of the images that count; all where not given.

    Returns:
        The twelve numbers in COCO's order: AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl; and AP,
        AP50, AP75 and AR100 of each class.

    Raises:
        InputError: For ``segm``, if the data set or the results have no masks.
    """
    if kind == "segm":
        require_masks(index)
        if results.masks is None and len(results):
            raise InputError("the results have no masks: segm evaluation needs them, bbox does not")
    evaluation = _evaluated(results, index, kind, image_ids)
    metrics = evaluation.get_results()
    assert evaluation.eval is not None
    most = len(MAX_DETECTIONS) - 1
    # (IoU thresholds, recall thresholds, classes, areas, maximal detections); -1 where a class has no object
    precision = evaluation.eval["precision"][:, :, :, ALL_AREAS, most]
    recall = evaluation.eval["recall"][:, :, ALL_AREAS, most]  # (IoU thresholds, classes)
    names = dict(zip(index.category_ids.tolist(), index.class_names, strict=True))
    per_class = {}
    for place, category_id in enumerate(evaluation.params.cat_ids):
        of_class = precision[:, :, place]
        per_class[names[category_id]] = {
            "AP": _mean(of_class),
            "AP50": _mean(of_class[0]),
            "AP75": _mean(of_class[5]),
            "AR100": _mean(recall[:, place]),
        }
    return Scores(
        kind,
        {key: float(metrics[key]) for key in evaluation.metric_keys()},
        {name: per_class[name] for name in index.class_names},
        f"maxDets={', '.join(map(str, MAX_DETECTIONS))}",
    )


def evaluate_proposals(results: Results, index: CocoIndex, image_ids: Sequence[int] | None = None) -> Scores:
    """Computes the average recall of boxes, whatever their classes are.

    The numbers are those of pycocotools with ``useCats = 0`` and ``maxDets = [100, 300, 1000]``.

    Args:
        results: The proposals of each image; the 1000 with the highest scores count.
        index: The data set, see :func:`evaluate_coco`.
        image_ids: Ids of the images that count; all where not given.

    Returns:
        AR100, AR300, AR1000: the mean over the IoUs 0.5, 0.55 ... 0.95 of the share of objects that so many proposals
        an image find; and ARs, ARm, ARl, the same with 1000 for objects below 32x32, up to 96x96, and larger.
    """
    evaluation = _evaluated(results, index, "bbox", image_ids, proposals=True)
    metrics = evaluation.get_results()
    names = (*(f"AR{number}" for number in MAX_PROPOSALS), *RECALLS[3:])
    return Scores(
        "proposal",
        {name: float(metrics[key]) for name, key in zip(names, RECALLS, strict=True)},
        settings=f"maxDets={', '.join(map(str, MAX_PROPOSALS))}",
    )


def objects_without_masks(index: CocoIndex) -> NDArray[np.int64]:
    """Ids of the annotations that have no mask."""
    return index.annotation_ids[np.diff(index.polygons.instance_offsets) == 0]


def require_masks(index: CocoIndex) -> None:
    """Checks that all objects have masks.

    Raises:
        InputError: If not.
    """
    bare = objects_without_masks(index)
    if len(bare):
        raise InputError(
            f"{index.path}: {len(bare)} annotations have no segmentation (such as id {bare[0]}): "
            "segm evaluation needs one for each object"
        )


def coco_evaluation(results: Results, index: CocoIndex, kind: Literal["bbox", "segm"]) -> hotcoco.COCOeval:
    """The evaluation of detections by hotcoco, whose ``params`` may be changed before it is run."""
    truth = hotcoco.COCO(str(index.path))
    if kind == "segm":
        # With a box, the area by which a result counts as small or large would be the box's, not the mask's.
        found = truth.load_res(_rows(results, without="bbox"))
    elif max(np.abs(results.image_ids).max(initial=0), np.abs(results.category_ids).max(initial=0)) > LARGEST_EXACT:
        found = truth.load_res(_rows(results, without="segmentation"))
    else:
        found = truth.load_res(_table(results))
    return hotcoco.COCOeval(truth, found, kind)


def _evaluated(
    results: Results,
    index: CocoIndex,
    kind: Literal["bbox", "segm"],
    image_ids: Sequence[int] | None,
    proposals: bool = False,
) -> hotcoco.COCOeval:
    evaluation = coco_evaluation(results, index, kind)
    if image_ids is not None:
        evaluation.params.img_ids = list(image_ids)
    evaluation.params.max_dets = list(MAX_PROPOSALS if proposals else MAX_DETECTIONS)
    evaluation.params.use_cats = not proposals
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summary_lines()  # fills in the numbers, and prints nothing
    return evaluation


def _rows(results: Results, without: str) -> list[dict[str, Any]]:
    """The detections as COCO's results format has them, but for one key."""
    return [{key: value for key, value in row.items() if key != without} for row in results.to_coco()]


def _table(results: Results) -> NDArray[np.float64]:
    """(D, 7): image, box, score and category of each detection."""
    columns: list[Any] = [results.image_ids[:, None], results.boxes, results.scores[:, None]]
    return np.concatenate([*columns, results.category_ids[:, None]], axis=1).astype(np.float64)


def _mean(values: NDArray[np.float64]) -> float:
    """The mean of what is defined; NaN where nothing is."""
    values = values[values > -1]
    return float(values.mean()) if len(values) else math.nan
