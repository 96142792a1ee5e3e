"""Recall of proposals against mmdetection's numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from detect.metrics import recall
from detect.metrics.coco import evaluate_proposals
from detect.metrics.recall import IOUS, evaluate_recall, recall_name
from detect.metrics.tables import score_table

NUMBERS = Path(__file__).parents[2] / "data" / "metrics" / "mmdet.json"


def test_numbers_equal_mmdetections(save, load, monkeypatch):
    case = json.loads(NUMBERS.read_text())
    index = save({key: case[key] for key in ("images", "annotations", "categories")})
    numbers = case["recall"]["numbers"]
    monkeypatch.setattr(recall, "PROPOSALS", tuple(numbers))
    scores = evaluate_recall(load(case["results"], index), index)
    expected = np.array(case["recall"]["recalls"])
    found = [[scores.metrics[recall_name(most, iou)] for iou in IOUS] for most in numbers]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    means = [scores.metrics[f"AR{most}"] for most in numbers]
    np.testing.assert_allclose(means, expected.mean(axis=1), rtol=0, atol=1e-12)


def rows(image_id: int, boxes: list[list[float]], scores: list[float]) -> list[dict]:
    return [
        {"image_id": image_id, "category_id": 1, "bbox": box, "score": score}
        for box, score in zip(boxes, scores, strict=True)
    ]


@pytest.fixture
def two_objects(save):
    """Two objects side by side, a crowd, and one to ignore; a second image without objects."""

    def index(crowd: int = 1):
        boxes = [([0, 0, 10, 10], 0), ([8, 0, 10, 10], 0), ([50, 50, 30, 30], crowd)]
        return save(
            {
                "images": [{"id": i, "file_name": f"{i}.jpg", "width": 100, "height": 100} for i in (1, 2)],
                "categories": [{"id": 1, "name": "thing"}],
                "annotations": [
                    {"id": i, "image_id": 1, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": crowd}
                    for i, (box, crowd) in enumerate(boxes, 1)
                ],
            }
        )

    return index


def test_an_object_goes_to_the_proposal_that_overlaps_it_most(two_objects, load):
    index = two_objects()
    # The first is the right object; it overlaps the left one, too, by 2/18.
    found = load(rows(1, [[8, 0, 10, 10], [1, 0, 10, 10]], [0.9, 0.8]) + rows(2, [[0, 0, 5, 5]], [1.0]), index)
    scores = evaluate_recall(found, index)
    assert scores.metrics["R100@50"] == 1
    assert scores.metrics["R100@80"] == 1
    assert scores.metrics["R100@85"] == 0.5  # the left one's IoU is 9/11
    assert scores.main == scores.metrics["AR1000"] == pytest.approx((7 * 1 + 3 * 0.5) / 10)


def test_the_best_pair_comes_first_and_not_the_best_score(two_objects, load):
    index = two_objects()
    # Both overlap the left object by more than half; the better score overlaps it less, and nothing else at all.
    found = load(rows(1, [[0, 0, 10, 12], [1, 0, 10, 10], [0, 0, 10, 10]], [0.9, 0.8, 0.7]), index)
    assert evaluate_recall(found, index).metrics["R100@95"] == 0.5
    assert evaluate_proposals(found, index).metrics["AR100"] == pytest.approx(0.5)


def test_a_proposal_finds_one_object_alone(save, load):
    boxes = [[0, 0, 10, 10], [0, 1, 10, 10]]
    index = save(
        {
            "images": [{"id": 1, "file_name": "1.jpg", "width": 100, "height": 100}],
            "categories": [{"id": 1, "name": "thing"}],
            "annotations": [
                {"id": i, "image_id": 1, "category_id": 1, "bbox": box, "area": 100, "iscrowd": 0}
                for i, box in enumerate(boxes)
            ],
        }
    )
    assert evaluate_recall(load(rows(1, boxes[:1], [0.9]), index), index).metrics["R100@50"] == 0.5
    assert evaluate_recall(load(rows(1, boxes, [0.9, 0.8]), index), index).metrics["R100@50"] == 1


def test_the_iou_is_enough_where_it_is_equal(two_objects, load):
    index = two_objects()
    scores = evaluate_recall(load(rows(1, [[0, 0, 10, 5]], [0.9]), index), index)
    assert (scores.metrics["R100@50"], scores.metrics["R100@55"]) == (0.5, 0)


def test_crowds_are_left_out(two_objects, load):
    index = two_objects()
    found = load(rows(1, [[50, 50, 30, 30], [0, 0, 10, 10]], [0.9, 0.8]), index)
    assert evaluate_recall(found, index).metrics["AR100"] == 0.5
    index = two_objects(crowd=0)
    assert evaluate_recall(found, index).metrics["AR100"] == pytest.approx(2 / 3)


def test_only_the_best_scores_count(two_objects, load, monkeypatch):
    index = two_objects()
    monkeypatch.setattr(recall, "PROPOSALS", (1, 2, 3))
    boxes = [[0, 0, 10, 10], [30, 0, 5, 5], [8, 0, 10, 10], [40, 0, 5, 5]]
    scores = evaluate_recall(load(rows(1, boxes, [0.2, 0.9, 0.5, 0.1]), index), index)
    assert [scores.metrics[f"AR{most}"] for most in (1, 2, 3)] == [0, 0.5, 1]


def test_nothing_to_find_or_nothing_found(two_objects, save, load):
    index = two_objects()
    assert set(evaluate_recall(load([], index), index).metrics.values()) == {0.0}
    assert set(evaluate_recall(load([], index), index, image_ids=[2]).metrics.values()) == {-1.0}


def test_the_table_has_a_row_for_each_iou(two_objects, load):
    index = two_objects()
    table = score_table(evaluate_recall(load(rows(1, [[0, 0, 10, 10]], [0.9]), index), index))
    assert [column.header for column in table.columns] == ["IoU", "R@100", "R@300", "R@1000"]
    assert [next(iter(column.cells)) for column in table.columns] == ["0.50", "50.0", "50.0", "50.0"]
    assert list(table.columns[0].cells)[-2:] == ["0.95", "mean"]
