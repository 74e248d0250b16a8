"""Lines and bands as dots, dots as characters: braille, quarter blocks, or plain ASCII.

A cell holds 2 x 4 dots of braille, 2 x 2 quarters of a block, 1 x 3 heights of ASCII. Everything
here works on whole columns of dots.

Legend: C dot columns, R dot rows (row 0 on top), w x h cells.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from tui.widgets.ascii import Charset
from tui.widgets.curve import Columns
from tui.widgets.pyramid import Bools, Floats

Codes: TypeAlias = NDArray[np.uint32]
_Known: TypeAlias = tuple[Floats, Floats, Floats]  # column, value, gaps before it


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dots:
    """How many dots a cell has, the bit of each, and the character of each sum of bits."""

    x: int
    y: int
    bits: NDArray[np.int64]
    table: Codes


def _codes(text: str) -> Codes:
    return np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)


DOTS: dict[Charset, Dots] = {
    "braille": Dots(
        x=2,
        y=4,
        bits=np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]]),
        table=np.arange(0x2800, 0x2900, dtype=np.uint32),
    ),
    "block": Dots(x=2, y=2, bits=np.array([[1, 2], [4, 8]]), table=_codes(" ▘▝▀▖▌▞▛▗▚▐▜▄▙▟█")),
    "ascii": Dots(x=1, y=3, bits=np.array([[1], [2], [4]]), table=_codes(" '-|_|||")),
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scale:
    """The y range of a drawing in dot rows; y is what is drawn, so a logarithm on a log axis."""

    bottom: float
    top: float
    num_rows: int

    def rows(self, y_C: Floats) -> Floats:
        """Dot rows of values, not rounded; values far outside stay just outside."""
        with np.errstate(invalid="ignore", over="ignore"):
            rows_C = (self.top - y_C) / (self.top - self.bottom) * (self.num_rows - 1)
        return np.clip(rows_C, -2.0, self.num_rows + 1.0)


def bridged(values_C: Floats, columns: Columns, *, outside: int) -> Floats:
    """Values of empty columns between two others, but not where there is a gap.

    A gap is an empty column with a point that is not finite. Of the points next to the window
    the value `outside` counts: 1 their own, 2 the average.
    """
    at_C = np.arange(len(values_C), dtype=np.float64)
    has_C = np.isfinite(values_C)
    gaps_C = np.cumsum(columns.odd_C & ~has_C)
    known: list[_Known] = [(at_C[has_C], values_C[has_C], gaps_C[has_C].astype(np.float64))]
    if columns.before is not None:
        known.insert(0, _known(columns.before[0], columns.before[outside], 0))
    if columns.after is not None:
        known.append(_known(columns.after[0], columns.after[outside], float(gaps_C[-1])))
    x, y, gaps = (np.concatenate(parts) for parts in zip(*known, strict=True))
    if not len(x):
        return values_C
    right_C = np.searchsorted(x, at_C)
    left_C = np.maximum(right_C - 1, 0)
    is_between = (right_C > 0) & (right_C < len(x))
    right_C = np.minimum(right_C, len(x) - 1)
    is_between &= gaps[left_C] == gaps[right_C]
    between_C: Floats = np.interp(at_C, x, y)
    return np.where(has_C, values_C, np.where(is_between, between_C, np.nan))


def _known(at: float, value: float, gaps: float) -> _Known:
    return np.array([at]), np.array([value]), np.array([gaps])


def line(columns: Columns, scale: Scale) -> Bools:
    """Dots [R, C] of a line through the averages: each column reaches to its left neighbour."""
    rows_C = scale.rows(bridged(columns.mean_C, columns, outside=2))
    return _strokes(rows_C, rows_C, scale.num_rows)


def band(columns: Columns, scale: Scale) -> Bools:
    """Dots [R, C] from low to high of each column, joined to its left neighbour."""
    high_C = scale.rows(bridged(columns.high_C, columns, outside=1))
    low_C = scale.rows(bridged(columns.low_C, columns, outside=1))
    return _strokes(high_C, low_C, scale.num_rows)


def path(values_C: Floats, scale: Scale) -> Bools:
    """Dots [R, C] of a line through one value a column; none where it is NaN."""
    rows_C = scale.rows(values_C)
    return _strokes(rows_C, rows_C, scale.num_rows)


def _strokes(top_C: Floats, bottom_C: Floats, num_rows: int) -> Bools:
    """Dots of each column from its top to its bottom row, stretched to touch the one before."""
    first_C, last_C = np.rint(top_C), np.rint(bottom_C)
    before_first, before_last = np.r_[np.nan, first_C[:-1]], np.r_[np.nan, last_C[:-1]]
    first_C = np.where(first_C > before_last + 1, before_last + 1, first_C)
    last_C = np.where(last_C < before_first - 1, before_first - 1, last_C)
    row_R1 = np.arange(num_rows)[:, None]
    return (row_R1 >= first_C) & (row_R1 <= last_C)


def dashed(dots_RC: Bools, *, on: int, off: int) -> Bools:
    """The same dots with every `off` of `on + off` columns empty."""
    at_C = np.arange(dots_RC.shape[1], dtype=np.int64)
    return dots_RC & (at_C % (on + off) < on)


def characters(dots_RC: Bools, charset: Charset, *, texture: str = "") -> tuple[Codes, Bools]:
    """Code points of the cells [h, w], and which of them hold any dot.

    In ASCII, where lines are coarse, `texture` is the one character of a layer that is no line.
    """
    dots = DOTS[charset]
    h, w = dots_RC.shape[0] // dots.y, dots_RC.shape[1] // dots.x
    grid = dots_RC.reshape(h, dots.y, w, dots.x).transpose(0, 2, 1, 3)
    sum_hw = (grid * dots.bits).sum(axis=(2, 3))
    if texture and charset == "ascii":
        return np.full((h, w), ord(texture), dtype=np.uint32), sum_hw > 0
    return dots.table[sum_hw], sum_hw > 0
