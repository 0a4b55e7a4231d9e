"""Curves on their canvas: every point inside, ticks at round numbers, and no single spike that hides the rest."""

from __future__ import annotations

import math

import pytest

from dsr1_tune.report.charts import HEIGHT, WIDTH, Line, chart, smoothed


def test_chart_keeps_points_on_the_canvas_and_ticks_between_its_edges() -> None:
    points = [(float(step), math.sin(step / 9) * 10.0 ** (step % 7 - 3)) for step in range(1, 3000)]
    for is_log in (False, True):
        drawn = chart("name", [Line("line", "c0", points)], is_log=is_log)
        assert drawn is not None
        places = drawn["lines"][0]["places"]
        assert 100 < len(places) <= 400
        assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in places)
        assert len(drawn["y_ticks"]) >= 2 and all(0 <= tick["y"] <= 1 for tick in drawn["y_ticks"])
        assert len(drawn["x_ticks"]) >= 2 and all(0 <= tick["x"] <= 1 for tick in drawn["x_ticks"])


@pytest.mark.parametrize("values", [[1.0], [0.0, 0.0], [2.0] * 5, [math.nan, 3.0, math.inf]])
def test_chart_draws_flat_single_and_broken_curves(values: list[float]) -> None:
    drawn = chart("name", [Line("line", "c0", list(enumerate(values)))])
    assert drawn is not None and drawn["lines"][0]["places"]


def test_chart_of_nothing_is_none() -> None:
    assert chart("name", [Line("line", "c0", []), Line("other", "c1", [(1, math.nan)])]) is None
    assert chart("name", [Line("line", "c0", [(1, 0.0), (2, -1.0)])], is_log=True) is None


def test_smoothed_leaves_single_bad_batches_out() -> None:
    points = [(float(step), 100.0 if step == 50 else 2.0) for step in range(200)]
    assert {value for _, value in smoothed(points)} == {2.0}


def test_chart_puts_points_where_their_numbers_are() -> None:
    drawn = chart("name", [Line("line", "c0", [(0, 0.0), (5, 10.0), (10, 5.0)])], from_zero=True)
    assert drawn is not None
    # The top of the canvas is a twentieth above the highest value; zero stands at the bottom.
    assert drawn["lines"] == [{"name": "line", "look": "c0", "places": [(0.0, 260.0), (500.0, 12.4), (1000.0, 136.2)]}]
    assert [tick["label"] for tick in drawn["y_ticks"]] == ["0", "5", "10"]
    assert [(tick["label"], tick["x"]) for tick in drawn["x_ticks"]] == [("0", 0.0), ("5", 0.5), ("10", 1.0)]


def test_chart_of_logarithms_has_powers_of_ten_as_ticks() -> None:
    drawn = chart("name", [Line("line", "c0", [(1, 0.001), (2, 1000.0), (3, 0.0)])], is_log=True)
    assert drawn is not None and len(drawn["lines"][0]["places"]) == 2
    assert {"0.1", "1", "1e+02"} & {tick["label"] for tick in drawn["y_ticks"]}


def test_chart_shows_the_highest_point_that_is_no_spike() -> None:
    for num_points in (2, 3, 50, 390):
        points = [(float(step), 1.0 + step % 2) for step in range(1, num_points)]
        drawn = chart("name", [Line("line", "c0", points), Line("measured", "dots", [(float(num_points), 3.0)])])
        assert drawn is not None
        (_, y), low = drawn["lines"][1]["places"][0], max(y for _, y in drawn["lines"][0]["places"])
        assert 0 < y < HEIGHT / 20 and low == pytest.approx(HEIGHT * 21 / 22, abs=0.1)
        assert "3" in {tick["label"] for tick in drawn["y_ticks"]}


def test_chart_is_not_pressed_flat_by_a_single_spike() -> None:
    points = [(float(step), 1.0 + step % 2) for step in range(1, 399)]
    drawn = chart("name", [Line("line", "c0", [*points, (399.0, 1e9)])])
    assert drawn is not None
    heights = [y for _, y in drawn["lines"][0]["places"]]
    assert max(heights[:-1]) - min(heights[:-1]) > HEIGHT / 2 and heights[-1] == 0.0
