from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dpipe.geometry import compose, pixel_centre_matrix, scaling, transform_points, translation
from dpipe.images.memory import Scratch
from dpipe.images.resample import resample
from dpipe.operations.colours import Brightness
from dpipe.operations.cropping import RandomCrop
from dpipe.operations.geometric import RandomFlip, Resize, Rotate, Shear, Translate
from dpipe.operations.operation import Operation
from dpipe.plan import SamplePlan
from dpipe.policy import Augment

SIZE = (180, 260)
FILL = (9, 80, 200)


def draw(*operations: Operation, size: tuple[int, int] = SIZE, sample: int = 0) -> SamplePlan:
    return Augment(operations).draw(size, seed=1, epoch=0, sample=sample)


@pytest.mark.parametrize(
    "operations",
    [
        [RandomFlip(prob=1)],
        [RandomFlip(prob=1, direction="vertical")],
        [Resize((400, 300))],
        [Resize((131, 300), keep_ratio=False), RandomFlip(prob=1)],
        [Rotate(10, prob=1)],
        [Translate(1, prob=1), Shear(5, prob=1)],
        [Rotate(5, prob=1, scale=1.2), Translate(1, prob=1), Resize((400, 300)), RandomFlip(prob=1)],
        [Shear(8, prob=1, direction="vertical"), Resize((200, 110)), RandomFlip(prob=1)],
        [Rotate(10, prob=1, max_rotate_angle=90), Resize((290, 310), keep_ratio=False)],
    ],
)
def test_dots_come_out_where_the_matrix_says(operations: list[Operation]) -> None:
    plan = draw(*operations)
    rows, columns = np.indices(SIZE) + 0.5
    found = 0
    for x, y in [(70.5, 60), (180, 70.2), (95, 120), (170, 118), (120, 90)]:
        # Smooth dots, so that the centre of mass survives shrinking.
        dot = 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 18)
        ((expected_x, expected_y),) = transform_points([(x, y)], plan.matrix)
        if not (18 < expected_x < plan.size[1] - 18 and 18 < expected_y < plan.size[0] - 18):
            continue
        image = np.repeat(np.rint(dot).astype(np.uint8)[..., None], 3, axis=2)
        weights = resample(image, replace(plan, fill=(0, 0, 0)))[..., 0].astype(float)
        out_rows, out_columns = np.indices(weights.shape) + 0.5
        assert (out_columns * weights).sum() / weights.sum() == pytest.approx(expected_x, abs=0.06)
        assert (out_rows * weights).sum() / weights.sum() == pytest.approx(expected_y, abs=0.06)
        found += 1
    assert found >= 2


@pytest.mark.parametrize("scale", [(400, 300), (200, 170), (171, 333)])
@pytest.mark.parametrize("flips", [[], ["horizontal"], ["vertical"], ["horizontal", "vertical"]])
def test_a_resize_gives_the_pixels_of_the_warp(scale: tuple[int, int], flips: list[str]) -> None:
    plan = draw(Resize(scale, keep_ratio=False), *(RandomFlip(prob=1, direction=d) for d in flips))  # type: ignore[arg-type]
    image = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8), (0, 0), 1.5)
    size = (plan.size[1], plan.size[0])
    warped = cv2.warpAffine(image, pixel_centre_matrix(plan.matrix), size, flags=cv2.INTER_LINEAR)
    inside = np.s_[4:-4, 4:-4]
    assert np.abs(resample(image, plan)[inside].astype(int) - warped[inside]).max() <= 2


def test_nothing_is_interpolated_where_nothing_moves() -> None:
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    np.testing.assert_array_equal(resample(image, draw()), image)
    np.testing.assert_array_equal(resample(image, draw(RandomFlip(prob=1))), image[:, ::-1])
    moved = resample(image, draw(Translate(1, prob=1, random_negative_prob=0, img_fill_val=(9, 8, 7))))
    np.testing.assert_array_equal(moved[:, 25:], image[:, :-25])
    assert (moved[:, :25] == (9, 8, 7)).all()


def test_a_quarter_turn_is_exact() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    plan = draw(Rotate(10, prob=1, random_negative_prob=0, max_rotate_angle=90), size=(64, 64))
    np.testing.assert_array_equal(resample(image, plan), np.rot90(image, -1))


