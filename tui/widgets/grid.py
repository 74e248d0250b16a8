"""A long table with a cursor, sorted by any column: only the rows in sight are drawn."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, TypeAlias

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message

from tui.widgets.rows import Panel, Role, Row, clip_row, plain, row_width
from tui.widgets.table import Cell, Column, draw_table

Order: TypeAlias = str | float | int | bool | None
MARK = "▌"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A row: its cells, what each is sorted by, and the id that the cursor stays with."""

    id: str
    cells: tuple[Cell, ...]
    orders: tuple[Order, ...]
    role: Role = "text"
    is_marked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Columns and records, in their own order until a column is chosen to sort by."""

    columns: tuple[Column, ...] = ()
    records: tuple[Record, ...] = ()
    empty: str = "nothing here"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sorting:
    """By which column, None for the table's own order."""

    column: int | None = None
    is_reversed: bool = False


def ordered(table: Table, sorting: Sorting) -> list[Record]:
    """The records in order; what is not known comes last either way."""
    records = list(table.records)
    at = sorting.column
    if at is not None and at < len(table.columns):
        known = [each for each in records if _is_known(each.orders[at])]
        unknown = [each for each in records if not _is_known(each.orders[at])]
        known.sort(key=lambda each: _key(each.orders[at]), reverse=sorting.is_reversed)
        return known + unknown
    return records[::-1] if sorting.is_reversed else records


def draw_grid(
    table: Table,
    width: int,
    height: int,
    *,
    sorting: Sorting,
    cursor: int = 0,
    top: int = 0,
    has_cursor: bool = True,
) -> list[Row]:
    """Header and the records from `top` on, the one of the cursor marked."""
    if height < 1 or width < 3:
        return []
    records = ordered(table, sorting)
    if not records:
        return [clip_row(((table.empty, "dim"),), width)]
    shown = records[top : top + max(0, height - 1)]
    columns = [_titled(column, at, sorting) for at, column in enumerate(table.columns)]
    rows = draw_table(
        columns,
        [each.cells for each in shown],
        width - 2,
        roles=[each.role for each in shown],
    )
    header: Row = (("  ", "text"), *rows[0])
    body: list[Row] = [header]
    for at, (record, row) in enumerate(zip(shown, rows[1:], strict=True), start=top):
        mark: Row = (("◆", "mark"),) if record.is_marked else ((" ", "text"),)
        if at == cursor and has_cursor:
            text = plain(row).ljust(width - 2 - row_width(row) + len(plain(row)))
            body.append(_joined(((MARK, "accent"),), mark, ((text, "chosen"),)))
        else:
            body.append(_joined(((" ", "text"),), mark, row))
    return [clip_row(row, width) for row in body[:height]]


def _joined(*rows: Row) -> Row:
    return tuple(span for row in rows for span in row)


def _titled(column: Column, at: int, sorting: Sorting) -> Column:
    if sorting.column != at:
        return column
    return replace(column, title=f"{column.title} {'↓' if sorting.is_reversed else '↑'}")


def _is_known(order: Order) -> bool:
    return order is not None and order == order


def _key(order: Order) -> tuple[int, float, str]:
    return (1, 0.0, order.lower()) if isinstance(order, str) else (0, float(order or 0), "")


class Grid(Panel[Table], can_focus=True):
    """The table as a widget; says `Moved` when its cursor is on another record, `Chosen` on enter.

    The cursor stays with its record when records come, go or are sorted.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1)", "", show=False, key_display="↑ ↓", tooltip="table: the row"),
        Binding("down", "move(1)", "", show=False),
        Binding("pageup", "page(-1)", "", show=False),
        Binding("pagedown", "page(1)", "", show=False),
        Binding("home", "edge(-1)", "", show=False),
        Binding("end", "edge(1)", "", show=False),
        Binding(
            "comma,less_than_sign",
            "sort(-1)",
            "",
            show=False,
            key_display=", .",
            tooltip="table: sort by the column before, after",
        ),
        Binding("full_stop,greater_than_sign", "sort(1)", "", show=False),
        Binding("o", "reverse", "", show=False, tooltip="table: the other way round"),
        Binding("enter", "choose", "", show=False, tooltip="table: open the row"),
    ]

    class Moved(Message):
        """The cursor is on another record; None when there is none."""

        def __init__(self, grid: "Grid", record_id: str | None) -> None:
            super().__init__()
            self.grid, self.record_id = grid, record_id

        @property
        def control(self) -> "Grid":
            return self.grid

    class Chosen(Moved):
        """Enter, or a second click, on a record."""

    def __init__(self, value: Table, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(value, id=id)
        self.sorting = Sorting()
        self._at = 0
        self._top = 0
        self._under: str | None = None

    @property
    def current(self) -> str | None:
        """The id of the record under the cursor."""
        return self._under

    def show(self, value: Table) -> None:
        if value != self.value:
            super().show(value)
            self._settle()

    def draw(self, width: int, height: int) -> Sequence[Row]:
        self._top = self._scrolled(height)
        return draw_grid(
            self.value,
            width,
            height,
            sorting=self.sorting,
            cursor=self._at,
            top=self._top,
            has_cursor=self._under is not None,
        )

    def _scrolled(self, height: int) -> int:
        """The first row in sight: as it was unless the cursor would leave."""
        room = max(1, height - 1)
        top = min(self._top, max(0, len(self.value.records) - room))
        return min(max(top, self._at - room + 1), self._at)

    def _settle(self) -> None:
        """Find the record of the cursor again; where it is gone stay in place."""
        ids = [each.id for each in ordered(self.value, self.sorting)]
        if self._under in ids:
            self._at = ids.index(self._under)
        else:
            self._point(self._at)

    def _point(self, at: int) -> None:
        ids = [each.id for each in ordered(self.value, self.sorting)]
        self._at = max(0, min(at, len(ids) - 1))
        now = ids[self._at] if ids else None
        if now != self._under:
            self._under = now
            self.post_message(self.Moved(self, now))
        self.redraw()

    def point_at(self, record_id: str) -> None:
        """Put the cursor on a record, if it is there."""
        ids = [each.id for each in ordered(self.value, self.sorting)]
        if record_id in ids:
            self._point(ids.index(record_id))

    def action_move(self, rows: int) -> None:
        self._point(self._at + rows)

    def action_page(self, pages: int) -> None:
        self._point(self._at + pages * max(1, self.content_size.height - 2))

    def action_edge(self, side: int) -> None:
        self._point(0 if side < 0 else len(self.value.records) - 1)

    def action_sort(self, columns: int) -> None:
        """The next column, after the last one the table's own order."""
        choices = [None, *range(len(self.value.columns))]
        at = (choices.index(self.sorting.column) + columns) % len(choices)
        self._sort(replace(self.sorting, column=choices[at]))

    def action_reverse(self) -> None:
        self._sort(replace(self.sorting, is_reversed=not self.sorting.is_reversed))

    def _sort(self, sorting: Sorting) -> None:
        self.sorting = sorting
        self._settle()
        self.redraw()

    def action_choose(self) -> None:
        if self._under is not None:
            self.post_message(self.Chosen(self, self._under))

    def on_click(self, event: events.Click) -> None:
        offset = event.get_content_offset(self)
        if offset is None or offset.y == 0:
            return
        at = self._top + offset.y - 1
        if at < len(self.value.records):
            was = self._under
            self._point(at)
            if event.chain > 1 and was == self._under:
                self.action_choose()

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        event.stop()
        self.action_move(-3)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        event.stop()
        self.action_move(3)
