"""What all screens have: keys at the bottom, text to copy, a table or a curve to export."""

from typing import TYPE_CHECKING, Any, ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import Screen

from harness.best import Best
from harness.sheet import Sheet
from tui.feed import RunView
from tui.screens import summary
from tui.widgets.keybar import KeyBar
from tui.widgets.prose import Paragraphs
from tui.widgets.rows import Panel, plain
from tui.widgets.strip import Status, StatusStrip

if TYPE_CHECKING:
    from tui.screens.charts import Other

LOW = 20  # rows below which what can be spared is


class NamedScreen(Screen[None]):
    """A screen with a name, which its key in the bar shows."""

    NAME = ""
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


class WatchScreen(NamedScreen):
    """A screen of the run that is watched: its strip, then panels; held, only the strip moves."""

    def __init__(self) -> None:
        super().__init__()
        self._strip = StatusStrip(Status(), id="strip")
        self._banner = Paragraphs((), id="banner")
        self.best: Best | None = None
        self.others: tuple[Other, ...] = ()

    def compose(self) -> ComposeResult:
        yield self._strip
        yield self._banner
        yield from super().compose()

    def show(self, view: RunView, *, held: RunView | None = None, best: Best | None = None) -> None:
        """Show a view beside the best run; panels show the `held` one when there is one."""
        self.best = best
        frozen_at = None if held is None else held.state.events
        self._strip.show(summary.strip(view, frozen_at=frozen_at, best=best))
        self.fill(held or view)

    def fill(self, view: RunView) -> None:
        """Fill the panels."""
        raise NotImplementedError

    def show_problem(self, problem: str) -> None:
        """A line under the strip; an empty one takes it away."""
        self.set_class(bool(problem), "-problem")
        self._banner.show(((problem, "bad"),) if problem else ())


def _text(panel: Panel[Any]) -> str:
    """A panel as it stands there, without its frame."""
    size = panel.content_size
    if not panel.display or min(size) <= 0 or isinstance(panel, KeyBar):
        return ""
    return "\n".join(plain(row).rstrip() for row in panel.draw(size.width, size.height))
