"""A line chart in braille: curve with its band, target line, validation marks, axes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from harness import format as fmt
from tui.widgets.braille import (
    DOTS_X,
    DOTS_Y,
    Columns,
    Floats,
    band_dots,
    bucket,
    cells,
    line_dots,
)
from tui.widgets.rows import Panel, Role, Row, pad

MARK = "◆"
_TARGET_LINE = "╌"
_MARK_GAP = 3  # cells between two marks, so that they do not hide the curve
# The first steps may fall so fast that drawing them whole flattens the rest: when all but the
# highest columns need less than this share of the height, those leave the chart at the top.
_HEAD_QUANTILE, _HEAD_SHARE = 0.93, 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """What to draw; two charts are the same when their `revision` is."""

    revision: tuple[object, ...]
    x_N: Floats = field(compare=False)
    y_N: Floats = field(compare=False)
    mark_x_N: Floats = field(compare=False)
    mark_y_N: Floats = field(compare=False)
    target: float | None = None
    x_label: str = "step"
    empty: str = "no loss yet"


EMPTY = Chart(
    revision=(),
    x_N=np.empty(0),
    y_N=np.empty(0),
    mark_x_N=np.empty(0),
    mark_y_N=np.empty(0),
)


class LineChart(Panel[Chart]):
    """The chart of one curve; rows are drawn again only for a new revision or size."""

    def draw(self, width: int, height: int) -> Sequence[Row]:
        return draw_chart(self.value, width, height)


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    """The plotted window: data ranges and its size in cells."""

    start: float
    stop: float
    bottom: float
    top: float
    w: int
    h: int

    def column(self, x: float) -> int:
        return round((x - self.start) / (self.stop - self.start) * (self.w - 1))

    def row(self, y: float) -> int:
        dots = (self.top - y) / (self.top - self.bottom) * (self.h * DOTS_Y - 1)
        return round(dots) // DOTS_Y


def draw_chart(chart: Chart, width: int, height: int) -> list[Row]:
    """The chart in `width` x `height` cells; the message of an empty one is centered."""
    finite_N = np.isfinite(chart.y_N) & np.isfinite(chart.x_N)
    if width < 12 or height < 3 or not finite_N.any():
        return _message(chart, width, height)
    footer = 2 if height >= 9 else 1
    stop = float(np.max([*chart.x_N[finite_N][-1:], *chart.mark_x_N[-1:]]))
    start = min(0.0, stop - 1)
    columns = bucket(chart.x_N, chart.y_N, start=start, stop=stop, num=width * DOTS_X)
    bottom, top = _y_range(chart, columns)
    ticks = y_ticks(bottom, top, (height - footer) // 3 + 1)
    labels = [*ticks, *([chart.target] if chart.target is not None else [])]
    decimals = _decimals(ticks)
    texts = [fmt.fixed(value, decimals=decimals) for value in ticks]
    gutter = max(len(text) for text in [*texts, *(fmt.loss(v) for v in labels[len(ticks) :])]) + 2
    if width - gutter < 8:
        return _message(chart, width, height)
    w, h = width - gutter, height - footer
    view = _View(start=start, stop=stop, bottom=bottom, top=top, w=w, h=h)
    columns = bucket(chart.x_N, chart.y_N, start=start, stop=stop, num=w * DOTS_X)
    grid = _plot(chart, columns, view)
    gutters = _gutters(chart, view, list(zip(ticks, texts, strict=True)), gutter)
    rows = [_merge((*gutters[y], *grid[y])) for y in range(h)]
    return [*rows, *_x_axis(chart, view, gutter, footer)]


def y_ticks(bottom: float, top: float, wanted: int) -> list[float]:
    """Round values between bottom and top, about `wanted` of them."""
    raw = (top - bottom) / max(1, wanted)
    scale = 10.0 ** math.floor(math.log10(raw))
    unit = next(factor * scale for factor in (1, 2, 2.5, 5, 10) if factor * scale >= raw * 0.999)
    first = math.ceil(bottom / unit - 1e-9)
    last = math.floor(top / unit + 1e-9)
    return [index * unit for index in range(first, last + 1)]


def _decimals(ticks: list[float]) -> int:
    """Digits after the point that keep neighbouring ticks apart."""
    if len(ticks) < 2:
        return 3
    digits = -math.floor(math.log10(abs(ticks[1] - ticks[0])) + 1e-9)
    needs_more = abs(ticks[1] * 10**digits - round(ticks[1] * 10**digits)) > 1e-6
    return min(8, max(1, digits + (1 if needs_more else 0)))


def _y_range(chart: Chart, columns: Columns) -> tuple[float, float]:
    """Lowest and highest value to draw, with a margin; a steep first fall may leave at the top."""
    highs = columns.high_C[np.isfinite(columns.high_C)]
    others = [*chart.mark_y_N.tolist(), *([] if chart.target is None else [chart.target])]
    others = [value for value in others if math.isfinite(value)]
    bottom = min([float(np.nanmin(columns.low_C)), *others])
    top, calm_top = float(highs.max()), float(np.quantile(highs, _HEAD_QUANTILE))
    if calm_top - bottom < _HEAD_SHARE * (top - bottom):
        top = calm_top
    if chart.target is not None and math.isfinite(chart.target):
        top = max(top, chart.target)
    span = top - bottom
    if span <= abs(top) * 1e-9:
        span = max(abs(top) * 0.1, 1e-6)
    return bottom - span * 0.06, top + span * 0.04


def _plot(chart: Chart, columns: Columns, view: _View) -> list[list[tuple[str, Role]]]:
    """One (character, role) a cell: line over band over target line, marks over all."""
    num_rows = view.h * DOTS_Y
    line, has_line = cells(line_dots(columns, bottom=view.bottom, top=view.top, num_rows=num_rows))
    band, has_band = cells(band_dots(columns, bottom=view.bottom, top=view.top, num_rows=num_rows))
    grid: list[list[tuple[str, Role]]] = []
    for y in range(view.h):
        row: list[tuple[str, Role]] = [(" ", "text")] * view.w
        for x in range(view.w):
            if has_line[y, x]:
                row[x] = (line[y][x], "line")
            elif has_band[y, x]:
                row[x] = (band[y][x], "faint")
        grid.append(row)
    if chart.target is not None:
        _draw_target(grid, view, chart.target)
    _draw_marks(grid, view, chart)
    return grid


def _draw_marks(grid: list[list[tuple[str, Role]]], view: _View, chart: Chart) -> None:
    """Marks from the newest back, leaving out those too close to one already drawn."""
    free_before = view.w
    marks = list(zip(chart.mark_x_N.tolist(), chart.mark_y_N.tolist(), strict=True))
    for x, y in reversed(marks):
        if not (view.start <= x <= view.stop and view.bottom <= y <= view.top):
            continue
        column = view.column(x)
        if column < free_before:
            grid[view.row(y)][column] = (MARK, "mark")
            free_before = column - _MARK_GAP + 1


def _draw_target(grid: list[list[tuple[str, Role]]], view: _View, target: float) -> None:
    row = grid[view.row(target)]
    label = " target "
    for x, (char, _) in enumerate(row):
        if char == " ":
            inside = 2 <= x < 2 + len(label) <= view.w
            row[x] = (label[x - 2] if inside else _TARGET_LINE, "good")


def _gutters(chart: Chart, view: _View, ticks: list[tuple[float, str]], gutter: int) -> list[Row]:
    """The y axis, one row a cell row: tick labels, and the target's in its own role."""
    labels: dict[int, tuple[str, Role]] = {}
    target_row = None if chart.target is None else view.row(chart.target)
    for value, text in ticks:
        row = view.row(value)
        if 0 <= row < view.h and (target_row is None or abs(row - target_row) > 1):
            labels[row] = (text, "dim")
    if target_row is not None:
        labels[target_row] = (fmt.loss(chart.target), "good")
    rows: list[Row] = []
    for y in range(view.h):
        text, role = labels.get(y, ("", "dim"))
        axis = "┤" if text else "│"
        rows.append(((pad(text, gutter - 2, align="right"), role), (" ", "text"), (axis, "faint")))
    return rows


