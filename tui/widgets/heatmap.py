"""A heat map: rows by columns of numbers in classes, told by glyph as well as by colour.

Where there is no room for a cell each, neighbours share one and the largest is shown, so that one
hot expert among 4,096 is seen. A class has its own glyph; the colours are five of viridis' from
dark to light, whose brightness alone orders them.

Legend: R rows, C columns; h x w cells.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message

from harness import format as fmt
from tui.widgets.canvas import Canvas
from tui.widgets.pyramid import Floats, Ints
from tui.widgets.rows import Panel, Role, Row, clip_row, join_fitting, pad

NONE, ZERO = "?", "×"
# Classes up to each bound, then one above the last: load over an even share.
LOAD_BOUNDS = (0.5, 0.8, 1.25, 2.0, 4.0)
GLYPHS = "·░▒▓█▲"
_HEAT: tuple[Role, ...] = ("heat1", "heat2", "heat3", "heat4", "heat5", "heat6")
_MIN_WIDTH, _MIN_HEIGHT = 8, 2
_SUMMARY_WIDTH = 20  # the highest of a row and how many are 0, behind it


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatMap:
    """Numbers [R, C], NaN where not known; two maps are the same when their `revision` is.

    `bounds` are five ascending limits of the classes; `row_names` default to row numbers.
    """

    revision: tuple[object, ...] = ()
    values_RC: Floats = field(default_factory=lambda: np.empty((0, 0)), compare=False)
    row_names: tuple[str, ...] = ()
    row_title: str = "layer"
    column_title: str = "expert"
    bounds: tuple[float, ...] = LOAD_BOUNDS
    unit: str = "x even"
    empty: str = "no loads yet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A cell of the numbers."""

    row: int
    column: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Grid:
    """Which numbers each drawn cell stands for: edges [h + 1] and [w + 1], and room in front."""

    row_edges: Ints
    column_edges: Ints
    gutter: int
    has_summary: bool
    num_footer: int


