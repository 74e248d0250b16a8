"""Curves of a run's series, and when a chart is the same."""

import math

import numpy as np

from harness.runs import RunState
from harness.series import Point, Series
from nmoe import events as ev
from tests.tui import recordings as rec
from tui.feed import RunView
from tui.screens import summary
from tui.screens.curves import CurveOf
from tui.widgets.curve import positions


def points(stop: int, start: int = 0, value: float = 2.0) -> list[Point]:
    return [Point(i, i * 100, i * 0.5, value, i * 0.6) for i in range(start, stop)]


def grown(series: Series, more: list[Point]) -> Series:
    for point in more:
        series = series.append(point)
    return series


def test_curve_has_the_points_of_the_series_on_every_axis():
    follower = CurveOf()
    series = grown(Series(), points(10))
    first = follower.follow(series)
    curve = follower.follow(grown(series, points(40, 10)))

    assert curve is first
    assert len(curve) == 40
    stops = [curve.stop(axis) for axis in ("step", "tokens", "train", "wall")]
    np.testing.assert_allclose(stops, [39, 3900, 19.5, 23.4])


def test_curve_goes_back_with_the_series_and_on_with_the_new_points():
    follower = CurveOf()
    series = grown(Series(), points(40))
    follower.follow(series)
    back = series.until(20)
    assert len(follower.follow(back)) == 21
    curve = follower.follow(grown(back, points(30, 21, value=5.0)))

    columns = curve.columns("step", positions(0, 29, 30))
    assert columns.high_C.tolist() == [2.0] * 21 + [5.0] * 9


def test_curve_begins_anew_with_another_run():
    follower = CurveOf()
    follower.follow(grown(Series(), points(40)))

    assert len(follower.follow(grown(Series(), points(3)))) == 3
    assert len(follower.follow(Series())) == 0


def test_chart_is_the_same_when_nothing_happened_even_to_a_nan():
    state, seq, losses = RunState.of("r", rec.make_plan()), 0, CurveOf()
    for event in (*rec.steps(400), rec.step_event(410, loss=math.nan), rec.val_event(410,
                  loss=math.nan)):  # fmt: skip
        state = state.apply(ev.Record(seq=seq, time=rec.START + seq, attempt=0, event=event))
        seq += 1
    view = RunView(state=state, status="training", is_alive=True, now=rec.START)
    later = RunView(state=state, status="training", is_alive=True, now=rec.START + 60)
    chart = summary.chart(view, losses)

    assert chart == summary.chart(later, losses)
    assert chart.forecast is not None
    assert [(mark.step, mark.kind) for mark in chart.events] == []
    step = rec.step_event(420)
    state = state.apply(ev.Record(seq=seq, time=rec.START + seq, attempt=0, event=step))
    newer = RunView(state=state, status="training", is_alive=True, now=rec.START)
    assert summary.chart(newer, losses) != chart
