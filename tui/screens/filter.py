"""The line at the bottom of a screen in which a filter is typed."""

from typing import Any, ClassVar

from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import Input


class FilterLine(Input):
    """Hidden until it is asked for; says every change. Escape empties and hides it, enter keeps."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "forget", "", show=False),
    ]

    class Typed(Message):
        """The filter as it is now."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    def __init__(self, placeholder: str) -> None:
        super().__init__(placeholder=placeholder, compact=True, select_on_focus=False, id="filter")

    def on_mount(self) -> None:
        self.display = False

    def ask(self) -> None:
        """Show the line and take the keys."""
        self.display = True
        self.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        event.stop()
        self.post_message(self.Typed(self.value))

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self._leave()

    def action_forget(self) -> None:
        self.value = ""
        self._leave()

    def _leave(self) -> None:
        self.display = bool(self.value)
        screen: Any = self.screen
        screen.focus_next("Panel")
