"""The errors of detections, and what they cost, against tidecv, hotcoco, and errors that were put in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from detect.analysis.errors import ERROR_KINDS, SIZES, break_down
from detect.analysis.matching import match
from detect.metrics.results import read_results
from dpipe.coco import CocoIndex

TIDECV = Path(__file__).parents[2] / "data" / "analysis" / "tidecv.json"


@pytest.mark.parametrize("place", [0, 1])
def test_numbers_equal_tidecv(place, study):
    case = json.loads(TIDECV.read_text())
    expected = case["expected"][place]
    errors = study(
        case["truth"], case["results"], iou=expected["iou"], background_iou=expected["background_iou"]
    ).errors
    assert errors.counts == expected["counts"]
    assert min(errors.counts.values()) > 10
    assert errors.ap == pytest.approx(expected["ap"], abs=1e-12)
    assert errors.cost == pytest.approx(expected["cost"], abs=1e-12)
    assert errors.false_positives == pytest.approx(expected["false_positives"], abs=1e-12)
    assert errors.false_negatives == pytest.approx(expected["false_negatives"], abs=1e-12)
    for row, size in enumerate(SIZES):
        # tidecv has no object for errors of the other kinds, and takes the detection's size there.
        cost = dict(zip(ERROR_KINDS, errors.cost_by_size[row].tolist(), strict=True))
        known = expected["cost_by_size"][size]
        assert {kind: cost[kind] for kind in known} == pytest.approx(known, abs=1e-12)


NAMES = {
    "Cls": "classification",
    "Loc": "localisation",
    "Both": "both",
    "Dupe": "duplicate",
    "Bkg": "background",
    "Miss": "missed",
}


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("iou", [0.5, 0.42])
def test_numbers_equal_hotcoco_where_it_has_them(kind, iou, study, scenes, found, masked):
    truth = scenes()
    rng = np.random.default_rng(3)
    rows = found(truth) + found(truth, seed=2)
    for row in rows:
        sides = np.array(row["bbox"])[[2, 3]]
        row["bbox"] = [*(row["bbox"][:2] + rng.normal(0, 0.25, 2) * sides), *sides * rng.uniform(0.6, 1.4, 2)]
        row["bbox"] = np.round(row["bbox"], 2).clip(0).tolist()
        if rng.random() < 0.3:
            row["category_id"] = int(rng.choice([7, 2, 30]))
    results, annotations = study.write(
        {**truth, "annotations": masked(truth["annotations"])} if kind == "segm" else truth, masked(rows)
    )
    index = CocoIndex.load(annotations)
    matches, evaluation = match(read_results(results, index), index, kind, iou)
    errors = break_down(matches, iou, 0.1)
    expected = evaluation.tide_errors(pos_thr=iou, bg_thr=0.1)
    assert errors.counts == {NAMES[key]: count for key, count in expected["counts"].items()}
    cost = {NAMES[key]: value for key, value in expected["delta_ap"].items() if key in NAMES}
    assert errors.cost == pytest.approx(cost, abs=1e-12)
    assert min(errors.counts.values()) > 2
    assert errors.ap == pytest.approx(expected["ap_base"], abs=1e-12)
    assert errors.false_positives == pytest.approx(expected["delta_ap"]["FP"], abs=1e-12)
    assert errors.false_negatives == pytest.approx(expected["delta_ap"]["FN"], abs=1e-12)


def spoil(kind, rows, rng, chosen=lambda row: True):
    """Gives a third of the detections one kind of error."""
    result = []
    for row in rows:
        result.append(row)
        if rng.random() > 1 / 3 or not chosen(row):
            continue
        x, y, width, height = row["bbox"]
        other = int(rng.choice([each for each in (7, 2, 30) if each != row["category_id"]]))
        if kind == "classification":
            row["category_id"] = other
        elif kind == "localisation":
            row["bbox"] = [x + 0.45 * width, y, width, height]  # IoU 0.38
        elif kind == "both":
            # The object is found as well: otherwise it would also be missed.
            result.append({**row, "bbox": [x + 0.45 * width, y, width, height], "category_id": other, "score": 0.99})
        elif kind == "duplicate":
            result.append({**row, "score": 0.99})
        elif kind == "background":
            result.append({**row, "bbox": [380.0, y, 20.0, height], "score": 0.99})
        else:
            result.pop()
    return result


@pytest.mark.parametrize("kind", ERROR_KINDS)
def test_errors_that_were_put_in_are_found_and_no_others(kind, study, truth, found):
    rows = spoil(kind, found(truth), np.random.default_rng(4))
    errors = study(truth, rows).errors
    assert errors.counts.pop(kind) > 50
    assert set(errors.counts.values()) == {0}
    assert errors.cost.pop(kind) > 0.05
    assert list(errors.cost.values()) == [0] * 5
    place = ERROR_KINDS.index(kind)
    assert (errors.cost_by_class[:, place] > 0.03).all()
    assert errors.cost_by_class[:, place].mean() == pytest.approx(1 - errors.ap)


@pytest.mark.parametrize("kind", ERROR_KINDS)
@pytest.mark.parametrize(("size", "side"), [(0, 20), (1, 50), (2, 98)])
def test_errors_of_one_size_cost_in_its_row_only(kind, size, side, study, truth, found):
    rows = spoil(kind, found(truth), np.random.default_rng(5), lambda row: row["bbox"][2] == side)
    errors = study(truth, rows).errors
    if kind == "background":  # it is the detection's own size: 20 wide
        size = {20: 0, 50: 0, 98: 1}[side]
    place = ERROR_KINDS.index(kind)
    assert errors.counts_by_size[size, place] == errors.counts[kind] > 10
    assert errors.cost_by_size[size, place] == pytest.approx(errors.cost[kind])
    assert errors.cost[kind] > 0.01
    assert np.delete(errors.cost_by_size, size, axis=0).max() == 0
    assert errors.objects_by_size.tolist() == [72, 72, 72]


def test_the_size_of_an_object_is_the_area_that_the_data_set_tells(study, truth):
    for row in truth["annotations"]:
        row["area"] = 9.0
    assert study(truth, []).errors.objects_by_size.tolist() == [216, 0, 0]


def test_errors_of_one_class_cost_there(study, truth, found):
    rows = spoil("localisation", found(truth), np.random.default_rng(6), lambda row: row["category_id"] == 30)
    errors = study(truth, rows).errors
    assert errors.counts_by_class[:, 1].tolist() == [0, 0, errors.counts["localisation"]]
    assert errors.cost_by_class[:2].max() == 0
    assert errors.cost_by_class[2, 1] == pytest.approx(3 * errors.cost["localisation"])


def test_what_lies_in_a_crowd_region_is_no_error(study, truth, found, made_object):
    rows = found(truth)
    for image in truth["images"]:
        number = len(truth["annotations"]) + 1
        truth["annotations"].append(made_object(number, image["id"], 7, [250.0, 250.0, 100.0, 50.0], crowd=1))
        # Within the region; of another class; and one that only touches the region, which is no object to be aimed at.
        for category_id, box in (
            (7, [260.0, 255.0, 20.0, 20.0]),
            (30, [260.0, 255.0, 20.0, 20.0]),
            (7, [340.0, 250.0, 30.0, 50.0]),
        ):
            rows.append({"image_id": image["id"], "category_id": category_id, "bbox": box, "score": 0.4})
    analysis = study(truth, rows)
    assert analysis.crowds == len(truth["images"])
    assert analysis.detections == len(rows) - len(truth["images"])
    errors = analysis.errors
    # The large objects of the third column reach below the crowd regions.
    assert {kind for kind, count in errors.counts.items() if count} <= {"background", "both", "localisation"}
    assert sum(errors.counts.values()) == 2 * len(truth["images"])


def test_a_taken_object_is_a_duplicate_at_the_very_threshold(study, scenes, found):
    truth = scenes(images=1)
    rows = found(truth)
    x, y, width, height = rows[3]["bbox"]
    rows.append({**rows[3], "bbox": [x, y, width / 2, height], "score": 0.1})
    assert study(truth, rows).errors.counts["duplicate"] == 1


def test_an_overlap_of_the_very_background_iou(study, scenes, made_object):
    truth = scenes(images=1)
    truth["annotations"] = [made_object(1, 5, 7, [100.0, 100.0, 100.0, 100.0])]
    row = {"image_id": 5, "category_id": 7, "bbox": [100.0, 100.0, 10.0, 100.0], "score": 0.9}
    assert study(truth, [row]).errors.counts["localisation"] == 1
    assert study(truth, [{**row, "category_id": 2}]).errors.counts["background"] == 1


def test_sizes_begin_at_their_limits(study, truth):
    for row, area in zip(truth["annotations"], (32**2 - 1, 32**2, 96**2 - 1, 96**2), strict=False):
        row["area"] = area
    truth["annotations"] = truth["annotations"][:4]
    assert study(truth, []).errors.objects_by_size.tolist() == [1, 2, 1]


def test_only_the_best_of_those_that_aim_at_an_object_is_mended(study, scenes):
    truth = scenes(images=1)
    truth["annotations"] = truth["annotations"][:1]
    box, category_id = truth["annotations"][0]["bbox"], truth["annotations"][0]["category_id"]
    wrong = next(id_ for id_ in (7, 2, 30) if id_ != category_id)
    rows = [
        {"image_id": 5, "category_id": category_id, "bbox": [box[0] + 9, *box[1:]], "score": 0.9},
        {"image_id": 5, "category_id": category_id, "bbox": [box[0] + 9, *box[1:]], "score": 0.8},
        {"image_id": 5, "category_id": wrong, "bbox": box, "score": 0.7},
    ]
    errors = study(truth, rows).errors
    assert errors.ap == 0
    assert errors.cost["localisation"] == 1  # by the first; the second is taken away
    assert errors.cost["classification"] == 0  # a better one aims at the object
    assert errors.counts == dict.fromkeys(ERROR_KINDS, 0) | {"localisation": 2, "classification": 1}
    rows[2]["score"] = 0.95
    assert study(truth, rows).errors.cost["classification"] == pytest.approx(1)


def test_without_detections_all_is_missed(study, truth):
    errors = study(truth, []).errors
    assert errors.ap == 0
    assert errors.cost == dict.fromkeys(ERROR_KINDS, 0.0) | {"missed": 1.0}
    assert errors.false_negatives == 1
    assert errors.counts["missed"] == len(truth["annotations"])


def test_a_class_without_objects_is_left_out_of_the_mean(study, truth, found):
    rows = spoil("missed", found(truth), np.random.default_rng(8))
    truth["annotations"] = [row for row in truth["annotations"] if row["category_id"] != 2]
    analysis = study(truth, rows)
    assert np.isnan(analysis.errors.cost_by_class[1]).all()
    assert analysis.errors.counts_by_class[1].sum() > 30
    assert analysis.errors.cost["missed"] == pytest.approx(analysis.errors.cost_by_class[[0, 2], 5].mean())
    assert np.isnan(analysis.classes[1].ap)


def test_without_objects_nothing_is_known(study, truth, found):
    rows = found(truth)
    truth["annotations"] = []
    analysis = study(truth, rows)
    assert np.isnan([analysis.ap, analysis.ap_at_iou, analysis.errors.ap, *analysis.errors.cost.values()]).all()
    assert analysis.errors.counts["background"] == len(rows)


@pytest.mark.realdata
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_errors_put_into_real_annotations_are_named(kind, data_root, study):
    from pycocotools.coco import COCO

    source = COCO(str(data_root / "coco_mini" / "annotations" / "instances_val.json"))
    rng = np.random.default_rng(0)
    rows = []
    for row in source.anns.values():
        if row["iscrowd"]:
            continue
        mask = source.annToRLE(row)
        rows.append(
            {
                **{key: row[key] for key in ("image_id", "category_id", "bbox")},
                "segmentation": {"size": mask["size"], "counts": mask["counts"].decode()},
                "score": float(rng.uniform(0.3, 1)),
            }
        )
    cats = sorted(source.cats)
    swapped = [
        {**row, "category_id": int(rng.choice(cats)) if rng.random() < 0.3 else row["category_id"]} for row in rows
    ]
    dropped = [row for row in rows if rng.random() > 0.3]
    twice = rows + [{**row, "score": 0.99} for row in rows if rng.random() < 0.3]
    for name, changed in (("classification", swapped), ("missed", dropped), ("duplicate", twice)):
        cost = study(source.dataset, changed, kind=kind).errors.cost
        assert max(cost, key=cost.__getitem__) == name, (name, cost)
        assert cost[name] > 3 * max(value for other, value in cost.items() if other != name)
