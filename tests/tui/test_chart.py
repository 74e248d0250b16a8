"""The line chart as plain rows, without an app."""

import math

import numpy as np
import pytest

from tui.widgets.braille import bucket, cells, line_dots
from tui.widgets.chart import MARK, Chart, draw_chart, y_ticks
from tui.widgets.rows import plain, row_width


def chart(x, y, *, marks=(), target=None) -> Chart:
    return Chart(
        revision=(1,),
        x_N=np.asarray(x, dtype=np.float64),
        y_N=np.asarray(y, dtype=np.float64),
        mark_x_N=np.array([at for at, _ in marks], dtype=np.float64),
        mark_y_N=np.array([value for _, value in marks], dtype=np.float64),
        target=target,
    )


def drawn(value: Chart, width: int = 60, height: int = 12) -> list[str]:
    return [plain(row) for row in draw_chart(value, width, height)]


def has_dots(text: str) -> bool:
    return any(0x2801 <= ord(char) <= 0x28FF for char in text)


@pytest.mark.parametrize("size", [(12, 3), (20, 5), (60, 12), (200, 50), (240, 67)])
def test_chart_fills_exactly_its_size_when_there_is_room(size):
    x = np.arange(1, 400) * 10
    rows = draw_chart(chart(x, 2 + 3 * np.exp(-x / 800), target=2.0), *size)

    assert len(rows) <= size[1]
    assert all(row_width(row) <= size[0] for row in rows)
    assert has_dots("".join(plain(row) for row in rows)) == (size != (12, 3))


@pytest.mark.parametrize("width", range(14))
@pytest.mark.parametrize("height", range(5))
def test_chart_draws_something_within_bounds_when_tiny(width, height):
    rows = draw_chart(chart([1, 2, 3], [3.0, 2.0, 1.0], target=0.5), width, height)

    assert len(rows) <= max(height, 0)


def test_curve_falls_to_the_right_when_loss_falls():
    text = drawn(chart(range(100), np.linspace(4, 1, 100)))
    columns = [[i for i, char in enumerate(line) if has_dots(char)] for line in text]
    firsts = [min(found) for found in columns if found]

    assert firsts == sorted(firsts)
    assert len(firsts) >= 8


def test_gap_stays_a_gap_when_losses_are_nan():
    x = np.arange(200)
    y = np.full(200, 2.0)
    y[80:120] = math.nan
    columns = bucket(x.astype(float), y, start=0, stop=199, num=100)
    dots = line_dots(columns, bottom=1, top=3, num_rows=8)

    assert not dots[:, 42:58].any()
    assert dots[:, :38].any(axis=0).all()
    assert dots[:, 62:].any(axis=0).all()


def test_line_is_joined_when_points_are_sparse():
    columns = bucket(np.array([0.0, 50.0, 100.0]), np.array([3.0, 2.0, 1.0]), start=0, stop=100,
                     num=40)  # fmt: skip

    assert line_dots(columns, bottom=1, top=3, num_rows=16).any(axis=0).all()


def test_infinite_losses_do_not_stretch_the_axis():
    y = np.linspace(3, 2, 50)
    y[10], y[20] = math.inf, -math.inf
    text = "\n".join(drawn(chart(range(50), y)))

    assert "inf" not in text
    assert "3.0" in text


def test_bucket_keeps_extremes_when_many_points_share_a_column():
    y = np.full(10_000, 2.0)
    y[5_000], y[5_001] = 9.0, 1.0
    columns = bucket(np.arange(10_000.0), y, start=0, stop=9_999, num=50)

    assert np.nanmax(columns.high_C) == 9.0
    assert np.nanmin(columns.low_C) == 1.0
    assert np.nanmax(columns.mean_C) < 2.1


def test_target_line_and_label_are_drawn_when_the_target_lies_below():
    text = drawn(chart(range(100), np.linspace(4, 2, 100), target=1.7))
    line = next(line for line in text if "target" in line)

    assert line.startswith("1.700") or " 1.700" in line
    assert line.count("╌") > 20


def test_marks_keep_apart_and_include_the_newest_when_there_are_many():
    marks = [(x, 2.0) for x in range(0, 1000, 5)]
    text = drawn(chart(range(1000), np.full(1000, 2.0), marks=marks))
    line = next(line for line in text if MARK in line)

    assert line.rstrip().endswith(MARK)
    assert MARK * 2 not in line


def test_mark_beyond_the_last_loss_is_inside():
    text = drawn(chart([0, 10, 20], [3.0, 2.5, 2.2], marks=[(30, 2.0)]))

    assert sum(line.count(MARK) for line in text) == 1


@pytest.mark.parametrize(
    "y", [[], [math.nan, math.nan], [math.inf]], ids=["empty", "only nan", "only inf"]
)
def test_message_is_shown_when_nothing_can_be_drawn(y):
    text = "\n".join(drawn(chart(range(len(y)), y)))

    assert "no loss yet" in text


@pytest.mark.parametrize("y", [[2.0], [2.0, 2.0], [0.0, 0.0], [-1.0, 1.0]])
def test_flat_and_single_points_are_drawn(y):
    assert any(map(has_dots, drawn(chart(range(len(y)), y))))


def test_cost_follows_columns_when_points_are_many():
    """20 columns of a million points hold no more spans than 20 columns of a hundred."""
    few = draw_chart(chart(np.arange(100), np.linspace(4, 1, 100)), 40, 10)
    many = draw_chart(chart(np.arange(1_000_000), np.linspace(4, 1, 1_000_000)), 40, 10)

    assert sum(map(len, many)) <= 2 * sum(map(len, few))


@pytest.mark.parametrize(("bottom", "top"), [(0.0, 1.0), (1.62, 1.71), (2.0, 11.0), (0, 123456)])
def test_ticks_are_round_and_inside(bottom, top):
    ticks = y_ticks(bottom, top, 5)

    assert 3 <= len(ticks) <= 11
    assert bottom - 1e-9 <= ticks[0] < ticks[-1] <= top + 1e-9


def test_dots_become_the_braille_characters_of_the_standard():
    dots = np.zeros((4, 2), dtype=np.bool_)
    dots[0, 0] = dots[3, 1] = True

    assert cells(dots)[0] == ["⢁"]
