"""The row of keys at the bottom: what they do, as many words as fit, and a click for each."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from rich.cells import cell_len
from textual import events
from textual.screen import Screen
from textual.signal import Signal

from tui.widgets.rows import Panel, Role, Row, Span, clip_row, row_width

_GAP = "  "


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key with its word; `can_act` False is greyed, a lower `rank` keeps its word longer."""

    key: str
    display: str
    word: str
    rank: int = 0
    can_act: bool = True
    is_current: bool = False

    @property
    def text(self) -> str:
        return f"{self.display} {self.word}" if self.word else self.display


class KeyBar(Panel[tuple[Key, ...]]):
    """The keys of the screen it stands on, taken from their bindings."""

    DEFAULT_CSS = "KeyBar { height: 1; }"

    def __init__(self, current: str = "") -> None:
        super().__init__(())
        self._current = current

    def on_mount(self) -> None:
        signal = cast(Signal[Screen[Any]], self.screen.bindings_updated_signal)  # pyright: ignore[reportUnknownMemberType]
        signal.subscribe(self, self._take)
        self._take(self.screen)

    def _take(self, screen: Screen[Any]) -> None:
        """The shown bindings of a screen, in the order they were declared."""
        if self.nmoe.screen is not screen:
            return  # under a question, whose keys are others
        self.show(
            tuple(
                Key(
                    key=active.binding.key,
                    display=self.nmoe.get_key_display(active.binding),
                    word=active.binding.description,
                    rank=RANKS.get(active.binding.action, 2),
                    can_act=active.enabled,
                    is_current=active.binding.description == self._current,
                )
                for active in sorted(
                    screen.active_bindings.values(), key=lambda each: _place(each.binding.key)
                )
                if active.binding.show
            )
        )

    def draw(self, width: int, height: int) -> Sequence[Row]:
        return [draw_keys(self.value, width)]

    def on_click(self, event: events.Click) -> None:
        offset = event.get_content_offset(self)
        key = None if offset is None else key_at(self.value, self.content_size.width, offset.x)
        if key is not None:
            self.nmoe.simulate_key(key)


# Words that go first when there is no room: 3 before 2; those of 0 stay to the last.
RANKS = {"detach": 0, "help": 1, "freeze": 1}


def _place(key: str) -> int:
    """Digits first and in their order, 0 behind 9; then everything else as it was declared."""
    return (int(key) - 1) % 10 if key.isdigit() else 10


def shortened(keys: Sequence[Key], width: int) -> list[Key]:
    """The keys with as many words as fit; then as many keys as fit."""
    kept = list(keys)
    while kept and _width(kept) > width:
        wordy = [at for at, key in enumerate(kept) if key.word and not key.is_current]
        if wordy:
            worst = max(wordy, key=lambda at: (kept[at].rank, at))
            kept[worst] = replace(kept[worst], word="")
        else:
            kept.pop()
    return kept


def draw_keys(keys: Sequence[Key], width: int) -> Row:
    """One row of keys."""
    spans: list[Span] = []
    for key in shortened(keys, width):
        role: Role = "accent" if key.can_act else "faint"
        spans.append((f"{_GAP if spans else ' '}{key.display}", role))
        if key.word:
            word: Role = "strong" if key.is_current else "dim" if key.can_act else "faint"
            spans.append((f" {key.word}", word))
    return clip_row(spans, width)


def key_at(keys: Sequence[Key], width: int, x: int) -> str | None:
    """The key under a column."""
    at = 1
    for key in shortened(keys, width):
        size = cell_len(key.text)
        if at <= x < at + size:
            return key.key
        at += size + len(_GAP)
    return None


def _width(keys: Sequence[Key]) -> int:
    return row_width([(_GAP + key.text, "text") for key in keys]) - 1
