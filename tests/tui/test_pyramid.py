"""The pyramid against the plain computation."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tui.widgets.pyramid import Column, Pyramid

NUMBERS = st.one_of(
    st.floats(-1e6, 1e6), st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 1e308])
)


def check(pyramid: Pyramid, values: np.ndarray, rng: np.random.Generator) -> None:
    start = rng.integers(0, len(values) + 2, 40)
    stop = rng.integers(0, len(values) + 2, 40)
    low, high = pyramid.query(start, stop)
    odd = pyramid.has_odd(start, stop)
    for at, (begin, end) in enumerate(zip(start, stop, strict=True)):
        part = values[begin:end]
        finite = part[np.isfinite(part)]
        if len(finite):
            assert (low[at], high[at]) == (finite.min(), finite.max())
        else:
            assert math.isnan(low[at])
            assert math.isnan(high[at])
        assert odd[at] == (len(finite) < len(part))


@given(
    parts=st.lists(st.lists(NUMBERS, max_size=70), max_size=6),
    repeats=st.integers(1, 40),
    kept=st.floats(0, 1),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_extremes_are_those_of_the_numbers_however_they_came(parts, repeats, kept, seed):
    pyramid, rng = Pyramid(), np.random.default_rng(seed)
    values = np.array([number for part in parts for number in part] * repeats, dtype=np.float64)
    for part in np.array_split(values, max(1, len(parts))):
        pyramid.extend(part)
    assert len(pyramid) == len(values)
    check(pyramid, values, rng)
    length = int(kept * len(values))
    pyramid.truncate(length)
    pyramid.extend(values[:33])
    check(pyramid, np.r_[values[:length], values[:33]], rng)


def test_levels_are_as_many_as_the_numbers_need():
    pyramid = Pyramid()
    pyramid.extend(np.arange(16.0**3))
    low, high = pyramid.query(np.array([1]), np.array([4095]))

    assert (low[0], high[0]) == (1, 4094)


def test_column_keeps_its_numbers_when_it_grows():
    column = Column()
    for number in range(1000):
        column.extend(np.array([float(number)]))

    assert column.values.tolist() == list(range(1000))
