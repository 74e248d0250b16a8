"""Keys and states, written from their declarations."""

from collections.abc import Iterable, Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import ActiveBinding, Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen

from tui.widgets.prose import Prose
from tui.widgets.rows import Row, pad
from tui.widgets.states import SIGNS

_KEY_WIDTH = 8
_STATE_WIDTH = 14


class HelpScreen(ModalScreen[None]):
    """Closed by escape, `?` or `q`."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,q", "dismiss(None)", "close", priority=True)
    ]

    def __init__(self, keys: Sequence[Binding]) -> None:
        super().__init__()
        self._keys = keys

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="help") as scroll:
            scroll.border_title = "help"
            scroll.border_subtitle = "esc closes"
            yield Prose(tuple(help_rows(self._keys)), classes="tall")


def help_rows(keys: Sequence[Binding]) -> list[Row]:
    """A row a key, then a row a state."""
    rows: list[Row] = [(("Keys", "strong"),)]
    rows.extend(
        ((pad(key.key_display or key.key, _KEY_WIDTH), "accent"), (key.tooltip, "text"))
        for key in keys
    )
    rows.extend(((), (("States", "strong"),)))
    rows.extend(
        (
            (pad(f"{sign.glyph} {sign.word}", _STATE_WIDTH), sign.role),
            ("  " + sign.meaning, "text"),
        )
        for sign in SIGNS.values()
    )
    return rows


def declared(active: Iterable[ActiveBinding]) -> list[Binding]:
    """The bindings that say what they do, those of what is in focus first, each key once."""
    keys = [each.binding for each in active if each.binding.tooltip]
    return list({(key.action, key.tooltip): key for key in keys}.values())
