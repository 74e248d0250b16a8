"""Numbers to text: the forms that screens and lines rely on, and values no machine should send."""

import math
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import format as fmt

FORMATTERS = [
    fmt.seconds,
    fmt.exact_seconds,
    fmt.age,
    fmt.milliseconds,
    fmt.count,
    fmt.tokens,
    fmt.loss,
    fmt.core,
    fmt.scientific,
    fmt.percent,
    fmt.bytes_,
    fmt.gib,
    fmt.fixed,
]


def test_time_of_day_is_of_here_or_marked_as_utc(monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert fmt.time_of_day(3661) == "10:01:01"
    finally:
        monkeypatch.undo()
        time.tzset()
    assert fmt.time_of_day(3661, is_utc=True) == "01:01:01Z"
    assert fmt.time_of_day(1e30) == fmt.time_of_day(math.nan) == "--:--:--"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (fmt.seconds(7), "0:07"),
        (fmt.seconds(59.6), "1:00"),
        (fmt.seconds(2537), "42:17"),
        (fmt.seconds(4284), "1:11:24"),
        (fmt.seconds(-131), "-2:11"),
        (fmt.seconds(-0.2), "0:00"),
        (fmt.exact_seconds(2537), "2537.0 s"),
        (fmt.age(12.9), "12 s"),
        (fmt.age(300), "5 min"),
        (fmt.age(3 * 3600), "3 h"),
        (fmt.age(200_000), "2 d"),
        (fmt.milliseconds(0.42), "0.42 ms"),
        (fmt.milliseconds(123.4), "123 ms"),
        (fmt.milliseconds(999.7), "1 s"),
        (fmt.milliseconds(2500), "2.5 s"),
        (fmt.count(4864), "4,864"),
        (fmt.tokens(512), "512"),
        (fmt.tokens(32_768), "32.8K"),
        (fmt.tokens(999_999), "1M"),
        (fmt.tokens(2_500_000_000), "2.5B"),
        (fmt.tokens(2_550_136_832), "2.55B"),
        (fmt.rate(1_010_000), "1.01M tok/s"),
        (fmt.rate(None), "–"),
        (fmt.loss(3.27415), "3.274"),
        (fmt.core(0.06443), "0.0644"),
        (fmt.core(-0.00001), "0.0000"),
        (fmt.scientific(1.8e-3), "1.8e-3"),
        (fmt.scientific(0), "0"),
        (fmt.percent(0.614), "61 %"),
        (fmt.percent(0.614, decimals=1), "61.4 %"),
        (fmt.bytes_(512), "512 B"),
        (fmt.bytes_(1_572_864), "1.5 MiB"),
        (fmt.bytes_(1023 * 1024), "1 MiB"),
        (fmt.gib(150_118_727_680), "139.8 GiB"),
        (fmt.fixed(71, unit="°C"), "71 °C"),
        (fmt.fixed(None, unit="W", none=fmt.NOT_AVAILABLE), "N/A"),
    ],
)
def test_format_gives_the_agreed_form(text: str, expected: str) -> None:
    assert text == expected


@pytest.mark.parametrize("formatter", FORMATTERS)
def test_format_never_draws_a_missing_value_as_a_number(formatter: Callable[..., str]) -> None:
    assert formatter(None) == "–"
    assert formatter(None, none="N/A") == "N/A"
    assert formatter(math.nan) == "nan"
    assert formatter(math.inf) == "inf"
    assert formatter(-math.inf) == "-inf"
    assert formatter(10**400) == "inf"


@given(value=st.one_of(st.floats(), st.integers()))
def test_format_gives_one_short_line_for_every_number(value: float) -> None:
    for formatter in FORMATTERS:
        text = formatter(value)
        assert text
        assert "\n" not in text


@given(seconds=st.integers(min_value=0, max_value=10**7))
def test_seconds_can_be_read_back(seconds: int) -> None:
    total = 0
    for part in fmt.seconds(seconds).split(":"):
        total = total * 60 + int(part)
    assert total == seconds


@given(value=st.floats(min_value=1, max_value=9e14))
def test_tokens_stays_within_half_a_percent_in_five_characters(value: float) -> None:
    text = fmt.tokens(value)
    factor = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}.get(text[-1], 1)
    number = float(text.rstrip("KMBT"))
    assert len(text) <= 5
    # Below 1000 the number is rounded to a whole one.
    assert abs(number * factor - value) <= max(0.5, 0.0051 * value)
