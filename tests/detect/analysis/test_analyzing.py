"""Curves against pycocotools, confusions and calibration by hand, and what is refused."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import detect
from detect.metrics.results import Results
from dpipe.errors import InputError


@pytest.fixture
def messy(truth, found, made_object):
    """A data set with crowd regions and a class without objects, and results with all kinds of errors."""
    rng = np.random.default_rng(0)
    rows = found(truth) + found(truth, seed=3)
    for row in rows:
        row["bbox"] = [*(row["bbox"][:2] + rng.normal(0, 5, 2)).clip(0).round(1).tolist(), *row["bbox"][2:]]
        row["score"] = round(row["score"], 1)  # ties
        if rng.random() < 0.2:
            row["category_id"] = int(rng.choice([7, 2, 30]))
    for number in range(0, len(truth["annotations"]), 7):
        truth["annotations"][number]["iscrowd"] = 1
    truth["annotations"] = [row for row in truth["annotations"] if row["category_id"] != 2]
    return truth, rows


def reference(results, annotations, kind, ious):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(annotations))
        rows = json.loads(results.read_text())
        if kind == "segm":
            rows = [{key: value for key, value in row.items() if key != "bbox"} for row in rows]
        evaluation = COCOeval(coco, coco.loadRes(rows), kind)
        evaluation.params.iouThrs = np.array(ious)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][:, :, :, 0, 2]


@pytest.mark.parametrize(("kind", "iou"), [("bbox", 0.5), ("bbox", 0.33), ("segm", 0.75)])
def test_curves_equal_pycocotools(kind, iou, study, messy, masked):
    truth, rows = messy
    masked(truth["annotations"])
    masked(rows)
    results, annotations = study.write(truth, rows)
    analysis = detect.analyze(results, annotations, kind=kind, iou=iou)
    assert len(analysis.curves.ious) == (11 if iou == 0.33 else 10)
    assert (np.diff(analysis.curves.ious) > 0).all()
    expected = reference(results, annotations, kind, analysis.curves.ious)
    # pycocotools orders the classes by their ids
    expected = np.where(expected < 0, np.nan, expected)[:, :, [1, 0, 2]]
    np.testing.assert_allclose(analysis.curves.precisions, expected, atol=1e-12)
    assert np.isnan(expected[:, :, 1]).all()
    assert 0.05 < np.nanmean(expected) < 0.9
    coco = [at for at, each in enumerate(analysis.curves.ious) if each != 0.33]
    at = int(np.abs(analysis.curves.ious - iou).argmin())
    assert analysis.ap == pytest.approx(np.nanmean(expected[coco]), abs=1e-12)
    assert analysis.ap_at_iou == pytest.approx(np.nanmean(expected[at]), abs=1e-12)
    assert analysis.errors.ap == pytest.approx(analysis.ap_at_iou, abs=1e-12)
    for place in (0, 2):
        assert analysis.classes[place].ap == pytest.approx(expected[coco, :, place].mean(), abs=1e-12)
        assert analysis.classes[place].ap_at_iou == pytest.approx(expected[at, :, place].mean(), abs=1e-12)
    np.testing.assert_allclose(analysis.curves.mean(), expected[:, :, [0, 2]].mean(axis=2), atol=1e-12)


def test_masks_are_compared_where_all_have_them(study, truth, found, masked):
    rows = found(truth)
    assert study(truth, rows).kind == "bbox"
    masked(rows)
    assert study(truth, rows).kind == "bbox"
    masked(truth["annotations"])
    assert study(truth, rows).kind == "segm"
    assert study(truth, rows, kind="bbox").kind == "bbox"
    del truth["annotations"][3]["segmentation"]
    assert study(truth, rows).kind == "bbox"


def test_the_confusion_matrix_counts_what_was_put_in(study, scenes, found, made_object):
    truth = scenes(images=1)
    rows = found(truth)  # three objects of each class: 7 car, 2 person, 30 bus
    cars = [row for row in rows if row["category_id"] == 7]
    people = [row for row in rows if row["category_id"] == 2]
    cars[0]["category_id"] = 30  # a car taken for a bus
    cars[1]["category_id"] = 30
    people[0]["score"] = 0.2  # too low
    rows.remove(people[1])
    rows.append({**people[2], "bbox": [380.0, 280.0, 15.0, 15.0]})  # there is nothing
    rows.append({**people[2], "score": 0.4})  # a second one
    truth["annotations"].append(made_object(90, 5, 30, [0.0, 270.0, 400.0, 30.0], crowd=1))
    rows.append({"image_id": 5, "category_id": 30, "bbox": [100.0, 285.0, 20.0, 15.0], "score": 0.9})  # in the crowd
    analysis = study(truth, rows)
    assert analysis.confusion.counts.tolist() == [[1, 0, 2, 0], [0, 1, 0, 2], [0, 0, 3, 0], [0, 2, 0, 0]]
    assert analysis.confusion.pairs() == [(0, 2, 2)]
    np.testing.assert_allclose(analysis.confusion.shares()[:2], [[1 / 3, 0, 2 / 3, 0], [0, 1 / 3, 0, 2 / 3]])
    assert study(truth, rows, score=0.2).confusion.counts[1].tolist() == [0, 2, 0, 1]
    assert np.isnan(study({**truth, "annotations": []}, []).confusion.shares()).all()


def test_all_that_count_are_in_the_confusion_matrix(study, scenes):
    """COCO's evaluation counts 100 detections of each class in an image."""
    rows = [
        {"image_id": 5, "category_id": category_id, "bbox": [380.0, 280.0, 15.0, 15.0], "score": 0.9}
        for category_id in (7, 30)
        for _ in range(101)
    ]
    assert study(scenes(images=1), rows).confusion.counts[-1].tolist() == [100, 0, 100, 0]


