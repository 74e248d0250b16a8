"""When a loss will reach its target: a straight line through loss over log(step), and its band.

That is the usual course of a loss at a constant learning rate. With u = log(step) and the line
fitted by least squares to n points, the target is met at u* = (target - offset) / slope; the
standard error of u* is s / |slope| sqrt(1/n + (u* - mean u)^2 / sum (u - mean u)^2), with s^2 the
squared residuals over n - 2 (inverse regression, as for a calibration line). The band is two of
them to each side.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MIN_POINTS = 3
MAX_POINTS = 6
_BAND_ERRORS = 2.0
_MAX_BAND = 3.0  # of u: a band of more than a factor of 20 says nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """The step at which the target is met, with its band, and the line that says so."""

    step: float
    low: float
    high: float
    slope: float
    offset: float

    def loss(self, step: float) -> float:
        """The line at a step."""
        return self.offset + self.slope * math.log(max(1.0, step))


def forecast(
    steps: Sequence[float], losses: Sequence[float], target: float, *, limit: float
) -> Forecast | None:
    """The forecast of the last points; None when they do not fall, or not within `limit` steps."""
    points = [
        (math.log(step), loss)
        for step, loss in zip(steps, losses, strict=True)
        if step > 0 and math.isfinite(loss)
    ][-MAX_POINTS:]
    if len(points) < MIN_POINTS or not math.isfinite(target):
        return None
    u, y = np.array(points, dtype=np.float64).T
    spread = float(((u - u.mean()) ** 2).sum())
    if spread <= 0:
        return None
    slope = float(((u - u.mean()) * (y - y.mean())).sum()) / spread
    offset = float(y.mean()) - slope * float(u.mean())
    if not slope < -1e-6 or (at := (target - offset) / slope) > math.log(max(2.0, limit)):
        return None
    residual = math.sqrt(float(((y - offset - slope * u) ** 2).sum()) / (len(points) - 2))
    distance = (at - float(u.mean())) ** 2 / spread
    error = residual / -slope * math.sqrt(1 / len(points) + distance)
    reach = min(_MAX_BAND, _BAND_ERRORS * error)
    last = math.exp(float(u[-1]))
    return Forecast(
        step=max(last, math.exp(at)),
        low=max(last, math.exp(at - reach)),
        high=max(last, math.exp(at + reach)),
        slope=slope,
        offset=offset,
    )