def halved(image: np.ndarray, axis: int) -> np.ndarray:
    """The mean of each two neighbours along an axis, the last one repeated where there is no second one."""
    if image.shape[axis] % 2:
        image = np.concatenate([image, image.take([-1], axis)], axis)
    even, odd = (image.take(range(start, image.shape[axis], 2), axis) for start in (0, 1))
    return (even + odd) / 2


def interpolated(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int], fill: Any = None) -> np.ndarray:
    """Bilinear in float64; outside is the edge, or the fill."""
    to_source = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))
    y, x = np.indices(size) + 0.5
    points = np.stack([x, y, np.ones_like(x)], axis=-1) @ to_source.T
    x, y = points[..., 0] - 0.5, points[..., 1] - 0.5
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    result = np.zeros((*size, 3))
    height, width = image.shape[:2]
    for dy in (0, 1):
        for dx in (0, 1):
            rows, columns = top + dy, left + dx
            pixel = image[rows.clip(0, height - 1), columns.clip(0, width - 1)]
            if fill is not None:
                inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
                pixel = np.where(inside[..., None], pixel, fill)
            weight = (x - left if dx else 1 - (x - left)) * (y - top if dy else 1 - (y - top))
            result += weight[..., None] * pixel
    return result


@pytest.mark.parametrize("size", [SIZE, (181, 263), (163, 257)])
@pytest.mark.parametrize(
    ("operations", "halvings"),
    [
        ([Resize((130, 90), keep_ratio=False)], (1, 1)),
        ([Resize((100, 50), keep_ratio=False), RandomFlip(prob=1)], (1, 1)),
        ([Resize((200, 40), keep_ratio=False), RandomFlip(prob=1, direction="vertical")], (2, 0)),
        ([Resize((30, 170), keep_ratio=False)], (0, 3)),
        ([Resize((31, 21), keep_ratio=False), Brightness(5, prob=1)], (3, 3)),
        ([Rotate(7, prob=1, scale=0.3, img_fill_val=FILL)], (1, 1)),
        ([Rotate(10, prob=1, max_rotate_angle=90, img_fill_val=FILL), Resize((40, 90), keep_ratio=False)], (2, 1)),
    ],
)
def test_what_shrinks_is_halved_before_its_one_interpolation(
    size: tuple[int, int], operations: list[Operation], halvings: tuple[int, int]
) -> None:
    plan = draw(*operations, size=size)
    down, along = plan.halvings
    if size == SIZE:
        assert (down, along) == halvings
    image = np.random.default_rng(2).integers(0, 256, (*size, 3)).astype(np.uint8)
    expected = image.astype(np.float64)
    for axis, times in ((0, down), (1, along)):
        for _ in range(times):
            expected = halved(expected, axis)
    matrix = compose(scaling(2.0**along, 2.0**down), plan.matrix)
    fill = plan.fill if plan.resize_flips is None else None
    expected = interpolated(expected, matrix, plan.size, fill)
    # Each halving and the interpolation round once.
    assert np.abs(resample(image, plan) - expected).max() <= 0.5 * (max(down, along) + 1) + 1


def test_a_fine_pattern_becomes_grey() -> None:
    """Without the halving it would become coarse stripes."""
    image = np.zeros((*SIZE, 3), np.uint8)
    image[:, ::2] = 255
    image[::2] = 255 - image[::2]
    small = resample(image, draw(Resize((61, 43), keep_ratio=False)))
    assert np.abs(small.astype(int) - 127).max() <= 2


