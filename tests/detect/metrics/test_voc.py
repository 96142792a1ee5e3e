"""VOC's metric against mmdetection's numbers, and what it says in cases small enough to count by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from detect.metrics.overlaps import pairwise_iou
from detect.metrics.tables import class_tables, score_table
from detect.metrics.voc import average_precision, evaluate_voc

NUMBERS = Path(__file__).parents[2] / "data" / "metrics" / "mmdet.json"
CASES = json.loads(NUMBERS.read_text())


@pytest.mark.parametrize("expected", CASES["voc"], ids=lambda c: f"{c['mode']}-{c['iou']}-{c['inclusive']}")
def test_numbers_equal_mmdetections(expected, save, load):
    index = save({key: CASES[key] for key in ("images", "annotations", "categories")})
    scores = evaluate_voc(
        load(CASES["results"], index),
        index,
        mode=expected["mode"],
        ious=[expected["iou"]],
        inclusive=expected["inclusive"],
    )
    name = f"{100 * expected['iou']:g}"
    # mmdetection keeps AP as float32
    assert scores.main == scores.metrics[f"AP{name}"] == pytest.approx(expected["mAP"], abs=2e-7)
    for key, values in ((f"AP{name}", expected["AP"]), (f"recall{name}", expected["recall"])):
        found = [None if math.isnan(numbers[key]) else numbers[key] for numbers in scores.per_class.values()]
        assert found == pytest.approx(values, abs=2e-7)


def test_the_mean_is_over_ious_and_over_classes_with_objects(save, load):
    index = save({key: CASES[key] for key in ("images", "annotations", "categories")})
    scores = evaluate_voc(load(CASES["results"], index), index, ious=[0.5, 0.65, 0.75])
    expected = [case["mAP"] for case in CASES["voc"] if case["mode"] == "area" and not case["inclusive"]]
    assert list(scores.metrics) == ["mAP", "AP50", "AP65", "AP75"]
    assert list(scores.metrics.values()) == pytest.approx([np.mean(expected), *expected], abs=2e-7)
    assert list(scores.per_class["class 1"]) == ["AP50", "recall50", "AP65", "AP75"]
    assert score_table(scores).title == "Pascal VOC, area, IoU 0.5, 0.65, 0.75, in percent"
    (table,) = class_tables([scores])
    assert list(table.columns[1].cells)[-1] == "-"  # a class whose only objects are difficult


@pytest.fixture
def evaluated(save, load):
    """A function that gives the AP of detections (box, score) on objects (box, difficult) of one image and class."""

    def evaluate(objects, detections, **options):
        index = save(
            {
                "images": [{"id": 1, "file_name": "1.jpg", "width": 100, "height": 100}],
                "categories": [{"id": 1, "name": "thing"}],
                "annotations": [
                    {"id": i, "image_id": 1, "category_id": 1, "bbox": box, "difficult": difficult, "iscrowd": 0}
                    for i, (box, difficult) in enumerate(objects)
                ],
            }
        )
        rows = [{"image_id": 1, "category_id": 1, "bbox": box, "score": score} for box, score in detections]
        return evaluate_voc(load(rows, index), index, **options).metrics["mAP"]

    return evaluate


HERE, THERE, NOWHERE = [0, 0, 10, 10], [40, 40, 10, 10], [70, 70, 10, 10]


def test_difficult_objects_neither_count_nor_punish(evaluated):
    objects = [(HERE, 0), (THERE, 1)]
    assert evaluated(objects, [(HERE, 0.5)]) == 1
    assert evaluated(objects, [(THERE, 0.9), (THERE, 0.8), (HERE, 0.5)]) == 1
    assert evaluated(objects, [(NOWHERE, 0.9), (HERE, 0.5)]) == 0.5
    assert evaluated([(HERE, 1)], [(HERE, 0.5)]) == -1


def test_a_detection_is_judged_by_the_object_it_overlaps_most(evaluated):
    near = [2, 0, 10, 10]  # overlaps HERE by 8/12
    # The difficult one is overlapped most, so the detection does not count, though it would find the other one too.
    assert evaluated([(HERE, 0), (near, 1)], [([1.5, 0, 10, 10], 0.5)]) == 0
    # A second detection of an object is false, though the object beside it is not found yet.
    assert evaluated([(HERE, 0), (near, 0)], [(HERE, 0.9), ([0.5, 0, 10, 10], 0.8)]) == 0.5


def test_of_objects_that_are_overlapped_alike_one_that_counts_is_found(evaluated):
    assert evaluated([(HERE, 1), (HERE, 0)], [(HERE, 0.5)]) == 1


def test_detections_of_one_score_count_in_their_order(evaluated):
    wrong = [(NOWHERE, 0.5), (NOWHERE, 0.4)] * 40
    assert evaluated([(HERE, 0)], [(HERE, 0.5), *wrong]) == 1
    assert evaluated([(HERE, 0)], [*wrong, (HERE, 0.5)]) == pytest.approx(1 / 41)
    assert evaluated([(HERE, 0)], [(HERE, 0.4), *wrong]) == pytest.approx(1 / 41)


def test_boxes_without_an_area_overlap_nothing():
    boxes = np.array([[5.0, 5, 5, 5], [0, 0, 10, 10]])
    assert pairwise_iou(boxes, boxes).tolist() == [[0, 0], [0, 1]]


def test_duplicates_are_false(evaluated):
    objects = [(HERE, 0), (THERE, 0)]
    assert evaluated(objects, [(HERE, 0.9), (HERE, 0.8), (THERE, 0.7)]) == pytest.approx((1 + 2 / 3) / 2)


def test_the_iou_is_enough_where_it_is_equal(evaluated):
    half = [0, 0, 10, 5]
    assert evaluated([(HERE, 0)], [(half, 0.9)], ious=[0.5]) == 1
    assert evaluated([(HERE, 0)], [(half, 0.9)], ious=[0.51]) == 0


def test_boxes_that_end_with_their_last_pixel(evaluated):
    # VOC's pixels 1..10 are the edges 0 and 10 here; counted from 0, the last pixel is 9.
    last_pixels = [0, 0, 9, 9]
    assert evaluated([(HERE, 0)], [(last_pixels, 0.9)], ious=[0.82]) == 0
    assert evaluated([(HERE, 0)], [(last_pixels, 0.9)], ious=[1.0], inclusive=True) == 1


def test_the_two_forms_of_the_mean():
    true = np.array([True, False, True, False])
    # precision 1 up to a recall of 1/4, 2/3 up to 2/4, none beyond
    area, recall = average_precision(true, ~true, 4, "area")
    assert area == pytest.approx(1 / 4 + 2 / 3 / 4)
    assert recall == 0.5
    eleven, _ = average_precision(true, ~true, 4, "11points")
    assert eleven == pytest.approx((3 * 1 + 3 * 2 / 3) / 11)  # at 0, 0.1, 0.2; and 0.3, 0.4, 0.5


def test_some_images_only(save, load):
    index = save({key: CASES[key] for key in ("images", "annotations", "categories")})
    found = load(CASES["results"], index)
    ids = [image["id"] for image in CASES["images"][:20]]
    part = evaluate_voc(found, index, image_ids=ids)
    truth = {
        "images": CASES["images"][:20],
        "categories": CASES["categories"],
        "annotations": [row for row in CASES["annotations"] if row["image_id"] in ids],
    }
    index = save(truth)
    alone = evaluate_voc(load([row for row in CASES["results"] if row["image_id"] in ids], index), index)
    assert part.metrics == alone.metrics
    assert part.metrics != evaluate_voc(found, save({**truth, **CASES})).metrics


def test_no_results(save, load):
    index = save({key: CASES[key] for key in ("images", "annotations", "categories")})
    assert evaluate_voc(load([], index), index).metrics == {"mAP": 0.0, "AP50": 0.0}
