"""The status strip: state, what runs where, clock, progress to the target."""

from collections.abc import Sequence
from dataclasses import dataclass

from tui.widgets.rows import Panel, Row, clip_row, join_fitting, row_width, spread
from tui.widgets.states import sign


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Texts of the strip; `facts` and `progress` in order of importance, fully formatted."""

    status: str = "idle"
    note: str = ""
    facts: tuple[str, ...] = ()
    clock: str = ""
    progress: tuple[Row, ...] = ()
    badge: str = ""


class StatusStrip(Panel[Status]):
    """Two rows, or one when that is all there is."""

    def draw(self, width: int, height: int) -> Sequence[Row]:
        return draw_strip(self.value, width, height)


def draw_strip(status: Status, width: int, height: int) -> list[Row]:
    """The strip in `width` x `height` cells; in one row the progress stands behind the state."""
    state: Row = ((" ", "text"), sign(status.status).span)
    clock: Row = ((status.clock, "strong"), (" ", "text")) if status.clock else ()
    badge: Row = ((status.badge, "mark"), ("  ", "text")) if status.badge else ()
    if height < 2:
        return [join_fitting([state, *status.progress, clock], width, gap="  ")]
    facts = _dotted(status.facts, width - row_width(state) - row_width(badge + clock) - 4)
    note: Row = ((status.note, "dim"),) if status.note else ()
    progress = join_fitting(status.progress, width - 2)
    if not progress:
        return [
            spread((*state, ("   ", "text"), *facts), (*badge, *clock), width),
            clip_row(((" ", "text"), *note), width),
        ]
    rest = width - 2 - row_width(progress) - 3
    with_note = spread(progress, note, width - 2) if note and row_width(note) <= rest else progress
    return [
        spread((*state, ("   ", "text"), *facts), (*badge, *clock), width),
        ((" ", "text"), *with_note),
    ]


def _dotted(facts: Sequence[str], width: int) -> Row:
    """The facts joined by dots, as many as fit."""
    shown = ""
    for fact in facts:
        longer = f"{shown} · {fact}" if shown else fact
        if shown and row_width(((longer, "text"),)) > width:
            continue
        shown = longer
    return clip_row(((shown, "text"),), max(0, width))
