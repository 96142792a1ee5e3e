"""Two results on one data set: their differences, and the intervals of these."""

from __future__ import annotations

import numpy as np
import pytest

import detect
from detect.analysis.comparing import _aps
from dpipe.errors import InputError


def worse(rows, share, seed=0):
    """Detections of which a share is badly placed."""
    rng = np.random.default_rng(seed)
    return [
        {**row, "bbox": [row["bbox"][0] + 0.3 * row["bbox"][2], *row["bbox"][1:]]} if rng.random() < share else row
        for row in rows
    ]


def test_a_drawn_data_set_counts_as_one_with_the_images_so_many_times(study, truth, found, made_object):
    for number, image in enumerate(truth["images"]):
        truth["annotations"].append(made_object(300 + number, image["id"], 7, [250.0, 250.0, 99.0, 50.0], crowd=1))
    rng = np.random.default_rng(0)
    rows = worse(found(truth), 0.4) + worse(found(truth, seed=4), 0.9)
    rows += [{"image_id": 5 + n, "category_id": 7, "bbox": [260.0, 255.0, 20.0, 20.0], "score": 0.7} for n in range(20)]
    for row in rows:
        row["score"] = float(rng.random())
    analysis = study(truth, rows, iou=0.4)
    weights = rng.multinomial(24, np.full(24, 1 / 24), size=3).astype(float)
    weights[0] = 1
    for drawn, aps in zip(weights, _aps(analysis.matches, [weights[:2], weights[2:]]), strict=True):
        images, annotations, results = [], [], []
        for image, times in zip(truth["images"], drawn.astype(int), strict=True):
            for _ in range(times):
                number = 1 + len(images)
                images.append({**image, "id": number})
                annotations += [
                    {**row, "image_id": number} for row in truth["annotations"] if row["image_id"] == image["id"]
                ]
                results += [{**row, "image_id": number} for row in rows if row["image_id"] == image["id"]]
        for number, row in enumerate(annotations):
            row["id"] = number
        expected = study({**truth, "images": images, "annotations": annotations}, results, iou=0.4)
        np.testing.assert_allclose(aps, expected.curves.precisions.mean(axis=1).T, atol=1e-12)
        assert 0.1 < expected.ap < 0.95


def test_a_better_result_is_told_from_chance(study, truth, found):
    rows = found(truth)
    first, second = study(truth, worse(rows, 0.3), iou=0.6), study(truth, worse(rows, 0.1), iou=0.6)
    comparison = detect.compare(first, second, resamples=200)
    assert [row.name for row in comparison.overall] == ["AP", "AP50", "AP75", "AP60"]
    ap, ap50, _, ap60 = comparison.overall
    assert (ap.first, ap.second) == (pytest.approx(first.ap), pytest.approx(second.ap))
    assert (ap60.first, ap60.second) == (pytest.approx(first.ap_at_iou), pytest.approx(second.ap_at_iou))
    assert 0 < ap.low < ap.difference < ap.high < 0.3
    assert ap.is_clear
    assert [row.first for row in comparison.classes] == [pytest.approx(each.ap) for each in first.classes]
    # A box moved by 0.3 of its width overlaps by 0.54: at IoU 0.5 both are perfect.
    assert (ap50.difference, ap50.low, ap50.high, ap50.is_clear) == (0, 0, 0, False)
    back = detect.compare(second, first, resamples=200).overall[0]
    assert back.is_clear
    assert (back.low, back.high) == (pytest.approx(-ap.high), pytest.approx(-ap.low))


def test_intervals_are_as_wide_as_repeated_data_sets_differ(study, scenes, found):
    """Data sets drawn anew differ by the spread that one of them tells."""
    differences, widths = [], []
    for seed in range(30):
        truth = scenes(seed=seed)
        rows = found(truth, seed=seed)
        first, second = (study(truth, worse(rows, 0.2, 2 * seed + which)) for which in (0, 1))
        ap = detect.compare(first, second, resamples=60).overall[0]
        differences.append(ap.difference)
        widths.append(ap.high - ap.low)
    # 95% of a normal distribution lie within 1.96 standard deviations.
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.std(differences), rel=0.35)


@pytest.mark.parametrize("count", [9, 10])
def test_a_class_in_few_images_has_no_interval(count, study, truth, found):
    keep = {5 + number for number in range(count)}
    truth["annotations"] = [row for row in truth["annotations"] if row["category_id"] != 30 or row["image_id"] in keep]
    truth["annotations"] = [row for row in truth["annotations"] if row["category_id"] != 2]
    rows = found(truth)
    comparison = detect.compare(study(truth, worse(rows, 0.5)), study(truth, rows), resamples=20)
    car, person, bus = comparison.classes
    assert car.low > 0
    assert np.isnan([person.first, person.second, person.difference, person.low]).all()
    assert bus.difference > 0
    assert np.isnan([bus.low, bus.high]).tolist() == [count < 10] * 2
    assert bus.is_clear == (count == 10)


def test_the_seed_decides(study, truth, found):
    rows = found(truth)
    first, second = study(truth, worse(rows, 0.3)), study(truth, rows)
    intervals = [
        [(row.low, row.high) for row in detect.compare(first, second, resamples=50, seed=seed).classes]
        for seed in (0, 0, 1)
    ]
    assert intervals[0] == intervals[1] != intervals[2]
    single = detect.compare(first, second, resamples=1).overall[0]
    assert single.low == single.high != single.difference  # of the one draw


def test_without_objects_or_detections(study, truth):
    nothing = study(truth, [])
    ap = detect.compare(nothing, nothing, resamples=5).overall[0]
    assert (ap.first, ap.second, ap.low, ap.high) == (0, 0, 0, 0)
    truth["annotations"] = []
    for images in (truth["images"], []):
        empty = study({**truth, "images": images}, [])
        assert np.isnan(detect.compare(empty, empty, resamples=5).overall[0].low)


def test_what_cannot_be_compared(study, truth, scenes, found):
    rows = found(truth)
    first = study(truth, rows)
    for other in (study(truth, rows, iou=0.6), study(scenes(seed=5), rows), study(scenes(images=23), [])):
        with pytest.raises(InputError, match="only analyses of the same data set, kind and IoU"):
            detect.compare(first, other)
    with pytest.raises(InputError, match="resamples is 0; expected 1 or more"):
        detect.compare(first, first, resamples=0)
