"""Tables that leave the program: as CSV, JSON or Markdown, harmless wherever they are opened."""

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeAlias

from nmoe.paths import write_atomic

Value: TypeAlias = str | float | int | bool | None
# What a spreadsheet takes for the beginning of a formula.
_FORMULA = ("=", "+", "-", "@")
# What Markdown or the HTML inside of it takes for more than text, links and mentions included.
_MARKUP = re.compile(r"[\\`*_\[\]|~$]|[<>&@]|(?<=:)//|(?<=www)\.", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """Named columns and their rows, unformatted."""

    name: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[Value]]

    def csv(self) -> str:
        """A header and a line a row; what is not known is empty, text is never a formula."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([_csv_cell(value) for value in row] for row in self.rows)
        return text.getvalue()

    def json(self) -> str:
        """A list of objects; numbers that JSON lacks are null."""
        rows = [dict(zip(self.columns, map(_strict, row), strict=True)) for row in self.rows]
        return json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], *, right: str = "") -> list[str]:
    """A table of Markdown, its cells escaped; `right` has an r for each column of numbers."""
    marks = ["---:" if side == "r" else "---" for side in right.ljust(len(head))]
    lines = [_markdown_row(map(escaped, head)), _markdown_row(marks)]
    return [*lines, *(_markdown_row(map(escaped, row)) for row in rows)]


def escaped(text: str) -> str:
    """The text on one line of Markdown, with no mark-up, link, mention or HTML left in it."""
    return _MARKUP.sub(_as_text, one_line(text))


def one_line(text: str) -> str:
    """The text without line breaks and control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)


def save(folder: Path, name: str, suffix: str, text: str) -> Path:
    """Write a new file in `folder`, never over another one; returns its path. Raises OSError."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    number = 0
    while True:
        behind = f"-{number}" if number else ""
        path = folder / f"{name}-{stamp}{behind}.{suffix}"
        if not path.exists():
            write_atomic(path, text)
            return path
        number += 1


def _csv_cell(value: Value) -> Value:
    if value is None:
        return ""
    if not isinstance(value, str):
        return value
    text = one_line(value)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) else text


def _as_text(match: re.Match[str]) -> str:
    found = match[0]
    if found in "<>&@./" or found == "//":
        return "".join(f"&#{ord(char)};" for char in found)
    return f"\\{found}"


def _markdown_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _strict(value: Value) -> Value:
    return None if isinstance(value, float) and not math.isfinite(value) else value
