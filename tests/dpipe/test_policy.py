import math
from dataclasses import InitVar, dataclass, field, replace
from typing import Any, TypedDict

import numpy as np
import pytest

from dpipe import geometry
from dpipe.errors import InputError
from dpipe.operations.colours import Brightness, Color, Contrast, Equalize
from dpipe.operations.geometric import RandomFlip, Resize, Rotate, Shear, Translate
from dpipe.operations.operation import Operation
from dpipe.plan import Draft, SamplePlan
from dpipe.policy import Augment, AutoAugment, Normalize, Pad, RandAugment
from dpipe.registry import TRANSFORMS

SIZE = (100, 200)  # height, width
DRAWS = 3000


def draw(*operations: Operation, sample: int = 0, size: tuple[int, int] = SIZE) -> SamplePlan:
    return Augment(operations).draw(size, seed=0, epoch=0, sample=sample)


def share(happened: list[bool]) -> float:
    return sum(happened) / len(happened)


@pytest.mark.parametrize("level", [0, 2.5, 7, 10])
def test_rotate_turns_about_the_middle_by_its_level(level: float) -> None:
    operation = Rotate(level, prob=1, random_negative_prob=0, scale=1.5, img_fill_val=(1, 2, 3))
    plan = draw(operation)
    angle = math.radians(level / 10 * 30)
    cos, sin = 1.5 * math.cos(angle), 1.5 * math.sin(angle)
    np.testing.assert_allclose(plan.matrix[:, :2], [[cos, -sin], [sin, cos]])
    np.testing.assert_allclose(geometry.transform_points([[100, 50]], plan.matrix), [[100, 50]])
    assert plan.size == SIZE
    assert plan.fill == (1, 2, 3)
    opposite = draw(replace(operation, random_negative_prob=1))
    np.testing.assert_allclose(opposite.matrix[:, :2], [[cos, sin], [-sin, cos]])


def test_rotate_about_a_point_and_by_another_largest_angle() -> None:
    plan = draw(Rotate(5, prob=1, random_negative_prob=0, center=(10, 20), max_rotate_angle=180))
    np.testing.assert_allclose(plan.matrix, [[0, -1, 30], [1, 0, 10]])


@pytest.mark.parametrize(
    ("operation", "offset"),
    [
        (Translate(5, prob=1, random_negative_prob=0), (125, 0)),
        (Translate(5, prob=1, random_negative_prob=1), (-125, 0)),
        (Translate(7, prob=1, random_negative_prob=0, direction="vertical"), (0, 175)),
        (Translate(3, prob=1, random_negative_prob=1, max_translate_offset=12), (-3, 0)),  # int(3.6)
    ],
)
def test_translate_moves_by_whole_pixels(operation: Translate, offset: tuple[int, int]) -> None:
    plan = draw(operation)
    np.testing.assert_array_equal(plan.matrix, [[1, 0, offset[0]], [0, 1, offset[1]]])
    assert plan.fill == (128, 128, 128)


def test_shear() -> None:
    horizontal = draw(Shear(5, prob=1, random_negative_prob=0))
    np.testing.assert_allclose(horizontal.matrix, [[1.0, 0.15, 0.0], [0.0, 1.0, 0.0]])
    vertical = draw(Shear(10, prob=1, random_negative_prob=1, direction="vertical"))
    np.testing.assert_allclose(vertical.matrix, [[1.0, 0.0, 0.0], [-0.3, 1.0, 0.0]])


def test_photometric_magnitudes() -> None:
    plan = draw(Color(0, prob=1), Brightness(5, prob=1), Contrast(10, prob=1), Equalize(prob=1))
    assert [name for name, _ in plan.photometric] == ["color", "brightness", "contrast", "equalize"]
    assert [magnitude for _, magnitude in plan.photometric[:3]] == pytest.approx([0.1, 1.0, 1.9])
    assert plan.resize_flips == (False, False)


