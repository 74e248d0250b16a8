"""Statistics against tables, against simulation, and at their edges."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import significance
from harness.compare import paired
from harness.errors import UsageError
from harness.significance import Sigma

RULES = Sigma(value=0.0013, df=None, origin="the rules")


@pytest.mark.parametrize(
    ("t", "df", "tail"),
    [
        # upper quantiles of Student's t, as printed in tables
        (6.314, 1, 0.05),
        (2.920, 2, 0.05),
        (4.303, 2, 0.025),
        (2.353, 3, 0.05),
        (2.776, 4, 0.025),
        (3.250, 9, 0.005),
        (2.228, 10, 0.025),
        (2.660, 60, 0.005),
        (0.0, 7, 0.5),
    ],
)
def test_student_tail_is_that_of_the_tables(t: float, df: int, tail: float) -> None:
    assert significance.student_tail(t, df) == pytest.approx(tail, rel=2e-3)
    assert significance.student_tail(-t, df) == pytest.approx(1 - tail, rel=2e-3)


@given(t=st.floats(0, 50), df=st.integers(1, 300))
def test_student_tail_falls_and_is_heavier_than_the_normal(t: float, df: int) -> None:
    tail = significance.student_tail(t, df)
    assert 0 <= tail <= 0.5
    assert tail >= 0.5 * math.erfc(t / math.sqrt(2)) * (1 - 1e-6) - 1e-12
    assert significance.student_tail(t + 1, df) <= tail + 1e-12


@pytest.mark.parametrize(("margin", "runs"), [(0.004, 1), (0.003, 2), (0.002, 4), (0.001, 16)])
def test_runs_needed_for_a_margin_are_those_of_the_rule(margin: float, runs: int) -> None:
    """(target - mean) sqrt(n) >= 0.004 with sigma 0.0013 is p < 0.0011."""
    found = significance.test_below([3.28 - margin] * runs, 3.28, RULES)
    assert found.z == pytest.approx(margin * math.sqrt(runs) / 0.0013)
    assert found.p < 0.0011
    assert found.z >= 0.004 / 0.0013 - 1e-9


def test_mean_above_the_target_is_no_evidence() -> None:
    assert significance.test_below([3.281, 3.282], 3.28, RULES).p > 0.5


def test_equal_losses_are_refused_because_they_are_copies() -> None:
    sigma = significance.pooled([(0.0, 3)])
    with pytest.raises(UsageError, match="all equal"):
        significance.test_below([1.0, 1.0, 1.0], 1.3, sigma)


def test_spread_is_pooled_by_degrees_of_freedom() -> None:
    found = significance.pooled([(0.002, 3), (0.001, 11)])
    assert found.df == 12
    assert found.value == pytest.approx(math.sqrt((2 * 0.002**2 + 10 * 0.001**2) / 12))
    with pytest.raises(UsageError, match="at least two"):
        significance.pooled([(0.0, 1)])


def test_mean_time_leaves_out_the_ends_from_ten_runs_on() -> None:
    times = [float(i) for i in range(9)]
    assert significance.mean_time(times, failed=0) == 4.0
    assert significance.mean_time([*times, 100.0], failed=0) == sum(range(1, 9)) / 8
    # the one that failed is the slowest
    assert significance.mean_time(times, failed=1) == sum(range(1, 9)) / 8


def test_paired_interval_covers_the_difference_and_needs_two_pairs() -> None:
    rng = np.random.default_rng(1)
    a = rng.normal(100, 5, 16)
    b = a - 2 + rng.normal(0, 0.5, 16)
    found = paired(list(a), list(b))
    assert found.low is not None
    assert found.high is not None
    assert found.low < -2 + 0.3
    assert found.high > -2 - 0.3
    assert found.excludes_zero
    assert found == paired(list(a), list(b))
    alone = paired([1.0], [2.0])
    assert (alone.n, alone.mean, alone.low, alone.excludes_zero) == (1, 1.0, None, False)


@pytest.mark.parametrize(("pairs", "share"), [(2, 0.0), (3, 0.0), (5, 0.0), (6, 0.2), (20, 0.12)])
def test_paired_interval_holds_its_level(pairs: int, share: float) -> None:
    """Without a difference, few intervals exclude zero: a bootstrap of few pairs is too narrow."""
    rng = np.random.default_rng(2)
    wrong = 0
    for _ in range(100):
        a, b = rng.normal(0, 1, pairs), rng.normal(0, 1, pairs)
        wrong += paired(list(a), list(b)).excludes_zero
    assert wrong <= 100 * share


def test_difference_of_two_fractions_is_as_unlikely_as_drawing_it():
    """300 and 340 right of 1,000: z = -1.917 by hand; drawing both says the same."""
    p = significance.proportions_p(0.30, 1000, 0.34, 1000)
    assert p == pytest.approx(0.0552, abs=0.0002)

    right = np.random.default_rng(0).binomial(1000, 0.32, size=(2, 200_000))
    apart = np.abs(right[0] - right[1])
    assert np.mean(apart > 40) + np.mean(apart == 40) / 2 == pytest.approx(p, rel=0.03)


def test_fractions_without_spread_differ_by_nothing():
    assert significance.proportions_p(0.0, 10, 0.0, 1000) == 1.0
    assert significance.proportions_p(1.0, 10, 1.0, 10) == 1.0
