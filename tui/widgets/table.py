"""A table of short texts: columns that give way by importance when it gets narrow."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.cells import cell_len

from tui.widgets.rows import Role, Row, clip, pad

_GAP = "  "


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column; the highest `rank` goes first when there is no room, rank 0 stays."""

    title: str
    align: Literal["left", "right"] = "left"
    rank: int = 0


def draw_table(
    columns: Sequence[Column],
    records: Sequence[Sequence[str]],
    width: int,
    *,
    roles: Sequence[Role] = (),
    has_header: bool = True,
) -> list[Row]:
    """A header and a row a record; the widest kept left-aligned column is clipped at the end."""
    widths = [
        max([cell_len(column.title) if has_header else 0, *(cell_len(r[i]) for r in records)])
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
        rows.append(((clip(_GAP.join(titles), width), "dim"),))
    for at, record in enumerate(records):
        texts = [pad(record[i], widths[i], align=columns[i].align) for i in kept]
        role = roles[at] if roles else "text"
        rows.append(((clip(_GAP.join(texts).rstrip(), width), role),))
    return rows


def _fit(columns: Sequence[Column], widths: Sequence[int], width: int) -> list[int]:
    """Indices of the columns that stay."""
    kept = list(range(len(columns)))
    while sum(widths[i] for i in kept) + len(_GAP) * (len(kept) - 1) > width:
        worst = max(kept, key=lambda i: columns[i].rank)
        if columns[worst].rank == 0:
            break
        kept.remove(worst)
    return kept
