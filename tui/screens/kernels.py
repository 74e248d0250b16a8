"""The kernels screen: what operations cost, beside the machine's ceiling, a peer and before.

It starts the suite, too, which goes on when the screen is left, and shows what it leaves.
"""

from pathlib import Path
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.message import Message

from harness import benchmarks, measure
from harness.benchmarks import Bench, Results
from harness.sheet import Sheet
from nmoe.paths import DataRoot
from tui.feed import Failure, attempt
from tui.screens import prices
from tui.screens.filter import FilterLine
from tui.screens.named import NamedScreen
from tui.widgets.grid import Grid, Table
from tui.widgets.prose import Facts
from tui.widgets.rows import clean

LOOK_S = 1.0


class ResultsRead(Message):
    """The rows of the suite were read."""

    def __init__(self, results: Results) -> None:
        super().__init__()
        self.results = results


class Measure(Message):
    """A part of the suite is to be measured anew."""


class KernelsScreen(NamedScreen):
    """Reads the results each time it is shown; the row under the cursor has its past below."""

    NAME = "kernels"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "filter", "", show=False, key_display="/", tooltip="kernels: filter"),
        Binding("b", "measure", "", show=False, tooltip="kernels: measure a part of them anew"),
    ]

    def __init__(self, root: DataRoot, folder: Path, *, is_readonly: bool) -> None:
        super().__init__()
        self._root, self._folder = root, folder
        self._is_readonly = is_readonly
        self._results = Results()
        self._work = ""  # what the suite says while it is at work
        self._text = ""
        self._metrics = Facts((), id="metrics")
        self._grid = Grid(Table(), id="benches")
        self._detail = Facts((), id="bench")
        self._filter = FilterLine("filter: words, such as nmoe h200 slower")

    def panels(self) -> ComposeResult:
        self._detail.border_title = "row"
        self._grid.add_class("framed")
        self._detail.add_class("framed", "spare")
        with Container(classes="body column"):
            yield self._metrics
            yield self._grid
            yield self._detail
        yield self._filter

    def on_mount(self) -> None:
        self._grid.focus()
        self.set_interval(LOOK_S, self._look)

    def on_screen_resume(self) -> None:
        self._look()
        self._reread()

    def _reread(self) -> None:
        self.run_worker(self._read, thread=True, exclusive=True, exit_on_error=False)

    def _read(self) -> None:
        outcome = attempt(lambda: benchmarks.read(self._folder))
        if isinstance(outcome, Failure):
            self.post_message(ResultsRead(Results(problems=(outcome.problem,))))
        else:
            self.post_message(ResultsRead(outcome.value))

    def on_results_read(self, message: ResultsRead) -> None:
        self._results = message.results
        self._draw()

    def on_filter_line_typed(self, event: FilterLine.Typed) -> None:
        self._text = event.text
        self._draw()

    def on_grid_moved(self, event: Grid.Moved) -> None:
        self._detail.show(prices.detail(self._current()))

    def action_filter(self) -> None:
        self._filter.ask()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Whether a key acts: a viewer that only looks starts nothing."""
        if action == "measure" and self._is_readonly:
            return None
        return super().check_action(action, parameters)

    def action_measure(self) -> None:
        """Have a part of the suite started."""
        if self._work:
            self.notify("the suite is at work already", markup=False)
        else:
            self.post_message(Measure())

    def _look(self) -> None:
        """Say what the suite says; when it has ended, show what it left."""
        if not self.is_current:
            return
        was_at_work, is_at_work = bool(self._work), measure.is_running(self._root)
        said = measure.last_words(self._root) if is_at_work or was_at_work else ""
        self._work = f"measuring: {said}" if is_at_work else ""
        self._say()
        if was_at_work and not is_at_work:
            self.notify(f"the suite has ended: {said}", timeout=10, markup=False)
            self._reread()

    def _say(self) -> None:
        """Below the table: what the suite says, and what could not be read."""
        said = "; ".join(filter(None, (clean(self._work), *self._results.problems)))
        self._grid.border_subtitle = said.replace("[", "\\[")

    def _draw(self) -> None:
        shown, total = self._shown(), len(self._results.benches)
        count = f"{len(shown)} of {total}" if len(shown) < total else str(total)
        slower = sum(bench.verdict == "slower" for bench in self._results.benches)
        self._grid.border_title = f"bench rows {count}, {slower} slower than before"
        self._say()
        empty = "no row fits the filter" if total else "no results yet: n bench kernels makes some"
        self._grid.show(prices.table(shown, empty=empty))
        self._metrics.show(prices.metrics(self._results.metrics))
        self._detail.show(prices.detail(self._current()))

    def _shown(self) -> list[Bench]:
        return prices.select(self._results, self._text)

    def _current(self) -> Bench | None:
        """The row under the cursor."""
        by_key = {prices.key(bench): bench for bench in self._results.benches}
        return by_key.get(self._grid.current or "")

    def sheet(self) -> Sheet | None:
        return prices.sheet(self._shown())
