"""What all screens have: keys at the bottom, text to copy, a table or a curve to export."""

from typing import TYPE_CHECKING, Any, ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import Screen

from harness.sheet import Sheet
from tui.feed import RunView
from tui.widgets.keybar import KeyBar
from tui.widgets.rows import Panel, plain

if TYPE_CHECKING:  # draws, with numpy
    from harness.best import Best
    from tui.screens.charts import Other

LOW = 20  # rows below which what can be spared is


class NamedScreen(Screen[None]):
    """A screen with a name, which its key in the bar shows.

    What it is told of the run that is watched, and of others, matters to some screens only.
    """

    NAME = ""
    IS_OF_RUN = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("z", "enlarge", "", show=False, tooltip="the panel in focus alone, or with others"),
    ]

    def compose(self) -> ComposeResult:
        yield from self.panels()
        yield KeyBar(self.NAME)

    def panels(self) -> ComposeResult:
        """What stands above the keys."""
        yield from ()

    def on_resize(self, event: events.Resize) -> None:
        self.set_class(event.size.height < LOW, "-low")

    def action_enlarge(self) -> None:
        """The panel in focus takes the whole screen, or gives it back."""
        if self.maximized is not None:
            self.minimize()
        elif self.focused is None or not self.maximize(self.focused):
            self.notify("no panel is in focus: tab goes to the next", markup=False)

    def show(
        self, view: RunView, *, held: RunView | None = None, best: "Best | None" = None
    ) -> None:
        """Show a view beside the best run; panels show the `held` one when there is one."""

    def show_problem(self, problem: str) -> None:
        """Say why the run cannot be read; an empty text takes that back."""

    def show_marked(self, others: "tuple[Other, ...]") -> None:
        """Draw these runs over the one that is watched."""

    def runs_changed(self) -> None:
        """A run was noted or deleted."""

    def copied(self) -> str:
        """What `y` copies: the panel in focus as text, else all of them."""
        focused = self.focused
        panels: list[Panel[Any]] = [focused] if isinstance(focused, Panel) else [*self.query(Panel)]
        return "\n\n".join(filter(None, map(_text, panels)))

    def sheet(self) -> Sheet | None:
        """What `e` exports as a table; None when there is nothing but the picture."""
        return None


def _text(panel: Panel[Any]) -> str:
    """A panel as it stands there, without its frame."""
    size = panel.content_size
    if not panel.display or min(size) <= 0 or isinstance(panel, KeyBar):
        return ""
    return "\n".join(plain(row).rstrip() for row in panel.draw(size.width, size.height))
