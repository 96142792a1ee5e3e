from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from detect.reporting.matching import Matches, match


def boxes(*rows: tuple[float, float, float, float]) -> np.ndarray:
    return np.array(rows, np.float64).reshape(-1, 4)


def matches_of(found: Any, scores: list[float], truth: Any, crowd: list[bool], labels: Any = None) -> Matches:
    labels = np.zeros(len(found), np.int64) if labels is None else np.array(labels)
    true_labels = np.zeros(len(truth), np.int64)
    return match(found, labels, np.array(scores), truth, true_labels, np.array(crowd, bool))


def test_each_object_is_found_once_by_the_best_score() -> None:
    truth = boxes((0, 0, 10, 10))
    matches = matches_of(boxes((0, 0, 10, 9), (0, 0, 10, 10), (50, 0, 60, 10)), [0.5, 0.9, 0.7], truth, [False])
    assert matches.verdicts == ["wrong", "right", "wrong"]
    assert matches.found.tolist() == [0.9]


def test_a_detection_takes_what_it_overlaps_most_of_what_is_left() -> None:
    truth = boxes((0, 0, 10, 10), (0, 0, 10, 8))
    matches = matches_of(boxes((0, 0, 10, 10), (0, 0, 10, 10)), [0.9, 0.8], truth, [False, False])
    assert matches.verdicts == ["right", "right"]
    assert matches.found.tolist() == [0.9, 0.8]


def test_an_iou_of_one_half_is_enough_and_the_class_must_be_the_same() -> None:
    truth = boxes((0, 0, 10, 10))
    assert matches_of(boxes((0, 0, 10, 5)), [0.9], truth, [False]).verdicts == ["right"]
    assert matches_of(boxes((0, 0, 10, 4.9)), [0.9], truth, [False]).verdicts == ["wrong"]
    assert matches_of(boxes((0, 0, 10, 10)), [0.9], truth, [False], labels=[1]).verdicts == ["wrong"]


def test_what_lies_in_a_crowd_does_not_count() -> None:
    truth = boxes((0, 0, 100, 100), (60, 60, 70, 70))
    found = boxes((0, 0, 10, 10), (20, 20, 30, 30), (60, 60, 70, 70), (95, 0, 106, 10))
    matches = matches_of(found, [0.9, 0.8, 0.7, 0.6], truth, [True, False])
    assert matches.verdicts == ["ignored", "ignored", "right", "wrong"]
    assert np.isnan(matches.found[0])
    assert matches.found[1] == 0.7
    half = boxes((90, 0, 110, 10))
    assert matches_of(half, [0.9], truth, [True, False]).verdicts == ["ignored"]
    assert matches_of(half, [0.9], truth, [True, False], labels=[1]).verdicts == ["wrong"]


def test_nothing_found_or_nothing_there() -> None:
    assert np.isnan(matches_of(boxes(), [], boxes((0, 0, 1, 1)), [False]).found).all()
    assert matches_of(boxes((0, 0, 1, 1)), [0.9], boxes(), []).verdicts == ["wrong"]
    assert matches_of(boxes(), [], boxes(), []).verdicts == []


@pytest.mark.parametrize(("threshold", "mistakes"), [(0.0, 1), (0.6, 1), (0.7, 0), (0.8, 0), (0.85, 1), (0.95, 2)])
def test_mistakes_are_wrong_detections_and_missed_objects_at_a_score(threshold: float, mistakes: int) -> None:
    truth = boxes((0, 0, 10, 10), (20, 0, 30, 10), (40, 0, 90, 90))
    found, scores = boxes((0, 0, 10, 10), (20, 0, 30, 10), (0, 50, 10, 60)), [0.8, 0.9, 0.6]
    matches = matches_of(found, scores, truth, [False, False, True])
    assert matches.mistakes(np.array(scores), np.array([True, True, False]), threshold) == mistakes
