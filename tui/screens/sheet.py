"""Tables that leave the screen: as CSV, JSON or text, and where they are put."""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, TypeAlias

from nmoe.paths import write_atomic

Value: TypeAlias = str | float | int | bool | None
Format: TypeAlias = Literal["csv", "json", "svg", "txt"]
FORMATS: tuple[Format, ...] = ("csv", "json", "svg", "txt")
# Terminals take some 100 kB of base64 in one sequence; tmux and xterm cut what is longer.
MAX_CLIPBOARD_BYTES = 74_000
# Terminals that are known not to read the sequence for the clipboard.
DUMB = ("", "dumb", "linux", "vt100", "vt220", "unknown")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """Named columns and their rows, unformatted."""

    name: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[Value]]

    def csv(self) -> str:
        """A header and a line a row; what is not known is empty."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(["" if value is None else value for value in row] for row in self.rows)
        return text.getvalue()

    def json(self) -> str:
        """A list of objects; numbers that JSON lacks are null."""
        rows = [dict(zip(self.columns, map(_strict, row), strict=True)) for row in self.rows]
        return json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def fits_clipboard(text: str, terminal: str) -> bool:
    """Whether a terminal of this kind ($TERM) takes the text."""
    return terminal not in DUMB and len(text.encode()) <= MAX_CLIPBOARD_BYTES


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


def _strict(value: Value) -> Value:
    return None if isinstance(value, float) and not math.isfinite(value) else value
