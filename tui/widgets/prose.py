"""Text that was laid out elsewhere, paragraphs that are wrapped here, and facts that flow."""

from collections.abc import Sequence

from tui.widgets.rows import Panel, Row, Span, clip_row, row_width, wrap


class Prose(Panel[tuple[Row, ...]]):
    """Shows rows as they are; longer ones are clipped."""

    def draw(self, width: int, height: int) -> Sequence[Row]:
        return self.value[:height]


class Paragraphs(Panel[tuple[Span, ...]]):
    """Shows texts one below the other, each wrapped to the width."""

    def draw(self, width: int, height: int) -> Sequence[Row]:
        return [row for text, role in self.value for row in wrap(text, width, role)][:height]


class Facts(Panel[tuple[tuple[Row, ...], ...]]):
    """Groups of short facts, side by side as far as they fit, then in the next row."""

    def draw(self, width: int, height: int) -> Sequence[Row]:
        return [row for group in self.value for row in flow(group, width)][:height]


def flow(parts: Sequence[Row], width: int, *, gap: str = "  ") -> list[Row]:
    """The parts one behind the other, broken between them only."""
    rows: list[Row] = []
    for part in parts:
        longer: Row = (*rows[-1], (gap, "text"), *part) if rows else part
        if rows and row_width(longer) <= width:
            rows[-1] = longer
        else:
            rows.append(part)
    return [clip_row(row, width) for row in rows]
