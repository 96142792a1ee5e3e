"""Curves as the coordinates of SVG drawings; their colours are the page's, so that they suit light and dark."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import SupportsFloat

import numpy as np
from numpy.typing import NDArray

from detect.reporting.history import Curve

MOST_POINTS = 240
"""Points of a line; of more, the means of as many stretches are drawn, and the range from least to most around them."""
FEWEST_TO_SMOOTH = 40
LOG_FROM = 30.0
"""How many times the least value the most is where a scale is logarithmic."""
LEFT, RIGHT, TOP, BOTTOM = 52.0, 10.0, 8.0, 34.0
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Line:
    """A curve in a chart, by SVG paths.

    Attributes:
        name: Of the curve.
        path: The line.
        faint: What the line is the mean of: a path to stroke, or, closed, to fill; empty where nothing was averaged.
        is_band: Whether ``faint`` is to be filled.
        points: x, y and a text for each point that is marked.
    """

    name: str
    path: str
    faint: str
    is_band: bool
    points: list[tuple[float, float, str]]


@dataclass(frozen=True)
class Chart:
    """A drawing.

    Attributes:
        title: What is shown, with its unit.
        width: Of the drawing.
        height: Likewise.
        plot: Left, top, right and bottom of the area with the lines.
        x_ticks: Place and text of each.
        y_ticks: Likewise.
        lines: The curves.
        told: The same in words, for those who do not see it.
    """

    title: str
    width: float
    height: float
    plot: tuple[float, float, float, float]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    lines: list[Line]
    told: str


def draw_chart(
    title: str,
    curves: Sequence[Curve],
    last_iteration: int,
    *,
    smooth: bool = False,
    marked: bool = False,
    from_zero: bool = False,
    may_be_log: bool = False,
    size: tuple[float, float] = (560.0, 240.0),
) -> Chart | None:
    """Lays curves out.

    Args:
        title: What is shown, with its unit.
        curves: What is drawn; values that are not finite leave gaps.
        last_iteration: Where the horizontal axis ends; it begins at 0.
        smooth: Whether a running mean is drawn over the values.
        marked: Whether each point has a mark.
        from_zero: Whether the vertical axis begins at 0; else at the least value.
        may_be_log: Whether it is logarithmic where the values, all positive, are far apart.
        size: Width and height.

    Returns:
        The chart; None where no value is finite.
    """
    finite = np.array([value for curve in curves for value in curve.values if math.isfinite(value)])
    if not len(finite):
        return None
    low, high = float(finite.min()), float(finite.max())
    is_log = may_be_log and low > 0 and high > LOG_FROM * low
    ticks = log_ticks(low, high) if is_log else linear_ticks(min(low, 0.0) if from_zero else low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    width, height = size
    left, top, right, bottom = LEFT, TOP, width - RIGHT, height - BOTTOM
    x_end = max(last_iteration, 1)

    def x_of(iterations: Floats) -> Floats:
        return left + (right - left) * iterations / x_end

    def y_of(values: Floats) -> Floats:
        share = np.log(values / low) / math.log(high / low) if is_log else (values - low) / (high - low)
        return bottom - (bottom - top) * share

    lines = [_line(curve, x_of, y_of, smooth=smooth, marked=marked) for curve in curves]
    x_ticks = [tick for tick in linear_ticks(0, x_end, most=6) if tick <= x_end and tick == int(tick)]
    return Chart(
        title=title + ", log scale" * is_log,
        width=width,
        height=height,
        plot=(left, top, right, bottom),
        x_ticks=[(_round(x_of(np.array(tick))), f"{tick:,.0f}") for tick in x_ticks],
        y_ticks=[(_round(y_of(np.array(tick))), tick_text(tick)) for tick in ticks],
        lines=lines,
        told=f"{title}: " + "; ".join(map(_in_words, curves)),
    )


def linear_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers around a range: multiples of 1, 2 or 5 times a power of ten, the first and last beyond its ends."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten around a range of positive numbers; every second, third ... where there are many."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    step = math.ceil((last - first) / 6)
    return [10.0**power for power in range(first, last + step, step)]


def tick_text(value: float) -> str:
    """A number at an axis, in few letters."""
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e7 else f"{value:.4g}"


def stretches(iterations: Floats, values: Floats, most: int) -> tuple[Floats, Floats, Floats, Floats]:
    """Points in at most so many stretches of equally many points: means of iterations and values, least and most."""
    bounds = np.unique(np.linspace(0, len(values), most + 1).round().astype(int))
    parts = [slice(begin, end) for begin, end in itertools.pairwise(bounds.tolist())]
    return (
        np.array([iterations[part].mean() for part in parts]),
        np.array([values[part].mean() for part in parts]),
        np.array([values[part].min() for part in parts]),
        np.array([values[part].max() for part in parts]),
    )


def running_mean(values: Floats, reach: int) -> Floats:
    """The mean of each value and as many as ``reach`` on either side, of fewer at the ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    begins, ends = np.maximum(places - reach, 0), np.minimum(places + reach + 1, len(values))
    means: Floats = (sums[ends] - sums[begins]) / (ends - begins)
    return means


def _line(
    curve: Curve, x_of: Callable[[Floats], Floats], y_of: Callable[[Floats], Floats], *, smooth: bool, marked: bool
) -> Line:
    faint, path = "", ""
    points: list[tuple[float, float, str]] = []
    share = MOST_POINTS / max(len(curve.values), 1)
    is_band = smooth and share < 1
    for iterations, values in _finite_runs(curve):
        whole = _path(x_of(iterations), y_of(values)) if not is_band else ""
        if share < 1:
            iterations, values, least, most = stretches(iterations, values, math.ceil(len(values) * share))
            if smooth:
                edge = np.concatenate([y_of(least), y_of(most)[::-1]])
                whole = _path(x_of(np.concatenate([iterations, iterations[::-1]])), edge) + "Z"
        if smooth and len(values) >= FEWEST_TO_SMOOTH:
            faint += whole
            values = running_mean(values, len(values) // 40)
        path += _path(x_of(iterations), y_of(values))
        if marked or len(values) == 1:
            at = zip(map(_round, x_of(iterations)), map(_round, y_of(values)), strict=True)
            for (x, y), iteration, value in zip(at, iterations.tolist(), values.tolist(), strict=True):
                points.append((x, y, f"{curve.name} {value:.4g}, iteration {iteration:,.0f}"))
    return Line(curve.name, path, faint, is_band, points)


def _finite_runs(curve: Curve) -> list[tuple[Floats, Floats]]:
    """The stretches of a curve without a gap."""
    iterations, values = np.array(curve.iterations, np.float64), np.array(curve.values, np.float64)
    finite = np.isfinite(values)
    bounds = np.flatnonzero(np.diff(finite, prepend=False, append=False))
    return [(iterations[a:b], values[a:b]) for a, b in bounds.reshape(-1, 2).tolist()]


def _path(x: Floats, y: Floats) -> str:
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x.tolist(), y.tolist(), strict=True))


def _round(value: SupportsFloat) -> float:
    return round(float(value), 1)


def _in_words(curve: Curve) -> str:
    finite = [value for value in curve.values if math.isfinite(value)]
    if not finite:
        return f"{curve.name} not finite"
    return f"{curve.name} from {finite[0]:.4g} to {finite[-1]:.4g}, least {min(finite):.4g}, most {max(finite):.4g}"
