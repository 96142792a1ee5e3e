"""Affine matrices, and what they do to points and boxes.

Coordinates are continuous: the pixel in row i and column j covers [j, j+1) x [i, i+1), y points down, and an image of
width w spans 0..w. A matrix is 2x3 float64 and takes source to output coordinates: ``[x', y'] = M[:, :2] @ [x, y] +
M[:, 2]``. Libraries that sample at pixel centres with integer coordinates (OpenCV) get ``pixel_centre_matrix(M)``, and
nothing else in the package knows of their convention.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Matrix = NDArray[np.float64]


def identity() -> Matrix:
    """The matrix that leaves everything where it is."""
    return np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


def translation(dx: float, dy: float) -> Matrix:
    """Moves by (dx, dy) pixels: right and down are positive."""
    return np.array([[1.0, 0.0, dx], [0.0, 1.0, dy]])


def scaling(sx: float, sy: float) -> Matrix:
    """Scales about the origin, as a resize does: (w, h) goes to (sx*w, sy*h)."""
    return np.array([[sx, 0.0, 0.0], [0.0, sy, 0.0]])


def rotation(degrees: float, center: tuple[float, float], scale: float = 1.0) -> Matrix:
    """Rotates about a point.

    Args:
        degrees: Angle, positive clockwise as seen on the screen.
        center: The point (x, y) that stays; (w/2, h/2) is an image's middle.
        scale: Factor about the same point.
    """
    # Multiples of 90 degrees are exact, so that a turned box has no hair's breadth of rounding.
    turns, rest = divmod(degrees, 90.0)
    if rest == 0.0:
        cos, sin = ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))[int(turns) % 4]
    else:
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    cos, sin = cos * scale, sin * scale
    return _about(np.array([[cos, -sin], [sin, cos]]), center)


def shear(x: float, y: float, center: tuple[float, float] = (0.0, 0.0)) -> Matrix:
    """Shears about a point: x' = x + ``x`` * y and y' = y + ``y`` * x, measured from that point."""
    return _about(np.array([[1.0, x], [y, 1.0]]), center)


def horizontal_flip(width: float) -> Matrix:
    """Mirrors left and right: x goes to width - x."""
    return np.array([[-1.0, 0.0, width], [0.0, 1.0, 0.0]])


def vertical_flip(height: float) -> Matrix:
    """Mirrors top and bottom: y goes to height - y."""
    return np.array([[1.0, 0.0, 0.0], [0.0, -1.0, height]])


def compose(*matrices: Matrix) -> Matrix:
    """The one matrix that does what the given ones do one after another, the first one first."""
    result = identity()
    for matrix in matrices:
        linear = matrix[:, :2] @ result[:, :2]
        shift = matrix[:, :2] @ result[:, 2] + matrix[:, 2]
        result = np.concatenate([linear, shift[:, None]], axis=1)
    return result


def invert(matrix: Matrix) -> Matrix:
    """The matrix that undoes a matrix.

    Raises:
        numpy.linalg.LinAlgError: The matrix flattens the plane and cannot be undone.
    """
    linear = np.linalg.inv(matrix[:, :2])
    return np.concatenate([linear, -(linear @ matrix[:, 2])[:, None]], axis=1)


def pixel_centre_matrix(matrix: Matrix) -> Matrix:
    """The same map for software whose integer coordinates are pixel centres, such as ``cv2.warpAffine``.

    There, pixel j's centre is at x = j; here it is at j + 1/2. Hence T(-1/2) M T(1/2).
    """
    return compose(translation(0.5, 0.5), matrix, translation(-0.5, -0.5))


def transform_points(points: ArrayLike, matrix: Matrix) -> NDArray[np.float64]:
    """Maps points.

    Args:
        points: (V, 2) xy.
        matrix: (2, 3) source to output.

    Returns:
        (V, 2) float64.
    """
    points = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    # Written out: a BLAS call on two columns costs more than it saves, and its rounding depends on the batch.
    x, y = points[:, 0], points[:, 1]
    result = np.empty_like(points)
    result[:, 0] = matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2]
    result[:, 1] = matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2]
    return result


def transform_boxes(boxes: ArrayLike, matrix: Matrix) -> NDArray[np.float64]:
    """The tight boxes of the transformed corners.

    Args:
        boxes: (n, 4) xyxy.
        matrix: (2, 3) source to output.

    Returns:
        (n, 4) float64 xyxy.
    """
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 2)
    moved = transform_points(corners, matrix).reshape(-1, 4, 2)
    return np.concatenate([moved.min(axis=1), moved.max(axis=1)], axis=1)


def clip_boxes(boxes: ArrayLike, width: float, height: float) -> NDArray[np.float64]:
    """Clips boxes to an image; a box that lies outside ends with no width or no height.

    Args:
        boxes: (n, 4) xyxy.
        width: Of the image.
        height: Of the image.

    Returns:
        (n, 4) float64 xyxy within 0..width and 0..height.
    """
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    return np.clip(boxes, 0.0, np.array([width, height, width, height], dtype=np.float64))


def _about(linear: NDArray[np.float64], center: tuple[float, float]) -> Matrix:
    """A linear map with a given fixed point, as a 2x3 matrix."""
    fixed = np.array(center, dtype=np.float64)
    return np.concatenate([linear, (fixed - linear @ fixed)[:, None]], axis=1)
