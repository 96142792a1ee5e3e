from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from dpipe.images.photometric import apply_photometric


@pytest.fixture
def image() -> np.ndarray:
    rng = np.random.default_rng(0)
    ramp = np.linspace(20, 180, 90)[:, None, None] * (1.0, 0.8, 0.5)
    return np.clip(ramp + rng.normal(0, 12, (90, 70, 3)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("factor", [0.1, 0.64, 1.0, 1.9])
@pytest.mark.parametrize(
    ("name", "reference"),
    [("color", ImageEnhance.Color), ("brightness", ImageEnhance.Brightness), ("contrast", ImageEnhance.Contrast)],
)
def test_blends_are_pillows(image: np.ndarray, name: str, reference: Callable[[Any], Any], factor: float) -> None:
    result = apply_photometric(image, [(name, factor)]).astype(int)
    expected = np.asarray(reference(Image.fromarray(image)).enhance(factor)).astype(int)
    assert np.abs(result - expected).max() <= 2
    if factor == 1.0:
        np.testing.assert_array_equal(result, image)


def test_contrast_is_about_the_rounded_mean() -> None:
    image = np.full((1, 8, 3), 11, np.uint8)
    image[:, :2] = 10
    assert (apply_photometric(image, [("contrast", 0.1)]) == 11).all()  # the mean of 10.75 counts as 11


def test_equalize_spreads_each_channel_and_keeps_the_order_of_levels(image: np.ndarray) -> None:
    result = apply_photometric(image, [("equalize", 1.0)])
    for channel in range(3):
        before, after = image[..., channel], result[..., channel]
        assert (after.min(), after.max()) == (0, 255)
        assert np.abs(np.sort(after, axis=None) - np.linspace(0, 255, after.size)).max() < 12
        order = np.argsort(before, axis=None, kind="stable")
        assert (np.diff(after.ravel()[order].astype(int)) >= 0).all()


def test_operations_follow_one_another_and_leave_their_input_alone(image: np.ndarray) -> None:
    before = image.copy()
    result = apply_photometric(image, [("brightness", 1.9), ("contrast", 0.1)])
    np.testing.assert_array_equal(
        result, apply_photometric(apply_photometric(image, [("brightness", 1.9)]), [("contrast", 0.1)])
    )
    assert not np.array_equal(result, apply_photometric(image, [("contrast", 0.1), ("brightness", 1.9)]))
    np.testing.assert_array_equal(image, before)
    assert apply_photometric(image, []) is image
