"""A curve as braille dots: points to columns, columns to dots, dots to characters.

Each cell holds 2 x 4 dots. Points are first reduced to one low, high and mean per dot column, so
everything after that costs columns, not points.

Legend: N points, C dot columns (2 a cell), R dot rows (4 a cell), w x h cells.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Dots: TypeAlias = NDArray[np.bool_]

DOTS_X, DOTS_Y = 2, 4
_BITS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]], dtype=np.int64)
_BLANK = 0x2800


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Columns:
    """Low, high and mean a dot column, NaN without a finite point; a `gap` has only such points."""

    low_C: Floats
    high_C: Floats
    mean_C: Floats
    gap_C: Dots


def bucket(x_N: Floats, y_N: Floats, *, start: float, stop: float, num: int) -> Columns:
    """Points with ascending x between `start` and `stop` gathered into `num` dot columns."""
    low_C, high_C, mean_C = (np.full(num, np.nan) for _ in range(3))
    gap_C = np.zeros(num, dtype=np.bool_)
    inside_N = (x_N >= start) & (x_N <= stop)
    column_N = np.rint((x_N[inside_N] - start) / (stop - start) * (num - 1)).astype(np.int64)
    value_N = y_N[inside_N]
    finite_N = np.isfinite(value_N)
    gap_C[column_N[~finite_N]] = True
    column_N, value_N = column_N[finite_N], value_N[finite_N]
    if len(column_N):
        firsts = np.flatnonzero(np.r_[True, column_N[1:] != column_N[:-1]])
        columns = column_N[firsts]
        low_C[columns] = np.minimum.reduceat(value_N, firsts)
        high_C[columns] = np.maximum.reduceat(value_N, firsts)
        counts = np.diff(np.r_[firsts, len(value_N)])
        mean_C[columns] = np.add.reduceat(value_N, firsts) / counts
        gap_C[columns] = False
    return Columns(low_C=low_C, high_C=high_C, mean_C=mean_C, gap_C=gap_C)


def line_dots(columns: Columns, *, bottom: float, top: float, num_rows: int) -> Dots:
    """Dots [R, C] of the means, joined across empty columns but never across a gap."""
    dots_RC = np.zeros((num_rows, len(columns.mean_C)), dtype=np.bool_)
    with np.errstate(invalid="ignore"):
        row_C = (top - columns.mean_C) / (top - bottom) * (num_rows - 1)
    previous = -1
    for column in np.flatnonzero(np.isfinite(columns.mean_C)).tolist():
        if previous < 0 or columns.gap_C[previous:column].any():
            _fill(dots_RC, column, row_C[column], row_C[column])
        else:
            span = column - previous
            slope = (row_C[column] - row_C[previous]) / span
            for offset in range(1, span + 1):
                here = row_C[previous] + slope * offset
                _fill(dots_RC, previous + offset, here - slope, here, is_joined=True)
        previous = column
    return dots_RC


def band_dots(columns: Columns, *, bottom: float, top: float, num_rows: int) -> Dots:
    """Dots [R, C] between low and high of each column."""
    dots_RC = np.zeros((num_rows, len(columns.mean_C)), dtype=np.bool_)
    scale = (num_rows - 1) / (top - bottom)
    for column in np.flatnonzero(np.isfinite(columns.mean_C)).tolist():
        low, high = columns.low_C[column], columns.high_C[column]
        _fill(dots_RC, column, (top - high) * scale, (top - low) * scale)
    return dots_RC


def _fill(
    dots_RC: Dots, column: int, start: float, stop: float, *, is_joined: bool = False
) -> None:
    """Set the dots of a column from row `start` to `stop`, as far as they are inside."""
    first, last = round(min(start, stop)), round(max(start, stop))
    if is_joined and last > first:  # the previous column already holds the dot the stroke starts at
        first, last = (first + 1, last) if stop > start else (first, last - 1)
    if last >= 0 and first < len(dots_RC):
        dots_RC[max(0, first) : last + 1, column] = True


def cells(dots_RC: Dots) -> tuple[list[str], Dots]:
    """Characters, one string a cell row, and which cells [h, w] hold any dot."""
    num_rows, num_columns = dots_RC.shape
    h, w = num_rows // DOTS_Y, num_columns // DOTS_X
    grid = dots_RC.reshape(h, DOTS_Y, w, DOTS_X).transpose(0, 2, 1, 3)
    code_hw = (grid * _BITS).sum(axis=(2, 3))
    lines = ["".join(chr(_BLANK + code) for code in row) for row in code_hw.tolist()]
    return lines, code_hw > 0
