"""Questions on top of what is shown: a choice, or a line to type; escape answers None."""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.content import Content
from textual.screen import ModalScreen
from textual.widget import Widget
from textual.widgets import Input, OptionList
from textual.widgets.option_list import Option

from tui.widgets.prose import Paragraphs
from tui.widgets.rows import clean


class Choice(NamedTuple):
    """An answer and how it is worded."""

    answer: str
    text: str


class Question(ModalScreen[str | None]):
    """Words, and below them what takes the answer; dismissed with it, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", "cancel")]

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        with Container(id="ask"):
            yield Paragraphs(((clean(self._question), "strong"),), id="question")
            yield self.answers()

    def answers(self) -> Widget:
        """What takes the answer."""
        raise NotImplementedError


class Ask(Question):
    """A few answers to choose from."""

    def __init__(self, question: str, choices: Sequence[Choice]) -> None:
        super().__init__(question)
        self._choices = choices

    def answers(self) -> Widget:
        options = OptionList(
            *(Option(Content(choice.text), id=choice.answer) for choice in self._choices)
        )
        # A list of automatic height cannot be measured in a terminal of one column.
        options.styles.height = len(self._choices)
        return options

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option_id)


class AskText(Question):
    """One line to type; where `wanted` is given, nothing else is an answer."""

    def __init__(
        self, question: str, *, text: str = "", wanted: str = "", max_length: int = 0
    ) -> None:
        super().__init__(question)
        self._text, self._wanted = text, wanted
        self._max_length = max_length

    def answers(self) -> Widget:
        return Input(
            self._text,
            placeholder=self._wanted,
            compact=True,
            select_on_focus=False,
            max_length=self._max_length,
        )

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        if self._wanted and event.value.strip() != self._wanted:
            self.notify(f"that is not {self._wanted}: nothing was done", markup=False)
            return
        self.dismiss(event.value)