@pytest.mark.parametrize(
    "operation",
    [
        *(kind(5, prob=0.3) for kind in (Rotate, Translate, Shear, Color, Brightness, Contrast)),
        *(Equalize(prob=0.3), RandomFlip(prob=0.3)),
    ],
)
def test_operations_happen_as_often_as_they_should(operation: Operation) -> None:
    plans = [draw(operation, sample=sample) for sample in range(DRAWS)]
    happened = [bool(plan.photometric) or not np.array_equal(plan.matrix, geometry.identity()) for plan in plans]
    assert share(happened) == pytest.approx(0.3, abs=0.04)


@pytest.mark.parametrize("kind", [Rotate, Translate, Shear])
def test_half_of_the_magnitudes_are_negative(kind: type) -> None:
    plans = [draw(kind(5, prob=1), sample=sample) for sample in range(DRAWS)]
    negative = [plan.matrix[0, 1] < 0 or plan.matrix[0, 2] < 0 for plan in plans]
    if kind is Rotate:  # clockwise has a minus sign top right
        negative = [plan.matrix[0, 1] > 0 for plan in plans]
    assert share(negative) == pytest.approx(0.5, abs=0.04)


def test_auto_augment_draws_policies_evenly_and_keeps_the_order() -> None:
    policies: list[list[Operation]] = [[Color(1, prob=1)], [Contrast(2, prob=1), Brightness(3, prob=1)], []]
    drawn = [
        tuple(name for name, _ in draw(AutoAugment(policies), sample=sample).photometric) for sample in range(DRAWS)
    ]
    assert set(drawn) == {("color",), ("contrast", "brightness"), ()}
    for policy in set(drawn):
        assert drawn.count(policy) / DRAWS == pytest.approx(1 / 3, abs=0.04)


def test_operations_of_a_policy_are_drawn_independently() -> None:
    policy = AutoAugment([[Color(1, prob=0.5), Contrast(1, prob=0.5)]])
    both = [len(draw(policy, sample=sample).photometric) == 2 for sample in range(DRAWS)]
    assert share(both) == pytest.approx(0.25, abs=0.04)


FLIPS = {(-1, 1): "horizontal", (1, -1): "vertical", (-1, -1): "diagonal", (1, 1): "none"}


@pytest.mark.parametrize(
    ("flip", "shares"),
    [
        (RandomFlip(0.3, "vertical"), {"vertical": 0.3}),
        (RandomFlip(0.6, "diagonal"), {"diagonal": 0.6}),
        (RandomFlip(0.6, ("horizontal", "vertical", "diagonal")), dict.fromkeys(FLIPS.values(), 0.2)),
        (RandomFlip((0.1, 0.5), ("vertical", "horizontal")), {"vertical": 0.1, "horizontal": 0.5}),
        (RandomFlip(1.0, ("diagonal", "vertical")), {"diagonal": 0.5, "vertical": 0.5}),
        (RandomFlip(0.0), {}),
        # Together a hair more than 1 in float64.
        (
            RandomFlip((0.34, 0.55, 0.11), ("horizontal", "vertical", "diagonal")),
            {"horizontal": 0.34, "vertical": 0.55, "diagonal": 0.11},
        ),
    ],
)
def test_flips_happen_in_each_direction_as_often_as_they_should(flip: RandomFlip, shares: dict[str, float]) -> None:
    plans = [draw(flip, sample=sample) for sample in range(DRAWS)]
    drawn = [FLIPS[int(plan.matrix[0, 0]), int(plan.matrix[1, 1])] for plan in plans]
    for direction in ("horizontal", "vertical", "diagonal"):
        assert drawn.count(direction) / DRAWS == pytest.approx(shares.get(direction, 0.0), abs=0.04)
    assert all(plan.resize_flips is not None for plan in plans)


@pytest.mark.parametrize("num_ops", [1, 3])
def test_rand_augment_draws_its_operations_evenly_at_its_level(num_ops: int) -> None:
    space: list[Operation] = [Color(0, prob=0), Contrast(0), Brightness(0, prob=0.1), Equalize()]
    augment = RandAugment(8, num_ops, space)
    drawn = [draw(augment, sample=sample).photometric for sample in range(DRAWS)]
    assert {len(steps) for steps in drawn} == {num_ops}  # whatever their own chances
    names = [name for steps in drawn for name, _ in steps]
    for name in ("color", "contrast", "brightness", "equalize"):
        assert names.count(name) / len(names) == pytest.approx(1 / 4, abs=0.04)
    levels = [(factor - 0.1) / 0.18 for steps in drawn for name, factor in steps if name != "equalize"]
    assert levels == pytest.approx([8.0] * len(levels))
    if num_ops > 1:
        assert any(len(set(steps)) < len(steps) for steps in drawn)  # with replacement


