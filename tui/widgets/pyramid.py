"""Lows and highs of a growing column of numbers, so that asking costs ranges and not numbers.

Level k + 1 holds the low and high of each whole block of 16 of level k. A range is put together
from at most 30 numbers a level: what sticks out on both sides of its whole blocks, level by level.

    17 values 0..16, range [1, 17):  level 0 gives 1..15 and 16; no whole block is inside
    48 values 0..47, range [1, 48):  level 0 gives 1..15, level 1 the blocks 16..31 and 32..47

Legend: N numbers, C ranges, F = 16.
"""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Bools: TypeAlias = NDArray[np.bool_]

FACTOR = 16
_WINDOW_F = np.arange(FACTOR, dtype=np.int64)


class Column:
    """Numbers in one block of memory that doubles when it is full."""

    __slots__ = ("_block", "length")

    def __init__(self) -> None:
        self._block: Floats = np.empty(64, dtype=np.float64)
        self.length = 0

    @property
    def values(self) -> Floats:
        """The numbers [N], a view."""
        return self._block[: self.length]

    def extend(self, values_N: Floats) -> None:
        length = self.length + len(values_N)
        if length > len(self._block):
            block = np.empty(max(length, 2 * len(self._block)), dtype=np.float64)
            block[: self.length] = self.values
            self._block = block
        self._block[self.length : length] = values_N
        self.length = length

    def truncate(self, length: int) -> None:
        """Keep the first `length` numbers."""
        self.length = min(self.length, length)


class Pyramid:
    """The column itself and its levels; a non-finite number has a place but no value."""

    __slots__ = ("_high", "_low", "_odd")

    def __init__(self) -> None:
        # Level 0 holds inf in the lows and -inf in the highs for a number that is not finite.
        self._low = [Column()]
        self._high = [Column()]
        self._odd = Column()  # how many of the numbers up to and including this are not finite

    def __len__(self) -> int:
        return self._low[0].length

    def extend(self, values_N: Floats) -> None:
        """Append numbers; costs as many as are new."""
        finite_N = np.isfinite(values_N)
        before = self._odd.values[-1] if len(self) else 0.0
        self._odd.extend(before + np.cumsum(~finite_N))
        self._low[0].extend(np.where(finite_N, values_N, np.inf))
        self._high[0].extend(np.where(finite_N, values_N, -np.inf))
        level = 0
        while self._low[level].length >= FACTOR:
            if level + 1 == len(self._low):
                self._low.append(Column())
                self._high.append(Column())
            first, last = self._low[level + 1].length, self._low[level].length // FACTOR
            part = slice(first * FACTOR, last * FACTOR)
            low_NF = self._low[level].values[part].reshape(-1, FACTOR)
            high_NF = self._high[level].values[part].reshape(-1, FACTOR)
            self._low[level + 1].extend(low_NF.min(axis=1))
            self._high[level + 1].extend(high_NF.max(axis=1))
            level += 1

    def truncate(self, length: int) -> None:
        """Keep the first `length` numbers."""
        self._odd.truncate(length)
        for low, high in zip(self._low, self._high, strict=True):
            low.truncate(length)
            high.truncate(length)
            length //= FACTOR

    def query(self, start_C: Ints, stop_C: Ints) -> tuple[Floats, Floats]:
        """Low and high of each range [start, stop), NaN where it has no finite number."""
        low_C, high_C = np.full(len(start_C), np.inf), np.full(len(start_C), -np.inf)
        first_C = np.clip(start_C, 0, len(self))
        last_C = np.clip(stop_C, first_C, len(self))
        for low, high in zip(self._low, self._high, strict=True):
            if not (first_C < last_C).any():
                break
            up_C, down_C = -(-first_C // FACTOR), last_C // FACTOR
            head_C = np.minimum(up_C * FACTOR, last_C)
            tail_C = np.maximum(down_C * FACTOR, head_C)
            for begin_C, end_C in ((first_C, head_C), (tail_C, last_C)):
                at_CF = begin_C[:, None] + _WINDOW_F
                inside_CF = at_CF < end_C[:, None]
                at_CF = np.minimum(at_CF, low.length - 1)
                picked_CF = np.where(inside_CF, low.values[at_CF], np.inf)
                np.minimum(low_C, picked_CF.min(axis=1), out=low_C)
                picked_CF = np.where(inside_CF, high.values[at_CF], -np.inf)
                np.maximum(high_C, picked_CF.max(axis=1), out=high_C)
            first_C, last_C = up_C, np.maximum(down_C, up_C)
        low_C[low_C == np.inf] = np.nan
        high_C[high_C == -np.inf] = np.nan
        return low_C, high_C

    def has_odd(self, start_C: Ints, stop_C: Ints) -> Bools:
        """Whether each range [start, stop) holds a number that is not finite."""
        if not len(self):
            return np.zeros(len(start_C), dtype=np.bool_)
        start_C, stop_C = np.clip(start_C, 0, len(self)), np.clip(stop_C, 0, len(self))
        before_C = np.where(start_C > 0, self._odd.values[start_C - 1], 0.0)
        upto_C = np.where(stop_C > 0, self._odd.values[stop_C - 1], 0.0)
        return upto_C > before_C
