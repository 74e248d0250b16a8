"""Labelled numbers in as many aligned columns as the width allows."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len

from tui.widgets.rows import Panel, Role, Row, pad

_COLUMN_GAP = 3
_MAX_VALUE = 24  # a value further from its label would not be found


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """One labelled value, already text; `role` is its own."""

    label: str
    text: str
    role: Role = "text"


class Numbers(Panel[tuple[Number, ...]]):
    """Labels and values, most important first; what does not fit is left out."""

    def draw(self, width: int, height: int) -> Sequence[Row]:
        return draw_numbers(self.value, width, height)


def draw_numbers(numbers: Sequence[Number], width: int, height: int) -> list[Row]:
    """Rows of label and right-aligned value; columns are filled row by row."""
    if not numbers or height < 1 or width < 1:
        return []
    label_width = max(cell_len(number.label) for number in numbers)
    value_width = max(7, max(cell_len(number.text) for number in numbers))
    cell_width = label_width + 1 + value_width
    num_columns = max(1, (width + _COLUMN_GAP) // (cell_width + _COLUMN_GAP))
    if num_columns == 1:
        value_width = max(0, min(_MAX_VALUE, width - label_width - 1))
    rows: list[Row] = []
    for start in range(0, len(numbers), num_columns):
        row: list[tuple[str, Role]] = []
        for number in numbers[start : start + num_columns]:
            if row:
                row.append((" " * _COLUMN_GAP, "text"))
            row.append((pad(number.label, label_width), "dim"))
            row.append((" " + pad(number.text, value_width, align="right"), number.role))
        rows.append(tuple(row))
    return rows[:height]