def test_rand_augment_draws_levels_between_two() -> None:
    plans = [draw(RandAugment((2, 6), 1, [Rotate(0, random_negative_prob=0)]), sample=sample) for sample in range(500)]
    levels = [math.degrees(math.asin(plan.matrix[1, 0])) / 3 for plan in plans]
    assert (min(levels), max(levels)) == pytest.approx((2, 6), abs=0.1)
    assert np.mean(levels) == pytest.approx(4, abs=0.15)


def test_rand_augment_has_a_space_of_its_own() -> None:
    augment = RandAugment(9, num_ops=1, img_fill_val=(1, 2, 3))
    seen = set()
    for sample in range(400):
        plan = draw(augment, sample=sample)
        (a, b, x), (c, d, y) = plan.matrix.tolist()
        moved = (a != d or a != 1 or b != 0 or c != 0, bool(x), bool(y), b != 0, c != 0)
        seen.add((moved, *(name for name, _ in plan.photometric)))
        assert plan.fill == ((1, 2, 3) if any(moved) else (0, 0, 0))
    # Rotations, translations and shears in two directions, four of colours, and nothing.
    assert len(seen) == 10


def test_policies_nest() -> None:
    inner = AutoAugment([[RandomFlip(1.0)], [AutoAugment([[Rotate(5, prob=1)]]), RandAugment(5, 1, [Equalize()])]])
    augment = Augment([AutoAugment([[inner, Resize((50, 50))]])])
    kinds = [type(operation).__name__ for operation in augment.every_operation()]
    expected = "AutoAugment AutoAugment AutoAugment Equalize RandAugment RandomFlip Resize Rotate"
    assert sorted(kinds) == expected.split()
    plans = [augment.draw(SIZE, seed=0, epoch=0, sample=sample) for sample in range(20)]
    assert {plan.size for plan in plans} == {(25, 50)}
    assert {bool(plan.photometric) for plan in plans} == {True, False}


def test_a_plan_is_a_function_of_seed_epoch_and_sample() -> None:
    augment = Augment([Rotate(10), Resize(((50, 100), (500, 400))), RandomFlip()])

    def numbers(seed: int = 0, epoch: int = 0, sample: int = 0) -> list[float]:
        plan = augment.draw(SIZE, seed=seed, epoch=epoch, sample=sample, image=3)
        assert (plan.sample, plan.image, plan.epoch, plan.source_size) == (sample, 3, epoch, SIZE)
        return [*plan.matrix.ravel(), *plan.size]

    assert numbers(7, 2, 11) == numbers(7, 2, 11)
    streams = [numbers(), numbers(seed=1), numbers(epoch=1), numbers(sample=1), numbers(seed=2**64 - 1)]
    assert len({tuple(stream) for stream in streams}) == len(streams)


@pytest.mark.parametrize(
    ("size", "scale", "expected"),
    [
        ((1024, 2048), (2048, 800), (800, 1600)),
        ((2048, 1024), (2048, 800), (1600, 800)),
        ((480, 640), (1333, 800), (800, 1067)),
        ((427, 640), (800, 1333), (800, 1199)),  # int(640 * 800 / 427 + 0.5)
        ((100, 1000), (1333, 800), (133, 1333)),
        ((1, 3000), (300, 300), (1, 300)),
        ((3000, 1), (300, 300), (300, 1)),
    ],
)
def test_resize_keeps_the_ratio(size: tuple[int, int], scale: tuple[int, int], expected: tuple[int, int]) -> None:
    plan = draw(Resize(scale), size=size)
    assert plan.size == expected
    np.testing.assert_allclose(plan.matrix[:, :2], np.diag([expected[1] / size[1], expected[0] / size[0]]))
    assert plan.resize_flips == (False, False)


