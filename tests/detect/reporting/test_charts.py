from __future__ import annotations

import math
import re

import numpy as np
import pytest

from detect.reporting.charts import MOST_POINTS, draw_chart, linear_ticks, log_ticks, running_mean
from detect.reporting.history import Curve


def points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"([-\d.]+) ([-\d.]+)", path)]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 100, [0, 20, 40, 60, 80, 100]),
        (2.4, 10.4, [2, 4, 6, 8, 10, 12]),
        (0.0012, 0.0031, [0.001, 0.0015, 0.002, 0.0025, 0.003, 0.0035]),
        (-3, 4, [-4, -2, 0, 2, 4]),
        (5, 5, [5, 6, 7, 8, 9, 10]),
        (0, 0, [0, 0.2, 0.4, 0.6, 0.8, 1]),
    ],
)
def test_ticks_are_round_numbers_around_the_range(low: float, high: float, ticks: list[float]) -> None:
    assert linear_ticks(low, high) == pytest.approx(ticks)


def test_ticks_of_a_logarithmic_scale_are_powers_of_ten() -> None:
    assert log_ticks(0.02, 300) == pytest.approx([0.01, 0.1, 1, 10, 100, 1000])
    assert len(log_ticks(1e-12, 1e12)) < 10
    assert log_ticks(1e-12, 1e12)[-1] >= 1e12


def test_a_line_goes_through_its_points() -> None:
    chart = draw_chart("AP, in percent", [Curve("AP", [50, 100], [20.0, 40.0])], 100, marked=True, from_zero=True)
    assert chart is not None
    left, top, right, bottom = chart.plot
    assert points(chart.lines[0].path) == [((left + right) / 2, (top + bottom) / 2), (right, top)]
    assert [text for _, text in chart.y_ticks] == ["0", "10", "20", "30", "40"]
    assert [text for *_, text in chart.lines[0].points] == ["AP 20, iteration 50", "AP 40, iteration 100"]
    assert chart.told == "AP, in percent: AP from 20 to 40, least 20, most 40"


def test_all_charts_end_at_the_last_iteration_of_the_run() -> None:
    chart = draw_chart("AP", [Curve("AP", [50], [20.0])], 200, marked=True)
    assert chart is not None
    left, _, right, _ = chart.plot
    ((x, _),) = points(chart.lines[0].path)
    assert x == pytest.approx((3 * left + right) / 4)
    assert [text for _, text in chart.x_ticks] == ["0", "50", "100", "150", "200"]


def test_what_is_not_finite_leaves_a_gap() -> None:
    values = [1.0, 2.0, math.nan, 3.0, math.inf, 2.0, 1.0]
    chart = draw_chart("Loss", [Curve("loss", list(range(7)), values)], 6, smooth=True)
    assert chart is not None
    assert [len(points(part)) for part in chart.lines[0].path.split("M")[1:]] == [2, 1, 2]
    assert len(chart.lines[0].points) == 1  # the one between the gaps, which no line shows
    assert draw_chart("Loss", [Curve("loss", [1], [math.nan])], 1) is None
    assert draw_chart("Loss", [], 0) is None


def test_a_long_curve_is_drawn_by_few_points_and_its_range() -> None:
    rng = np.random.default_rng(0)
    values = (5 + rng.normal(size=90_000)).tolist()
    values[45_000] = 99.0
    chart = draw_chart("Loss", [Curve("loss", list(range(90_000)), values)], 90_000, smooth=True)
    assert chart is not None
    (line,) = chart.lines
    assert line.is_band
    assert len(points(line.path)) == MOST_POINTS
    assert len(points(line.faint)) == 2 * MOST_POINTS
    assert min(y for _, y in points(line.faint)) < chart.plot[1] + 5  # the spike is not averaged away
    assert line.faint.endswith("Z")


def test_a_smooth_line_lies_over_the_values() -> None:
    values = [4.0, 6.0] * 40
    chart = draw_chart("Loss", [Curve("loss", list(range(80)), values)], 80, smooth=True)
    assert chart is not None
    (line,) = chart.lines
    heights = np.array([y for _, y in points(line.faint)])
    smooth = np.array([y for _, y in points(line.path)])
    assert not line.is_band
    assert np.ptp(smooth[2:-2]) < np.ptp(heights) / 4


def test_values_far_apart_are_on_a_logarithmic_scale() -> None:
    curve = Curve("lr", [1, 2, 3], [1e-4, 1e-2, 1.0])
    chart = draw_chart("Learning rate", [curve], 3, may_be_log=True)
    assert chart is not None
    assert chart.title == "Learning rate, log scale"
    first, second, third = (y for _, y in points(chart.lines[0].path))
    assert first - second == pytest.approx(second - third, abs=0.2)
    for least in (0.0, 1 / 30):
        linear = draw_chart("Learning rate", [Curve("lr", [1, 2], [least, 1.0])], 2, may_be_log=True)
        assert linear is not None
        assert linear.title == "Learning rate"


def test_a_running_mean_has_as_many_on_either_side() -> None:
    assert running_mean(np.array([0.0, 3.0, 6.0, 9.0]), 1) == pytest.approx([1.5, 3.0, 6.0, 7.5])
