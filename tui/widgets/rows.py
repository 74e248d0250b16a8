"""Rows of text with roles instead of colours, and the widget that paints them.

A panel is a pure function from a value and a size to rows; a row is a sequence of spans (text,
role). Roles become styles only when painted, so drawing is tested as plain text, and text from
outside is never parsed as markup.
"""

import unicodedata
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, Generic, Literal, TypeAlias, TypeVar, cast

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual.app import App
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget

from tui.widgets.ascii import Charset, to_ascii
from tui.widgets.ink import Role, styles

Span: TypeAlias = tuple[str, Role]
Row: TypeAlias = tuple[Span, ...]
Value = TypeVar("Value")

ELLIPSIS = "…"
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})  # controls, direction marks, separators


def clean(text: str) -> str:
    """Text from outside with everything that could move the cursor or hide replaced by `·`."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        " " if char == "\t" else "·" if unicodedata.category(char) in _HIDDEN else char
        for char in text
    )


def clip(text: str, width: int) -> str:
    """At most `width` cells of a cleaned text, ending in an ellipsis when something was cut."""
    if width <= 0:
        return ""
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, width - 1).rstrip() + ELLIPSIS


def pad(text: str, width: int, *, align: Literal["left", "right"] = "left") -> str:
    """Exactly `width` cells: clipped or filled with blanks."""
    text = clip(text, width)
    fill = " " * (width - cell_len(text))
    return fill + text if align == "right" else text + fill


def row_width(row: Sequence[Span]) -> int:
    """Cells of a row."""
    return sum(cell_len(text) for text, _ in row)


def plain(row: Sequence[Span]) -> str:
    """The text of a row without its roles."""
    return "".join(text for text, _ in row)


def clip_row(row: Sequence[Span], width: int) -> Row:
    """At most `width` cells of a row."""
    spans: list[Span] = []
    left = width
    for text, role in row:
        if left <= 0:
            break
        text = clip(text, left)
        left -= cell_len(text)
        spans.append((text, role))
    return tuple(spans)


def row_to_ascii(row: Sequence[Span]) -> Row:
    """The row in plain ASCII, a cell for a cell."""
    return tuple((to_ascii(text), role) for text, role in row)


def spread(left: Sequence[Span], right: Sequence[Span], width: int) -> Row:
    """`left` and `right` at the two ends of a row; `right` goes first when both do not fit."""
    gap = width - row_width(left) - row_width(right)
    if gap < 1:
        return clip_row(left, width)
    return (*left, (" " * gap, "text"), *right)


def join_fitting(parts: Sequence[Row], width: int, *, gap: str = "   ") -> Row:
    """As many of the parts, in order of importance, as fit side by side; at least the first."""
    row: Row = ()
    for part in parts:
        if not part:
            continue
        longer: Row = (*row, (gap, "text"), *part) if row else part
        if row and row_width(longer) > width:
            continue
        row = longer
    return clip_row(row, width)


def wrap(text: str, width: int, role: Role = "text") -> list[Row]:
    """A cleaned text broken at blanks into rows of at most `width` cells."""
    if width <= 0:
        return []
    rows: list[Row] = []
    line = ""
    for word in clean(text).split():
        while cell_len(word) > width:
            head = set_cell_size(word, width).rstrip()
            if line:
                rows.append(((line, role),))
                line = ""
            if not head:
                return rows
            rows.append(((head, role),))
            word = word[len(head) :]
        longer = f"{line} {word}" if line else word
        if cell_len(longer) > width:
            rows.append(((line, role),))
            line = word
        else:
            line = longer
    if line:
        rows.append(((line, role),))
    return rows


class Panel(Widget, Generic[Value]):
    """Paints the rows drawn for one value; of a new value only those that became others."""

    DEFAULT_CSS = """
    Panel { height: 1fr; width: 1fr; color: $foreground; }
    """

    def __init__(self, value: Value, *, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, classes=classes)
        self._value = value
        self._drawn: tuple[tuple[int, int, Charset], list[Row]] | None = None
        self._asked = (0, 0)  # the width that the layout asked for, the rows it was told
        self._look: tuple[Style, dict[Role, Style]] = (Style(), {})

    @property
    def value(self) -> Value:
        return self._value

    def show(self, value: Value) -> None:
        """Take a new value; equal ones cost nothing."""
        if value == self._value:
            return
        self._value = value
        self.redraw()

    def redraw(self) -> None:
        """Draw again: what is drawn has changed."""
        before, self._drawn = self._drawn, None
        if self.styles.auto_dimensions and self._rows_at(self._asked[0]) != self._asked[1]:
            self.refresh(layout=True)
        elif before is None or before[0] != self._extent:
            self.refresh()
        else:
            rows = enumerate(zip_longest(before[1], self._rows()))
            changed = [Region(0, y, before[0][0], 1) for y, (old, new) in rows if old != new]
            if changed:
                self.refresh(*changed)

    @property
    def nmoe(self) -> App[Any]:
        """The app, whatever it returns."""
        return cast(App[Any], self.app)  # pyright: ignore[reportUnknownMemberType]

    @property
    def charset(self) -> Charset:
        """What curves are drawn with; the app has the class `-ascii` or `-block` for the others."""
        if self.nmoe.has_class("-ascii"):
            return "ascii"
        return "block" if self.nmoe.has_class("-block") else "braille"

    @property
    def is_utc(self) -> bool:
        """Whether times are in UTC: the app has the class `-utc`, else they are those of here."""
        return self.nmoe.has_class("-utc")

    def draw(self, width: int, height: int) -> Sequence[Row]:
        """The rows for the current value in `width` x `height` cells."""
        raise NotImplementedError

    def get_content_height(self, container: object, viewport: object, width: int) -> int:
        """Rows the value takes at this width, for panels of automatic height."""
        self._asked = (width, self._rows_at(width))
        return self._asked[1]

    def _rows_at(self, width: int) -> int:
        """Rows the value takes where there is room for all of them."""
        return len(self.draw(width, 1000))

    @property
    def _extent(self) -> tuple[int, int, Charset]:
        """What rows depend on besides the value."""
        size = self.content_size
        return size.width, size.height, self.charset

    def _rows(self) -> list[Row]:
        """The rows of the value, drawn once."""
        extent = self._extent
        if self._drawn is None or self._drawn[0] != extent:
            width, height, charset = extent
            rows = self.draw(width, height) if min(width, height) > 0 else ()
            clipped = [clip_row(row, width) for row in rows]
            self._drawn = (extent, [*map(row_to_ascii, clipped)] if charset == "ascii" else clipped)
        return self._drawn[1]

    def render_lines(self, crop: Region) -> list[Strip]:
        """Painted rows; the colours are looked up once for all of them."""
        self._look = (self.rich_style, styles(self.nmoe))
        return super().render_lines(crop)

    def render_line(self, y: int) -> Strip:
        """One painted row; blank below the last one."""
        rows, width, (base, inks) = self._rows(), self.content_size.width, self._look
        if y >= len(rows):
            return Strip.blank(width, base)
        segments = [Segment(text, base + inks[role]) for text, role in rows[y] if text]
        return Strip(segments).adjust_cell_length(width, base)
