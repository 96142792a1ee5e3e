from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dpipe.coco import CocoIndex
from dpipe.errors import InputError
from dpipe.images.resample import resample
from dpipe.operations.geometric import RandomFlip, Resize, Rotate, Shear, Translate
from dpipe.operations.operation import Operation
from dpipe.plan import SamplePlan
from dpipe.policy import Augment
from dpipe.polygons import Polygons
from dpipe.target import make_target

SIZE = (120, 200)
WriteDataset = Callable[..., tuple[CocoIndex, Path]]


def box_with_polygon(x: float, y: float, w: float, h: float) -> dict[str, Any]:
    ring = [x, y, x + w, y, x + w, y + h, x, y + h]
    return {"image_id": 0, "bbox": [x, y, w, h], "segmentation": [ring]}


def draw(*operations: Operation, size: tuple[int, int] = SIZE) -> SamplePlan:
    return Augment(operations).draw(size, seed=1, epoch=0, sample=5, image=0)


def move(offset: int, *, back: bool = False) -> Translate:
    return Translate(10, prob=1, max_translate_offset=offset, random_negative_prob=float(back))


@pytest.fixture
def diamond() -> dict[str, Any]:
    """A square that stands on a corner, centred on (100, 60), 40 pixels wide and high."""
    return {
        "image_id": 0,
        "bbox": [80, 40, 40, 40],
        "segmentation": [[100, 40, 120, 60, 100, 80, 80, 60]],
        "category_id": 7,
    }


def test_what_stays_as_it_is(write_dataset: WriteDataset, diamond: dict[str, Any]) -> None:
    index, _ = write_dataset([np.zeros((*SIZE, 3), np.uint8)], [diamond, {"image_id": 0, "bbox": [1, 2, 30, 40]}])
    target = make_target(index, draw())
    assert (target.image_id, target.sample, target.file_name) == (0, 5, "000.png")
    assert (target.size, target.original_size) == (SIZE, SIZE)
    assert target.boxes.dtype == torch.float32
    assert target.boxes.tolist() == [[80, 40, 120, 80], [1, 2, 31, 42]]
    assert target.labels.tolist() == [1, 0]
    assert target.annotation_ids.tolist() == [100, 101]
    assert target.has_mask.tolist() == [True, False]
    assert target.masks is not None
    assert len(target.masks) == 2
    assert target.ignore_boxes.shape == (0, 4)


def test_boxes_are_tight_around_polygons_or_around_corners(
    write_dataset: WriteDataset, diamond: dict[str, Any]
) -> None:
    plain = {"image_id": 0, "bbox": diamond["bbox"]}
    index, _ = write_dataset([np.zeros((*SIZE, 3), np.uint8)], [diamond, plain])
    plan = draw(Rotate(10, prob=1, max_rotate_angle=45))
    half, wide = 20 / np.sqrt(2), 20 * np.sqrt(2)
    tight = [100 - half, 60 - half, 100 + half, 60 + half]
    loose = [100 - wide, 60 - wide, 100 + wide, 60 + wide]
    np.testing.assert_allclose(make_target(index, plan).boxes, [tight, loose], atol=1e-4)
    np.testing.assert_allclose(make_target(index, plan, "corners").boxes, [loose, loose], atol=1e-4)
    with pytest.raises(InputError, match="boxes_from must be polygons or corners, got 'masks'"):
        make_target(index, plan, "masks")  # type: ignore[arg-type]


def test_what_leaves_the_image_is_cut_and_dropped(write_dataset: WriteDataset) -> None:
    boxes = [(10, 10, 40, 20), (150, 20, 40, 30), (190, 50, 5, 5), (100, 60, 50.5, 5)]
    annotations = [box_with_polygon(*box) for box in boxes]
    annotations += [{"image_id": 0, "bbox": list(box)} for box in boxes]
    index, _ = write_dataset([np.zeros((*SIZE, 3), np.uint8)], annotations)
    target = make_target(index, draw(move(30)))
    first_half = [[40, 10, 80, 30], [180, 20, 200, 50], [130, 60, 180.5, 65]]
    assert target.boxes.tolist() == first_half * 2
    assert target.annotation_ids.tolist() == [100, 101, 103, 104, 105, 107]
    assert target.has_mask.tolist() == [True] * 3 + [False] * 3
    assert isinstance(target.masks, Polygons)
    assert target.masks.areas().tolist() == [800, 600, 252.5, 0, 0, 0]
    assert np.diff(target.masks.instance_offsets).tolist() == [1, 1, 1, 0, 0, 0]
    assert make_target(index, draw(move(99))).annotation_ids.tolist() == [100, 103, 104, 107]
    assert make_target(index, draw(move(100))).annotation_ids.tolist() == [100, 104]


@pytest.mark.parametrize(("min_size", "kept"), [(0, True), (0.5, True), (0.75, False), (1.0, False)])
def test_instances_thinner_than_the_least_size_are_dropped(
    write_dataset: WriteDataset, min_size: float, kept: bool
) -> None:
    index, _ = write_dataset(
        [np.zeros((*SIZE, 3), np.uint8)], [box_with_polygon(10, 10, 1, 40), box_with_polygon(10, 10, 9, 9)]
    )
    target = make_target(index, draw(Resize((100, 60))), min_size=min_size)
    assert target.annotation_ids.tolist() == ([100, 101] if kept else [101])
    assert len(target.boxes) == len(target.labels) == len(target.has_mask) == len(target.masks or ())