def _x_axis(chart: Chart, view: _View, gutter: int, footer: int) -> list[Row]:
    """The rule under the plot (when there is room for it) and its labels."""
    wanted = max(2, view.w // 14)
    values = [v for v in y_ticks(view.start, view.stop, wanted) if v >= view.start]
    rule = ["─"] * view.w
    text = [" "] * view.w
    name = f" {chart.x_label}"
    free_until = view.w - len(name)
    last_end = -2
    for value in values:
        column = view.column(value)
        label = fmt.tokens(value)
        at = max(0, min(column - len(label) // 2, free_until - len(label) - 1))
        if abs(at + len(label) // 2 - column) > 1 + len(label) or at <= last_end + 1:
            continue
        text[at : at + len(label)] = label
        last_end = at + len(label)
        rule[column] = "┬"
    if free_until > last_end:
        text[free_until:] = name
    rows: list[Row] = []
    if footer == 2:
        rows.append(((" " * (gutter - 1), "text"), ("└" + "".join(rule), "faint")))
    rows.append(((" " * gutter, "text"), ("".join(text), "dim")))
    return rows


def _merge(spans: Sequence[tuple[str, Role]]) -> Row:
    """Neighbouring spans of one role as one."""
    merged: list[tuple[str, Role]] = []
    for text, role in spans:
        if merged and merged[-1][1] == role:
            merged[-1] = (merged[-1][0] + text, role)
        else:
            merged.append((text, role))
    return tuple(merged)


def _message(chart: Chart, width: int, height: int) -> list[Row]:
    if height < 1 or width < 1:
        return []
    above: list[Row] = [((" ", "text"),)] * ((height - 1) // 2)
    left = max(0, (width - len(chart.empty)) // 2)
    return [*above, ((" " * left, "text"), (chart.empty, "dim"))]