def draw_heatmap(
    heat: HeatMap, width: int, height: int, *, cursor: Place | None = None
) -> list[Row]:
    """The map in `width` x `height` cells: rows with names, column axis, legend or cursor."""
    if width < 1 or height < 1:
        return []
    grid = _grid(heat, width, height)
    if grid is None:
        left = max(0, (width - len(heat.empty)) // 2)
        above: list[Row] = [()] * ((height - 1) // 2)
        return [*above, clip_row(((" " * left, "text"), (heat.empty, "dim")), width)]
    top_hw = _pooled(heat.values_RC, grid)
    h, w = top_hw.shape
    canvas = Canvas(w, h)
    codes = np.frombuffer((GLYPHS + ZERO + NONE).encode("utf-32-le"), dtype=np.uint32)
    class_hw = _classes(top_hw, heat.bounds)
    roles: tuple[Role, ...] = (*_HEAT, "bad", "faint")
    for at, role in enumerate(roles):
        canvas.layer(codes[class_hw], class_hw == at, role)
    if cursor is not None:
        _draw_cursor(canvas, grid, cursor)
    rows = [
        (*_name(heat, grid, y), *row, *_summary(heat, grid, y))
        for y, row in enumerate(canvas.rows())
    ]
    footer = [_columns_axis(heat, grid)]
    last = readout(heat, cursor, width) if cursor is not None else legend(heat, width)
    footer.append(last)
    rows += footer[2 - grid.num_footer :]
    return [clip_row(row, width) for row in rows]


def legend(heat: HeatMap, width: int) -> Row:
    """What the glyphs mean, as many as fit."""
    parts: list[Row] = [
        ((GLYPHS[-1], _HEAT[-1]), (f" ≥{heat.bounds[-1]:g} {heat.unit}", "dim")),
        ((ZERO, "bad"), (" none", "dim")),
    ]
    for glyph, role, bound in zip(GLYPHS[-2::-1], _HEAT[-2::-1], heat.bounds[::-1], strict=True):
        parts.append(((glyph, role), (f" <{bound:g}", "dim")))
    if not np.isfinite(heat.values_RC).all():
        parts.append(((NONE, "faint"), (" not known", "dim")))
    return join_fitting(parts, width, gap="  ")


def readout(heat: HeatMap, cursor: Place, width: int) -> Row:
    """The number under the cursor and where it stands in its row."""
    num_rows, num_columns = heat.values_RC.shape
    if not (0 <= cursor.row < num_rows and 0 <= cursor.column < num_columns):
        return ()
    row_C = heat.values_RC[cursor.row]
    value = float(row_C[cursor.column])
    place = f"{heat.row_title} {_row_name(heat, cursor.row)} {heat.column_title} {cursor.column} "
    parts: list[Row] = [((place, "dim"), (f"{_number(value)} {heat.unit}", "strong"))]
    finite = row_C[np.isfinite(row_C)]
    if len(finite):
        if math.isfinite(value):
            rank = int((finite > value).sum()) + 1
            parts.append((("rank ", "dim"), (f"{rank} of {len(finite)}", "text")))
        top = int(np.nanargmax(np.where(np.isfinite(row_C), row_C, -np.inf)))
        hottest = f"{_number(float(row_C[top]))} at {top}"
        parts.append(((f"hottest of the {heat.row_title} ", "dim"), (hottest, "text")))
    return join_fitting(parts, width, gap="  ")


def moved(heat: HeatMap, cursor: Place | None, rows: int, columns: int) -> Place | None:
    """The cursor moved within the numbers; on first use it is at the largest."""
    num_rows, num_columns = heat.values_RC.shape
    if not num_rows or not num_columns:
        return None
    if cursor is None:
        return hottest(heat)
    return Place(
        row=min(num_rows - 1, max(0, cursor.row + rows)),
        column=min(num_columns - 1, max(0, cursor.column + columns)),
    )


def hottest(heat: HeatMap) -> Place | None:
    """Where the largest number is."""
    values = np.where(np.isfinite(heat.values_RC), heat.values_RC, -np.inf)
    if not values.size:
        return None
    row, column = np.unravel_index(int(values.argmax()), values.shape)
    return Place(row=int(row), column=int(column))


def place_at(heat: HeatMap, size: tuple[int, int], x: int, y: int) -> Place | None:
    """What a cell of the drawing shows: of several numbers the largest."""
    grid = _grid(heat, *size)
    if grid is None or not 0 <= y < len(grid.row_edges) - 1:
        return None
    if not 0 <= x - grid.gutter < len(grid.column_edges) - 1:
        return None
    rows = slice(*grid.row_edges[y : y + 2].tolist())
    columns = slice(*grid.column_edges[x - grid.gutter : x - grid.gutter + 2].tolist())
    found = hottest(replace(heat, values_RC=heat.values_RC[rows, columns]))
    if found is None:
        return None
    return Place(row=rows.start + found.row, column=columns.start + found.column)


def _grid(heat: HeatMap, width: int, height: int) -> _Grid | None:
    num_rows, num_columns = heat.values_RC.shape
    if not num_rows or not num_columns or width < _MIN_WIDTH or height < _MIN_HEIGHT:
        return None
    num_footer = min(2, height - 1)
    h = min(num_rows, height - num_footer)
    row_edges = _edges(num_rows, h)
    gutter = 1 + max(len(_span_name(heat, row_edges, y)) for y in range(h))
    gutter = min(gutter, width // 3)
    has_summary = width - gutter - _SUMMARY_WIDTH >= min(num_columns, 32)
    room = width - gutter - (_SUMMARY_WIDTH if has_summary else 0)
    # Cells that stand for as many columns each: a ragged pooling would look like a pattern.
    each = -(-num_columns // room)
    starts = np.arange(0, num_columns, each, dtype=np.int64)
    column_edges = np.append(starts, num_columns)
    return _Grid(
        row_edges=row_edges,
        column_edges=column_edges,
        gutter=gutter,
        has_summary=has_summary,
        num_footer=num_footer,
    )


def _edges(count: int, parts: int) -> Ints:
    return np.arange(parts + 1, dtype=np.int64) * count // parts


def _pooled(values_RC: Floats, grid: _Grid) -> Floats:
    """The largest finite number of each cell [h, w]; NaN without one."""
    known_RC = np.where(np.isfinite(values_RC), values_RC, -np.inf)
    rows = np.maximum.reduceat(known_RC, grid.row_edges[:-1], axis=0)
    top_hw: Floats = np.maximum.reduceat(rows, grid.column_edges[:-1], axis=1)
    return np.where(np.isfinite(top_hw), top_hw, np.nan)


def _classes(top_hw: Floats, bounds: Sequence[float]) -> Ints:
    """Class of each cell: 0..5 by the bounds, 6 for 0 or less, 7 for not known."""
    class_hw = np.searchsorted(np.array(bounds), top_hw, side="right")
    class_hw = np.where(top_hw <= 0, len(GLYPHS), class_hw)
    return np.where(np.isnan(top_hw), len(GLYPHS) + 1, class_hw)


def _draw_cursor(canvas: Canvas, grid: _Grid, cursor: Place) -> None:
    y = int(np.searchsorted(grid.row_edges, cursor.row, side="right")) - 1
    x = int(np.searchsorted(grid.column_edges, cursor.column, side="right")) - 1
    if 0 <= y < canvas.height and 0 <= x < canvas.width:
        canvas.tint(x, y, "cursor")


def _row_name(heat: HeatMap, row: int) -> str:
    return heat.row_names[row] if row < len(heat.row_names) else str(row)


def _span_name(heat: HeatMap, edges: Ints, y: int) -> str:
    first, last = int(edges[y]), int(edges[y + 1]) - 1
    name = _row_name(heat, first)
    return name if first == last else f"{name}-{_row_name(heat, last)}"


def _name(heat: HeatMap, grid: _Grid, y: int) -> Row:
    name = pad(_span_name(heat, grid.row_edges, y), grid.gutter - 1, align="right")
    return ((name + " ", "dim"),)


def _summary(heat: HeatMap, grid: _Grid, y: int) -> Row:
    """The highest of the row and how many are 0."""
    if not grid.has_summary:
        return ()
    part = heat.values_RC[int(grid.row_edges[y]) : int(grid.row_edges[y + 1])]
    finite = part[np.isfinite(part)]
    if not len(finite):
        return ((f"  {fmt.NOT_AVAILABLE}", "faint"),)
    text = f"  max {_number(float(finite.max())):<5}"
    dead = int((finite <= 0).sum())
    return ((text, "dim"), (f"{dead} none", "bad") if dead else ("", "text"))


def _columns_axis(heat: HeatMap, grid: _Grid) -> Row:
    """Column numbers under the map, and how many a cell stands for."""
    w = len(grid.column_edges) - 1
    text = [" "] * w
    free_from = 0
    for x in range(0, w, 16):
        label = str(int(grid.column_edges[x]))
        if x >= free_from and x + len(label) <= w:
            text[x : x + len(label)] = label
            free_from = x + len(label) + 1
    each = int(grid.column_edges[1] - grid.column_edges[0])
    title = f" {heat.column_title}" + (f", {each} a cell" if each > 1 else "")
    row: Row = ((" " * grid.gutter, "text"), ("".join(text), "dim"))
    if grid.has_summary:
        return (*row, (title, "dim"))
    if len(title) + len("0 ") > w:
        return row
    return ((" " * grid.gutter, "text"), ("".join(text)[: w - len(title)] + title, "dim"))


def _number(value: float) -> str:
    if not math.isfinite(value):
        return fmt.NOT_AVAILABLE
    return fmt.tokens(value) if abs(value) >= 100 else f"{fmt.fixed(value, decimals=2)}"


class HeatMapView(Panel[HeatMap], can_focus=True):
    """The map with a cursor that arrows and the mouse move."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "left",
            "move(0, -1)",
            "",
            show=False,
            key_display="← ↑ → ↓",
            tooltip="heat map: the number under the cursor",
        ),
        Binding("right", "move(0, 1)", "", show=False),
        Binding("up", "move(-1, 0)", "", show=False),
        Binding("down", "move(1, 0)", "", show=False),
        Binding("h", "hottest", "", show=False, tooltip="heat map: to the hottest"),
        Binding("escape", "forget", "", show=False),
    ]

    class Pointed(Message):
        """The cursor is at another number; None when it was taken away."""

        def __init__(self, heat: "HeatMapView", cursor: Place | None) -> None:
            super().__init__()
            self.heat, self.cursor = heat, cursor

        @property
        def control(self) -> "HeatMapView":
            return self.heat

    def __init__(self, value: HeatMap, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(value, id=id)
        self.cursor: Place | None = None

    def draw(self, width: int, height: int) -> Sequence[Row]:
        return draw_heatmap(self.value, width, height, cursor=self.cursor)

    def point(self, cursor: Place | None) -> None:
        """Move the cursor, or take it away."""
        if cursor != self.cursor:
            self.cursor = cursor
            self.redraw()
            self.post_message(self.Pointed(self, cursor))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return self.cursor is not None if action == "forget" else True

    def action_move(self, rows: int, columns: int) -> None:
        self.point(moved(self.value, self.cursor, rows, columns))

    def action_hottest(self) -> None:
        self.point(hottest(self.value))

    def action_forget(self) -> None:
        self.point(None)

    def on_click(self, event: events.Click) -> None:
        offset = event.get_content_offset(self)
        if offset is not None:
            size = (self.content_size.width, self.content_size.height)
            self.point(place_at(self.value, size, offset.x, offset.y))
