"""Crops and large-scale jitter: statistics, promises, and pixels, boxes and polygons against plain algebra."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpipe import geometry
from dpipe.backends.opencv import resample
from dpipe.coco import CocoIndex
from dpipe.errors import InputError
from dpipe.operations.cropping import LargeScaleJitter, MinIoURandomCrop, RandomCrop
from dpipe.operations.geometric import RandomFlip, Resize, Rotate, Shear, Translate
from dpipe.operations.operation import Operation
from dpipe.plan import Draft, SamplePlan
from dpipe.policy import Augment, AutoAugment, RandAugment
from dpipe.target import make_target

WriteDataset = Callable[..., tuple[CocoIndex, Path]]
SIZE = (100, 200)  # height, width
BOXES = np.array([[10, 10, 40, 60], [100, 30, 190, 90], [150, 5, 156, 11]], dtype=float)


def draw(*operations: Operation, sample: int = 0, size: tuple[int, int] = SIZE, boxes: Any = None) -> SamplePlan:
    return Augment(operations).draw(size, seed=0, epoch=0, sample=sample, image=0, boxes=boxes)


def crop_of(plan: SamplePlan) -> np.ndarray:
    """The part of the source that a plan without scaling shows, xyxy."""
    np.testing.assert_array_equal(plan.matrix[:, :2], np.eye(2))
    left, top = -plan.matrix[:, 2]
    return np.array([left, top, left + plan.size[1], top + plan.size[0]])


def ious(crop: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    shared = [
        max(0, min(crop[2], b[2]) - max(crop[0], b[0])) * max(0, min(crop[3], b[3]) - max(crop[1], b[1])) for b in boxes
    ]
    area = (crop[2] - crop[0]) * (crop[3] - crop[1])
    return np.array([s / (area + (b[2] - b[0]) * (b[3] - b[1]) - s) for s, b in zip(shared, boxes, strict=True)])


def holds_a_middle(crop: np.ndarray, boxes: np.ndarray) -> bool:
    return any(crop[0] <= (b[0] + b[2]) / 2 < crop[2] and crop[1] <= (b[1] + b[3]) / 2 < crop[3] for b in boxes)


class TestRandomCrop:
    def test_absolute_is_width_and_height_at_every_place(self) -> None:
        crops = [crop_of(draw(RandomCrop((197, 99), allow_negative_crop=True), sample=sample)) for sample in range(200)]
        assert {tuple(crop[2:] - crop[:2]) for crop in crops} == {(197, 99)}
        assert {tuple(crop[:2]) for crop in crops} == {(x, y) for x in range(4) for y in range(2)}

    def test_a_crop_is_never_larger_than_the_image(self) -> None:
        assert draw(RandomCrop((1000, 50))).size == (50, 200)
        plan = draw(RandomCrop((1000, 1000)))
        assert (plan.size, plan.resize_flips) == (SIZE, (False, False))

    def test_absolute_range_draws_both_edges(self) -> None:
        sizes = {
            draw(RandomCrop((198, 20), "absolute_range", True), sample=sample, size=(22, 200)).size
            for sample in range(200)
        }
        heights, widths = zip(*sizes, strict=True)
        assert set(heights) == {20, 21, 22}  # no more than the image has
        assert (min(widths), max(widths)) <= (30, 198)
        assert max(widths) > 180

    def test_relative_sizes(self) -> None:
        assert draw(RandomCrop((0.25, 0.5), "relative")).size == (50, 50)
        assert draw(RandomCrop((0.001, 1), "relative")).size == (100, 1)
        sizes = np.array([draw(RandomCrop((0.5, 0.9), "relative_range"), sample=n).size for n in range(500)])
        assert (sizes.min(axis=0) >= (90, 100)).all()
        np.testing.assert_allclose(sizes.mean(axis=0), (95, 150), rtol=0.02)

    def test_a_crop_holds_the_middle_of_an_object_unless_it_need_not(self) -> None:
        for operation, share in ((RandomCrop((30, 30)), 1.0), (RandomCrop((30, 30), allow_negative_crop=True), None)):
            held = [holds_a_middle(crop_of(draw(operation, sample=n, boxes=BOXES)), BOXES) for n in range(300)]
            assert np.mean(held) == share if share else np.mean(held) < 0.5

    def test_an_object_that_is_hardly_ever_hit_is_found(self) -> None:
        size, boxes = (2000, 4000), np.array([[0, 0, 3, 3], [3996, 1990, 4000, 2000]], dtype=float)
        crops = [crop_of(draw(RandomCrop((20, 20)), sample=n, size=size, boxes=boxes)) for n in range(60)]
        assert all(holds_a_middle(crop, boxes) for crop in crops)
        assert all((crop >= 0).all() and (crop[2:] <= (4000, 2000)).all() for crop in crops)
        assert len({tuple(crop) for crop in crops}) > 8  # near a corner, there are few places for a crop
        assert {bool(crop[0] > 100) for crop in crops} == {True, False}  # each object has its turn

    def test_an_object_that_is_all_but_outside_keeps_the_crop_inside(self) -> None:
        # The box's middle, in float64, is the image's very edge.
        boxes = np.array([[np.nextafter(200, 0), 10, 230, 20]])
        crops = [crop_of(draw(RandomCrop((50, 50)), sample=sample, boxes=boxes)) for sample in range(20)]
        assert {crop[2] for crop in crops} == {200}

    def test_it_looks_at_objects_where_they_are_by_now(self) -> None:
        # Only the left object is left after the shift, and moved.
        shift = Translate(10, prob=1, max_translate_offset=150, random_negative_prob=0)
        for sample in range(50):
            plan = draw(shift, RandomCrop((20, 20)), sample=sample, boxes=BOXES)
            crop = -plan.matrix[:, 2] + (150, 0)
            assert crop[0] <= 175 < crop[0] + 20
            assert crop[1] <= 35 < crop[1] + 20


class TestMinIoURandomCrop:
    def test_the_promise(self) -> None:
        # So many equal numbers that the crops without a condition hardly come.
        operation = MinIoURandomCrop((0.3,) * 500, min_crop_size=0.1)
        boxes = np.array([[20, 10, 120, 90], [40, 20, 130, 95]], dtype=float)
        crops = [crop_of(draw(operation, sample=n, boxes=boxes)) for n in range(300)]
        cut = [crop for crop in crops if tuple(crop) != (0, 0, 200, 100)]
        assert len(cut) > 200
        for crop in cut:
            assert (ious(crop, boxes) >= 0.3).all()
            assert holds_a_middle(crop, boxes)
            width, height = crop[2:] - crop[:2]
            assert 0.5 <= height / width <= 2
            assert width >= 20
            assert height >= 10

    def test_every_choice_is_as_likely(self) -> None:
        # Each object fills its image, and a crop of nearly all of it fits every condition.
        operation = MinIoURandomCrop((0.5, 0.9), min_crop_size=0.95)
        whole = [[0, 0, 100, 100]]
        left = [draw(operation, sample=n, size=(100, 100), boxes=whole).resize_flips is not None for n in range(2000)]
        # One of four leaves the image as it is; a crop of all of it is one of 6 by 6 sizes.
        assert np.mean(left) == pytest.approx(0.25 + 0.75 / 36, abs=0.05)

    def test_small_objects_leave_what_keeps_no_promise(self) -> None:
        # No crop has an IoU of 0.5 with a dot: what remains is the image itself, and crops with no condition.
        dot = np.array([[100, 50, 104, 54]], dtype=float)
        plans = [draw(MinIoURandomCrop((0.5,)), sample=n, boxes=dot) for n in range(400)]
        cut = [crop_of(plan) for plan in plans if plan.resize_flips is None]
        assert len(cut) / 400 == pytest.approx(0.5, abs=0.08)
        assert all(holds_a_middle(crop, dot) for crop in cut)

    @pytest.mark.parametrize("boxes", [None, np.zeros((0, 4)), [[300, 300, 310, 310]]])
    def test_images_without_objects_take_any_crop(self, boxes: Any) -> None:
        sizes = {draw(MinIoURandomCrop((0.9,)), sample=n, boxes=boxes).size for n in range(60)}
        assert len(sizes) > 20

    def test_thin_images_end(self) -> None:
        # No crop of it is half as high as wide: the image stays.
        assert draw(MinIoURandomCrop(), size=(3, 1000), boxes=[[0, 0, 3, 3]]).size == (3, 1000)

    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def test_final_boxes_keep_the_promise(self, data: st.DataObject) -> None:
        width, height = data.draw(st.integers(20, 300)), data.draw(st.integers(20, 300))
        start, side = st.floats(0, 0.6), st.floats(0.1, 0.4)
        corners = data.draw(st.lists(st.tuples(start, start, side, side), min_size=1, max_size=3))
        boxes = np.array([(x * width, y * height, (x + w) * width, (y + h) * height) for x, y, w, h in corners])
        least = data.draw(st.sampled_from([0.05, 0.1, 0.3, 0.5]))
        rng = Insisting(np.random.default_rng(data.draw(st.integers(0, 1000))))
        draft = Draft((height, width), rng, boxes)  # type: ignore[arg-type]
        MinIoURandomCrop((least,)).apply(draft)
        if rng.rounds <= 20:  # else none was found, and it was told to leave the image alone
            crop_height, crop_width = draft.size
            final, whole = draft.boxes, geometry.transform_boxes(boxes, draft.matrix)
            shared, areas = ((each[:, 2:] - each[:, :2]).prod(axis=1) for each in (final, whole))
            assert (shared / (crop_height * crop_width + areas - shared) >= least - 1e-9).all()
            assert holds_a_middle(np.array([0, 0, crop_width, crop_height]), whole)


class Insisting:
    """A random stream that chooses the condition, as long as that may lead to something."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.rounds = 0

    def integers(self, low: Any, high: Any = None, **options: Any) -> Any:
        if high is not None:
            return self.rng.integers(low, high, **options)
        self.rounds += 1
        return 1 if self.rounds <= 20 else 0

    def uniform(self, *arguments: Any) -> Any:
        return self.rng.uniform(*arguments)


