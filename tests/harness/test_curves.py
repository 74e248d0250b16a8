"""The curves of a run as rows and charts: the numbers of its events, no other ones."""

import csv
import io
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import curves, runs
from nmoe.event_log import read_events
from nmoe.events import StepEvent, ValEvent
from tests.tui import races
from tests.tui import recordings as rec
from tui.widgets.curve import Average


def rows(state):
    text = curves.sheet(state).csv()
    return list(csv.DictReader(io.StringIO(text)))


def told(folder, kind):
    return [r.event for r in read_events(folder.train) if isinstance(r.event, kind)]


def number(text):
    return None if text == "" else float(text)


def test_rows_are_the_events_to_the_last_bit(data_dir):
    folder = races.done(rec.data_root(data_dir)).folder
    found = rows(runs.load(folder))
    steps = [row for row in found if row["kind"] == "step"]
    vals = [row for row in found if row["kind"] == "val"]
    events = told(folder, StepEvent)
    assert len(steps) == len(events) > 100
    names = ("step", "tokens", "train_s", "wall_s", "loss", *curves.CURVES)
    for row, event in zip(steps, events, strict=True):
        assert [number(row[name]) for name in names] == [getattr(event, name) for name in names]
        assert (row["bpb"], row["val_tokens"], row["seconds"]) == ("", "", "")
    for row, event in zip(vals, told(folder, ValEvent), strict=True):
        assert [number(row[name]) for name in ("step", "loss", "bpb", "train_s", "seconds")] == [
            *(event.step, event.loss, event.bpb, event.train_s, event.seconds)
        ]
        assert int(row["val_tokens"]) == event.tokens
        assert int(row["tokens"]) == event.step * races.BATCH
        assert row["lr"] == row["wall_s"] == ""
    assert [(int(row["step"]), row["kind"]) for row in found] == sorted(
        (int(row["step"]), row["kind"]) for row in found
    )


def test_rows_are_those_that_count_when_a_run_was_resumed(data_dir):
    folder = races.resumed(rec.data_root(data_dir)).folder
    found = [row for row in rows(runs.load(folder)) if row["kind"] == "step"]
    assert [int(row["step"]) for row in found] == list(range(10, 2201, 10))


def test_what_is_not_known_is_empty_and_what_is_no_number_is_nan(data_dir):
    folder = rec.diverged(rec.data_root(data_dir))
    found = rows(runs.load(folder))
    assert {row["mfu"] for row in found} == {""}
    assert found[-1]["loss"] == "nan"


def test_run_without_steps_has_a_head_and_empty_charts(data_dir):
    state = runs.load(rec.preparing(rec.data_root(data_dir)))
    assert curves.sheet(state).csv().strip() == ",".join(curves.COLUMNS)
    assert curves.loss_chart(state).is_empty
    assert all(chart.is_empty for chart in curves.speed_charts(state, ()))


@given(
    st.lists(st.floats(-1e3, 1e3) | st.sampled_from([math.nan, math.inf]), max_size=200),
    st.sampled_from([0.6, 0.9, 0.98]),
)
def test_moving_average_is_that_of_the_screen(values, decay):
    screen = Average(decay)
    screen.extend(np.array(values, dtype=np.float64))
    found = list(curves.averages(values, decay))
    np.testing.assert_allclose(found, screen.values.values, rtol=1e-9, atol=1e-9)


def test_loss_chart_has_target_marks_and_every_point(data_dir):
    state = runs.load(races.resumed(rec.data_root(data_dir)).folder)
    chart = curves.loss_chart(state)
    raw, mean, vals = chart.lines
    assert [y for _, y in raw.points] == list(state.losses.values)
    assert [x for x, _ in mean.points] == list(state.losses.steps)
    assert [y for _, y in vals.points] == [val.loss for val in state.val_events]
    assert chart.level == (3.28, "target 3.28")
    assert [mark.x for mark in chart.marks if mark.kind == "resume"] == [1000]
    assert "524,288 tokens" in chart.x_label


def test_power_is_broken_where_nobody_sampled(data_dir):
    state = runs.load(rec.preparing(rec.data_root(data_dir)))
    chart = curves.speed_charts(state, ((0.0, 900.0), (1.0, 910.0), (300.0, 905.0)))[-1]
    drawn = [y for _, y in chart.lines[0].points]
    assert drawn[:2] == [900.0, 910.0]
    assert math.isnan(drawn[2])
    assert drawn[3] == pytest.approx(905.0)