def test_resize_without_ratio_is_width_and_height() -> None:
    assert draw(Resize((300, 40), keep_ratio=False)).size == (40, 300)
    assert draw(Resize((40, 300), keep_ratio=False)).size == (300, 40)


def test_resize_draws_both_edges_between_the_ends() -> None:
    sizes = {draw(Resize(((12, 4), (10, 6)), keep_ratio=False), sample=sample).size for sample in range(500)}
    assert sizes == {(height, width) for height in (4, 5, 6) for width in (10, 11, 12)}
    shorts = [
        draw(Resize(((2048, 800), (2048, 1024))), sample=sample, size=(1024, 2048)).size for sample in range(DRAWS)
    ]
    heights = [height for height, _ in shorts]
    assert (min(heights), max(heights)) == (800, 1024)
    assert np.mean(heights) == pytest.approx(912, abs=6)
    assert all(abs(width - 2 * height) <= 1 for height, width in shorts)


def test_steps_are_composed_in_the_order_of_the_list() -> None:
    steps = [Rotate(5, prob=1, random_negative_prob=0), Resize((100, 50)), RandomFlip(prob=1)]
    plan = draw(*steps)
    expected = geometry.compose(
        geometry.rotation(15, (100, 50)), geometry.scaling(0.5, 0.5), geometry.horizontal_flip(100)
    )
    np.testing.assert_allclose(plan.matrix, expected, atol=1e-12)
    assert plan.size == (50, 100)
    assert plan.resize_flips is None
    # After a resize, lengths are those of the resized image.
    moved = draw(Resize((100, 50)), Translate(2, prob=1, random_negative_prob=0))
    np.testing.assert_allclose(moved.matrix, [[0.5, 0, 50], [0, 0.5, 0]])


def test_flips_are_recognised_as_resizes() -> None:
    assert draw(RandomFlip(prob=1)).resize_flips == (True, False)
    both = draw(Resize((333, 71)), RandomFlip(prob=1), RandomFlip(prob=1, direction="vertical"))
    assert both.resize_flips == (True, True)
    assert draw(RandomFlip(prob=1), RandomFlip(prob=1)).resize_flips == (False, False)
    assert draw(Rotate(0, prob=1), Resize((333, 71))).resize_flips == (False, False)
    assert draw(Translate(1, prob=1)).resize_flips is None
    assert draw(Rotate(10, prob=1, scale=2, max_rotate_angle=0)).resize_flips is None


def test_the_fill_is_that_of_the_last_operation_that_happened() -> None:
    first, second = Rotate(5, prob=1, img_fill_val=9), Shear(5, prob=0, img_fill_val=20)
    assert draw(first, second).fill == (9, 9, 9)


def test_augment_sorts_out_normalisation_and_padding() -> None:
    normalize = Normalize((1, 2, 3), (4, 5, 6))
    augment = Augment([RandomFlip(), normalize, Pad(64)])
    assert augment.operations == (RandomFlip(),)
    assert augment.normalize == normalize
    assert augment.size_divisor == 64
    assert (Augment([]).normalize, Augment([]).size_divisor) == (None, 1)


