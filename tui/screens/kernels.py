"""The kernels screen: what operations cost, beside the machine's ceiling, a peer and before."""

from pathlib import Path
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.message import Message

from harness import benchmarks
from harness.benchmarks import Bench, Results
from harness.sheet import Sheet
from tui.feed import Failure, attempt
from tui.screens import prices
from tui.screens.filter import FilterLine
from tui.screens.named import NamedScreen
from tui.widgets.grid import Grid, Table
from tui.widgets.prose import Facts


class ResultsRead(Message):
    """The rows of the suite were read."""

    def __init__(self, results: Results) -> None:
        super().__init__()
        self.results = results


class KernelsScreen(NamedScreen):
    """Reads the results each time it is shown; the row under the cursor has its past below."""

    NAME = "kernels"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "filter", "", show=False, key_display="/", tooltip="kernels: filter"),
    ]

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._results = Results()
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

    def on_screen_resume(self) -> None:
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

    def _draw(self) -> None:
        shown, total = self._shown(), len(self._results.benches)
        count = f"{len(shown)} of {total}" if len(shown) < total else str(total)
        slower = sum(bench.verdict == "slower" for bench in self._results.benches)
        self._grid.border_title = f"bench rows {count}, {slower} slower than before"
        self._grid.border_subtitle = "; ".join(self._results.problems).replace("[", "\\[")
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