class TestLargeScaleJitter:
    def test_the_canvas_is_always_as_large(self) -> None:
        sizes = {draw(LargeScaleJitter((64, 48)), sample=n, size=(30 + 7 * n, 500 - n)).size for n in range(60)}
        assert sizes == {(48, 64)}
        assert draw(LargeScaleJitter()).size == (1024, 1024)

    def test_scales_are_of_the_canvas_and_even(self) -> None:
        # 200 wide: at scale 1 it is 5.12 times as large in a canvas of 1024.
        factors = np.array([draw(LargeScaleJitter(), sample=n).matrix[0, 0] for n in range(2000)]) / 5.12
        assert factors.min() == pytest.approx(0.1, abs=0.01)
        assert factors.max() == pytest.approx(2.0, abs=0.01)
        np.testing.assert_allclose(np.quantile(factors, (0.25, 0.5, 0.75)), (0.575, 1.05, 1.525), atol=0.06)

    def test_what_is_smaller_lies_top_left_and_the_rest_is_filled(self) -> None:
        plan = draw(LargeScaleJitter((400, 400), 0.5, 0.5, img_fill_val=(7, 8, 9)))
        np.testing.assert_array_equal(plan.matrix, [[1, 0, 0], [0, 1, 0]])
        image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        canvas = resample(image, plan)
        np.testing.assert_array_equal(canvas[:100, :200], image)
        assert (canvas[100:] == (7, 8, 9)).all()
        assert (canvas[:, 200:] == (7, 8, 9)).all()

    def test_of_what_is_larger_a_random_part_is_seen(self) -> None:
        plans = [draw(LargeScaleJitter((100, 100), 4, 4), sample=n) for n in range(300)]  # 400 wide, 200 high
        corners = np.array([-plan.matrix[:, 2] for plan in plans])
        assert (corners == corners.round()).all()
        np.testing.assert_allclose(corners.min(axis=0), 0, atol=5)
        np.testing.assert_allclose(corners.max(axis=0), (300, 100), atol=5)
        # Larger by a pixel, down or along: all four places.
        plans = [draw(LargeScaleJitter((199, 99), 100 / 99, 100 / 99), sample=n) for n in range(60)]
        assert {tuple(-plan.matrix[:, 2]) for plan in plans} == {(0, 0), (0, 1), (1, 0), (1, 1)}

    def test_it_is_antialiased_when_it_shrinks(self) -> None:
        assert draw(LargeScaleJitter((200, 200), 0.1, 0.1)).halvings == (3, 3)


