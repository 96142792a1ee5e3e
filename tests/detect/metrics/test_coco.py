"""COCO's metrics against pycocotools."""

from __future__ import annotations

import contextlib
import io
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detect.metrics.coco import evaluate_coco, evaluate_proposals
from detect.metrics.tables import class_tables, score_table
from dpipe.errors import InputError


def reference(path: Path, results: list[dict[str, Any]], kind: str, proposals: bool = False) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        evaluation = COCOeval(truth, truth.loadRes(results), kind)
        if proposals:
            evaluation.params.useCats = 0
            evaluation.params.maxDets = [100, 300, 1000]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def without(results: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    return [{name: value for name, value in result.items() if name != key} for result in results]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_numbers_equal_pycocotools(seed, kind, random_case, save, load):
    truth, results = random_case(seed)
    index = save(truth)
    scores = evaluate_coco(load(results, index), index, kind)
    expected = reference(index.path, without(results, "segmentation" if kind == "bbox" else "bbox"), kind)
    assert " ".join(scores.metrics) == "AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl"
    np.testing.assert_allclose(list(scores.metrics.values()), expected.stats, rtol=0, atol=1e-12)
    assert 0.03 < scores.metrics["AP"] < 0.95
    assert scores.main == scores.metrics["AP"]
    precision, recall = expected.eval["precision"][..., 0, -1], expected.eval["recall"][..., 0, -1]
    assert list(scores.per_class) == [category["name"] for category in truth["categories"]]
    for place, numbers in enumerate(scores.per_class.values()):
        if place == 4:
            assert np.isnan(list(numbers.values())).all()
            continue
        of_class = [precision[:, :, place], precision[0, :, place], precision[5, :, place], recall[:, place]]
        np.testing.assert_allclose(list(numbers.values()), [part.mean() for part in of_class], rtol=0, atol=1e-12)
    assert list(scores.per_class["class 3"]) == ["AP", "AP50", "AP75", "AR100"]


def test_of_many_detections_of_a_class_the_first_hundred_count(random_case, save, load):
    truth, _ = random_case(0)
    index = save(truth)
    keys = ("image_id", "category_id", "bbox")
    objects = [{key: row[key] for key in keys} for row in truth["annotations"][:20]]
    right = [{**row, "score": 0.5} for row in objects]
    wrong = [{**row, "bbox": objects[0]["bbox"], "score": 0.9} for row in objects[::4] for _ in range(99)]
    first, alone = (evaluate_coco(load(rows, index), index, "bbox") for rows in ([*wrong, *right], right))
    assert 0 < first.metrics["AR100"] < alone.metrics["AR100"]
    expected = reference(index.path, [*wrong, *right], "bbox")
    np.testing.assert_allclose(list(first.metrics.values()), expected.stats, rtol=0, atol=1e-12)


def test_objects_to_ignore_count_as_in_pycocotools(random_case, save, load):
    truth, results = random_case(1)
    for annotation in truth["annotations"][::2]:
        annotation["ignore"] = annotation["difficult"] = 1
    index = save(truth)
    assert index.crowd.sum() > sum(annotation["iscrowd"] for annotation in truth["annotations"])
    expected = reference(index.path, without(results, "segmentation"), "bbox")
    scores = evaluate_coco(load(results, index), index, "bbox")
    np.testing.assert_allclose(list(scores.metrics.values()), expected.stats, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["bbox", "segm", "proposal"])
def test_large_ids_are_told_apart(kind, random_case, save, load):
    truth, results = random_case(3)
    index = save(truth)
    evaluate = evaluate_proposals if kind == "proposal" else partial(evaluate_coco, kind=kind)
    expected = evaluate(load(results, index), index)
    for row in (*truth["annotations"], *results):
        row["image_id"] += 2**53  # odd ones are no float64 from here on
    for image in truth["images"]:
        image["id"] += 2**53
    index = save(truth)
    assert evaluate(load(results, index), index) == expected


def test_an_object_of_the_id_0_can_be_found(save, load):
    """pycocotools takes a match with it for none, and counts the detection as false."""
    box = {"image_id": 1, "category_id": 1, "bbox": [10, 10, 50, 50]}
    numbers = []
    for id_ in (0, 1):
        index = save(
            {
                "images": [{"id": 1, "file_name": "1.jpg", "width": 200, "height": 120}],
                "categories": [{"id": 1, "name": "thing"}],
                "annotations": [{**box, "id": id_, "area": 2500, "iscrowd": 0}],
            }
        )
        results = [{**box, "score": 0.5}]
        assert evaluate_coco(load(results, index), index, "bbox").main == pytest.approx(1, abs=1e-12)
        numbers.append(reference(index.path, results, "bbox").stats[0])
    assert numbers == pytest.approx([0, 1])


def test_some_images_only(random_case, save, load):
    truth, results = random_case(2)
    index = save(truth)
    ids = [10, 13, 15]
    some = {**truth, "images": [image for image in truth["images"] if image["id"] in ids]}
    some["annotations"] = [row for row in truth["annotations"] if row["image_id"] in ids]
    found = load(results, index)
    given = [evaluate_coco(found, index, "bbox", ids), evaluate_proposals(found, index, ids)]
    index = save(some)
    found = load([row for row in results if row["image_id"] in ids], index)
    assert given[0].metrics == evaluate_coco(found, index, "bbox").metrics
    assert given[1].metrics == evaluate_proposals(found, index).metrics


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_no_results_score_zero(kind, random_case, save, load):
    index = save(random_case(0)[0])
    scores = evaluate_coco(load([], index), index, kind)
    assert scores.metrics["AP"] == 0
    assert scores.metrics["AR100"] == 0


def test_no_objects_score_minus_one_and_print_as_dashes(random_case, save, load):
    truth, results = random_case(0)
    truth["annotations"] = []
    index = save(truth)
    found = load(results, index)
    scores = evaluate_coco(found, index, "bbox")
    assert set(scores.metrics.values()) == {-1.0}
    assert "-" in list(score_table(scores).columns[0].cells)
    assert set(evaluate_proposals(found, index).metrics.values()) == {-1.0}


def test_segm_needs_masks_on_both_sides(random_case, save, load):
    truth, results = random_case(0)
    index = save(truth)
    with pytest.raises(InputError, match="the results have no masks"):
        evaluate_coco(load(without(results, "segmentation"), index), index, "segm")
    del truth["annotations"][4]["segmentation"]
    index = save(truth)
    with pytest.raises(InputError, match=r"1 annotations have no segmentation \(such as id 5\)"):
        evaluate_coco(load(results, index), index, "segm")


@pytest.mark.parametrize("seed", range(3))
def test_recall_of_proposals_equals_pycocotools(seed, random_case, save, load):
    truth, results = random_case(seed)
    rng = np.random.default_rng(seed)
    # Enough for all three numbers of proposals to differ: the objects are found late.
    for image in truth["images"][1::4]:
        for count, score in ((150, 0.9), (400, 0.8), (600, 0.7)):
            boxes = np.concatenate([rng.uniform(0, 100, (count, 2)), rng.uniform(3, 90, (count, 2))], axis=1)
            results += [
                {**results[0], "image_id": image["id"], "bbox": box, "score": score - rng.integers(9) / 100}
                for box in boxes.tolist()
            ]
    results = without(results, "segmentation")
    index = save(truth)
    scores = evaluate_proposals(load(results, index), index)
    expected = reference(index.path, results, "bbox", proposals=True)
    assert " ".join(scores.metrics) == "AR100 AR300 AR1000 ARs ARm ARl"
    np.testing.assert_array_equal(list(scores.metrics.values()), expected.stats[6:])
    assert scores.metrics["AR100"] < scores.metrics["AR300"] < scores.metrics["AR1000"] == scores.main
    assert scores.per_class == {}
    assert class_tables([scores]) == []
    table = score_table(scores)
    assert table.title == "COCO proposals, maxDets=100, 300, 1000, in percent"
    assert [column.header for column in table.columns] == [
        *("AR@100", "AR@300", "AR@1000", "AR small", "AR medium", "AR large"),
    ]


@pytest.mark.slow
def test_much_faster_than_pycocotools_from_memory_to_numbers(random_case, save, load):
    truth, results = random_case(0, images=400)
    index = save(truth)
    found = load(results, index)
    began = time.perf_counter()
    evaluate_coco(found, index, "bbox")
    ours = time.perf_counter() - began
    began = time.perf_counter()
    reference(index.path, without(results, "segmentation"), "bbox")
    assert time.perf_counter() - began > 10 * ours
