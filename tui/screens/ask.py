"""A question with a few answers, on top of what is shown; escape answers None."""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from tui.widgets.prose import Paragraphs
from tui.widgets.rows import clean


class Choice(NamedTuple):
    """An answer and how it is worded."""

    answer: str
    text: str


class Ask(ModalScreen[str | None]):
    """Dismissed with the answer, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", "cancel")]

    def __init__(self, question: str, choices: Sequence[Choice]) -> None:
        super().__init__()
        self._question = question
        self._choices = choices

    def compose(self) -> ComposeResult:
        with Container(id="ask"):
            yield Paragraphs(((clean(self._question), "strong"),), id="question")
            options = OptionList(
                *(Option(Content(choice.text), id=choice.answer) for choice in self._choices)
            )
            # A list of automatic height cannot be measured in a terminal of one column.
            options.styles.height = len(self._choices)
            yield options

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option_id)
