"""The run screen: everything about one run, from preparation to its result."""

from textual.app import ComposeResult
from textual.containers import Container

from tui.feed import RunView
from tui.screens import devices, summary
from tui.screens.curves import CurveOf
from tui.screens.named import WatchScreen
from tui.screens.report import report
from tui.widgets.chart import LineChart
from tui.widgets.core import Core, CoreTable
from tui.widgets.figure import Chart
from tui.widgets.gpus import GpuTable
from tui.widgets.logs import LogTail
from tui.widgets.numbers import Numbers
from tui.widgets.progress import Progress, ProgressBars
from tui.widgets.prose import Paragraphs


class RunScreen(WatchScreen):
    """Everything about one run at a glance; the other screens have the details."""

    NAME = "run"

    def __init__(self) -> None:
        super().__init__()
        self._chart = LineChart(Chart(), id="chart")
        self._losses = CurveOf()
        self._progress = ProgressBars(Progress(), id="progress")
        self._numbers = Numbers((), id="numbers")
        self._gpus = GpuTable((), id="gpus")
        self._core = CoreTable(Core(), id="core")
        self._report = Paragraphs((), id="report")
        self._log = LogTail((), id="log")

    def panels(self) -> ComposeResult:
        for panel, title in (
            (self._progress, "prepare"),
            (self._numbers, "numbers"),
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
        self._chart.show(summary.chart(view, self._losses))
        self._progress.show(summary.progress(view))
        self._numbers.show(summary.numbers(view))
        gpus = devices.gpus(view)
        self.set_class(bool(gpus), "-gpus")
        self._gpus.show(gpus)
        self._core.show(summary.core(view))
        self._log.show(view.state.lines)
