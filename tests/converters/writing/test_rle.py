from __future__ import annotations

import numpy as np
import pycocotools.mask as coco_mask
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from converters.writing.rle import encode_label_image


def encoded(labels, **options):
    return [(one.id, one.counts, one.area, list(one.bbox)) for one in encode_label_image(labels, **options)]


def label_images():
    """Images of few and of many ids, in long runs and in short ones."""
    small = hnp.arrays(
        st.sampled_from([np.uint8, np.uint16, np.int32, np.int64]),
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12),
        elements=st.integers(0, 4),
    )
    stretches = st.tuples(st.sampled_from([1, 2, 40]), st.sampled_from([1, 3, 50]))
    return st.builds(lambda labels, by: labels.repeat(by[0], axis=0).repeat(by[1], axis=1), small, stretches)


@settings(max_examples=250, deadline=None)
@given(label_images())
def test_equals_pycocotools_on_any_label_image(encode_one_by_one, labels):
    ids = [value for value in np.unique(labels) if value >= 1]
    assert encoded(labels) == encode_one_by_one(labels, ids)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # inside pycocotools' decode
@settings(max_examples=100, deadline=None)
@given(label_images())
def test_decoded_masks_are_exactly_the_instances(labels):
    rebuilt = np.zeros_like(labels)
    for one in encode_label_image(labels):
        rle = {"size": list(one.size), "counts": one.counts.encode()}
        mask = coco_mask.decode(rle).astype(bool)
        assert not rebuilt[mask].any()
        rebuilt[mask] = one.id
    np.testing.assert_array_equal(rebuilt, labels)


@pytest.mark.parametrize(
    "labels",
    [
        [[1]],
        [[0]],
        [[5, 5], [5, 5]],  # one run over all columns, without a tail
        [[1, 0, 0], [0, 0, 0]],  # begins with the foreground
        [[0, 0, 0], [0, 0, 1]],  # ends with it
        [[0, 1, 0], [1, 0, 0]],  # a run that goes from the bottom of a column to the top of the next
        [[0, 1, 1, 2], [1, 1, 2, 2], [1, 2, 2, 0]],
        [[1, 2, 1, 2, 1, 2, 1]],
        [[1], [2], [1], [1], [2]],
    ],
)
def test_edge_cases(encode_one_by_one, labels):
    labels = np.array(labels, np.uint16)
    assert encoded(labels) == encode_one_by_one(labels, [value for value in np.unique(labels) if value])


def test_large_counts_take_several_characters(encode_one_by_one):
    labels = np.zeros((1024, 2048), np.uint16)
    labels[100:900, 37:1999] = 26001
    labels[3, 5] = 26001
    labels[1023, 2047] = 24000
    assert encoded(labels) == encode_one_by_one(labels, [24000, 26001])


def test_memory_layout_does_not_matter(street, encode_one_by_one):
    labels = street()
    ids = [value for value in np.unique(labels) if value >= 1]
    expected = encode_one_by_one(labels, ids)
    assert encoded(np.asfortranarray(labels)) == expected
    assert encoded(np.repeat(labels, 2, axis=1)[:, ::2]) == expected


def test_minimum_and_excluded_ids_are_background(street, encode_one_by_one):
    labels = street()
    kept = [value for value in np.unique(labels) if value >= 24 and value not in (26, 33000)]
    assert encoded(labels, minimum=24, excluded=(26, 33000)) == encode_one_by_one(labels, kept)


def test_nothing_to_encode():
    assert encode_label_image(np.zeros((4, 5), np.uint8)) == []
    assert encode_label_image(np.zeros((0, 5), np.uint8)) == []


@pytest.mark.parametrize("labels", [np.zeros((2, 3, 3), np.uint8), np.zeros((2, 3)), np.zeros(4, int)])
def test_refuses_what_is_no_label_image(labels):
    with pytest.raises(ValueError, match="a label image is"):
        encode_label_image(labels)
