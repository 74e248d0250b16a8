"""The experts screen: loads of all layers, and one layer and one expert of it in detail."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from textual.app import ComposeResult
from textual.containers import Container
from textual.message import Message

from harness import format as fmt
from harness.loads import Floats, read_history, read_loads
from harness.sheet import Sheet, Value
from nmoe.paths import DataRoot
from tui.feed import Failure, RunView, Success, attempt
from tui.screens import balance
from tui.screens.balance import Router
from tui.screens.watch import WatchScreen
from tui.widgets.chart import LineChart
from tui.widgets.curve import Curve
from tui.widgets.figure import Chart
from tui.widgets.grid import Grid, Table
from tui.widgets.heatmap import HeatMap, HeatMapView, Place
from tui.widgets.prose import Facts


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    """What was read for a router event and a place: loads [L, E], drift [L], the expert's past."""

    router: Router
    loads_LE: Floats | None = None
    drift_L: Floats | None = None
    problem: str = ""
    place: Place | None = None
    steps_N: Floats | None = None
    history_N: Floats | None = None


class LoadsRead(Message):
    """The loads were read, or could not be."""

    def __init__(self, run_id: str, found: _Read) -> None:
        super().__init__()
        self.run_id, self.found = run_id, found


class ExpertsScreen(WatchScreen):
    """The cursor of the map chooses layer and expert; the table of layers follows it."""

    NAME = "experts"

    def __init__(self, root: DataRoot) -> None:
        super().__init__()
        self._root = root
        self._run_id = ""
        self._router: Router | None = None
        self._found: _Read | None = None
        self._heat = HeatMapView(HeatMap(), id="heat")
        self._layers = Grid(Table(), id="layers")
        self._layer = Facts((), id="layer")
        self._history = LineChart(Chart(name="load"), id="history")

    def panels(self) -> ComposeResult:
        self._layers.border_title = "layers"
        for panel in (self._heat, self._layers, self._layer, self._history):
            panel.add_class("framed")
        with Container(id="experts", classes="body"):
            with Container(id="maps"):
                yield self._heat
                yield self._history
            with Container(id="layering"):
                yield self._layers
                yield self._layer

    def fill(self, view: RunView) -> None:
        if view.state.run_id != self._run_id:
            self._run_id, self._found = view.state.run_id, None
        self._router = balance.router(view.state)
        self._show_layers()
        if self._router is None:
            self._draw()
        elif self._found is None or self._found.router.event != self._router.event:
            self._read()

    def _read(self) -> None:
        self.run_worker(self._work, thread=True, exclusive=True, exit_on_error=False)

    def _work(self) -> None:
        run_id, router, place = self._run_id, self._router, self._heat.cursor
        if router is not None:
            found = _read(self._root, run_id, router, place)
            self.post_message(LoadsRead(run_id, found))

    def on_loads_read(self, message: LoadsRead) -> None:
        if message.run_id == self._run_id:
            self._found = message.found
            self._draw()

    def on_heat_map_view_pointed(self, event: HeatMapView.Pointed) -> None:
        if event.cursor is not None:
            self._layers.point_at(str(event.cursor.row))
        self._draw()
        self._read()

    def on_grid_moved(self, event: Grid.Moved) -> None:
        cursor = self._heat.cursor
        if event.record_id is not None and self._layers.has_focus:
            column = 0 if cursor is None else cursor.column
            self._heat.point(Place(row=int(event.record_id), column=column))

    def _show_layers(self) -> None:
        drift_L = None if self._found is None else self._found.drift_L
        self._layers.show(balance.layers(self._router, drift_L))
        self._layers.border_subtitle = (
            f"drift since step {fmt.count(balance.past_step(self._found.router))}"
            if self._found is not None and drift_L is not None
            else ""
        )

    def _draw(self) -> None:
        self._show_layers()
        found, cursor = self._found, self._heat.cursor
        loads = None if found is None else found.loads_LE
        problem = "" if found is None else found.problem
        self._heat.show(balance.heat(self._router, loads, problem=problem))
        self._heat.border_title = balance.title(self._router)
        at = 0 if cursor is None else cursor.row
        layers = () if self._router is None else self._router.event.layers
        self._layer.border_title = f"layer {layers[at]}" if at < len(layers) else "layer"
        self._layer.show(balance.facts(self._router, loads, cursor))
        self._history.show(_history(found, cursor, layers))

    def sheet(self) -> Sheet | None:
        found = self._found
        if self._router is None or found is None or found.loads_LE is None:
            return None
        rows: list[Sequence[Value]] = [
            (layer, expert, float(load))
            for layer, load_E in zip(self._router.event.layers, found.loads_LE, strict=True)
            for expert, load in enumerate(load_E)
        ]
        return Sheet(name="experts", columns=("layer", "expert", "load_over_even"), rows=rows)


def _read(root: DataRoot, run_id: str, router: Router, place: Place | None) -> _Read:
    """The loads of a router event and the past of the expert at `place`, or why there are none."""
    folder, shape, record = root.run(run_id), router.shape, router.event.record
    loads = attempt(lambda: read_loads(folder, shape, record))
    if isinstance(loads, Failure):
        return _Read(router=router, problem=loads.problem)
    past = attempt(lambda: read_loads(folder, shape, router.past_record))
    drift_L = balance.drift(loads.value, past.value) if isinstance(past, Success) else None
    found = _Read(router=router, loads_LE=loads.value, drift_L=drift_L)
    if place is None or place.row >= shape.num_layers:
        return found
    history = attempt(
        lambda: read_history(folder, shape, record, layer=place.row, expert=place.column)
    )
    if isinstance(history, Failure):
        return replace(found, problem=history.problem)
    records_N, history_N = history.value
    steps_N = balance.steps(router, records_N)
    return replace(found, place=place, steps_N=steps_N, history_N=history_N)


def _history(found: _Read | None, cursor: Place | None, layers: Sequence[int]) -> Chart:
    """The load of the expert under the cursor over the run."""
    if found is None or found.history_N is None or found.steps_N is None or cursor is None:
        return Chart(name="load", empty="an arrow key chooses an expert", revision=("none",))
    is_known = found.steps_N >= 0
    curve = Curve.of(found.history_N[is_known], {"step": np.maximum(found.steps_N[is_known], 0)})
    return Chart(
        revision=(found.router.event.record, found.place),
        name=f"load of expert {cursor.column} in layer {layers[cursor.row]}, x even",
        curve=curve,
        target=None,
        empty="no loads yet",
    )
