"""A run's series as curves that charts draw: points are copied once, when they are new."""

import numpy as np

from harness.series import Buffer, Series
from tui.widgets.curve import Curve


class CurveOf:
    """The curve of a series that grows; a series that went back takes it back."""

    def __init__(self) -> None:
        self.curve = Curve()
        self._buffer: Buffer | None = None

    def follow(self, series: Series) -> Curve:
        """The curve with exactly the points of the series."""
        if series.buffer is not self._buffer:
            # Another run, or one that was resumed: its columns are new ones.
            self.curve, self._buffer = Curve(), series.buffer
        if len(self.curve) > series.length:
            self.curve.truncate(series.length)
        if len(self.curve) < series.length:
            part = series.since(len(self.curve))
            self.curve.extend(
                {
                    "step": np.asarray(part.step, dtype=np.float64),
                    "tokens": np.asarray(part.tokens, dtype=np.float64),
                    "train": np.asarray(part.train_s, dtype=np.float64),
                    "wall": np.asarray(part.wall_s, dtype=np.float64),
                },
                np.asarray(part.value, dtype=np.float64),
            )
        return self.curve
