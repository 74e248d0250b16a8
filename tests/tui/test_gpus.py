"""GPU rows and meters as plain rows, without an app."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.status import RunStatus
from tests.tui.drawings import gpus
from tui.widgets.ascii import to_ascii
from tui.widgets.gpus import Gpu, draw_gpu_line, draw_gpus, state
from tui.widgets.meters import Share, meter, share_legend, shares, spark
from tui.widgets.rows import plain, row_width
from tui.widgets.states import GPU_SIGNS, SIGNS

WELL = replace(gpus()[0], rank=1)  # a rank is shown where it is not the index


def header(width: int, every=None) -> list[str]:
    return plain(draw_gpus(every or gpus(), width, 12)[0]).split()


def test_columns_fall_away_by_width_the_least_important_first():
    seen = [set(header(width, [WELL])) for width in range(240, 20, -1)]

    assert {"gpu", "state", "util", "memory", "power", "heat", "MHz", "SM", "tensor", "NVLink",
            "rank", "slowed", "by"} == seen[0]  # fmt: skip
    for wide, narrow in zip(seen, seen[1:], strict=False):
        assert len(narrow) <= len(wide)
    assert {"gpu", "state", "util", "power", "heat"} <= set(header(58))
    assert {"memory", "power"} <= set(header(78))
    assert {"gpu", "state"} <= seen[-1]


def test_columns_that_no_gpu_knows_are_left_out():
    bare = [replace(WELL, sm=None, tensor=None, nvlink_bytes_s=None, rank=None)]

    assert not {"SM", "tensor", "NVLink", "rank"} & set(header(240, bare))


@pytest.mark.parametrize(
    ("gpu", "word"),
    [
        (WELL, "ok"),
        (replace(WELL, throttle=0x01), "ok"),
        (replace(WELL, throttle=0x04), "capped"),
        (replace(WELL, throttle=0x0C), "slowed"),
        (replace(WELL, throttle=0x40), "slowed"),
        (replace(WELL, throttle=0x80), "slowed"),
        (replace(WELL, throttle=None, is_behind=True), "behind"),
        (replace(WELL, util=0.0), "idle"),
        (Gpu(index=0), "n/a"),
        (Gpu(index=0, is_lost=True), "lost"),
    ],
)
def test_state_is_a_glyph_a_word_and_a_colour(gpu, word):
    row = draw_gpus([gpu], 100, 3)[1]
    sign = state(gpu)

    assert sign.word == word
    assert (f"{sign.glyph} {word}", sign.role) in row


def test_what_is_not_known_is_never_zero():
    text = plain(draw_gpus([Gpu(index=3), WELL], 240, 6)[1])

    assert text.split()[:3] == ["3", "∅", "n/a"]
    assert set(text.split()[3:]) == {"N/A"}
    assert "0 %" not in text


def test_those_in_trouble_are_shown_when_not_all_fit():
    rows = [plain(row) for row in draw_gpus(gpus(), 100, 5)]

    assert [row.split()[2] for row in rows[1:4]] == ["slowed", "behind", "lost"]
    assert rows[4] == "and 5 more: 2 ok, 1 capped, 1 idle, 1 n/a"


def test_one_row_says_what_is_wrong_first():
    text = plain(draw_gpu_line(gpus(), 120))

    assert text.startswith("GPU ███")
    assert text.index("lost 6") < text.index("slowed 2") < text.index("behind 3")
    assert text.endswith("97 °C") or "91 °C" in text
    assert plain(draw_gpus([], 20, 3)[0]) == "no GPU"


ODD = st.one_of(st.none(), st.floats(), st.sampled_from([0.0, -5.0, 1e300]))
WHOLE = st.one_of(st.none(), st.integers(-5, 1 << 62))


@given(
    every=st.lists(
        st.builds(Gpu, index=st.integers(0, 99), util=ODD, sm=ODD, tensor=ODD, power_w=ODD,
                  power_limit_w=ODD, temperature_c=ODD, memory_used_bytes=WHOLE,
                  memory_total_bytes=WHOLE, throttle=st.one_of(st.none(), st.integers(0, 1023)),
                  nvlink_bytes_s=ODD, sm_mhz=WHOLE, is_lost=st.booleans()),
        max_size=20,
    ),
    size=st.tuples(st.integers(0, 200), st.integers(0, 24)),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_drawing_never_raises_and_keeps_its_bounds(every, size):
    rows = draw_gpus(every, *size)

    assert len(rows) <= size[1]
    assert all(row_width(row) <= size[0] for row in rows)


@pytest.mark.parametrize("frac", [0.0, 0.01, 0.5, 0.999, 1.0, -1.0, 7.0, math.inf, math.nan, None])
@pytest.mark.parametrize("width", [0, 1, 2, 7, 40])
def test_meter_is_exactly_as_wide_as_asked(frac, width):
    assert row_width(meter(frac, width, "good")) == width


def test_meter_grows_by_eighths_and_tells_unknown_from_empty():
    assert plain(meter(0.5, 4, "good")) == "██··"
    assert plain(meter(0.53125, 4, "good")) == "██▏·"
    assert plain(meter(0.0, 4, "good")) == "····"
    assert plain(meter(None, 4, "good")) == "N/A "
    assert plain(spark([0.0, 1.0, None, math.nan], "line")) == "▁█??"


@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=6),
    st.integers(0, 60),
)
@settings(max_examples=150, deadline=None)
def test_shares_fill_the_width_whatever_the_amounts(amounts, width):
    parts = [Share(name=f"part {i}", amount=amount) for i, amount in enumerate(amounts)]
    row = shares(parts, width)

    if width >= len(amounts):
        assert row_width(row) == width
    assert row_width(share_legend(parts, width)) <= width


def test_share_that_is_not_nothing_has_a_cell():
    parts = [Share(name="a", amount=1e6), Share(name="b", amount=1), Share(name="c", amount=0)]

    assert [len(text) for text, _ in shares(parts, 10)] == [9, 1]
    assert len({text[0] for text, _ in shares(parts, 10)}) == 2


def test_every_state_of_a_run_has_a_sign_that_stays_its_own_in_ascii():
    assert set(SIGNS) == set(RunStatus.__args__)
    for signs in (SIGNS, GPU_SIGNS):
        assert len({to_ascii(sign.glyph).strip() for sign in signs.values()}) == len(signs)
        assert all(to_ascii(sign.glyph).isascii() for sign in signs.values())
        assert "?" not in {to_ascii(sign.glyph).strip() for sign in signs.values()}


def test_ascii_keeps_the_width_of_what_it_replaces():
    for text in ("⚡ INTERRUPTED", "⏳ STALLED", "日本 é", "╌◆→", "plain"):
        assert row_width(((to_ascii(text), "text"),)) == row_width(((text, "text"),))
