"""Long text with a position: only the lines in sight are drawn, the end is followed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType

from harness import format as fmt
from tui.widgets.rows import Panel, Role, Row, clean, clip, wrap

_STAMPED = 60  # cells from which on there is room for the time


@dataclass(frozen=True, slots=True, kw_only=True)
class TextLine:
    """A line with its number, by which its place is kept, and its role."""

    number: int
    text: str
    role: Role = "text"
    time: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pages:
    """Lines in the order of their numbers; the same `key` is the same text, grown."""

    key: str = ""
    lines: tuple[TextLine, ...] = ()
    empty: str = "nothing logged yet"


def draw_page(
    pages: Pages,
    width: int,
    height: int,
    *,
    first: int | None = None,
    wraps: bool = False,
    is_utc: bool = False,
) -> list[Row]:
    """`height` rows from line number `first` on, or the last ones when it is None."""
    if width < 1 or height < 1:
        return []
    if not pages.lines:
        return [((clip(pages.empty, width), "dim"),)]
    rows: list[Row] = []
    if first is None:
        for line in reversed(pages.lines):
            rows[:0] = _rows(line, width, wraps=wraps, is_utc=is_utc)
            if len(rows) >= height:
                break
        return rows[-height:]
    for line in pages.lines[start(pages, first) :]:
        rows += _rows(line, width, wraps=wraps, is_utc=is_utc)
        if len(rows) >= height:
            break
    return rows[:height]


def start(pages: Pages, first: int) -> int:
    """The index of the first line that is not before number `first`."""
    low, high = 0, len(pages.lines)
    while low < high:
        middle = (low + high) // 2
        if pages.lines[middle].number < first:
            low = middle + 1
        else:
            high = middle
    return low


def _rows(line: TextLine, width: int, *, wraps: bool, is_utc: bool) -> list[Row]:
    stamp = ""
    if line.time is not None and width >= _STAMPED:
        stamp = f"{fmt.time_of_day(line.time, is_utc=is_utc)}  "
    room = width - len(stamp)
    head: Row = ((stamp, "dim"),)
    if not wraps:
        return [(*head, (clip(clean(line.text), room), line.role))]
    first, *others = wrap(line.text, room, line.role) or [()]
    return [(*head, *first), *(((" " * len(stamp), "dim"), *row) for row in others)]


class Pager(Panel[Pages], can_focus=True):
    """Follows the end until it is moved; `end` follows again."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1)", "", show=False, key_display="↑ ↓", tooltip="text: a line"),
        Binding("down", "move(1)", "", show=False),
        Binding("pageup", "page(-1)", "", show=False, tooltip="text: a page"),
        Binding("pagedown", "page(1)", "", show=False),
        Binding("home", "home", "", show=False),
        Binding("end", "follow", "", show=False, tooltip="text: follow the end"),
        Binding("w", "wrap", "", show=False, tooltip="text: long lines whole, or cut"),
    ]

    def __init__(self, value: Pages, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(value, id=id)
        self.first: int | None = None
        self.wraps = False

    def show(self, value: Pages) -> None:
        if value.key != self.value.key:
            self.first = None
        super().show(value)

    def draw(self, width: int, height: int) -> Sequence[Row]:
        return draw_page(
            self.value,
            width,
            height,
            first=self.first,
            wraps=self.wraps,
            is_utc=self.is_utc,
        )

    def go(self, first: int | None) -> None:
        """Show the lines from a number on, or follow the end."""
        if first != self.first:
            self.first = first
            self.redraw()

    def go_near(self, number: int) -> None:
        """Show a line with a few before it."""
        at = start(self.value, number) - self._height // 3
        at = min(at, len(self.value.lines) - self._height)
        self.go(self.value.lines[max(0, at)].number if self.value.lines else None)

    @property
    def _height(self) -> int:
        return max(1, self.content_size.height)

    def _at(self) -> int:
        """The index of the first line in sight."""
        if self.first is None:
            return max(0, len(self.value.lines) - self._height)
        return start(self.value, self.first)

    def action_move(self, lines: int) -> None:
        if not self.value.lines:
            return
        last = max(0, len(self.value.lines) - (1 if self.wraps else self._height))
        at = self._at() + lines
        self.go(None if at >= last and lines > 0 else self.value.lines[max(0, at)].number)

    def action_page(self, pages: int) -> None:
        self.action_move(pages * max(1, self._height - 1))

    def action_home(self) -> None:
        self.go(self.value.lines[0].number if self.value.lines else None)

    def action_follow(self) -> None:
        self.go(None)

    def action_wrap(self) -> None:
        self.wraps = not self.wraps
        self.redraw()

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        event.stop()
        self.action_move(-3)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        event.stop()
        self.action_move(3)
