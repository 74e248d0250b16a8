"""The CORE screen: every task with its chance level and interval, beside the cohort's record."""

from textual.app import ComposeResult
from textual.containers import Container

from harness.sheet import Sheet
from tui.feed import RunView
from tui.screens import scores
from tui.screens.scores import Scores
from tui.screens.watch import WatchScreen
from tui.widgets.grid import Grid, Table
from tui.widgets.prose import Facts


class CoreScreen(WatchScreen):
    """Fills in as tasks are scored; interim scores until the final ones come."""

    NAME = "core"

    def __init__(self) -> None:
        super().__init__()
        self._scores: Scores | None = None
        self._facts = Facts((), id="corefacts")
        self._tasks = Grid(Table(), id="tasks")

    def panels(self) -> ComposeResult:
        self._tasks.border_title = "CORE"
        self._tasks.add_class("framed")
        with Container(classes="body column"):
            yield self._facts
            yield self._tasks

    def fill(self, view: RunView) -> None:
        self._scores = scores.of_view(view, self.best)
        self._facts.show(scores.facts(self._scores))
        self._tasks.show(scores.table(self._scores))

    def sheet(self) -> Sheet | None:
        return None if self._scores is None else scores.sheet(self._scores)
