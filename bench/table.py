"""Rows as a table on a terminal, by rich where it is installed."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bench.rows import Row

try:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table
except ImportError:  # a bare machine with torch and pytest
    Console = Table = None

HEADER = ("what", "shape", "implementation", "us", "+-", "rate", "% ceiling", "error", "plain", "")
_LEFT = 3  # columns that are words
_PAGE = 220


def title(rows: Sequence[Row]) -> str:
    """Commit, machine and versions, which all rows of a run share."""
    machine = rows[-1].machine
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    where = machine.gpu if machine.gpus < 2 else f"{machine.gpus} x {machine.gpu}"
    driver = f", driver {machine.driver}" if machine.driver else ""
    return f"{where}{driver}; {versions}; commit {short(machine.commit)}; {machine.date}"


def short(commit: str) -> str:
    """Twelve digits of a commit, and whether the code was changed after it."""
    digits, plus, rest = commit.partition("+")
    return f"{digits[:12]}{plus}{rest}"


def cells(row: Row, slower: Mapping[tuple[Any, ...], float]) -> tuple[str, ...]:
    """The columns of HEADER; the last one says why there are no figures, or how much slower."""
    mark = f"REGRESSION x{slower[row.key]:.2f}" if row.key in slower else ""
    return (
        row.what,
        row.shape,
        row.implementation,
        _number(row.us, ",.1f"),
        _number(row.spread_us, ",.1f"),
        f"{_number(row.rate, ',.3g' if (row.rate or 0) < 1 else ',.1f')} {row.unit}".strip(),
        _number(row.percent, ".1f"),
        _number(row.error, ".1e"),
        _number(row.plain_error, ".1e"),
        " ".join(filter(None, (mark, row.note))),
    )


def lines(rows: Sequence[Row], slower: Mapping[tuple[Any, ...], float]) -> list[str]:
    """The table as text of fixed columns."""
    body = [HEADER, *(cells(row, slower) for row in rows)]
    widths = [max(len(each[column]) for each in body) for column in range(len(HEADER))]
    return [
        "  ".join(
            cell.ljust(width) if column < _LEFT or column == len(HEADER) - 1 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(each, widths, strict=True))
        ).rstrip()
        for each in body
    ]


def show(rows: Sequence[Row], slower: Mapping[tuple[Any, ...], float]) -> None:
    """Print the table, regressions marked."""
    if not rows:
        print("no rows")
        return
    if Console is None or Table is None:
        print(title(rows), *lines(rows, slower), sep="\n")
    else:
        table = Table(title=escape(title(rows)), title_justify="left", box=None, pad_edge=False)
        for column, name in enumerate(HEADER):
            is_word = column < _LEFT or not name
            table.add_column(name, justify="left" if is_word else "right", no_wrap=not is_word)
        for row in rows:
            style = "red" if row.key in slower else None
            table.add_row(*map(escape, cells(row, slower)), style=style)
        # a file or a pipe has no width to fit: every figure stays whole
        console = Console() if Console().is_terminal else Console(width=_PAGE)
        console.print(table)
    if slower:
        print(f"{len(slower)} rows are more than 3 % slower than before, beyond their spread")


def _number(value: float | None, form: str) -> str:
    if value is None:
        return ""
    return format(value, form) if math.isfinite(value) else str(value)
