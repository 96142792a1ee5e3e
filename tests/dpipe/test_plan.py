import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpipe import geometry
from dpipe.operations.geometric import Resize, Rotate
from dpipe.plan import Draft, SamplePlan
from dpipe.policy import Augment

SIZE = (100, 200)  # height, width


def plan_of(matrix: np.ndarray, size: tuple[int, int] = SIZE) -> SamplePlan:
    return SamplePlan(0, 0, 0, size, size, matrix)


@pytest.mark.parametrize(
    ("x", "y", "halvings"),
    [
        (1, 1, (0, 0)),
        (3, 7, (0, 0)),
        (0.51, 0.5, (1, 0)),  # a factor of exactly two counts
        (0.5, 0.26, (1, 1)),
        (0.25, 0.2501, (1, 2)),
        (0.1, 1.0, (0, 3)),
        (-0.3, 0.12, (3, 1)),
    ],
)
def test_halvings_are_the_factors_of_two_in_the_shrinking(x: float, y: float, halvings: tuple[int, int]) -> None:
    assert plan_of(geometry.scaling(x, y)).halvings == halvings


def test_sizes_may_be_numpys() -> None:
    sizes = np.array([[48, 1000]])
    plan = Augment([Resize((40, 100))]).draw(tuple(sizes[0]), seed=0, epoch=0, sample=0)
    assert plan.halvings == (3, 3)
    assert {type(edge) for edge in (*plan.source_size, *plan.size)} == {int}


def test_rounding_does_not_take_a_factor_of_two_away() -> None:
    # As compositions of turns leave it.
    assert plan_of(geometry.scaling(0.5 * (1 + 1e-12), 0.25 * (1 + 1e-12))).halvings == (2, 1)
    assert plan_of(geometry.scaling(0.5 * (1 + 1e-5), 0.25 * (1 + 1e-5))).halvings == (1, 0)


def test_one_pixel_is_not_halved() -> None:
    assert plan_of(geometry.scaling(0.001, 0.001), (1, 5)).halvings == (0, 3)  # 5, 3, 2, 1 pixels


@settings(max_examples=200, deadline=None)
@given(
    st.floats(-180, 180),
    st.floats(-0.5, 0.5),
    st.floats(0.02, 3),
    st.floats(0.02, 3),
    st.floats(0, 100),
    st.floats(0, 100),
)
def test_after_halving_an_axis_shrinks_by_less_than_two(
    degrees: float, shear: float, x_scale: float, y_scale: float, x: float, y: float
) -> None:
    turned = geometry.compose(geometry.rotation(degrees, (100, 50)), geometry.shear(shear, 0))
    plan = plan_of(geometry.compose(turned, geometry.scaling(x_scale, y_scale)), (4096, 4096))
    for axis, times in enumerate(plan.halvings[::-1]):
        before = math.hypot(*plan.matrix[:, axis])
        after = math.hypot(*plan.halved_matrix[:, axis])
        assert after == pytest.approx(before * 2**times)
        assert after > 0.5 - 1e-6
        assert times == 0 or after < 1 + 1e-6
    # The same place, told in pixels of the halved image, comes to the same place.
    down, along = plan.halvings
    np.testing.assert_allclose(
        geometry.transform_points([[x / 2**along, y / 2**down]], plan.halved_matrix),
        geometry.transform_points([[x, y]], plan.matrix),
        atol=1e-9,
    )


def test_a_draft_tells_where_objects_are_at_each_step() -> None:
    draft = Draft(SIZE, np.random.default_rng(0), [[10, 20, 60, 40], [180, 90, 200, 100]])
    np.testing.assert_array_equal(draft.boxes, [[10, 20, 60, 40], [180, 90, 200, 100]])
    draft.transform(geometry.scaling(0.5, 2), (200, 100))
    np.testing.assert_array_equal(draft.boxes, [[5, 40, 30, 80], [90, 180, 100, 200]])
    draft.transform(geometry.translation(-10, 0), (50, 80))
    np.testing.assert_array_equal(draft.boxes, [[0, 40, 20, 50], [80, 50, 80, 50]])  # cut off, and gone
    assert Draft(SIZE, np.random.default_rng(0)).boxes.shape == (0, 4)


def test_operations_that_look_at_no_boxes_draw_the_same_with_them() -> None:
    augment = Augment([Rotate(5), Resize((300, 200))])
    assert not augment.needs_boxes
    plans = [augment.draw(SIZE, seed=0, epoch=0, sample=3, boxes=boxes) for boxes in (None, [[0, 0, 5, 5]])]
    np.testing.assert_array_equal(plans[0].matrix, plans[1].matrix)