def test_transforms_are_built_from_mappings() -> None:
    augment = Augment(
        [
            {
                "type": "AutoAugment",
                "policies": [
                    [{"type": "Rotate", "level": 5, "prob": 0.5, "scale": 1, "img_fill_val": [124, 116, 104]}],
                    [{"type": "Rotate", "level": 7}, {"type": "Translate", "level": 5, "direction": "vertical"}],
                ],
            },
            {"type": "Resize", "scale": [[2048, 800], [2048, 1024]]},
            {"type": "RandomFlip", "prob": 0.5},
            {"type": "Normalize", "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]},
            {"type": "Pad", "size_divisor": 32},
        ]
    )
    auto, resize, flip = augment.operations
    assert isinstance(auto, AutoAugment)
    assert auto.policies[0] == [Rotate(5, prob=0.5, scale=1, img_fill_val=(124, 116, 104))]
    assert auto.policies[1] == [Rotate(7), Translate(5, direction="vertical")]
    (several,) = Augment(
        [{"type": "RandomFlip", "prob": [0.2, 0.3], "direction": ["horizontal", "diagonal"]}]
    ).operations
    assert several == RandomFlip((0.2, 0.3), ("horizontal", "diagonal"))
    (rand,) = Augment(
        [{"type": "RandAugment", "level": [3, 7], "operations": [{"type": "Equalize"}, {"type": "MinIoURandomCrop"}]}]
    ).operations
    assert isinstance(rand, RandAugment)
    assert rand.level == (3, 7)
    assert [type(each).__name__ for each in rand.inner] == ["Equalize", "MinIoURandomCrop"]
    assert (resize, flip) == (Resize(((2048, 800), (2048, 1024))), RandomFlip(0.5))
    assert augment.draw(SIZE, seed=0, epoch=0, sample=1).size[0] >= 800
    assert augment.size_divisor == 32
    names = "Albumentations LargeScaleJitter MinIoURandomCrop RandAugment RandomCrop"
    assert set(names.split()) <= set(TRANSFORMS.names())
    names = "AutoAugment Brightness Color Contrast Equalize Normalize Pad RandomFlip Resize Rotate Shear Translate"
    assert set(names.split()) <= set(TRANSFORMS.names())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rotate(11), r"Rotate: level must lie in 0\.\.10, got 11"),
        (lambda: Color(-1), r"Color: level must lie in 0\.\.10, got -1"),
        (lambda: Shear(5, prob=1.5), r"Shear: prob must lie in 0\.\.1, got 1\.5"),
        (lambda: Translate(5, random_negative_prob=-1), r"Translate: random_negative_prob must lie in 0\.\.1"),
        (lambda: Translate(5, direction="up"), "Translate: direction: expected 'horizontal' or 'vertical', got 'up'"),  # type: ignore[arg-type]
        (lambda: Rotate(5, scale=0), "Rotate: scale must be a number above 0, got 0"),
        (lambda: Rotate(5, center=(float("nan"), 0)), "Rotate: center must be two numbers"),
        (lambda: Rotate(5, max_rotate_angle=float("nan")), "Rotate: max_rotate_angle must be a number of at least 0"),
        (lambda: Translate(5, max_translate_offset=-1), "Translate: max_translate_offset must be a number of at least"),
        (lambda: Shear(5, max_shear_magnitude=float("inf")), "Shear: max_shear_magnitude must be a number of at least"),
        (
            lambda: Rotate(5, img_fill_val=256),
            r"img_fill_val must be one integer or three integers in 0\.\.255, got 256",
        ),
        (lambda: Resize((800,)), r"Resize: scale: expected \[integer, integer\] or a list, .* got \(800,\)"),  # type: ignore[arg-type]
        (lambda: Resize((800, 0)), "Resize: scale must be a pair"),
        (lambda: Resize(()), "Resize: scale must be a pair"),
        (
            lambda: Resize(((800, 600), (700, 600), (1, 1))),
            "Resize: a range has two ends, got 3 pairs: multiscale_mode",
        ),
        (lambda: Normalize((1, 2), (1, 2)), r"Normalize: mean: expected \[number, number, number\], got \(1, 2\)"),  # type: ignore[arg-type]
        (lambda: Normalize((1, 2, float("nan")), (1, 2, 3)), "Normalize: mean must be three numbers"),
        (lambda: Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), "Normalize: .* are those of images in 0..1"),
        (lambda: Normalize((1, 2, 3), (1, 0, 1)), "Normalize: std must be above 0"),
        (
            lambda: RandomFlip(direction=()),
            r"RandomFlip: expected at least one direction, and each of them once, got \(\)",
        ),
        (lambda: RandomFlip(direction="up"), "RandomFlip: direction: expected 'horizontal' or .* got 'up'"),  # type: ignore[arg-type]
        (lambda: RandomFlip((0.3, 0.3), ("vertical", "vertical")), "RandomFlip: expected .* each of them once"),
        (lambda: RandomFlip((0.5, 0.5)), "RandomFlip: expected a prob for each of the 1 directions"),
        (
            lambda: RandomFlip((0.8, 0.3), ("horizontal", "vertical")),
            "RandomFlip: the numbers in prob must make at most",
        ),
        (lambda: RandomFlip(1.5), r"RandomFlip: prob must lie in 0\.\.1, got 1\.5"),
        (lambda: RandAugment(11), r"RandAugment: level must lie in 0\.\.10, got 11"),
        (lambda: RandAugment((1, 2, 3)), r"RandAugment: level: expected a number or \[number"),  # type: ignore[arg-type]
        (lambda: RandAugment((8, 2)), r"RandAugment: expected the lower level first, got \(8, 2\)"),
        (lambda: RandAugment(5, 0), "RandAugment: num_ops must be at least 1, got 0"),
        (lambda: RandAugment(5, operations=[]), "RandAugment: expected at least one operation"),
        (lambda: RandAugment(5, operations=[Pad()]), "RandAugment: operation 0 is Pad.*, which is no operation"),  # type: ignore[list-item]
        (lambda: RandAugment(5, img_fill_val=300), "RandAugment: img_fill_val must be"),
        (lambda: Pad(0), "Pad: size_divisor must be at least 1"),
        (lambda: AutoAugment([]), "AutoAugment: expected at least one policy"),
        (lambda: AutoAugment([Rotate(5)]), "AutoAugment: policy 0 must be a list of operations"),  # type: ignore[list-item]
        (lambda: AutoAugment([[], [Pad()]]), "AutoAugment: policy 1 holds Pad.*, which is no operation"),  # type: ignore[list-item]
        (lambda: Augment([Pad(), RandomFlip()]), "transform 0 is Pad: expected operations first"),
        (lambda: Augment(Resize((8, 8))), "Augment: transforms: expected a list, got"),  # type: ignore[arg-type]
        (lambda: Augment("RandomFlip"), "Augment: transforms: expected a list, got 'RandomFlip'"),  # type: ignore[arg-type]
        (lambda: Augment(["RandomFlip"]), "transform 0 is 'RandomFlip': expected an operation"),  # type: ignore[list-item]
        (lambda: Augment([{"type": "RandomFlop"}]), "RandomFlop.*RandomFlip"),
        (
            lambda: Augment([{"type": "AutoAugment", "policies": [[{"type": "Rotate", "level": 12}]]}]),
            r"0\.\.10, got 12",
        ),
        (lambda: Augment([]).draw(SIZE, seed=-1, epoch=0, sample=0), "seed -1 is out of range"),
    ],
)
def test_wrong_arguments(make: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("name", ["epoch", "sample"])
def test_numbers_below_zero_are_refused(name: str) -> None:
    numbers = {"epoch": 0, "sample": 0, name: -1}
    with pytest.raises(InputError, match=f"^{name} -1 is out of range: expected an integer in"):
        Augment([RandomFlip()]).draw(SIZE, seed=0, **numbers)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Normalize(0, 1), "Normalize: mean: expected .number, number, number., got 0"),
        (lambda: Normalize("abc", (1, 1, 1)), "Normalize: mean: expected .number, number, number., got 'abc'"),
        (lambda: RandomFlip(None), "RandomFlip: prob: expected a number or a list, each a number, got None"),
        (lambda: Rotate(5, center="ab"), "Rotate: center: expected .number, number. or None, got 'ab'"),
        (lambda: Rotate(5, center=(1, 2, 3)), r"Rotate: center: expected .number, number. or None, got \(1, 2, 3\)"),
        (lambda: Rotate("5"), "Rotate: level: expected a number, got '5'"),
        (lambda: Color(True), "Color: level: expected a number, got True"),
        (lambda: Rotate(5, img_fill_val=object()), "Rotate: img_fill_val: expected an integer or"),
        (lambda: Pad(1.5), "Pad: size_divisor: expected an integer, got 1.5"),
        (lambda: AutoAugment("ab"), "AutoAugment: policies: expected a list, got 'ab'"),
        (lambda: RandAugment(5, operations=Rotate(5)), "RandAugment: operations: expected a list or None, got"),
        (lambda: Own("b"), "Own: factor: expected a number, got 'b'"),
    ],
)
def test_arguments_of_a_wrong_type(make: object, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        make()  # type: ignore[operator]


class Corner(TypedDict):
    """What has no instances of its own."""

    x: int


@dataclass(frozen=True)
class Own(Operation):
    """An operation of a user's, with nothing but its arguments."""

    factor: float
    values: np.ndarray | None = None
    where: Corner = field(default_factory=lambda: Corner(x=1))
    once: InitVar[int] = 3

    def __post_init__(self, once: int) -> None:
        super().__post_init__()

    def apply(self, draft: Draft) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Step(Operation):
    """An operation of a user's, with a mistake in it."""

    matrix: Any
    size: object = None

    def apply(self, draft: Draft) -> None:
        """Makes the mistake."""
        draft.transform(self.matrix, self.size)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "matrix",
    [
        np.eye(3),
        np.eye(2),
        np.zeros((2, 3)),
        np.ones((2, 3)),  # flattens the plane
        geometry.translation(math.nan, 0),
        geometry.translation(0, math.inf),
        geometry.scaling(math.inf, 1),
        geometry.translation(2e18, 0),  # as large as no float32 can hold once it is multiplied
        geometry.scaling(1e-11, 1e-11),  # as is its inverse
        [[1.0, 0.0, 0.0], [0.0]],
    ],
)
def test_a_wrong_matrix_is_refused_by_the_name_of_its_operation(matrix: Any) -> None:
    message = r"Step: expected a \(2, 3\) matrix of finite numbers that can be undone, got \["
    with pytest.raises(InputError, match=f"^{message}"):
        draw(RandomFlip(), Step(matrix))
    with pytest.raises(InputError, match=f"^AutoAugment: {message}"):
        draw(AutoAugment([[Step(matrix)]]))