def iou(a, b):
    left, top = np.maximum(a[:2], b[:2])
    right, bottom = np.minimum(np.add(a[:2], a[2:]), np.add(b[:2], b[2:]))
    common = max(right - left, 0) * max(bottom - top, 0)
    return common / (a[2] * a[3] + b[2] * b[3] - common)


def test_the_confusion_matrix_equals_one_by_loops(study, messy):
    truth, rows = messy
    for annotation in truth["annotations"]:
        annotation["iscrowd"] = 0
    rng = np.random.default_rng(1)
    for row in rows:
        row["score"] = float(rng.random())
    order = [7, 2, 30]
    counts = np.zeros((4, 4), int)
    for image in truth["images"]:
        left = [row for row in truth["annotations"] if row["image_id"] == image["id"]]
        for row in sorted(rows, key=lambda row: -row["score"]):
            if row["image_id"] != image["id"] or row["score"] < 0.3:
                continue
            best = max(left, key=lambda each: iou(row["bbox"], each["bbox"]), default=None)
            column = order.index(row["category_id"])
            if best is None or iou(row["bbox"], best["bbox"]) < 0.6:
                counts[3, column] += 1
            else:
                counts[order.index(best["category_id"]), column] += 1
                left.remove(best)
        for each in left:
            counts[order.index(each["category_id"]), 3] += 1
    assert study(truth, rows, iou=0.6).confusion.counts.tolist() == counts.tolist()
    assert (counts > 0).sum() > 8


def test_calibration_is_what_one_computes_by_hand(study, scenes, found):
    truth = scenes(images=2)
    rows = found(truth)  # 18 of them
    for place, row in enumerate(rows):
        row["score"] = 0.95 if place < 8 else 0.62 if place < 14 else 0.6
    for row in rows[:4] + rows[8:10]:  # four of eight, and two of ten are wrong
        row["bbox"][1] += 200
    rows[17]["score"] = 1.0  # right
    calibration = study(truth, rows).calibration
    assert calibration.counts.tolist() == [0] * 6 + [9, 0, 0, 9]
    high, low = 5 / 9, 7 / 9
    confidence = (8 * 0.95 + 1) / 9, (6 * 0.62 + 3 * 0.6) / 9
    np.testing.assert_allclose(calibration.confidence[[9, 6]], confidence)
    np.testing.assert_allclose(calibration.precision[[9, 6]], [high, low])
    gaps = abs(confidence[0] - high), abs(confidence[1] - low)
    assert calibration.expected_error == pytest.approx(sum(gaps) / 2)
    assert calibration.largest_error == pytest.approx(max(gaps))
    assert np.isnan(calibration.precision[0])
    np.testing.assert_allclose(calibration.edges, np.linspace(0, 1, 11))


def test_calibration_of_each_class(study, scenes, found):
    truth = scenes(images=4)
    rows = [row for row in found(truth) if row["category_id"] != 2]
    for row in rows:
        row["score"] = 0.7 if row["category_id"] == 7 else 0.9
    analysis = study(truth, rows)
    np.testing.assert_allclose([each.calibration_error for each in analysis.classes], [0.3, np.nan, 0.1])
    assert analysis.calibration.expected_error == pytest.approx(0.2)


@pytest.mark.parametrize("score", [1.5, -0.1])
def test_scores_that_are_no_probabilities_have_no_calibration(score, study, scenes, found):
    truth = scenes(images=2)
    rows = found(truth)
    rows[0]["score"] = score
    analysis = study(truth, rows)
    assert analysis.calibration is None
    assert np.isnan([each.calibration_error for each in analysis.classes]).all()
    assert analysis.ap == 1


def test_results_may_be_in_memory(study, truth, found):
    rows = found(truth)
    index = study.index(truth)
    image_ids, category_ids = (np.array([row[key] for row in rows]) for key in ("image_id", "category_id"))
    boxes, scores = (np.array([row[key] for row in rows], np.float64) for key in ("bbox", "score"))
    analysis = detect.analyze(Results(image_ids, category_ids, boxes, scores), index)
    assert (analysis.ap, analysis.images, analysis.objects, analysis.detections) == (1, 24, 216, 216)
    with pytest.raises(InputError, match="image_id 1005 is not in"):
        detect.analyze(Results(image_ids + 1000, category_ids, boxes, scores), index)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "keypoints"}, "kind is 'keypoints'; expected 'bbox' or 'segm'"),
        ({"iou": 0}, "iou is 0; expected a number above 0, up to 1"),
        ({"iou": float("nan")}, "iou is nan"),
        ({"background_iou": 0.5}, "background_iou is 0.5; expected a number from 0 to below iou, which is 0.5"),
        ({"score": float("nan")}, "score is nan; expected a number"),
        ({"kind": "segm"}, r"216 annotations have no segmentation"),
    ],
)
def test_options_that_make_no_sense(options, words, study, truth, found):
    with pytest.raises(InputError, match=words):
        study(truth, found(truth), **options)


def test_masks_that_the_results_lack(study, truth, found, masked):
    masked(truth["annotations"])
    with pytest.raises(InputError, match=r"results\.json: without masks; an analysis of segm needs them"):
        study(truth, found(truth), kind="segm")
    assert study(truth, [], kind="segm").ap == 0
