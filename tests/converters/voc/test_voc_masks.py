from __future__ import annotations

from converters.voc.masks import match_masks
from converters.writing.rle import InstanceRLE


def mask(number, left, top, right, bottom):
    return InstanceRLE(number, (100, 100), "", 1, (left, top, right - left, bottom - top))


def matched_ids(boxes, masks):
    return [None if found is None else found.id for found in match_masks(boxes, masks)]


def test_masks_in_the_order_of_the_objects():
    boxes = [(0, 0, 10, 10), (20, 20, 40, 40)]
    assert matched_ids(boxes, [mask(1, 1, 1, 9, 9), mask(2, 22, 20, 40, 38)]) == [1, 2]


def test_masks_in_another_order_go_by_their_boxes():
    boxes = [(0, 0, 50, 50), (5, 5, 15, 15)]
    assert matched_ids(boxes, [mask(1, 6, 6, 14, 14), mask(2, 1, 0, 50, 49)]) == [2, 1]


def test_order_settles_boxes_that_are_nearly_the_same():
    boxes = [(0, 0, 50, 50), (1, 0, 50, 50)]
    # By boxes alone the first mask, slightly shrunk, would fit the second object better.
    assert matched_ids(boxes, [mask(1, 2, 0, 50, 50), mask(2, 3, 1, 50, 50)]) == [1, 2]


def test_object_without_a_mask_and_mask_without_an_object():
    boxes = [(0, 0, 10, 10), (20, 20, 40, 40), (60, 60, 90, 90)]
    assert matched_ids(boxes, [mask(3, 61, 61, 90, 90), mask(4, 0, 90, 10, 100), mask(1, 1, 1, 9, 9)]) == [1, None, 3]


def test_a_mask_is_one_objects():
    assert matched_ids([(0, 0, 20, 20), (0, 0, 20, 19)], [mask(1, 0, 0, 20, 20)]) == [1, None]


def test_a_mask_that_a_border_has_shrunk_still_fits():
    assert matched_ids([(0, 0, 20, 20)], [mask(7, 6, 6, 14, 14)]) == [7]


def test_nothing_to_match():
    assert matched_ids([], [mask(1, 0, 0, 5, 5)]) == []
    assert matched_ids([(0, 0, 5, 5)], []) == [None]
