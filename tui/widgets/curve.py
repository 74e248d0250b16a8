"""A curve that grows: points on several x axes, asked for by the columns of a drawing.

What is kept beside the points grows with them - extremes, their logarithms once they are asked for,
moving averages - so that a drawing of C columns costs C whatever the number of points.

Legend: N points, C columns.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from tui.widgets.pyramid import Bools, Column, Floats, Pyramid

Axis: TypeAlias = Literal["step", "tokens", "train", "wall"]
AXES: tuple[Axis, ...] = ("step", "tokens", "train", "wall")
_BLOCK = 64  # of the moving average: a product of matrices each, and one number carried on
MAX_X = 1e100  # beyond, a place on an axis is taken for a mistake
_TAIL = 20  # points the speed of an axis beyond the last point is taken from


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Columns:
    """Low, high and moving average a column, NaN without a finite point; `odd` holds another.

    `before` and `after` are the finite points next to the window: column, value, average.
    """

    low_C: Floats
    high_C: Floats
    mean_C: Floats
    odd_C: Bools
    before: tuple[float, float, float] | None = None
    after: tuple[float, float, float] | None = None


class Average:
    """The exponential moving average of a growing column; what is not finite leaves it alone.

    y_n = s_n / (1 - a^n) with s_n = a s_(n-1) + (1 - a) x_n: without the pull towards 0 that the
    first values would feel.
    """

    __slots__ = ("_count", "_decay", "_sum", "values")

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._sum = 0.0
        self._count = 0
        self.values = Column()

    def extend(self, values_N: Floats) -> None:
        """Append numbers; the average before the first finite one is NaN."""
        finite_N = np.isfinite(values_N)
        last = self.values.values[-1] if self.values.length else np.nan
        means = np.r_[last, self._averaged(values_N[finite_N])]
        self.values.extend(means[np.cumsum(finite_N)])

    def _averaged(self, values_N: Floats) -> Floats:
        length = len(values_N)
        padded = np.zeros(-(-length // _BLOCK) * _BLOCK)
        padded[:length] = values_N
        powers = self._decay ** np.arange(_BLOCK + 1)
        apart = np.subtract.outer(np.arange(_BLOCK), np.arange(_BLOCK))
        weights = np.where(apart >= 0, (1 - self._decay) * powers[np.abs(apart)], 0.0)
        with np.errstate(over="ignore", invalid="ignore"):
            sums = padded.reshape(-1, _BLOCK) @ weights.T
            for row in sums:
                row += self._sum * powers[1:]
                self._sum = float(row[-1])
            sums_N = sums.ravel()[:length]
            counts_N = self._count + np.arange(1, length + 1)
            means_N = sums_N / (1 - self._decay**counts_N)
        if length:
            self._sum, self._count = float(sums_N[-1]), self._count + length
        return means_N


class Curve:
    """Points in the order of their steps; `revision` changes whenever they do."""

    def __init__(self) -> None:
        self._x: dict[Axis, Column] = {axis: Column() for axis in AXES}
        self._y = Column()
        self._linear = Pyramid()
        self._log: Pyramid | None = None
        self._averages: dict[float, Average] = {}
        self.revision = 0

    @staticmethod
    def of(values: ArrayLike, x: Mapping[Axis, ArrayLike] | None = None) -> "Curve":
        """A curve of whole columns, by axis; steps are counted when none are given."""
        curve = Curve()
        y_N = np.asarray(values, dtype=np.float64)
        x_N: dict[Axis, Floats] = {"step": np.arange(len(y_N), dtype=np.float64)}
        for axis, column in (x or {}).items():
            x_N[axis] = np.asarray(column, dtype=np.float64)
        curve.extend(x_N, y_N)
        return curve

    def __len__(self) -> int:
        return self._y.length

    def extend(self, x_N: Mapping[Axis, Floats], y_N: Floats) -> None:
        """Append points; an axis that is not given, or falls, stands still at its last value."""
        for axis, column in self._x.items():
            last = column.values[-1] if column.length else 0.0
            given_N = x_N[axis] if axis in x_N else np.full(len(y_N), last)
            rising_N = np.where(np.abs(given_N) <= MAX_X, given_N, -np.inf)
            column.extend(np.maximum(np.maximum.accumulate(rising_N), last))
        self._y.extend(y_N)
        self._linear.extend(y_N)
        if self._log is not None:
            self._log.extend(_log10(y_N))
        for average in self._averages.values():
            average.extend(y_N)
        self.revision += 1

    def truncate(self, length: int) -> None:
        """Keep the first `length` points."""
        for column in (*self._x.values(), self._y):
            column.truncate(length)
        self._linear.truncate(length)
        if self._log is not None:
            self._log.truncate(length)
        self._averages.clear()
        self.revision += 1

    def has(self, axis: Axis) -> bool:
        """Whether the axis tells points apart."""
        x_N = self._x[axis].values
        return axis == "step" or bool(len(x_N) and x_N[-1] > 0)

    def stop(self, axis: Axis) -> float:
        """The largest x; 0 without points."""
        x_N = self._x[axis].values
        return float(x_N[-1]) if len(x_N) else 0.0

    def has_positive(self) -> bool:
        """Whether a logarithmic axis has anything to show."""
        _, high = self._linear.query(np.zeros(1, np.int64), np.full(1, len(self)))
        return bool(high[0] > 0)

    def columns(
        self, axis: Axis, edges: Floats, *, decay: float = 0.0, is_log: bool = False
    ) -> Columns:
        """The points between `edges` [C + 1], a column each; y as log10 when `is_log`."""
        at = np.searchsorted(self._x[axis].values, edges, side="left").astype(np.int64)
        start_C, stop_C = at[:-1], at[1:]
        pyramid = self._logs() if is_log else self._linear
        low_C, high_C = pyramid.query(start_C, stop_C)
        mean_C = low_C / 2 + high_C / 2
        if decay > 0 and len(self):
            mean_C = self._average(decay).values.values[np.maximum(stop_C - 1, 0)]
            mean_C = np.where(np.isfinite(low_C), _log10(mean_C) if is_log else mean_C, np.nan)
        return Columns(
            low_C=low_C,
            high_C=high_C,
            mean_C=mean_C,
            odd_C=pyramid.has_odd(start_C, stop_C),
            before=self._outside(axis, edges, int(at[0]) - 1, decay=decay, is_log=is_log),
            after=self._outside(axis, edges, int(at[-1]), decay=decay, is_log=is_log),
        )

    def at(self, axis: Axis, steps: Floats) -> Floats:
        """Where steps lie on an axis; beyond the last point at the speed of the last ones."""
        steps = np.nan_to_num(steps.astype(np.float64), nan=-MAX_X, posinf=MAX_X, neginf=-MAX_X)
        steps = np.clip(steps, -MAX_X, MAX_X)
        x_N, step_N = self._x[axis].values, self._x["step"].values
        if axis == "step" or not len(x_N):
            return steps
        since = max(0, len(x_N) - 1 - _TAIL)
        steps_done = step_N[-1] - step_N[since]
        known: Floats = np.interp(steps, step_N, x_N)
        with np.errstate(all="ignore"):
            speed = (x_N[-1] - x_N[since]) / steps_done if steps_done > 0 else 0.0
            if speed <= 0:
                speed = x_N[-1] / step_N[-1] if step_N[-1] > 0 else 0.0
            if step_N[0] > 0:
                known = np.where(steps < step_N[0], steps / step_N[0] * x_N[0], known)
            ahead = np.where(steps > step_N[-1], x_N[-1] + (steps - step_N[-1]) * speed, known)
        return np.clip(np.nan_to_num(ahead, nan=-MAX_X), -MAX_X, MAX_X)

    def moved(self, x: float, old: Axis, new: Axis) -> float:
        """The place on the `new` axis of what is at `x` on the `old` one."""
        if not len(self) or old == new:
            return x
        return float(np.interp(x, self._x[old].values, self._x[new].values))

    def nearest(self, axis: Axis, x: float, *, decay: float = 0.0) -> tuple[float, float, float]:
        """The point nearest to `x`: its x, value and moving average; NaN without points."""
        x_N = self._x[axis].values
        if not len(x_N):
            return math.nan, math.nan, math.nan
        after = min(int(np.searchsorted(x_N, x)), len(x_N) - 1)
        index = after - 1 if after and x - x_N[after - 1] < x_N[after] - x else after
        y = float(self._y.values[index])
        mean = float(self._average(decay).values.values[index]) if decay > 0 else y
        return float(x_N[index]), y, mean

    def _outside(
        self, axis: Axis, edges: Floats, index: int, *, decay: float, is_log: bool
    ) -> tuple[float, float, float] | None:
        """Column, value and average of the finite point `index`, which is outside the window."""
        width = (edges[-1] - edges[0]) / (len(edges) - 1)
        if not 0 <= index < len(self) or width <= 0:
            return None
        y = self._y.values[index]
        mean = self._average(decay).values.values[index] if decay > 0 else y
        pair = np.array([y, mean])
        value, average = (_log10(pair) if is_log else pair).tolist()
        at = float((self._x[axis].values[index] - edges[0]) / width - 0.5)
        return (at, value, average) if np.isfinite([at, value, average]).all() else None

    def _logs(self) -> Pyramid:
        if self._log is None:
            self._log = Pyramid()
            self._log.extend(_log10(self._y.values))
        return self._log

    def _average(self, decay: float) -> Average:
        if decay not in self._averages:
            self._averages[decay] = Average(decay)
            self._averages[decay].extend(self._y.values)
        return self._averages[decay]


def positions(start: float, stop: float, num: int) -> Floats:
    """Edges [num + 1] of columns whose first and last centers are `start` and `stop`."""
    width = (stop - start) / max(1, num - 1)
    return np.linspace(start - width / 2, stop + width / 2, num + 1, dtype=np.float64)


def _log10(values_N: Floats) -> Floats:
    """log10 of positive numbers, NaN for the others."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs_N: Floats = np.log10(values_N)
        return np.where(values_N > 0, logs_N, np.nan)
