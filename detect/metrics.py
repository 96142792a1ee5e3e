"""COCO average precision of boxes and masks: detections as COCO results, and their score.

The metric is computed by hotcoco, whose twelve numbers equal pycocotools' (a test holds it to that).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import hotcoco
from rich.table import Table

from dpipe.errors import InputError

if TYPE_CHECKING:
    from detect.models.detections import Detections

Kind = Literal["bbox", "segm"]
MAX_DETECTIONS = 100


@dataclass(frozen=True)
class CocoScores:
    """The result of one evaluation.

    Attributes:
        kind: ``bbox`` or ``segm``.
        metrics: The twelve numbers, -1 where the data set has no object to count, in COCO's order: AP, AP50, AP75, APs,
            APm, APl, AR1, AR10, AR100, ARs, ARm, ARl.
        per_class: AP of each class, in the order of the class names; NaN where there is no object.
    """

    kind: Kind
    metrics: dict[str, float]
    per_class: dict[str, float]


def coco_results(
    detections: Detections, image_id: int, category_ids: Sequence[int], **extra: Any
) -> list[dict[str, Any]]:
    """One image's detections in COCO's results format.

    Args:
        detections: In the coordinates of the original image.
        image_id: The JSON's id of the image.
        category_ids: The JSON's id of each label.
        **extra: Further keys of each entry.

    Returns:
        A dict for each detection: ``image_id``, ``category_id``, ``bbox`` (x, y, width, height), ``score``, and where
        the model predicts masks ``segmentation`` (compressed run lengths).
    """
    boxes = detections.boxes.detach().double().cpu().numpy()
    boxes[:, 2:] -= boxes[:, :2]
    scores = detections.scores.detach().double().cpu().tolist()
    labels = detections.labels.cpu().tolist()
    results = [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score, **extra}
        for box, score, label in zip(boxes.tolist(), scores, labels, strict=True)
    ]
    if detections.masks is not None:
        for result, rle in zip(results, detections.masks, strict=True):
            result["segmentation"] = rle
    return results


def evaluate_coco(
    annotations: str | Path, results: Sequence[dict[str, Any]], kind: Kind, image_ids: Sequence[int] | None = None
) -> CocoScores:
    """Computes COCO's average precision and recall.

    Args:
        annotations: The data set's COCO JSON.
        results: In COCO's results format; for ``segm`` each with a ``segmentation``.
        kind: What is compared: boxes or masks.
        image_ids: Ids of the images that count; all where not given.

    Raises:
        InputError: For ``segm``, if the data set or the results have no masks.
    """
    truth = hotcoco.COCO(str(annotations))
    if kind == "segm":
        bare = [annotation["id"] for annotation in truth.dataset["annotations"] if not annotation.get("segmentation")]
        if bare:
            raise InputError(
                f"{annotations}: {len(bare)} annotations have no segmentation (such as id {bare[0]}): "
                "segm evaluation needs one for each object"
            )
        if any("segmentation" not in result for result in results):
            raise InputError("the model predicts no masks: segm evaluation needs them, bbox does not")
        # With a box, the area by which a result counts as small or large would be the box's, not the mask's.
        results = [{key: value for key, value in result.items() if key != "bbox"} for result in results]
    evaluation = hotcoco.COCOeval(truth, truth.load_res(list(results)), kind)
    if image_ids is not None:
        evaluation.params.img_ids = list(image_ids)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summary_lines()  # fills in the numbers, and prints nothing
    metrics = evaluation.get_results()
    assert evaluation.eval is not None
    # (IoU thresholds, recall thresholds, classes, areas, maximal detections); -1 where a class has no object
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    names = {category["id"]: category["name"] for category in truth.dataset["categories"]}
    per_class = {}
    for position, category_id in enumerate(evaluation.params.cat_ids):
        of_class = precision[:, :, position]
        per_class[names[category_id]] = float(of_class[of_class > -1].mean()) if (of_class > -1).any() else math.nan
    return CocoScores(kind, {key: float(metrics[key]) for key in evaluation.metric_keys()}, per_class)


def score_table(scores: CocoScores) -> Table:
    """The twelve numbers, and the AP of each class, as a table; values in percent."""
    table = Table(title=f"COCO {scores.kind}, maxDets={MAX_DETECTIONS}, in percent", title_justify="left")
    for heading in ("AP", "AP50", "AP75", "small", "medium", "large"):
        table.add_column(heading, justify="right")
    rows = list(scores.metrics.values())
    table.add_row(*map(_percent, rows[:6]))
    table.add_section()
    table.add_row("AR@1", "AR@10", "AR@100", "AR small", "AR medium", "AR large", style="bold")
    table.add_row(*map(_percent, rows[6:]))
    return table


def class_table(all_scores: Sequence[CocoScores]) -> Table:
    """AP of each class, a column for each kind; values in percent."""
    table = Table(title="AP of each class, in percent", title_justify="left")
    table.add_column("class")
    for scores in all_scores:
        table.add_column(scores.kind, justify="right")
    for name in all_scores[0].per_class:
        table.add_row(name, *(_percent(scores.per_class[name]) for scores in all_scores))
    return table


def _percent(value: float) -> str:
    return "-" if math.isnan(value) or value < 0 else f"{100 * value:.1f}"
