"""The heat map as plain rows, without an app."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tui.widgets.ascii import to_ascii
from tui.widgets.heatmap import (
    GLYPHS,
    LOAD_BOUNDS,
    ZERO,
    HeatMap,
    Place,
    draw_heatmap,
    hottest,
    legend,
    moved,
    place_at,
    readout,
)
from tui.widgets.rows import plain, row_width


def even(num_rows: int, num_columns: int) -> np.ndarray:
    return np.ones((num_rows, num_columns))


def drawn(values, width: int = 76, height: int = 14) -> list[str]:
    return [plain(row) for row in draw_heatmap(HeatMap(values_RC=values), width, height)]


@pytest.mark.parametrize(("num_rows", "num_columns"), [(2, 8), (12, 64), (12, 256), (24, 4096)])
@pytest.mark.parametrize("size", [(56, 8), (76, 14), (158, 30), (236, 60)])
def test_one_hot_expert_survives_wherever_it_is(num_rows, num_columns, size):
    rng = np.random.default_rng(0)
    for _ in range(10):
        values = even(num_rows, num_columns)
        row, column = rng.integers(num_rows), rng.integers(num_columns)
        values[row, column] = 9.0
        heat = HeatMap(values_RC=values)
        rows = draw_heatmap(heat, *size)
        hot = [
            (x, y) for y, drawn_row in enumerate(rows[:-1])
            for x, char in enumerate(plain(drawn_row)) if char == GLYPHS[-1]
        ]  # fmt: skip
        assert len(hot) == 1
        assert place_at(heat, size, *hot[0]) == Place(row=row, column=column)


@pytest.mark.parametrize(("value", "glyph"), zip([0.4, 0.6, 1.0, 1.5, 3.0, 4.0], GLYPHS,
                                                 strict=True))  # fmt: skip
def test_class_is_told_by_glyph_and_by_role(value, glyph):
    rows = draw_heatmap(HeatMap(values_RC=even(1, 8) * value), 40, 3)

    assert (glyph * 8, f"heat{GLYPHS.index(glyph) + 1}") in rows[0]


def test_expert_without_a_row_and_layer_that_is_not_known_have_their_own_glyph():
    values = even(2, 8)
    values[0, 3], values[1] = 0.0, math.nan
    text = drawn(values)

    assert text[0].split()[1][3] == ZERO
    assert "1 none" in text[0]
    assert text[1].split()[1:] == ["????????", "N/A"]


def test_glyphs_stay_apart_in_ascii():
    assert len(set(to_ascii(GLYPHS + ZERO + "?"))) == len(GLYPHS) + 2


def test_legend_names_every_class_when_there_is_room():
    text = plain(legend(HeatMap(values_RC=even(1, 1)), 200))

    for bound in LOAD_BOUNDS:
        assert f"<{bound:g}" in text
    assert all(glyph in text for glyph in GLYPHS + ZERO)
    assert row_width(legend(HeatMap(values_RC=even(1, 1)), 20)) <= 20


def test_cursor_reads_the_number_its_rank_and_the_hottest():
    values = np.arange(1.0, 13.0).reshape(2, 6)
    heat = HeatMap(values_RC=values, row_names=("3", "7"))

    text = plain(readout(heat, Place(row=1, column=1), 200))
    assert text == "layer 7 expert 1 8.00 x even  rank 5 of 6  hottest of the layer 12.00 at 5"
    assert readout(heat, Place(row=5, column=1), 200) == ()
    row = draw_heatmap(heat, 60, 5, cursor=Place(row=1, column=1))[1]
    assert [role for _, role in row].count("cursor") == 1


def test_cursor_begins_at_the_hottest_and_stays_inside():
    values = even(3, 4)
    values[2, 1] = 5
    heat = HeatMap(values_RC=values)

    assert moved(heat, None, 0, 1) == hottest(heat) == Place(row=2, column=1)
    assert moved(heat, Place(row=0, column=0), -1, 9) == Place(row=0, column=3)
    assert moved(HeatMap(), None, 0, 1) is None


NUMBERS = st.one_of(st.floats(), st.sampled_from([0.0, 1.0, math.nan, math.inf, -math.inf]))


@pytest.mark.filterwarnings("error:.*encountered")
@given(
    values=hnp.arrays(np.float64, st.tuples(st.integers(0, 9), st.integers(0, 40)),
                      elements=NUMBERS),
    size=st.tuples(st.integers(0, 70), st.integers(0, 12)),
    cursor=st.one_of(
        st.none(), st.builds(Place, row=st.integers(-2, 12), column=st.integers(-2, 50))
    ),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_drawing_never_raises_and_keeps_its_bounds(values, size, cursor):
    rows = draw_heatmap(HeatMap(values_RC=values), *size, cursor=cursor)
    for y in range(-1, size[1] + 1):
        place_at(HeatMap(values_RC=values), size, size[0] // 2, y)

    assert len(rows) <= size[1]
    if size[0] >= 16:
        assert all(row_width(row) <= size[0] for row in rows)
