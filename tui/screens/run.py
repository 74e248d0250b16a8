"""The run screen: everything about one run, from preparation to its result."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container

from harness import curves
from harness.sheet import Sheet
from tui.feed import RunView
from tui.screens import devices, summary
from tui.screens.charts import LOSS, METRICS, Other, RunCharts
from tui.screens.report import report
from tui.screens.watch import WatchScreen
from tui.widgets.chart import LineChart
from tui.widgets.core import Core, CoreTable
from tui.widgets.figure import Chart
from tui.widgets.gpus import GpuTable
from tui.widgets.logs import LogTail
from tui.widgets.meters import Shares
from tui.widgets.numbers import Numbers
from tui.widgets.progress import Progress, ProgressBars
from tui.widgets.prose import Paragraphs


class RunScreen(WatchScreen):
    """Everything about one run at a glance; the other screens have the details."""

    NAME = "run"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "left_square_bracket",
            "metric(-1)",
            "",
            show=False,
            key_display="[ ]",
            tooltip="chart: loss, throughput, step time, gradient norm, learning rate",
        ),
        Binding("right_square_bracket", "metric(1)", "", show=False),
        Binding("v", "overlay", "", show=False, tooltip="chart: the marked runs over it, or not"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._chart = LineChart(Chart(), id="chart")
        self._charts = RunCharts()
        self._metric = LOSS
        self._others: tuple[Other, ...] = ()
        self._has_others = True
        self._view: RunView | None = None
        self._progress = ProgressBars(Progress(), id="progress")
        self._numbers = Numbers((), id="numbers")
        self._spent = Shares((), id="spent")
        self._gpus = GpuTable((), id="gpus")
        self._core = CoreTable(Core(), id="core")
        self._report = Paragraphs((), id="report")
        self._log = LogTail((), id="log")

    def panels(self) -> ComposeResult:
        for panel, title in (
            (self._progress, "prepare"),
            (self._numbers, "numbers"),
            (self._spent, "where the time went"),
            (self._gpus, "GPUs"),
            (self._core, "CORE"),
            (self._report, "report"),
            (self._log, "log"),
        ):
            panel.border_title = title
        with Container(id="body"):
            with Container(id="plot"):
                yield self._chart
                yield self._progress
            with Container(id="side"):
                yield self._numbers
                yield self._spent
                yield self._gpus
                yield self._report
                yield self._core
        yield self._log

    def fill(self, view: RunView) -> None:
        self.set_class(not summary.has_chart(view), "-preparing")
        self.set_class(summary.has_core(view), "-core")
        paragraphs = report(view)
        self.set_class(bool(paragraphs), "-report")
        self.set_class(view.status == "done", "-done")
        self._report.show(paragraphs)
        self._view = view
        self._draw_chart()
        self._progress.show(summary.progress(view))
        self._numbers.show(summary.numbers(view))
        self._spent.show(summary.shares(view))
        gpus = devices.gpus(view)
        self.set_class(bool(gpus), "-gpus")
        self._gpus.show(gpus)
        self._core.show(summary.core(view))
        self._log.show(view.state.lines)

    def _draw_chart(self) -> None:
        if self._view is not None:
            self._chart.show(
                self._charts.chart(
                    self._view,
                    self._metric,
                    best=self._ghost(),
                    others=self._others if self._has_others else (),
                )
            )

    def _ghost(self) -> Other | None:
        if self.best is None or self.best.state is None:
            return None
        return Other(name="best run", state=self.best.state)

    def show_marked(self, others: tuple[Other, ...]) -> None:
        self._others = others

    def action_metric(self, direction: int) -> None:
        """Another metric on the same axes."""
        at = METRICS.index(self._metric) + direction
        self._metric = METRICS[at % len(METRICS)]
        self._draw_chart()

    def action_overlay(self) -> None:
        """Show or hide the runs that are marked on the screen of runs."""
        if not self._others:
            self.notify("no other run is marked: 5 shows the runs, m marks one", markup=False)
        self._has_others = not self._has_others
        self._draw_chart()

    def sheet(self) -> Sheet | None:
        if self._view is None or not self._view.state.losses.length:
            return None
        return curves.sheet(self._view.state)
