"""What any label image becomes, drawn again pixel by pixel; and masks as polygons."""

from __future__ import annotations

import numpy as np
import orjson
import pycocotools.mask as coco_mask
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from converters import convert_cityscapes
from converters.cityscapes.image import Choices, convert_pair
from converters.cityscapes.labels import chosen_labels
from converters.cityscapes.layout import ImagePair
from dpipe.outlines.outline_masks import outline_masks
from dpipe.polygons import Polygons

EVALUATED = (24, 25, 26, 27, 28, 31, 32, 33)
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' decode


def ids():
    """Ids of all kinds: without instances, crowds, first and last instances, unevaluated, and of label 1."""
    labels = st.sampled_from([*EVALUATED, 29, 30])
    instances = st.builds(lambda label, number: 1000 * label + number, labels, st.integers(0, 999))
    return st.one_of(st.integers(0, 33), instances, st.sampled_from([1000, 24000, 24999, 33000, 33999]))


def label_images():
    """Images of up to 12 x 12 ids, whose pixels are enlarged to stripes and blocks."""
    few = st.lists(ids(), min_size=1, max_size=5)
    small = few.flatmap(
        lambda values: hnp.arrays(
            np.uint16, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.sampled_from(values)
        )
    )
    stretches = st.tuples(st.sampled_from([1, 2, 33]), st.sampled_from([1, 3, 70]))
    return st.builds(lambda labels, by: labels.repeat(by[0], axis=0).repeat(by[1], axis=1), small, stretches)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Writes a label image and returns the annotations that it becomes."""
    folder = tmp_path_factory.mktemp("ulm")

    def convert(labels, outline=None):
        Image.fromarray(labels).save(folder / "a_gtFine_instanceIds.png")
        pair = ImagePair("ulm/a", None, folder / "a_gtFine_instanceIds.png")
        choices = Choices("gtFine", "instance-ids", chosen_labels(None), outline=outline)
        return [orjson.loads(data) for data in convert_pair(pair, choices=choices).record.annotations]

    return convert


def category_of(value):
    """The published meaning of an id: the label and whether it is a crowd region; None where it is not evaluated."""
    label = value // 1000 if value >= 1000 else value
    return (int(label), value < 1000) if label in EVALUATED else None


def drawn(segmentation, height, width):
    if isinstance(segmentation, list):
        (segmentation,) = Polygons.from_coco([segmentation]).to_rle(height, width)
    return coco_mask.decode({**segmentation, "counts": segmentation["counts"].encode()}).astype(bool)


@settings(max_examples=200, deadline=None)
@given(label_images(), st.sampled_from([None, outline_masks]))
def test_the_union_of_all_masks_is_exactly_the_objects(converted, labels, outline):
    expected = {value for value in np.unique(labels).tolist() if category_of(value) is not None}
    left = np.isin(labels, list(expected))
    annotations = converted(labels, outline)
    for annotation in annotations:
        mask = drawn(annotation["segmentation"], *labels.shape)
        (value,) = np.unique(labels[mask]).tolist()
        np.testing.assert_array_equal(mask, labels == value)
        assert category_of(value) == (annotation["category_id"], bool(annotation["iscrowd"]))
        assert annotation["area"] == mask.sum()
        rows, columns = np.nonzero(mask)
        x, y = columns.min(), rows.min()
        assert annotation["bbox"] == [x, y, columns.max() + 1 - x, rows.max() + 1 - y]
        assert left[mask].all()
        left &= ~mask
        expected.remove(value)
    assert not expected
    assert not left.any()


def test_polygons_hold_the_same_pixels_and_holes_stay_run_lengths(write_cityscapes, tmp_path):
    labels = np.full((12, 20), 7)
    labels[1:6, 1:6], labels[2:4, 3] = 26000, 7  # with a hole
    labels[1:4, 8:12] = 26001
    labels[4:6, 12:15] = 26001  # touches the rest of 26001 by a corner
    labels[7:11, 2:9] = 26  # a crowd region
    root = write_cityscapes({"val": {"x/x_0": labels}})
    reports = [
        convert_cityscapes(root, tmp_path / name, outline=outline, nproc=nproc)
        for name, outline, nproc in (("rle", None, 1), ("polygon", outline_masks, 1), ("processes", outline_masks, 2))
    ]
    files = [report.splits[0].path.read_bytes() for report in reports]
    assert files[1] == files[2]
    masks, polygons = (orjson.loads(data)["annotations"] for data in files[:2])
    assert [{**a, "segmentation": None} for a in polygons] == [{**a, "segmentation": None} for a in masks]
    crowd, pierced, touching = (annotation["segmentation"] for annotation in polygons)
    assert crowd == masks[0]["segmentation"]
    assert pierced == masks[1]["segmentation"]
    assert sorted(map(len, touching)) == [8, 8]
    for annotation in polygons:
        np.testing.assert_array_equal(
            drawn(annotation["segmentation"], 12, 20), labels == (26, 26000, 26001)[annotation["id"] - 1]
        )
    assert reports[0].notes == [note for note in reports[1].notes if "holes" not in note]
    assert "1 object has holes, which COCO's polygons cannot tell: its mask is written as run lengths" in (
        reports[1].notes
    )
