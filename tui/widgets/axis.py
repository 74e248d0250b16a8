"""Axes: where ticks lie and what they say."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from harness import format as fmt
from tui.widgets.curve import Axis
from tui.widgets.rows import Row

_TIME_UNITS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21600, 43200)
_DAY_S = 86400.0
_MAX_PLAIN = 1e6
_MAX_POWER = 99


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A place on an axis and its label."""

    value: float
    text: str


def ticks(bottom: float, top: float, wanted: int, *, factors: Sequence[float] = ()) -> list[float]:
    """Round values between bottom and top, about `wanted` of them."""
    raw = (top - bottom) / max(1, wanted)
    if not raw > 0 or not math.isfinite(raw):
        return []
    scale = 10.0 ** math.floor(math.log10(raw))
    units = [factor * scale for factor in (1, 2, 2.5, 5, 10, 20)]
    unit = next((unit for unit in factors or units if unit >= raw * 0.999), units[-1])
    first, last = math.ceil(bottom / unit - 1e-9), math.floor(top / unit + 1e-9)
    return [index * unit for index in range(first, min(last, first + 1000) + 1)]


def y_ticks(bottom: float, top: float, wanted: int) -> list[Tick]:
    """Ticks of a linear axis, with as many decimals as keep neighbours apart."""
    values = ticks(bottom, top, wanted)
    scale, suffix = _scale(values)
    decimals = _decimals([value / scale for value in values])
    return [Tick(value=value, text=_plain(value / scale, decimals) + suffix) for value in values]


def log_ticks(bottom: float, top: float, wanted: int) -> list[Tick]:
    """Ticks of an axis whose places are log10 of its values: 1, 2, 5, 10, or what fits."""
    first, last = max(-_MAX_POWER, math.floor(bottom)), min(_MAX_POWER, math.ceil(top))
    values = [digit * 10.0**power for power in range(first, last + 1) for digit in (1, 2, 5)]
    inside = [value for value in values if bottom <= math.log10(value) <= top]
    if len(inside) > 2 * wanted:
        inside = [value for value in inside if f"{value:e}".startswith("1")]
    if len(inside) < 3 and abs(bottom) < _MAX_POWER and last - first <= 3:
        inside = ticks(10.0**bottom, 10.0**top, wanted)
        decimals = _decimals(inside)
        return [Tick(value=math.log10(v), text=_plain(v, decimals)) for v in inside if v > 0]
    every = max(1, -(-len(inside) // max(1, 2 * wanted)))
    return [Tick(value=math.log10(value), text=_short(value)) for value in inside[::every]]


def x_ticks(axis: Axis, start: float, stop: float, wanted: int) -> list[Tick]:
    """Ticks of an x axis in its own unit."""
    if axis in ("train", "wall") and stop - start >= wanted:
        days = [_DAY_S * factor for factor in (1, 2, 5, 10, 20, 50, 100)]
        values = ticks(start, stop, wanted, factors=(*_TIME_UNITS_S, *days))
    else:
        values = ticks(start, stop, wanted)
    is_close = len(values) > 1 and (values[1] - values[0]) * 100 < abs(values[-1])
    return [Tick(value=v, text=x_text(axis, v, is_close=is_close)) for v in values if v >= start]


def x_text(axis: Axis, value: float, *, is_close: bool = True) -> str:
    """A place on an x axis; every digit of it when others are close."""
    if axis in ("train", "wall"):
        return fmt.seconds(value) if value >= 1 or not value else fmt.fixed(value, decimals=2)
    if abs(value) >= 1e15:
        return fmt.scientific(value)
    return fmt.count(value) if is_close and axis == "step" else fmt.tokens(value)


def x_rows(axis: Axis, ticks_: Sequence[tuple[int, str]], width: int, gutter: int) -> list[Row]:
    """The rule under the plot and its labels, for ticks at columns."""
    rule, text = ["─"] * width, [" "] * width
    name = f" {axis}"
    free_until, last_end = width - len(name), -2
    for column, label in ticks_:
        at = max(0, min(column - len(label) // 2, free_until - len(label) - 1))
        if abs(at + len(label) // 2 - column) > 1 + len(label) or at <= last_end + 1:
            continue
        if at + len(label) > width:
            continue
        text[at : at + len(label)] = label
        last_end = at + len(label)
        if 0 <= column < width:
            rule[column] = "┬"
    if free_until > max(0, last_end):
        text[free_until:] = name
    return [
        ((" " * (gutter - 1), "text"), ("└" + "".join(rule), "faint")),
        ((" " * gutter, "text"), ("".join(text), "dim")),
    ]


def _scale(values: Sequence[float]) -> tuple[float, str]:
    """The unit of large values: tokens a second in K or M."""
    largest = max(map(abs, values), default=0.0)
    units = ((1e9, "B"), (1e6, "M"), (1e4, "K"))
    unit = next((unit for unit in units if unit[0] <= largest < 1e13), None)
    return (1e3, "K") if unit == (1e4, "K") else unit or (1.0, "")


def _plain(value: float, decimals: int) -> str:
    is_huge = abs(value) >= _MAX_PLAIN or decimals > 5
    return fmt.scientific(value) if is_huge and value else fmt.fixed(value, decimals=decimals)


def _short(value: float) -> str:
    """A power of ten, its double or its half, in as few digits as it has."""
    if not 1e-4 <= value < _MAX_PLAIN:
        return fmt.scientific(value)
    return fmt.fixed(value, decimals=max(0, -math.floor(math.log10(value) + 1e-9)))


def _decimals(values: Sequence[float]) -> int:
    """Digits after the point that keep neighbouring ticks apart, at least one."""
    if len(values) < 2:
        return 3
    step = min(after - before for before, after in zip(values[:-1], values[1:], strict=True))
    if step <= 0:
        return 3
    digits = -math.floor(math.log10(step) + 1e-9)
    if digits > 12 or abs(values[1]) > _MAX_PLAIN:
        return max(1, digits)
    needs_more = any(abs(v * 10**digits - round(v * 10**digits)) > 1e-6 for v in values)
    return min(8, max(1, digits + (1 if needs_more else 0)))
