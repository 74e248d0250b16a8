"""The run screen: everything about one run, from preparation to its result."""

from textual.app import ComposeResult
from textual.containers import Container
from textual.screen import Screen
from textual.widgets import Footer

from tui.feed import RunView
from tui.screens import summary
from tui.screens.curves import CurveOf
from tui.screens.report import report
from tui.widgets.chart import LineChart
from tui.widgets.core import Core, CoreTable
from tui.widgets.figure import Chart
from tui.widgets.gpus import GpuTable
from tui.widgets.logs import LogTail
from tui.widgets.numbers import Numbers
from tui.widgets.progress import Progress, ProgressBars
from tui.widgets.prose import Paragraphs
from tui.widgets.strip import Status, StatusStrip


class RunScreen(Screen[None]):
    """Shows views as they come; frozen, only the strip moves."""

    def __init__(self) -> None:
        super().__init__()
        self._strip = StatusStrip(Status(), id="strip")
        self._banner = Paragraphs((), id="banner")
        self._chart = LineChart(Chart(), id="chart")
        self._losses = CurveOf()
        self._progress = ProgressBars(Progress(), id="progress")
        self._numbers = Numbers((), id="numbers")
        self._gpus = GpuTable((), id="gpus")
        self._core = CoreTable(Core(), id="core")
        self._report = Paragraphs((), id="report")
        self._log = LogTail((), id="log")
        self._view: RunView | None = None
        self._frozen_at: int | None = None

    def compose(self) -> ComposeResult:
        for panel, title in (
            (self._progress, "prepare"),
            (self._numbers, "numbers"),
            (self._gpus, "GPUs"),
            (self._core, "CORE"),
            (self._report, "report"),
            (self._log, "log"),
        ):
            panel.border_title = title
        yield self._strip
        yield self._banner
        with Container(id="body"):
            with Container(id="plot"):
                yield self._chart
                yield self._progress
            with Container(id="side"):
                yield self._numbers
                yield self._gpus
                yield self._report
                yield self._core
        yield self._log
        yield Footer(show_command_palette=False)

    @property
    def is_frozen(self) -> bool:
        return self._frozen_at is not None

    def show(self, view: RunView) -> None:
        """Show a new view; while frozen only the strip takes it."""
        self._view = view
        self._strip.show(summary.strip(view, frozen_at=self._frozen_at))
        if self.is_frozen:
            return
        self.set_class(not summary.has_chart(view), "-preparing")
        self.set_class(summary.has_core(view), "-core")
        paragraphs = report(view)
        self.set_class(bool(paragraphs), "-report")
        self.set_class(view.status == "done", "-done")
        self._report.show(paragraphs)
        self._chart.show(summary.chart(view, self._losses))
        self._progress.show(summary.progress(view))
        self._numbers.show(summary.numbers(view))
        gpus = summary.gpus(view)
        self.set_class(bool(gpus), "-gpus")
        self._gpus.show(gpus)
        self._core.show(summary.core(view))
        self._log.show(view.state.lines)

    def show_problem(self, problem: str) -> None:
        """A line under the strip; an empty one takes it away."""
        self.set_class(bool(problem), "-problem")
        self._banner.show(((problem, "bad"),) if problem else ())

    def toggle_freeze(self) -> None:
        """Hold everything but the strip still, or let go."""
        events = self._view.state.events if self._view else 0
        self._frozen_at = None if self.is_frozen else events
        if self._view is not None:
            self.show(self._view)