@pytest.mark.parametrize("size", [(0, 5), (5, -1), (5.0, 5), (5,), 5, "ab", (math.nan, 3)])
def test_a_wrong_size_is_refused_by_the_name_of_its_operation(size: object) -> None:
    with pytest.raises(InputError, match=r"^Step: expected a height and a width in whole pixels, at least 1, got "):
        draw(Step(geometry.identity(), size))


def test_an_image_too_large_for_any_memory_is_refused_by_the_name_of_its_operation() -> None:
    with pytest.raises(InputError, match=r"^Resize: an image of 1000000000x500000000 pixels is too large: expected"):
        draw(Resize((10**9, 10**9)))
    assert draw(Resize((2**16, 2**14), keep_ratio=False)).size == (2**14, 2**16)
    with pytest.raises(InputError, match=r"^Pad: size_divisor must be at most 32768, got 32769"):
        Pad(32769)
    assert Pad(32768).size_divisor == 32768


def test_steps_that_together_cannot_be_undone_are_refused() -> None:
    with pytest.raises(InputError, match=r"^expected a .* matrix of finite numbers that can be undone"):
        draw(*[Step(geometry.scaling(1e-9, 1e-9))] * 3)
    assert draw(Step(geometry.identity(), (np.int64(5), 6))).size == (5, 6)


