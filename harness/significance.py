"""What luck alone would explain: tests and intervals for losses and times of repeated runs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

from harness.errors import UsageError

OLYMPIC_RUNS = 10
# Fewer differences all have one sign by chance more often than once in twenty: 2 * 0.5^5.
MIN_PAIRS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Sigma:
    """A spread of final losses between seeds: from so many degrees of freedom, None if given."""

    value: float
    df: int | None
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Test:
    """One-sided: how surely the mean loss is below the target."""

    mean: float
    z: float
    p: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean difference with its 95 % interval; None bounds for a single pair."""

    n: int
    mean: float
    low: float | None
    high: float | None

    @property
    def excludes_zero(self) -> bool:
        """Whether luck alone does not explain the difference; with few pairs it may explain any."""
        if self.n < MIN_PAIRS:
            return False
        return self.low is not None and self.high is not None and self.low * self.high > 0


def test_below(losses: Sequence[float], target: float, sigma: Sigma) -> Test:
    """z = (target - mean) sqrt(n) / sigma, and the chance of it when the true mean is the target.

    From a sigma that was estimated, the chance is Student's. UsageError when sigma is zero, for
    then the runs are copies.
    """
    if not sigma.value > 0:
        raise UsageError(
            "the losses of the repeats are all equal", "Repeats need seeds of their own."
        )
    mean = fmean(losses)
    z = (target - mean) * math.sqrt(len(losses)) / sigma.value
    p = NormalDist().cdf(-z) if sigma.df is None else student_tail(z, sigma.df)
    return Test(mean=mean, z=z, p=p)


def pooled(groups: Sequence[tuple[float, int]]) -> Sigma:
    """The common spread of groups, given as (standard deviation, members)."""
    df = sum(members - 1 for _, members in groups)
    if df < 1:
        raise UsageError("a spread needs at least two runs", "Run more repeats.")
    variance = sum((members - 1) * sd**2 for sd, members in groups) / df
    origin = f"{len(groups)} set(s) of repeats of this cohort"
    return Sigma(value=math.sqrt(variance), df=df, origin=origin)


def student_tail(t: float, df: int) -> float:
    """The chance that Student's t with `df` degrees of freedom exceeds `t`.

    The finite sums of Abramowitz and Stegun 26.7.3 and 26.7.4.
    """
    angle = math.atan(abs(t) / math.sqrt(df))
    cosine = math.cos(angle)
    term = total = cosine if df % 2 else 1.0
    for k in range(3 if df % 2 else 2, df, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    if df % 2:
        inner = angle if df == 1 else angle + math.sin(angle) * total
        inside = 2 / math.pi * inner
    else:
        inside = math.sin(angle) * total
    tail = max(0.0, (1 - inside) / 2)
    return tail if t >= 0 else 1 - tail


def proportions_p(a: float, n_a: int, b: float, n_b: int) -> float:
    """The two-sided chance of a difference so large between two fractions of right answers.

    Normal, with one pooled fraction, for independent items. Two models that answer the same items
    differ less by chance than that, so it errs to the careful side.
    """
    pooled_frac = (a * n_a + b * n_b) / (n_a + n_b)
    variance = pooled_frac * (1 - pooled_frac) * (1 / n_a + 1 / n_b)
    if variance <= 0:
        return 1.0
    return min(1.0, 2 * NormalDist().cdf(-abs(a - b) / math.sqrt(variance)))


def mean_time(times_s: Sequence[float], *, failed: int) -> float:
    """The mean; from ten runs on without fastest and slowest, for which one that failed counts."""
    ordered = sorted(times_s)
    if len(ordered) + failed >= OLYMPIC_RUNS:
        ordered = ordered[1:] if failed else ordered[1:-1]
    return fmean(ordered)


def spread(values: Sequence[float]) -> float:
    """The standard deviation of a sample; 0 for a single value."""
    return stdev(values) if len(values) > 1 else 0.0