def test_what_has_left_the_image_is_dropped_at_any_least_size(write_dataset: WriteDataset) -> None:
    rows = [{"image_id": 0, "bbox": [x, 10, 20, 20], "iscrowd": crowd} for x in (60, 100, 150) for crowd in (0, 1)]
    index, _ = write_dataset([np.zeros((*SIZE, 3), np.uint8)], rows)
    target = make_target(index, draw(move(100)), min_size=0)
    assert target.boxes.tolist() == target.ignore_boxes.tolist() == [[160, 10, 180, 30]]


def test_a_box_goes_with_its_polygon(write_dataset: WriteDataset) -> None:
    left_corner = {"image_id": 0, "bbox": [0, 0, 100, 50], "segmentation": [[0, 0, 10, 0, 0, 10]]}
    index, _ = write_dataset([np.zeros((*SIZE, 3), np.uint8)], [left_corner])
    plan = draw(Translate(10, prob=1, max_translate_offset=50, random_negative_prob=1))
    assert len(make_target(index, plan, "corners").boxes) == 0


def test_crowds_are_regions_to_ignore(write_dataset: WriteDataset, diamond: dict[str, Any]) -> None:
    crowd = {**box_with_polygon(20, 20, 60, 60), "iscrowd": 1}
    difficult = {"image_id": 0, "bbox": [100, 10, 20, 20], "difficult": 1}
    gone = {"image_id": 0, "bbox": [190, 10, 5, 20], "iscrowd": 1}
    index, _ = write_dataset([np.zeros((*SIZE, 3), np.uint8)], [crowd, diamond, difficult, gone])
    target = make_target(index, draw(move(20)))
    assert target.annotation_ids.tolist() == [101]
    assert target.ignore_boxes.tolist() == [[40, 20, 100, 80], [120, 10, 140, 30]]


def test_images_without_instances(write_dataset: WriteDataset) -> None:
    index, _ = write_dataset([np.zeros((*SIZE, 3), np.uint8)] * 2, [box_with_polygon(1, 1, 9, 9)])
    target = make_target(index, Augment([]).draw(SIZE, seed=0, epoch=0, sample=1))
    assert target.boxes.shape == target.ignore_boxes.shape == (0, 4)
    assert target.labels.shape == target.has_mask.shape == target.annotation_ids.shape == (0,)
    assert len(target.masks or ()) == 0
    assert target.labels.dtype == torch.int64


def test_no_masks_where_the_data_have_none(write_dataset: WriteDataset) -> None:
    index, _ = write_dataset([np.zeros((*SIZE, 3), np.uint8)], [{"image_id": 0, "bbox": [1, 2, 30, 40]}])
    target = make_target(index, draw())
    assert target.masks is None
    assert target.has_mask.tolist() == [False]


def test_which_instances_have_a_mask_where_nobody_says(write_dataset: WriteDataset, diamond: dict[str, Any]) -> None:
    index, _ = write_dataset([np.zeros((*SIZE, 3), np.uint8)], [diamond, {"image_id": 0, "bbox": [1, 2, 30, 40]}])
    target = make_target(index, draw())
    kinds = {"polygons": target.masks, "bitmaps": torch.zeros(2, *SIZE, dtype=torch.uint8), "none": None}
    told = {kind: replace(target, masks=masks, has_mask=None).has_mask for kind, masks in kinds.items()}  # type: ignore[arg-type]
    assert {kind: has_mask.tolist() for kind, has_mask in told.items()} == {
        "polygons": [True, False],
        "bitmaps": [True, True],
        "none": [False, False],
    }
    assert all(has_mask.dtype == torch.bool for has_mask in told.values())


@pytest.mark.parametrize(
    "operations",
    [
        [Rotate(8, prob=1, scale=1.1), Translate(1, prob=1), Resize((333, 170)), RandomFlip(prob=1)],
        [Shear(10, prob=1), Rotate(5, prob=1), Resize((90, 160), keep_ratio=False)],
        [RandomFlip(prob=1), RandomFlip(prob=1, direction="vertical"), move(70, back=True)],
    ],
)
def test_boxes_lie_where_the_pixels_are(write_dataset: WriteDataset, operations: list[Operation]) -> None:
    rng = np.random.default_rng(4)
    boxes = np.column_stack([rng.integers(5, 150, 8), rng.integers(5, 70, 8), rng.integers(20, 45, (8, 2))])
    index, _ = write_dataset([np.zeros((*SIZE, 3), np.uint8)], [box_with_polygon(*box) for box in boxes.tolist()])
    plan = replace(draw(*operations), fill=(0, 0, 0))
    target = make_target(index, plan)
    assert len(target.boxes) >= 3
    for number, (x, y, w, h) in enumerate(boxes):
        image = np.zeros((*SIZE, 3), np.uint8)
        image[y : y + h, x : x + w] = 255
        seen = resample(image, plan)[..., 0] > 127
        (row,) = np.nonzero(target.annotation_ids.numpy() == 100 + number)
        if not len(row):
            assert seen.sum() == 0
            continue
        rows, columns = np.nonzero(seen)
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        # A sharp corner reaches further than the last pixel that it half covers.
        np.testing.assert_allclose(target.boxes[row[0]], found, atol=2)
        assert isinstance(target.masks, Polygons)
        assert target.masks.areas()[row[0]] == pytest.approx(seen.sum(), rel=0.02, abs=10)
