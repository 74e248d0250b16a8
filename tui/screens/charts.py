"""Charts of a run by metric: its loss with all that belongs to it, and what step events tell."""

from dataclasses import dataclass, replace

from harness.run_state import RunState
from harness.series import Series
from tui.feed import RunView
from tui.screens import summary
from tui.screens.curves import CurveOf
from tui.widgets.curve import Curve
from tui.widgets.figure import Chart, EventMark, Overlay


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A curve of a run: its field in RunState.curves, its name and unit."""

    field: str
    name: str
    unit: str


LOSS = Metric(field="loss", name="loss", unit="")
TOK_S = Metric(field="tok_s", name="throughput", unit="tok/s")
METRICS = (
    LOSS,
    TOK_S,
    Metric(field="ms", name="step time", unit="ms"),
    Metric(field="grad_norm", name="gradient norm", unit=""),
    Metric(field="lr", name="learning rate", unit=""),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Other:
    """Another run that is drawn beside the one that is watched."""

    name: str
    state: RunState


class RunCharts:
    """Keeps the curves of a run, so that a new view costs only what is new in it."""

    def __init__(self) -> None:
        self._curves: dict[str, CurveOf] = {}

    def chart(
        self,
        view: RunView,
        metric: Metric = LOSS,
        *,
        best: Other | None = None,
        others: tuple[Other, ...] = (),
    ) -> Chart:
        """The chart of a metric; `best` is its ghost, `others` lie over it."""
        chart = self._plain(view, metric)
        ghost = None if best is None else self.curve(best, metric)
        overlays = tuple(
            Overlay(name=other.name, curve=self.curve(other, metric)) for other in others
        )
        names = (best and best.name, *(other.name for other in others))
        return replace(
            chart,
            revision=(*chart.revision, names, *((id(o.curve), o.curve.revision) for o in overlays)),
            ghost=ghost,
            ghost_name="" if best is None else best.name,
            overlays=overlays,
        )

    def _plain(self, view: RunView, metric: Metric) -> Chart:
        curve_of = self._curves.setdefault(metric.field, CurveOf())
        if metric is LOSS:
            return summary.chart(view, curve_of)
        state = view.state
        curve = curve_of.follow(_series(state, metric))
        marks = tuple(EventMark(step=mark.step, kind=mark.kind) for mark in state.marks)
        return Chart(
            revision=(state.run_id, metric.field, id(curve), curve.revision, marks),
            name=f"{metric.name}, {metric.unit}".rstrip(", "),
            curve=curve,
            events=marks,
            empty=f"no {metric.name} yet",
            unit=metric.unit,
        )

    def curve(self, other: Other, metric: Metric) -> Curve:
        """The curve of another run."""
        key = f"{metric.field} of {other.state.run_id}"
        return self._curves.setdefault(key, CurveOf()).follow(_series(other.state, metric))


def _series(state: RunState, metric: Metric) -> Series:
    return state.losses if metric is LOSS else state.curves.get(metric.field, Series())
