"""The bar of a replay: where it is, how fast it goes, and where to click to go elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass

from textual import events
from textual.message import Message

from harness import format as fmt
from tui.widgets.rows import Panel, Row, Span, clip_row, join_fitting, row_width

_MIN_BAR = 8  # cells; a shorter bar says nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Scrub:
    """A position in a recording; `marks_s` are worth a tick on the bar."""

    elapsed_s: float = 0.0
    duration_s: float = 0.0
    speed: float = 1.0
    is_playing: bool = False
    marks_s: tuple[float, ...] = ()


class Scrubber(Panel[Scrub]):
    """One row; a click or a drag on the bar is a message."""

    DEFAULT_CSS = "Scrubber { height: 1; width: 1fr; }"

    class Moved(Message):
        """Somebody wants to be at `frac` of the recording."""

        def __init__(self, frac: float) -> None:
            super().__init__()
            self.frac = frac

    def draw(self, width: int, height: int) -> Sequence[Row]:
        return draw_scrubber(self.value, width)

    def on_mouse_down(self, event: events.MouseDown) -> None:
        self.capture_mouse()
        self._go(event.x)

    def on_mouse_move(self, event: events.MouseMove) -> None:
        if event.button:
            self._go(event.x)

    def on_mouse_up(self) -> None:
        self.release_mouse()

    def _go(self, x: int) -> None:
        frac = frac_at(self.value, self.content_size.width, x)
        if frac is not None:
            self.post_message(self.Moved(frac))


def draw_scrubber(scrub: Scrub, width: int) -> list[Row]:
    """State and speed, the bar, the clock; the bar goes first where there is no room."""
    if width < 1:
        return []
    _, cells = _bar(scrub, width)
    head, clock = _head(scrub), _clock(scrub)
    if not cells:
        return [join_fitting([clip_row(head, width), clock], width, gap=" ")]
    at = round(_frac(scrub.elapsed_s, scrub) * (cells - 1))
    ticks = {round(_frac(mark, scrub) * (cells - 1)) for mark in scrub.marks_s}
    spans: list[Span] = [*head, (" ", "text")]
    for cell in range(cells):
        if cell == at:
            spans.append(("●", "accent"))
        elif cell in ticks:
            spans.append(("┊", "mark"))
        else:
            spans.append(("━", "line") if cell < at else ("─", "faint"))
    return [clip_row((*spans, (" ", "text"), *clock), width)]


def frac_at(scrub: Scrub, width: int, x: int) -> float | None:
    """The share of the recording under the column `x`; None beside the bar."""
    start, cells = _bar(scrub, width)
    if not cells or not start <= x < start + cells:
        return None
    return (x - start) / (cells - 1)


def _bar(scrub: Scrub, width: int) -> tuple[int, int]:
    """First column and cells of the bar; no cells where there is no room for it."""
    start = row_width(_head(scrub)) + 1
    cells = width - start - 1 - row_width(_clock(scrub))
    return start, cells if cells >= _MIN_BAR else 0


def _frac(value: float, scrub: Scrub) -> float:
    return min(1.0, max(0.0, value / scrub.duration_s)) if scrub.duration_s > 0 else 1.0


def _head(scrub: Scrub) -> Row:
    is_over = scrub.elapsed_s >= scrub.duration_s
    word = "playing" if scrub.is_playing else "at the end" if is_over else "paused"
    decimals = 0 if scrub.speed >= 1 else 3
    return ((f" {word} ", "strong"), (f"{fmt.fixed(scrub.speed, decimals=decimals)}x", "text"))


def _clock(scrub: Scrub) -> Row:
    return (
        (fmt.seconds(scrub.elapsed_s), "strong"),
        (f" / {fmt.seconds(scrub.duration_s)} ", "dim"),
    )