def test_crops_and_flips_are_albumentations(write_dataset: WriteDataset) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    for sample in range(8):
        flip = RandomFlip((0.3, 0.3, 0.3), ("horizontal", "vertical", "diagonal"))
        cut = draw(RandomCrop((120, 70)), sample=sample, boxes=BOXES)
        plan = draw(RandomCrop((120, 70)), flip, sample=sample, boxes=BOXES)
        left, top, right, bottom = (int(edge) for edge in crop_of(cut))
        mirrored = [A.HorizontalFlip(p=1)] * int(plan.matrix[0, 0] < 0) + [A.VerticalFlip(p=1)] * int(
            plan.matrix[1, 1] < 0
        )
        theirs = A.Compose(
            [A.Crop(left, top, right, bottom, p=1), *mirrored], bbox_params=A.BboxParams("pascal_voc", label_fields=[])
        )(image=image, bboxes=BOXES)
        np.testing.assert_array_equal(resample(image, plan), theirs["image"])
        boxes = geometry.clip_boxes(geometry.transform_boxes(BOXES, plan.matrix), plan.size[1], plan.size[0])
        boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)]
        np.testing.assert_allclose(boxes, theirs["bboxes"], atol=1e-3)


@pytest.mark.parametrize(
    "operations",
    [
        [RandomCrop((90, 60))],
        [MinIoURandomCrop(), Resize((150, 150)), RandomFlip(0.5, ("horizontal", "diagonal"))],
        [LargeScaleJitter((160, 120))],
        [LargeScaleJitter((160, 120), 1.5, 2), Rotate(9, prob=1), RandomCrop((0.6, 0.7), "relative_range")],
        [RandAugment((2, 9), num_ops=3), MinIoURandomCrop((0.1,)), LargeScaleJitter((100, 100), 0.6, 1.4)],
        [
            AutoAugment(
                [[Shear(5, prob=1), RandomCrop((70, 70))], [RandAugment(9.0), AutoAugment([[MinIoURandomCrop()]])]]
            )
        ],
    ],
    ids=["crop", "iou", "jitter", "jitter and rotation", "many", "nested"],
)
def test_masks_and_boxes_lie_where_the_pixels_do(operations: list[Operation], write_dataset: WriteDataset) -> None:
    # An L, a block and a dot, all along pixel edges: a picture of labels shows exactly the same shapes.
    rings = [
        [10, 10, 60, 10, 60, 30, 30, 30, 30, 80, 10, 80],
        [100, 30, 190, 30, 190, 90, 100, 90],
        [150, 5, 156, 5, 156, 11, 150, 11],
    ]
    labels = np.zeros(SIZE, dtype=np.uint8)
    labels[10:80, 10:30] = labels[10:30, 10:60] = 1
    labels[30:90, 100:190] = 2
    labels[5:11, 150:156] = 3
    annotations = [
        {
            "image_id": 0,
            "bbox": [min(r[::2]), min(r[1::2]), np.ptp(r[::2]).item(), np.ptp(r[1::2]).item()],
            "segmentation": [r],
        }
        for r in rings
    ]
    index, _ = write_dataset([np.zeros((*SIZE, 3), np.uint8)], annotations)
    seen = 0
    for sample in range(12):
        plan = draw(*operations, sample=sample, boxes=index.boxes)
        assert plan.matrix.shape == (2, 3)
        target = make_target(index, plan)
        height, width = plan.size
        # The nearest source pixel of each output pixel's centre.
        rows, columns = np.mgrid[:height, :width]
        centres = np.stack([columns, rows], axis=-1).reshape(-1, 2) + 0.5
        source = geometry.transform_points(centres, geometry.invert(plan.matrix))
        within = ((source >= 0) & (source < (SIZE[1], SIZE[0]))).all(axis=1)
        x, y = np.where(within[:, None], source, 0).astype(int).T
        moved = np.where(within, labels[y, x], 0).reshape(height, width)
        # A centre that lies on an edge may fall to either side.
        clear = (np.abs(source - source.round()).min(axis=1) > 1e-6).reshape(height, width)
        masks = target.masks.to_bitmaps(height, width)  # type: ignore[union-attr]
        for mask, box, annotation in zip(masks, target.boxes.numpy(), target.annotation_ids.tolist(), strict=True):
            expected = moved == annotation - 99
            np.testing.assert_array_equal(mask[clear] > 0, expected[clear])
            ys, xs = np.nonzero(expected)
            if len(xs):
                # Pixels whose centre is inside: the box's edges are at most a slanted pixel further out.
                assert (box[:2] <= (xs.min() + 0.5, ys.min() + 0.5)).all()
                assert (box[2:] >= (xs.max() + 0.5, ys.max() + 0.5)).all()
                seen += 1
        for number in set(range(1, 4)) - {each - 99 for each in target.annotation_ids.tolist()}:
            assert (moved == number).sum() <= max(height, width)  # thinner than a pixel
    assert seen > 12


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: RandomCrop((0, 5)),
            r"RandomCrop: crop_size must be two whole numbers of pixels above 0, got \(0, 5\)",
        ),
        (lambda: RandomCrop((5.5, 5)), "RandomCrop: crop_size must be two whole numbers"),
        (lambda: RandomCrop((5,)), r"RandomCrop: crop_size: expected \[number, number\], got \(5,\)"),  # type: ignore[arg-type]
        (lambda: RandomCrop((2, 0.5), "relative"), "RandomCrop: crop_size must be two shares above 0 and up to 1"),
        (lambda: RandomCrop((0.5, float("nan")), "relative_range"), "RandomCrop: crop_size must be two shares"),
        (lambda: RandomCrop((5, 5), "rel"), "RandomCrop: crop_type: expected 'absolute' or .* got 'rel'"),  # type: ignore[arg-type]
        (lambda: RandomCrop(300), r"RandomCrop: crop_size: expected \[number, number\], got 300"),  # type: ignore[arg-type]
        (lambda: MinIoURandomCrop((0.5, 1.5)), r"MinIoURandomCrop: expected min_ious in 0\.\.1, got \(0.5, 1.5\)"),
        (lambda: MinIoURandomCrop(()), r"MinIoURandomCrop: expected min_ious in 0\.\.1, got \(\)"),
        (
            lambda: MinIoURandomCrop(min_crop_size=0),
            "MinIoURandomCrop: min_crop_size must be above 0 and up to 1, got 0",
        ),
        (lambda: LargeScaleJitter((10, 0)), r"LargeScaleJitter: size must be two whole numbers .* got \(10, 0\)"),
        (lambda: LargeScaleJitter(min_scale=2, max_scale=1), "LargeScaleJitter: expected 0 < min_scale <= max_scale"),
        (lambda: LargeScaleJitter(min_scale=0), "LargeScaleJitter: expected 0 < min_scale"),
        (lambda: LargeScaleJitter(img_fill_val=-1), "LargeScaleJitter: img_fill_val must be"),
    ],
)
def test_wrong_arguments(make: Callable[[], Operation], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_who_asks_for_boxes() -> None:
    assert Augment([AutoAugment([[], [RandAugment(5, operations=[RandomCrop((5, 5))])]])]).needs_boxes
    assert not Augment([RandomCrop((5, 5), allow_negative_crop=True), LargeScaleJitter()]).needs_boxes
    assert Augment([LargeScaleJitter(), RandomCrop((5, 5))]).needs_boxes
