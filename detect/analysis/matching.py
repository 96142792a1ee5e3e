"""Pairs the detections of a data set with its objects, as COCO's evaluation does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from hotcoco import mask as coco_mask
from hotcoco import primitives

from detect.metrics.coco import MAX_DETECTIONS, coco_evaluation

if TYPE_CHECKING:
    import hotcoco
    from numpy.typing import NDArray

    from detect.metrics.results import Results
    from dpipe.coco import CocoIndex

MaskOrBox = Literal["bbox", "segm"]
COCO_IOUS = tuple(np.linspace(0.5, 0.95, 10).tolist())
NOTHING = -1


@dataclass(frozen=True, eq=False)
class Matches:
    """D detections by falling score, M objects that are to be found, T IoUs.

    Detections of the same score are in the order in which COCO's evaluation counts them: by image id, then as given.
    Crowd regions are no objects. An overlap is the IoU of boxes or of masks.

    Attributes:
        ious: (T,) float64, rising.
        num_images: Images; an image is told by its place among the sorted image ids.
        class_names: C names; a label is a place among them.
        images: (D,) int64.
        labels: (D,) int64.
        scores: (D,) float64.
        areas: (D,) float64 square pixels, of the box or mask.
        found: (T, D) int64, the object that a detection finds at each IoU; -1 where it finds none.
        counted: (T, D) bool; false for what COCO's evaluation leaves out: detections that lie in crowd regions, and
            those after the 100 best of an image and class.
        same_iou: (D,) float64, the largest overlap with an object of the detection's class; 0 where there is none.
        same_object: (D,) int64, that object, or -1.
        other_iou: (D,) float64, the largest overlap with an object of another class; 0 where there is none.
        other_object: (D,) int64, that object, or -1.
        object_images: (M,) int64.
        object_labels: (M,) int64.
        object_areas: (M,) float64 square pixels, as the data set tells them.
        num_crowds: Crowd regions.
        places: (D,) int64, where each detection is in the results.
    """

    ious: NDArray[np.float64]
    num_images: int
    class_names: tuple[str, ...]
    images: NDArray[np.int64]
    labels: NDArray[np.int64]
    scores: NDArray[np.float64]
    areas: NDArray[np.float64]
    found: NDArray[np.int64]
    counted: NDArray[np.bool_]
    same_iou: NDArray[np.float64]
    same_object: NDArray[np.int64]
    other_iou: NDArray[np.float64]
    other_object: NDArray[np.int64]
    object_images: NDArray[np.int64]
    object_labels: NDArray[np.int64]
    object_areas: NDArray[np.float64]
    num_crowds: int
    places: NDArray[np.int64]

    def at(self, iou: float) -> int:
        """The place of an IoU, which is one of ``ious``."""
        return int(np.abs(self.ious - iou).argmin())

    def objects_of_classes(self) -> NDArray[np.int64]:
        """(C,) objects of each class."""
        return np.bincount(self.object_labels, minlength=len(self.class_names))


def match(results: Results, index: CocoIndex, kind: MaskOrBox, iou: float) -> tuple[Matches, hotcoco.COCOeval]:
    """Matches detections and objects at COCO's ten IoUs, and one more where it is none of them.

    The matching is hotcoco's, which is pycocotools'.

    Args:
        results: The detections; for ``segm`` with masks.
        index: The data set; for ``segm`` all its objects have masks.
        kind: What is compared.
        iou: An IoU above 0, up to 1.

    Returns:
        The matches, and hotcoco's evaluation, accumulated.
    """
    evaluation = coco_evaluation(results, index, kind)
    evaluation.params.max_dets = list(MAX_DETECTIONS)
    ious = list(COCO_IOUS)
    if np.abs(np.array(ious) - iou).min() > 1e-9:
        ious = sorted([*ious, iou])
        evaluation.params.iou_thrs = ious
    evaluation.evaluate()
    evaluation.accumulate()

    truth = evaluation.coco_gt
    annotations = truth.dataset["annotations"]
    objects = [annotation for annotation in annotations if not annotation.get("iscrowd")]
    image_ids = np.sort(index.image_ids)
    object_images = np.searchsorted(image_ids, _column(objects, "image_id"))
    order = np.argsort(object_images, kind="stable")
    objects = [objects[place] for place in order.tolist()]
    object_labels = _labels(_column(objects, "category_id"), index)
    shapes: Any = (
        [truth.ann_to_rle(annotation) for annotation in objects]
        if kind == "segm"
        else np.array([annotation["bbox"] for annotation in objects], np.float64).reshape(-1, 4)
    )
    own_areas = _areas(shapes, kind)
    areas = [annotation.get("area", area) for annotation, area in zip(objects, own_areas.tolist(), strict=True)]

    ranks = np.lexsort((results.image_ids, -results.scores))
    labels = _labels(results.category_ids, index)[ranks]
    images = np.searchsorted(image_ids, results.image_ids)[ranks]
    found_shapes: Any = results.boxes[ranks]
    if kind == "segm":
        masks = results.masks or []
        found_shapes = [masks[place] for place in ranks.tolist()]
    object_ids = _column(objects, "id")
    found, counted = _matched(evaluation, ious, ranks, object_ids)
    overlaps = _overlaps(images, labels, found_shapes, object_images[order], object_labels, shapes, len(image_ids))
    return Matches(
        np.array(ious),
        len(image_ids),
        index.class_names,
        images,
        labels,
        results.scores[ranks],
        _areas(found_shapes, kind),
        found,
        counted,
        *overlaps,
        object_images[order],
        object_labels,
        np.array(areas, np.float64),
        len(annotations) - len(objects),
        ranks,
    ), evaluation


def _matched(
    evaluation: hotcoco.COCOeval, ious: list[float], ranks: NDArray[np.int64], object_ids: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """``found`` and ``counted`` of ``Matches``."""
    found = np.full((len(ious), len(ranks)), NOTHING, np.int64)
    counted = np.zeros((len(ious), len(ranks)), np.bool_)
    rank_of = np.empty_like(ranks)  # by the place in the results; hotcoco numbers these from 1
    rank_of[ranks] = np.arange(len(ranks))
    by_id = np.argsort(object_ids)
    for place, iou in enumerate(ious if len(ranks) else ()):
        # No score is above 2: candidates for errors of the annotations are not looked for.
        told = evaluation.image_diagnostics(iou_thr=iou, score_thr=np.inf)
        counted[place, rank_of[_integers(told["dt_status"].keys()) - 1]] = True
        pairs = told["dt_match"]
        objects = by_id[np.searchsorted(object_ids, _integers(pairs.values()), sorter=by_id)]
        found[place, rank_of[_integers(pairs.keys()) - 1]] = objects
    return found, counted


def _overlaps(
    images: NDArray[np.int64],
    labels: NDArray[np.int64],
    shapes: Any,
    object_images: NDArray[np.int64],
    object_labels: NDArray[np.int64],
    object_shapes: Any,
    num_images: int,
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """``same_iou``, ``same_object``, ``other_iou``, ``other_object`` of ``Matches``; objects are ordered by image."""
    same_iou, other_iou = np.zeros((2, len(images)))
    same_object, other_object = np.full((2, len(images)), NOTHING, np.int64)
    by_image = np.argsort(images, kind="stable")
    bounds = np.searchsorted(images[by_image], np.arange(num_images + 1))
    object_bounds = np.searchsorted(object_images, np.arange(num_images + 1))
    for image in np.flatnonzero((np.diff(bounds) > 0) & (np.diff(object_bounds) > 0)).tolist():
        here = by_image[bounds[image] : bounds[image + 1]]
        first, last = object_bounds[image : image + 2].tolist()
        overlap = _iou(shapes, here, object_shapes, first, last)  # (detections, objects) of the image
        same = labels[here, None] == object_labels[None, first:last]
        for iou, found, table in (
            (same_iou, same_object, overlap * same),
            (other_iou, other_object, overlap * ~same),
        ):
            best = table.argmax(axis=1)
            iou[here] = table[np.arange(len(here)), best]
            found[here] = np.where(iou[here] > 0, first + best, NOTHING)
    return same_iou, same_object, other_iou, other_object


def _iou(shapes: Any, here: NDArray[np.int64], object_shapes: Any, first: int, last: int) -> NDArray[np.float64]:
    crowd = np.zeros(last - first, np.bool_)
    if isinstance(shapes, np.ndarray):
        return primitives.bbox_iou(shapes[here], object_shapes[first:last], crowd)
    return primitives.mask_iou([shapes[place] for place in here.tolist()], object_shapes[first:last], crowd)


def _areas(shapes: Any, kind: MaskOrBox) -> NDArray[np.float64]:
    if kind == "segm":
        return np.array(coco_mask.area(shapes), np.float64)
    return np.asarray(shapes[:, 2:].prod(axis=1))


def _labels(category_ids: NDArray[np.int64], index: CocoIndex) -> NDArray[np.int64]:
    order = np.argsort(index.category_ids)
    return order[np.searchsorted(index.category_ids, category_ids, sorter=order)]


def _column(rows: list[dict[str, Any]], key: str) -> NDArray[np.int64]:
    return np.array([row[key] for row in rows], np.int64)


def _integers(values: Any) -> NDArray[np.int64]:
    return np.fromiter(values, np.int64, len(values))
