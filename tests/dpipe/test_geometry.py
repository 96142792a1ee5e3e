from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from dpipe import geometry as g

CHAINS = json.loads((Path(__file__).parents[1] / "data" / "geometry_chains.json").read_text())


def chain_id(chain: dict[str, Any]) -> str:
    return "-".join(step["op"]["op"] for step in chain["steps"])


def test_rotation_is_clockwise_on_the_screen() -> None:
    # y points down: a quarter turn takes what is on the right of the centre to below it.
    quarter = g.rotation(90, (10, 20))
    np.testing.assert_array_equal(
        g.transform_points([[15, 20], [10, 25], [10, 20]], quarter), [[10, 25], [5, 20], [10, 20]]
    )
    half = g.rotation(180, (10, 20))
    np.testing.assert_array_equal(g.transform_points([[15, 21]], half), [[5, 19]])
    eighth = g.rotation(45, (0, 0))
    np.testing.assert_allclose(
        g.transform_points([[1, 0], [1, 1]], eighth), [[0.5**0.5, 0.5**0.5], [0, 2**0.5]], atol=1e-15
    )


@pytest.mark.parametrize("degrees", [-450, -90, 0, 90, 180, 270, 360, 810])
def test_quarter_turns_are_exact(degrees: float) -> None:
    linear = g.rotation(degrees, (3, 4))[:, :2]
    np.testing.assert_array_equal(linear, np.round(linear))
    np.testing.assert_allclose(
        linear[:, 0], [math.cos(math.radians(degrees)), math.sin(math.radians(degrees))], atol=1e-12
    )


def test_rotating_by_quarter_turns_swaps_the_sides_of_an_image() -> None:
    np.testing.assert_array_equal(g.transform_boxes([[0, 0, 6, 4]], g.rotation(90, (3, 2))), [[1, -1, 5, 5]])
    np.testing.assert_array_equal(g.transform_boxes([[1, 0, 2, 4]], g.rotation(180, (3, 2))), [[4, 0, 5, 4]])


def test_rotation_scales_about_its_centre() -> None:
    np.testing.assert_allclose(g.transform_points([[7, 5], [5, 5]], g.rotation(90, (5, 5), scale=2)), [[5, 9], [5, 5]])


def test_shear_leaves_its_centre() -> None:
    np.testing.assert_array_equal(
        g.transform_points([[4, 6], [4, 8]], g.shear(0.5, 0, center=(4, 6))), [[4, 6], [5, 8]]
    )
    np.testing.assert_array_equal(g.transform_points([[4, 6]], g.shear(0, 0.25)), [[4, 7]])


def test_flips_mirror_edges() -> None:
    np.testing.assert_array_equal(g.transform_boxes([[0, 1, 3, 4]], g.horizontal_flip(10)), [[7, 1, 10, 4]])
    np.testing.assert_array_equal(g.transform_boxes([[0, 1, 3, 4]], g.vertical_flip(10)), [[0, 6, 3, 9]])


def test_compose_applies_the_first_matrix_first() -> None:
    both = g.compose(g.translation(1, 2), g.scaling(10, 100))
    np.testing.assert_array_equal(g.transform_points([[0, 0]], both), [[10, 200]])
    np.testing.assert_array_equal(g.compose(), g.identity())


def test_composition_and_inverse_agree_with_application_in_turn() -> None:
    steps = [
        g.rotation(33, (5, 7), 1.3),
        g.shear(0.2, -0.1, (1, 2)),
        g.translation(-3, 9),
        g.scaling(2, 0.5),
        g.horizontal_flip(11),
    ]
    points = np.random.default_rng(0).uniform(-50, 50, (20, 2))
    moved = points
    for step in steps:
        moved = g.transform_points(moved, step)
    whole = g.compose(*steps)
    np.testing.assert_allclose(g.transform_points(points, whole), moved, atol=1e-10)
    np.testing.assert_allclose(g.transform_points(moved, g.invert(whole)), points, atol=1e-10)
    np.testing.assert_allclose(g.compose(whole, g.invert(whole)), g.identity(), atol=1e-12)
    np.testing.assert_allclose(g.compose(*(g.rotation(30, (2, 3)) for _ in range(12))), g.identity(), atol=1e-12)


def test_invert_refuses_what_flattens() -> None:
    with pytest.raises(np.linalg.LinAlgError):
        g.invert(g.scaling(0, 1))


def test_area_goes_with_the_determinant() -> None:
    matrix = g.compose(g.rotation(20, (0, 0), 1.5), g.shear(0.3, 0))
    a, b, c = g.transform_points([[0, 0], [4, 0], [0, 3]], matrix)
    u, v = b - a, c - a
    assert u[0] * v[1] - u[1] * v[0] == pytest.approx(12 * np.linalg.det(matrix[:, :2]))
    assert np.linalg.det(matrix[:, :2]) == pytest.approx(1.5**2)


