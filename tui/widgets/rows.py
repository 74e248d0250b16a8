"""Rows of text with roles instead of colours, and the widget that paints them.

A panel is a pure function from a value and a size to rows; a row is a sequence of spans (text,
role). Roles become styles only when painted, so drawing is tested as plain text, and text from
outside is never parsed as markup.
"""

import unicodedata
from collections.abc import Sequence
from typing import Any, Generic, Literal, TypeAlias, TypeVar, cast

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from textual.app import App
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
    for text, role in row:
        left = width - row_width(spans)
        if left <= 0:
            break
        spans.append((clip(text, left), role))
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
    """Paints the rows drawn for one value; repaints only when the value or the size changed."""

    DEFAULT_CSS = """
    Panel { height: 1fr; width: 1fr; color: $foreground; }
    """

    def __init__(self, value: Value, *, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, classes=classes)
        self._value = value
        self._drawn: tuple[tuple[object, ...], list[Row]] | None = None

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
        self._drawn = None
        self.refresh(layout=self.styles.auto_dimensions)

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

    def draw(self, width: int, height: int) -> Sequence[Row]:
        """The rows for the current value in `width` x `height` cells."""
        raise NotImplementedError

    def get_content_height(self, container: object, viewport: object, width: int) -> int:
        """Rows the value takes at this width, for panels of automatic height."""
        return len(self.draw(width, 1000))

    def render_line(self, y: int) -> Strip:
        """One painted row; blank below the last one."""
        size = self.content_size
        charset = self.charset
        key = (size.width, size.height, charset)
        if self._drawn is None or self._drawn[0] != key:
            rows = self.draw(size.width, size.height) if min(size) > 0 else ()
            clipped = [clip_row(row, size.width) for row in rows]
            self._drawn = (key, [*map(row_to_ascii, clipped)] if charset == "ascii" else clipped)
        rows = self._drawn[1]
        if y >= len(rows):
            return Strip.blank(size.width, self.rich_style)
        base, inks = self.rich_style, styles(self.nmoe)
        segments = [Segment(text, base + inks[role]) for text, role in rows[y] if text]
        return Strip(segments).adjust_cell_length(size.width, base)
