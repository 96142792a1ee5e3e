"""The geometry against that of an independent library: pixels, and points that ride on them."""

from __future__ import annotations

import math

import albumentations as A
import cv2
import numpy as np
import pytest

from dpipe import geometry

WIDTH, HEIGHT = 90, 60
CENTRE = (WIDTH / 2, HEIGHT / 2)
POINTS = np.array([[10, 20], [45, 30], [80, 5]], dtype=np.float32)
# Their rotation is anticlockwise for positive angles, and their shear moves the bottom to the left.
CASES = {
    "rotation": ({"rotate": (17, 17)}, geometry.rotation(-17, CENTRE, 1.0)),
    "rotation and zoom": ({"rotate": (-30, -30), "scale": 1.3}, geometry.rotation(30, CENTRE, 1.3)),
    "shear": ({"shear": {"x": (12, 12), "y": (0, 0)}}, geometry.shear(-math.tan(math.radians(12)), 0, CENTRE)),
    "translation": ({"translate_px": {"x": (7, 7), "y": (-4, -4)}}, geometry.translation(7, -4)),
}


@pytest.mark.parametrize("case", CASES)
def test_pixels_and_points_are_moved_alike(case: str) -> None:
    arguments, matrix = CASES[case]
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    image = cv2.GaussianBlur(noise, (0, 0), 2)
    transform = A.Compose(
        [A.Affine(**arguments, interpolation=cv2.INTER_LINEAR, p=1)],
        keypoint_params=A.KeypointParams("xy", remove_invisible=False),
    )
    theirs = transform(image=image, keypoints=POINTS)
    ours = cv2.warpAffine(image, geometry.pixel_centre_matrix(matrix), (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR)
    assert np.abs(ours.astype(int) - theirs["image"]).max() <= 1
    # Their points are pixel centres at whole numbers, ours are continuous: half a pixel lies between the two.
    moved = geometry.transform_points(POINTS + 0.5, matrix) - 0.5
    np.testing.assert_allclose(moved, theirs["keypoints"], atol=1e-3)
