"""The line chart as plain rows, without an app."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tui.widgets import figure
from tui.widgets.ascii import to_ascii
from tui.widgets.axis import log_ticks, ticks, x_ticks
from tui.widgets.curve import AXES, Curve, positions
from tui.widgets.figure import FORECAST, ODD, VALIDATION, Chart, EventMark, View, Window
from tui.widgets.forecast import forecast
from tui.widgets.plot import cursor_at, draw_chart
from tui.widgets.raster import Scale, characters, line
from tui.widgets.rows import plain, row_width

CHARSETS = ("braille", "block", "ascii")


def chart(x, y, *, marks=(), **changes) -> Chart:
    step = np.asarray(x, dtype=np.float64)
    with np.errstate(over="ignore"):
        axes = {"step": step, "tokens": step * 1e6, "train": step * 0.5, "wall": step * 0.6 + 20}
    return Chart(
        revision=(1,),
        curve=Curve.of(y, axes),
        mark_steps=np.array([at for at, _ in marks], dtype=np.float64),
        mark_values=np.array([value for _, value in marks], dtype=np.float64),
        **changes,
    )


def drawn(value: Chart, width: int = 60, height: int = 12, charset="braille", **view) -> list[str]:
    rows = draw_chart(value, width, height, view=View(**view), charset=charset)
    texts = [plain(row) for row in rows]
    return [to_ascii(text) for text in texts] if charset == "ascii" else texts


def has_dots(text: str) -> bool:
    return any(0x2801 <= ord(char) <= 0x28FF for char in text)


def roles_of(value: Chart, **view) -> set[str]:
    return {role for row in draw_chart(value, 60, 12, view=View(**view)) for _, role in row}


def falling(num: int = 400, **changes) -> Chart:
    x = np.arange(1, num) * 10
    return chart(x, 2 + 3 * np.exp(-x / 800), **changes)


@pytest.mark.parametrize("charset", CHARSETS)
@pytest.mark.parametrize(
    "size", [(12, 3), (20, 5), (58, 6), (76, 13), (98, 18), (158, 30), (240, 60)]
)
def test_chart_fills_exactly_its_size_when_there_is_room(size, charset):
    rows = draw_chart(falling(target=2.0), *size, charset=charset)

    assert len(rows) == size[1] or size == (12, 3)
    assert {row_width(row) for row in rows} == {size[0]} or size == (12, 3)
    assert any(role == "line" for row in rows for _, role in row) == (size != (12, 3))


@pytest.mark.parametrize("width", range(14))
@pytest.mark.parametrize("height", range(5))
def test_chart_draws_something_within_bounds_when_tiny(width, height):
    rows = draw_chart(chart([1, 2, 3], [3.0, 2.0, 1.0], target=0.5), width, height)

    assert len(rows) <= max(height, 0)


ODD_NUMBERS = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True, width=64),
    st.sampled_from([0.0, -1.0, 2.5, math.nan, math.inf, -math.inf, 1e308, -1e308, 5e-324]),
)


LOOKS = (
    lambda value, view: figure.zoomed(value, view, 0.3),
    lambda value, view: figure.zoomed(value, view, 3.0),
    lambda value, view: figure.zoomed(value, view, 0.1, at=1.0),
    lambda value, view: figure.panned(value, view, -0.4),
    lambda value, view: figure.with_cursor(value, view, 0.1),
    figure.with_next_axis,
    figure.with_next_decay,
)


@pytest.mark.filterwarnings("error:.*encountered")  # a warning would be printed over the screen
@given(
    x=st.lists(ODD_NUMBERS, max_size=30),
    y=st.lists(ODD_NUMBERS, max_size=30),
    marks=st.lists(st.tuples(ODD_NUMBERS, ODD_NUMBERS), max_size=4),
    target=st.one_of(st.none(), ODD_NUMBERS),
    size=st.tuples(st.integers(0, 90), st.integers(0, 20)),
    axis=st.sampled_from(AXES),
    is_log=st.booleans(),
    charset=st.sampled_from(CHARSETS),
    keys=st.lists(st.integers(0, len(LOOKS) - 1), max_size=8),
)
@settings(max_examples=150, deadline=None)
def test_drawing_never_raises_whatever_the_numbers(
    x, y, marks, target, size, axis, is_log, charset, keys
):
    length = min(len(x), len(y))
    value = chart(x[:length], y[:length], marks=sorted(marks, key=repr), target=target)
    view = View(axis=axis, is_log=is_log)
    for key in keys:
        view = LOOKS[key](value, view)
    rows = draw_chart(value, *size, view=view, charset=charset)
    figure.readout(value, view, 80)

    assert len(rows) <= max(0, size[1])
    if size[0] >= 16:
        assert all(row_width(row) <= size[0] for row in rows)


def test_curve_falls_to_the_right_when_loss_falls():
    text = drawn(chart(range(100), np.linspace(4, 1, 100)))
    columns = [[i for i, char in enumerate(line) if has_dots(char)] for line in text]
    firsts = [min(found) for found in columns if found]

    assert firsts == sorted(firsts)
    assert len(firsts) >= 8


@pytest.mark.parametrize("num", [200, 20_000])
def test_gap_stays_a_gap_when_losses_are_nan(num):
    x = np.arange(float(num))
    y = np.full(num, 2.0)
    y[num * 2 // 5 : num * 3 // 5] = math.nan
    columns = Curve.of(y, {"step": x}).columns("step", positions(0, num - 1, 100), decay=0.9)
    dots = line(columns, Scale(bottom=1, top=3, num_rows=8))

    assert not dots[:, 42:58].any()
    assert dots[:, :38].any(axis=0).all()
    assert dots[:, 62:].any(axis=0).all()


def test_line_is_joined_when_points_are_sparse():
    curve = Curve.of([3.0, 2.0, 1.0], {"step": [0.0, 50.0, 100.0]})
    columns = curve.columns("step", positions(0, 100, 40))

    assert line(columns, Scale(bottom=1, top=3, num_rows=16)).any(axis=0).all()


def test_line_crosses_a_window_without_a_point_of_its_own():
    value = chart([0, 100, 200], [3.0, 2.0, 1.0])
    text = drawn(value, decay=0.0, window=Window(start=110, stop=190, is_anchored=False))

    assert sum(map(has_dots, "".join(text))) > 30


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_is_marked_and_does_not_stretch_the_axis(bad):
    y = np.linspace(3, 2, 50)
    y[25] = bad
    text = drawn(chart(range(50), y))

    assert text[0].count(ODD) == 1
    assert abs(text[0].index(ODD) - 33) <= 2
    assert "inf" not in "".join(text)
    assert "3.0" in "\n".join(text)


def test_raw_values_are_faint_under_their_moving_average():
    y = 2 + np.resize([0.5, -0.5], 400)

    assert {"faint", "line"} <= roles_of(chart(range(400), y), decay=0.9)
    assert "faint" not in {role for row in draw_chart(chart(range(400), y), 60, 12) for text, role
                           in row if has_dots(text)}  # fmt: skip
    assert [figure.decay(chart(range(n), np.ones(n)), View()) for n in (10, 700, 4000)] == (
        [0.0, 0.6, 0.9]
    )
    assert figure.title(chart([], []), View(decay=0.98)) == "loss  EMA .98  x: step"
    assert figure.title(chart([], []), View(decay=0.0)) == "loss  raw  x: step"


def test_moving_average_is_that_of_the_formula_without_what_is_not_finite():
    y = np.random.default_rng(0).normal(size=300)
    y[[0, 7, 200]] = math.nan
    curve, mean, weight, expected = Curve(), 0.0, 0.0, []
    for part in np.array_split(y, 5):
        curve.extend({}, part)
        curve.nearest("step", 0, decay=0.9)
    for value in y:
        if math.isfinite(value):
            mean, weight = 0.9 * mean + 0.1 * value, 0.9 * weight + 0.1
        expected.append(mean / weight if weight else math.nan)
    steps = np.arange(300.0)
    curve.truncate(0)
    curve.extend({"step": steps}, y)
    got = [curve.nearest("step", step, decay=0.9)[2] for step in steps]

    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_moving_average_is_the_same_when_points_come_in_parts():
    y = np.random.default_rng(1).normal(size=500)
    whole, parts = Curve.of(y), Curve()
    parts.nearest("step", 0, decay=0.98)
    at = np.arange(500.0)
    for piece in np.split(np.arange(500), [1, 3, 64, 65, 200, 333]):
        parts.extend({"step": at[piece]}, y[piece])
        parts.columns("step", positions(0, 499, 10), decay=0.98)
    for curve in (whole, parts):
        curve.columns("step", positions(0, 499, 10), decay=0.98)

    edges = positions(0, 499, 90)
    np.testing.assert_allclose(
        whole.columns("step", edges, decay=0.98).mean_C,
        parts.columns("step", edges, decay=0.98).mean_C,
        rtol=1e-12,
    )


def test_log_axis_drops_what_has_no_logarithm_and_says_when_nothing_has():
    y = np.geomspace(100, 0.01, 200)
    y[50], y[60] = 0.0, -1.0
    text = drawn(chart(range(200), y), is_log=True)
    labels = [row.split("┤")[0].strip() for row in text if "┤" in row]

    assert {"100", "10", "1", "0.1"} <= {label.removesuffix(".0") for label in labels}
    assert text[0].count(ODD) == 2
    none = chart(range(5), [-1.0] * 5)
    assert "nothing above 0" in figure.title(none, View(is_log=True))
    assert any(map(has_dots, drawn(none, is_log=True)))


@pytest.mark.parametrize(
    ("axis", "label"),
    [("step", "3.5K"), ("tokens", "3.5B"), ("train", "30:00"), ("wall", "30:00")],
)
def test_x_axis_is_labelled_in_its_own_unit(axis, label):
    text = drawn(falling(), 100, 12, axis=axis)[-1]

    assert axis in text
    assert label in text


def test_axis_that_was_not_measured_is_skipped():
    value = Chart(curve=Curve.of([1.0, 2.0], {"train": [1.0, 2.0]}))

    assert figure.with_next_axis(value, View()).axis == "train"
    assert figure.with_next_axis(value, View(axis="train")).axis == "step"


def test_target_line_and_label_are_drawn_when_the_target_lies_below():
    text = drawn(chart(range(100), np.linspace(4, 2, 100), target=1.7))
    row = next(row for row in text if "target" in row)

    assert row.strip().startswith("1.700")
    assert row.count("╌") > 20


def test_marks_keep_apart_and_include_the_newest_when_there_are_many():
    marks = [(x, 2.0) for x in range(0, 1000, 5)]
    text = drawn(chart(range(1000), np.full(1000, 2.0), marks=marks))
    row = next(row for row in text if VALIDATION in row)

    assert row.rstrip().endswith(VALIDATION)
    assert VALIDATION * 2 not in row


def test_mark_beyond_the_last_loss_is_inside():
    text = drawn(chart([0, 10, 20], [3.0, 2.5, 2.2], marks=[(30, 2.0)]))

    assert sum(row.count(VALIDATION) for row in text) == 1


def test_events_stand_on_the_rule_and_resumes_have_a_guide():
    events = (EventMark(step=1000, kind="checkpoint"), EventMark(step=2000, kind="resume"))
    events = (*events, EventMark(step=3000, kind="throttle"))
    text = drawn(falling(events=events))
    rule = text[-2]

    assert [rule.index(glyph) for glyph in "▾↻▲"] == sorted(rule.index(glyph) for glyph in "▾↻▲")
    assert sum(row[rule.index("↻")] == "┊" for row in text[:-2]) >= 5
    assert "┊" not in "".join(drawn(falling(events=events), has_guides=False))
    assert plain(figure.legend(falling(events=events), 80)) == "▲ throttle  ↻ resume  ▾ checkpoint"


def test_ghost_has_axes_of_its_own():
    slow = falling()
    step = np.arange(1, 400) * 10.0
    ghost = Curve.of(2.3 + 3 * np.exp(-step / 800), {"step": step, "train": step * 0.1})

    both = chart(step, 2 + 3 * np.exp(-step / 800), ghost=ghost)
    assert "ghost" in roles_of(both)
    assert "ghost" not in roles_of(slow)
    rows = draw_chart(both, 60, 12, view=View(axis="train"))
    starts = [plain(row[: at + 1]) for row in rows for at, span in enumerate(row) if
              span[1] == "ghost"]  # fmt: skip
    assert max(map(len, starts)) < 25  # the faster run ends at a fifth of the axis


def vals(noise: float = 0.0) -> list[tuple[float, float]]:
    rng = np.random.default_rng(3)
    return [(s, 6 - 0.5 * math.log(s) + noise * rng.normal()) for s in range(1000, 7000, 1000)]


def test_forecast_is_exact_when_the_points_lie_on_its_line():
    ahead = forecast(*zip(*vals(), strict=True), 1.5, limit=1e6)

    assert ahead.step == pytest.approx(math.exp(9))
    assert ahead.low == pytest.approx(ahead.step)
    assert ahead.high == pytest.approx(ahead.step)


def test_forecast_band_holds_the_estimate_and_grows_with_the_noise():
    quiet = forecast(*zip(*vals(0.001), strict=True), 1.5, limit=1e6)
    loud = forecast(*zip(*vals(0.01), strict=True), 1.5, limit=1e6)

    assert quiet.low < quiet.step < quiet.high
    assert loud.high - loud.low > 3 * (quiet.high - quiet.low)


@pytest.mark.parametrize(
    "points",
    [[], [(10, 3.0), (20, 2.0)], [(10, 2.0), (20, 2.1), (30, 2.2)], [(10, math.nan)] * 5,
     [(10, 3.0)] * 4, [(10, 5.0), (20, 4.999), (30, 4.998)]],
    ids=["none", "two", "rising", "nan", "one step", "beyond the limit"],
)  # fmt: skip
def test_there_is_no_forecast_when_nothing_says_so(points):
    steps, losses = [at for at, _ in points], [value for _, value in points]

    assert forecast(steps, losses, 1.5, limit=1000) is None


def test_forecast_is_dashed_to_the_target_with_its_band():
    points = vals(0.01)
    ahead = forecast(*zip(*points, strict=True), 1.5, limit=1e6)
    text = drawn(
        chart(*zip(*points, strict=True), marks=points, target=1.5, forecast=ahead), 100, 16
    )
    row = next(row for row in text if "target" in row)

    assert FORECAST in row
    assert "═" in row
    assert any(has_dots(char) for char in "".join(row[70:] for row in text))


@pytest.mark.parametrize(
    "y", [[], [math.nan, math.nan], [math.inf]], ids=["empty", "only nan", "only inf"]
)
def test_message_is_shown_when_nothing_can_be_drawn(y):
    text = "\n".join(drawn(chart(range(len(y)), y)))

    assert "no loss yet" in text


@pytest.mark.parametrize("y", [[2.0], [2.0, 2.0], [0.0, 0.0], [-1.0, 1.0]])
def test_flat_and_single_points_are_drawn(y):
    assert any(map(has_dots, drawn(chart(range(len(y)), y))))


def test_zoom_keeps_what_is_under_the_pointer():
    value = falling()
    view = figure.zoomed(value, View(), 0.25, at=1000.0)
    start, stop = figure.window(value, view)

    assert stop - start == pytest.approx(3990 / 4)
    assert (1000 - start) / (stop - start) == pytest.approx(1000 / 3990)
    assert figure.zoomed(value, view, 100.0).window is None


def test_zoom_without_a_pointer_follows_the_tail_until_panned_away():
    value = falling()
    view = figure.zoomed(value, View(), 0.25)
    value.curve.extend({"step": np.array([5000.0])}, np.array([2.0]))

    assert figure.window(value, view)[1] == 5000
    away = figure.panned(value, view, -0.5)
    kept = figure.window(value, away)
    value.curve.extend({"step": np.array([6000.0])}, np.array([2.0]))
    assert figure.window(value, away) == kept
    back = away
    for _ in range(9):
        back = figure.panned(value, back, 0.5)
    value.curve.extend({"step": np.array([7000.0])}, np.array([2.0]))
    assert figure.window(value, back)[1] == 7000


def test_next_axis_looks_at_the_same_points():
    value = falling()
    view = View(window=Window(start=1000, stop=2000, is_anchored=False), cursor=1500.0)
    view = figure.with_next_axis(value, view)

    assert view.axis == "tokens"
    assert figure.window(value, view) == (pytest.approx(1e9), pytest.approx(2e9))
    assert view.cursor == pytest.approx(1.5e9)


def test_cursor_reads_every_series():
    ghost = Curve.of([2.5, 2.5], {"step": [0.0, 4000.0]})
    value = falling(marks=[(1000, 2.9), (2000, 2.3)], ghost=ghost, ghost_name="record")
    text = plain(figure.readout(value, View(cursor=1990.0, decay=0.9), 200))

    assert text.startswith("1,990 2.249  EMA 2.2")
    assert "val at 2,000 2.300" in text
    assert "record 2.500" in text
    assert figure.readout(value, View(), 200) == ()
    assert len(plain(figure.readout(value, View(cursor=1990.0), 20))) <= 20
    assert "│" in "".join(row[8:] for row in drawn(value, cursor=1990.0))


def test_cursor_place_is_that_of_the_cell():
    value, size = falling(), (60, 12)

    assert cursor_at(value, View(), size, 59, "braille") == pytest.approx(3990)
    assert cursor_at(value, View(), size, 0, "braille") == 0
    assert math.isnan(cursor_at(value, View(), (5, 2), 3, "braille"))


def test_ascii_is_ascii_and_tells_the_layers_apart():
    noise = np.resize([0.4, -0.4], 400)
    value = chart(
        range(400), 2 + noise, marks=[(100, 2.2)], target=1.2, ghost=Curve.of([2.9, 2.9],
        {"step": [0.0, 399.0]}),
    )  # fmt: skip
    text = "".join(drawn(value, charset="ascii", decay=0.9))

    assert text.isascii()
    for glyph in (".", "@", "~", "- target -"):
        assert glyph in text


def test_cost_follows_columns_when_points_are_many():
    """The spans of 20 columns of a million points are no more than those of a hundred."""
    few = draw_chart(chart(np.arange(100), np.linspace(4, 1, 100)), 40, 10)
    many = draw_chart(chart(np.arange(1_000_000), np.linspace(4, 1, 1_000_000)), 40, 10)

    assert sum(map(len, many)) <= 2 * sum(map(len, few))


@pytest.mark.parametrize(("bottom", "top"), [(0.0, 1.0), (1.62, 1.71), (2.0, 11.0), (0, 123456)])
def test_ticks_are_round_and_inside(bottom, top):
    found = ticks(bottom, top, 5)

    assert 3 <= len(found) <= 11
    assert bottom - 1e-9 <= found[0] < found[-1] <= top + 1e-9


@pytest.mark.parametrize(
    ("bottom", "top", "texts"),
    [
        (0, 3, {"1", "10", "100", "1000"}),
        (0.3, 0.7, {"2.0", "3.0", "4.0", "5.0"}),
        (-2, 0, {"0.01", "0.1", "0.5", "1"}),
    ],
)
def test_log_ticks_are_powers_or_what_fits(bottom, top, texts):
    found = {tick.text for tick in log_ticks(bottom, top, 5)}

    assert found >= texts


def test_time_ticks_are_whole_minutes_and_hours():
    assert [tick.text for tick in x_ticks("train", 0, 1900, 6)] == (
        ["0:00", "10:00", "20:00", "30:00"]
    )
    assert [tick.text for tick in x_ticks("wall", 0, 20_000, 6)][1] == "1:00:00"


def test_dots_become_the_braille_characters_of_the_standard():
    dots = np.zeros((4, 2), dtype=np.bool_)
    dots[0, 0] = dots[3, 1] = True

    assert chr(characters(dots, "braille")[0][0, 0]) == "⢁"
    assert chr(characters(dots, "block")[0][0, 0]) == "▘"


def test_overlays_are_drawn_named_and_read_by_the_cursor():
    step = np.arange(1.0, 101.0)
    first, other = Curve.of(step * 0 + 1.0), Curve.of(step * 0 + 3.0)
    value = Chart(curve=first, overlays=(figure.Overlay(name="other", curve=other),))
    rows = draw_chart(value, 60, 12)
    roles = {role for row in rows for text, role in row if text.strip()}

    assert "accent" in roles
    assert "a ─── other" in plain(figure.legend(value, 60))
    read = plain(figure.readout(value, View(cursor=50.0), 60))
    assert "1.000" in read
    assert "other 3.000" in read


def test_overlays_alone_are_a_chart_and_widen_the_axis():
    value = Chart(overlays=(figure.Overlay(name="other", curve=Curve.of([2.0] * 500)),))

    assert any("┤" in plain(row) for row in draw_chart(value, 60, 12))
    assert figure.extent(value, View()) == (0.0, 499.0)


def test_overlays_are_letters_in_ascii_and_told_apart_by_dashes():
    curves = [Curve.of(np.full(300, float(level))) for level in range(6)]
    value = Chart(
        curve=Curve.of(np.full(300, 7.0)),
        overlays=tuple(
            figure.Overlay(name=str(at), curve=curve) for at, curve in enumerate(curves)
        ),
    )
    text = "\n".join(plain(row) for row in draw_chart(value, 80, 24, charset="ascii"))

    assert set("abcdef") <= set(text)
    assert len({(dash.on, dash.off) for dash in figure.DASHES}) == len(figure.DASHES)


def test_chart_without_room_says_so_and_an_empty_one_what_is_missing():
    full = Chart(curve=Curve.of([1.0, 2.0]))

    assert "no room" in plain(draw_chart(full, 40, 2)[0])
    assert "no loss yet" in plain(draw_chart(Chart(), 40, 2)[0])
