"""What the screens of one run have: its strip, what is wrong with it, panels that can be held."""

from textual.app import ComposeResult

from harness.best import Best
from tui.feed import RunView
from tui.screens import summary
from tui.screens.named import NamedScreen
from tui.widgets.prose import Paragraphs
from tui.widgets.strip import Status, StatusStrip


class WatchScreen(NamedScreen):
    """A screen of the run that is watched: its strip, then panels; held, only the strip moves."""

    IS_OF_RUN = True

    def __init__(self) -> None:
        super().__init__()
        self._strip = StatusStrip(Status(), id="strip")
        self._banner = Paragraphs((), id="banner")
        self.best: Best | None = None

    def compose(self) -> ComposeResult:
        yield self._strip
        yield self._banner
        yield from super().compose()

    def show(self, view: RunView, *, held: RunView | None = None, best: Best | None = None) -> None:
        self.best = best
        frozen_at = None if held is None else held.state.events
        self._strip.show(summary.strip(view, frozen_at=frozen_at, best=best))
        self.fill(held or view)

    def fill(self, view: RunView) -> None:
        """Fill the panels."""
        raise NotImplementedError

    def show_problem(self, problem: str) -> None:
        self.set_class(bool(problem), "-problem")
        self._banner.show(((problem, "bad"),) if problem else ())