def test_half_the_size_is_the_mean_of_four() -> None:
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    plan = draw(Resize((SIZE[0] // 2, SIZE[1] // 2)))
    means = image.astype(int).reshape(SIZE[0] // 2, 2, SIZE[1] // 2, 2, 3).sum(axis=(1, 3))
    np.testing.assert_array_equal(resample(image, plan), (means + 2) // 4)


@pytest.mark.skipif(cv2.__version__ < "5", reason="OpenCV 4 warps from places rounded to 1/32 of a pixel")
def test_a_resize_is_exact_where_colours_change_after_it() -> None:
    """Equalize makes several grey levels of one."""
    image = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8), (0, 0), 1)
    plan = draw(Resize((300, 220), keep_ratio=False), RandomFlip(prob=1), Brightness(5, prob=1))
    expected = interpolated(image, plan.matrix, plan.size)
    assert np.abs(resample(image, plan) - expected).max() <= 0.502
    assert np.abs(resample(image, replace(plan, photometric=())) - expected).max() <= 1.5


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 60), st.integers(1, 60), st.integers(-80, 80), st.integers(-80, 80),
    st.integers(1, 90), st.integers(1, 90), st.floats(0.51, 1.3), st.floats(0.51, 1.3), st.booleans(), st.booleans(),
)  # fmt: skip
def test_whole_pixels_shifted_or_cropped_give_the_pixels_of_the_warp(
    height: int, width: int, left: int, top: int, wide: int, high: int, sx: float, sy: float, flip_x: bool, flip_y: bool
) -> None:
    size = (max(round(high * sy), 1), max(round(wide * sx), 1))
    matrix = compose(np.array([[1.0, 0, -left], [0, 1, -top]]), scaling(size[1] / wide, size[0] / high))
    mirror = [[-1 if flip_x else 1, 0, size[1] * flip_x], [0, -1 if flip_y else 1, size[0] * flip_y]]
    plan = SamplePlan(0, 0, 0, (height, width), size, compose(matrix, np.array(mirror, dtype=float)), FILL)
    assume(plan.resize_flips is None and plan.halvings == (0, 0))
    image = np.random.default_rng(height * width).integers(0, 256, (height, width, 3)).astype(np.uint8)
    warped = cv2.warpAffine(
        image, pixel_centre_matrix(plan.matrix), size[::-1], borderMode=cv2.BORDER_CONSTANT, borderValue=FILL
    )
    before = image.copy()
    assert np.abs(resample(image, plan).astype(int) - warped).max() <= 1
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("shift", [(260, 0), (-260, 0), (0, 180), (0, -180), (261, 3)])
def test_what_was_shifted_out_is_filled(shift: tuple[int, int]) -> None:
    image = np.full((*SIZE, 3), 255, dtype=np.uint8)
    plan = SamplePlan(0, 0, 0, SIZE, SIZE, translation(*shift), FILL)
    assert (resample(image, plan) == FILL).all()


@pytest.mark.parametrize(
    ("operations", "warps"),
    [
        ([Translate(1, prob=1)], False),
        ([Translate(1, prob=1, direction="vertical"), Resize((200, 140)), RandomFlip(prob=1)], False),
        ([RandomCrop((100, 90)), RandomFlip(prob=1)], False),
        ([Translate(1, prob=1), Resize((300, 220))], True),  # what is outside has a share in its outermost pixels
        ([Translate(1, prob=1), Resize((200, 140)), Brightness(7, prob=1)], True),  # a resize is too coarse
        ([Rotate(1, prob=1)], True),
    ],
)
def test_a_warp_is_only_for_what_needs_one(
    operations: list[Operation], warps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    warp = cv2.warpAffine
    monkeypatch.setattr(cv2, "warpAffine", lambda *args, **options: calls.append(1) or warp(*args, **options))
    image = np.zeros((*SIZE, 3), dtype=np.uint8)
    resample(image, draw(*operations))
    assert bool(calls) == warps


@pytest.mark.parametrize(
    "operations",
    [
        [],
        [RandomFlip(prob=1)],
        [Translate(1, prob=1), RandomFlip(prob=1)],
        [Translate(1, prob=1), Resize((200, 140))],
        [RandomCrop((100, 90))],
        [Resize((300, 220), keep_ratio=False)],
        [Resize((300, 220), keep_ratio=False), RandomFlip(prob=1)],
        [Resize((60, 50), keep_ratio=False), RandomFlip(prob=1)],
        [Rotate(5, prob=1)],
    ],
)
def test_it_writes_into_a_part_of_a_batch(operations: list[Operation]) -> None:
    plan = draw(*operations)
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    before = image.copy()
    batch = np.full((240, 320, 3), 77, np.uint8)
    place = batch[: plan.size[0], : plan.size[1]]
    assert resample(image, plan, place, Scratch()) is place
    np.testing.assert_array_equal(place, resample(image, plan))
    assert (batch[plan.size[0] :] == 77).all()
    assert (batch[:, plan.size[1] :] == 77).all()
    np.testing.assert_array_equal(image, before)
