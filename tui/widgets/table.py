"""A table of short texts: columns that give way by importance when it gets narrow."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from rich.cells import cell_len

from tui.widgets.rows import Role, Row, clip, clip_row, pad, row_width

Cell: TypeAlias = str | Row

_GAP = "  "


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column; the highest `rank` goes first when there is no room, rank 0 stays."""

    title: str
    align: Literal["left", "right"] = "left"
    rank: int = 0


def draw_table(
    columns: Sequence[Column],
    records: Sequence[Sequence[Cell]],
    width: int,
    *,
    roles: Sequence[Role] = (),
    has_header: bool = True,
) -> list[Row]:
    """A header and a row a record; a text takes the record's role, a row of spans has its own.

    The widest kept left-aligned column is clipped at the end.
    """
    cells = [
        [_row(cell, roles[at] if roles else "text") for cell in record]
        for at, record in enumerate(records)
    ]
    widths = [
        max([cell_len(column.title) if has_header else 0, *(row_width(row[i]) for row in cells)])
        for i, column in enumerate(columns)
    ]
    kept = _fit(columns, widths, width)
    over = sum(widths[i] for i in kept) + len(_GAP) * (len(kept) - 1) - width
    left = [i for i in kept if columns[i].align == "left"]
    if over > 0 and left:
        widest = max(left, key=lambda i: widths[i])
        widths[widest] = max(4, widths[widest] - over)
    rows: list[Row] = []
    if has_header:
        titles = [pad(columns[i].title, widths[i], align=columns[i].align) for i in kept]
        rows.append(((clip(_GAP.join(titles).rstrip(), width), "dim"),))
    for record in cells:
        row: Row = ()
        for i in kept:
            gap: Row = ((_GAP, "text"),) if row else ()
            row = (*row, *gap, *_padded(record[i], widths[i], columns[i].align))
        rows.append(clip_row(_stripped(row), width))
    return rows


def table_width(columns: Sequence[Column], records: Sequence[Sequence[Cell]]) -> int:
    """Cells that all columns take."""
    widths = [
        max([cell_len(column.title), *(row_width(_row(record[i], "text")) for record in records)])
        for i, column in enumerate(columns)
    ]
    return sum(widths) + len(_GAP) * (len(columns) - 1)


def _row(cell: Cell, role: Role) -> Row:
    return ((cell, role),) if isinstance(cell, str) else cell


def _padded(cell: Row, width: int, align: Literal["left", "right"]) -> Row:
    """Exactly `width` cells."""
    cell = clip_row(cell, width)
    fill: Row = ((" " * (width - row_width(cell)), "text"),)
    return (*fill, *cell) if align == "right" else (*cell, *fill)


def _stripped(row: Row) -> Row:
    """Without the blanks at its end."""
    while row and not row[-1][0].strip():
        row = row[:-1]
    return row


def _fit(columns: Sequence[Column], widths: Sequence[int], width: int) -> list[int]:
    """Indices of the columns that stay."""
    kept = list(range(len(columns)))
    while sum(widths[i] for i in kept) + len(_GAP) * (len(kept) - 1) > width:
        worst = max(kept, key=lambda i: columns[i].rank)
        if columns[worst].rank == 0:
            break
        kept.remove(worst)
    return kept