def test_arguments_of_another_right_type() -> None:
    """Lists for tuples, and numpy's numbers and arrays, as users have them at hand."""
    assert draw(Rotate(np.float32(5), 1, center=[1, 2])).size == SIZE  # type: ignore[arg-type]
    assert draw(Resize([np.int64(20), 10], keep_ratio=False)).size == (10, 20)  # type: ignore[arg-type]
    assert Normalize(np.array([1.0, 2, 3]), [4, 5, 6]).std == [4, 5, 6]  # type: ignore[arg-type, comparison-overlap]
    assert Own(2, np.zeros(3)).factor == 2
    assert Normalize((0, 0, 0), (1, 1, 1)).mean == (0, 0, 0)


@pytest.mark.parametrize("keep_ratio", [True, False])
def test_resize_draws_one_of_several_pairs(keep_ratio: bool) -> None:
    scales = ((40, 20), (60, 30), (100, 50))
    operation = Resize(scales, keep_ratio, multiscale_mode="value")
    sizes = [draw(operation, sample=sample).size for sample in range(300)]
    assert set(sizes) == {(height, width) for width, height in scales}
    assert min(sizes.count(size) for size in set(sizes)) > 70
    (built,) = Augment(
        [{"type": "Resize", "scale": [list(pair) for pair in scales], "multiscale_mode": "value"}]
    ).operations
    assert built == Resize(scales, multiscale_mode="value")
