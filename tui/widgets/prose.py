"""Text that was laid out elsewhere, and paragraphs that are wrapped here."""

from collections.abc import Sequence

from tui.widgets.rows import Panel, Row, Span, wrap


class Prose(Panel[tuple[Row, ...]]):
    """Shows rows as they are; longer ones are clipped."""

    def draw(self, width: int, height: int) -> Sequence[Row]:
        return self.value[:height]


class Paragraphs(Panel[tuple[Span, ...]]):
    """Shows texts one below the other, each wrapped to the width."""

    def draw(self, width: int, height: int) -> Sequence[Row]:
        return [row for text, role in self.value for row in wrap(text, width, role)][:height]
