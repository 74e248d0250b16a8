"""The GPUs screen: every GPU in a row, the throughput with what held it back, alerts."""

from collections.abc import Sequence
from dataclasses import asdict, fields

from textual.app import ComposeResult
from textual.containers import Container

from harness.sheet import Sheet, Value
from nmoe.events import GpuEvent
from tui.feed import RunView
from tui.screens import devices
from tui.screens.charts import TOK_S, RunCharts
from tui.screens.watch import WatchScreen
from tui.widgets.chart import LineChart
from tui.widgets.figure import Chart
from tui.widgets.gpus import GpuTable
from tui.widgets.logs import LogTail
from tui.widgets.prose import Facts


class GpusScreen(WatchScreen):
    """What no GPU tells is no column; what one of them does not tell is N/A."""

    NAME = "gpus"

    def __init__(self) -> None:
        super().__init__()
        self._charts = RunCharts()
        self._samples: tuple[GpuEvent, ...] = ()
        self._table = GpuTable((), id="gputable")
        self._facts = Facts((), id="gpufacts")
        self._speed = LineChart(Chart(name="throughput", empty="no steps yet"), id="speed")
        self._alerts = LogTail((), id="alerts", empty="no alerts", wraps=True)

    def panels(self) -> ComposeResult:
        for panel, title in (
            (self._table, "GPUs"),
            (self._alerts, "alerts"),
        ):
            panel.border_title = title
            panel.add_class("framed")
        self._speed.add_class("framed")
        self._alerts.add_class("spare")
        with Container(id="gpuscreen", classes="body"):
            yield self._table
            yield self._facts
            with Container(id="slowing"):
                yield self._speed
                yield self._alerts

    def fill(self, view: RunView) -> None:
        self._samples = view.state.gpus
        self._table.show(devices.gpus(view))
        self._facts.show(devices.facts(view))
        self._speed.show(self._charts.chart(view, TOK_S))
        self._alerts.show(devices.alerts(view))

    def sheet(self) -> Sheet | None:
        if not self._samples:
            return None
        columns = tuple(each.name for each in fields(GpuEvent))
        rows: list[Sequence[Value]] = [tuple(asdict(each).values()) for each in self._samples]
        return Sheet(name="gpus", columns=columns, rows=rows)