def test_transformed_box_holds_the_turned_corners() -> None:
    box = g.transform_boxes([[-1, -1, 1, 1]], g.rotation(45, (0, 0)))
    np.testing.assert_allclose(box, [[-(2**0.5), -(2**0.5), 2**0.5, 2**0.5]])


def test_clip_boxes_leaves_outsiders_without_extent() -> None:
    clipped = g.clip_boxes([[-5, 2, 4, 30], [50, 5, 60, 6]], 20, 10)
    np.testing.assert_array_equal(clipped, [[0, 2, 4, 10], [20, 5, 20, 6]])


def test_no_boxes_and_no_points() -> None:
    assert g.transform_boxes(np.zeros((0, 4)), g.identity()).shape == (0, 4)
    assert g.clip_boxes(np.zeros((0, 4)), 5, 5).shape == (0, 4)
    assert g.transform_points(np.zeros((0, 2)), g.identity()).shape == (0, 2)


def test_pixel_centre_matrix_warps_pixel_centres_where_the_matrix_takes_them() -> None:
    # An image that holds each pixel's own centre: after the warp, the value at a pixel is where it came from.
    h, w = 60, 80
    matrix = g.compose(g.rotation(17, (w / 2, h / 2)), g.scaling(1.25, 0.8), g.horizontal_flip(w * 1.25))
    x, y = np.meshgrid(np.arange(w) + 0.5, np.arange(h) + 0.5)
    source = np.stack([x, y], axis=-1)
    warped = cv2.warpAffine(
        source, g.pixel_centre_matrix(matrix), (100, 48), flags=cv2.INTER_LINEAR, borderValue=(-1, -1)
    )
    X, Y = np.meshgrid(np.arange(100) + 0.5, np.arange(48) + 0.5)
    expected = g.transform_points(np.stack([X, Y], axis=-1), g.invert(matrix)).reshape(48, 100, 2)
    inside = ((expected > 1) & (expected < [w - 1, h - 1])).all(axis=-1)
    assert inside.sum() > 3000
    # OpenCV rounds positions to 1/32 pixel.
    np.testing.assert_allclose(warped[inside], expected[inside], atol=1 / 32)


def test_pixel_centre_matrix_of_a_resize_is_that_of_cv2_resize() -> None:
    image = np.random.default_rng(0).random((30, 40)).astype(np.float32)
    image = cv2.GaussianBlur(image, (0, 0), 3)
    matrix = g.pixel_centre_matrix(g.scaling(60 / 40, 45 / 30))
    warped = cv2.warpAffine(image, matrix, (60, 45), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    np.testing.assert_allclose(warped, cv2.resize(image, (60, 45)), atol=2e-3)


def our_matrix(step: dict[str, Any]) -> g.Matrix:
    op, (height, width) = step["op"], step["size_before"]
    if op["op"] == "Rotate":
        return g.rotation(op["angle_deg_clockwise"], (width / 2, height / 2))
    if op["op"] == "Translate":
        horizontal = op["direction"] == "horizontal"
        return g.translation(op["offset"], 0) if horizontal else g.translation(0, op["offset"])
    if op["op"] == "Flip":
        return g.horizontal_flip(width)
    new_height, new_width = step["size_after"]
    return g.scaling(new_width / width, new_height / height)


@pytest.mark.parametrize("chain", CHAINS, ids=chain_id)
def test_chains_of_operations_agree_with_the_reference_but_for_half_a_pixel(chain: dict[str, Any]) -> None:
    allowed = 0.0
    for step in chain["steps"]:
        ours = our_matrix(step)
        if step["op"]["op"] == "Rotate":
            # The reference turns box edges with the matrix for pixel centres.
            np.testing.assert_allclose(g.pixel_centre_matrix(ours), step["matrix"], atol=1e-9)
            allowed += 2 * math.sin(math.radians(abs(step["op"]["angle_deg_clockwise"])) / 2) * 0.5**0.5
        else:
            np.testing.assert_allclose(ours, step["matrix"], atol=1e-9)
            if step["op"]["op"] == "Resize":
                allowed *= max(ours[0, 0], ours[1, 1])
    height, width = chain["size"]
    corners = [[0, 0], [width, 0], [0, height], [width, height]]
    total = g.compose(*(our_matrix(step) for step in chain["steps"]))
    off = g.transform_points(corners, total) - g.transform_points(corners, np.array(chain["total"]))
    assert np.hypot(off[:, 0], off[:, 1]).max() <= allowed + 1e-9
