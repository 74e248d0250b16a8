"""Lists of runs as values for the widgets: rows, curves over one another, differences of plans."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness import format as fmt
from harness.differences import differences
from harness.run_state import RunState
from harness.runs import Summary
from harness.sheet import Sheet, Value
from tui.screens.charts import LOSS, Metric, Other, RunCharts
from tui.widgets.figure import DASHES, Chart, Overlay
from tui.widgets.grid import Record, Table
from tui.widgets.rows import Role, Row, clean
from tui.widgets.states import sign
from tui.widgets.table import Cell, Column, draw_table

# The first marked run is the line of the chart, each of the others has dashes of its own.
MAX_MARKS = len(DASHES)
COLUMNS = (
    Column(title="state"),
    Column(title="run"),
    Column(title="preset", rank=6),
    Column(title="dtype", rank=4),
    Column(title="machine", rank=7),
    Column(title="step", align="right", rank=2),
    Column(title="val", align="right"),
    Column(title="to go", align="right", rank=3),
    Column(title="train", align="right", rank=5),
    Column(title="age", align="right", rank=1),
    Column(title="note", rank=8),
)


def short_names(run_ids: Sequence[str]) -> dict[str, str]:
    """What tells runs apart in few letters: the end of the id, or all of it."""
    ends = [run_id.rpartition("-")[2] for run_id in run_ids]
    return {
        run_id: clean(end if end and ends.count(end) == 1 else run_id)
        for run_id, end in zip(run_ids, ends, strict=True)
    }


def table(runs: Sequence[Summary], marked: Sequence[str], now: float, *, empty: str) -> Table:
    """A row a run."""
    return Table(
        columns=COLUMNS,
        records=tuple(_record(run, run.run_id in marked, now) for run in runs),
        empty=empty,
    )


def _record(run: Summary, is_marked: bool, now: float) -> Record:
    state = sign(run.status)
    age_s = max(0.0, now - run.updated) if run.updated else None
    best = run.val if run.best_val is None else run.best_val
    gap = None if best is None or run.target is None else best - run.target
    steps = f"{fmt.count(run.step)}/{fmt.tokens(run.steps)}" if run.steps else fmt.count(run.step)
    cells: tuple[Cell, ...] = (
        ((f"{state.glyph} {state.word}", state.role),),
        clean(run.run_id),
        clean(run.preset),
        clean(run.dtype),
        clean(run.machine),
        steps,
        fmt.loss(run.val),
        _gap(gap),
        fmt.seconds(run.train_s if run.step else None),
        fmt.age(age_s),
        ((clean(run.note), "dim"),),
    )
    if run.problem:
        name: Row = ((f"{clean(run.run_id)}  ", "text"), (clean(run.problem), "bad"))
        cells = (cells[0], name, *[""] * (len(COLUMNS) - 2))
    orders = (run.status, run.run_id, run.preset, run.dtype, run.machine, run.step, run.val, gap,
              run.train_s, age_s, run.note)  # fmt: skip
    return Record(id=run.run_id, cells=cells, orders=orders, is_marked=is_marked)


def _gap(gap: float | None) -> Row:
    """What the best validation lacks to the target."""
    if gap is None or gap != gap:
        return ((fmt.NOT_YET, "faint"),)
    return (("reached", "good"),) if gap <= 0 else ((f"+{fmt.loss(gap)}", "text"),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """Runs that are looked at together, by id."""

    states: Mapping[str, RunState]

    @property
    def others(self) -> tuple[Other, ...]:
        names = short_names(list(self.states))
        return tuple(
            Other(name=names[run_id], state=state) for run_id, state in self.states.items()
        )


def chart(chosen: Chosen, charts: RunCharts, metric: Metric = LOSS) -> Chart:
    """The curves of the chosen runs over one another; the first one is the line."""
    others = chosen.others[: MAX_MARKS + 1]
    if not others:
        return Chart(empty="mark runs with m: their curves lie over one another here")
    first, *rest = others
    curves = [charts.curve(other, metric) for other in others]
    targets = {other.state.target for other in others}
    return Chart(
        revision=tuple(
            (other.name, id(curve), curve.revision)
            for other, curve in zip(others, curves, strict=True)
        ),
        name=f"{metric.name} of {first.name}",
        curve=curves[0],
        overlays=tuple(
            Overlay(name=other.name, curve=curve)
            for other, curve in zip(rest, curves[1:], strict=True)
        ),
        target=next(iter(targets)) if metric is LOSS and len(targets) == 1 else None,
        empty=f"no {metric.name} was logged",
        unit=metric.unit,
    )


def compared(chosen: Chosen, width: int) -> list[Row]:
    """In what the plans of the chosen runs differ."""
    others = [other for other in chosen.others if other.state.plan is not None]
    if len(others) < 2:
        return [(("two marked runs with a plan are compared here", "dim"),)]
    rows = differences([other.state.plan for other in others if other.state.plan is not None])
    if not rows:
        return [(("the plans do not differ", "dim"),)]
    columns = (Column(title="plan"), *(Column(title=other.name) for other in others))
    records = [(clean(row.key), *map(clean, row.values)) for row in rows]
    role: list[Role] = ["text"] * len(records)
    return draw_table(columns, records, width, roles=role)


def sheet(runs: Sequence[Summary]) -> Sheet | None:
    """The runs, unformatted."""
    columns = ("run", "state", "preset", "dtype", "machine", "created", "attempt", "step", "tokens",
               "loss", "val", "best_val", "target", "train_s", "note")  # fmt: skip
    rows: list[Sequence[Value]] = [
        (run.run_id, run.status, run.preset, run.dtype, run.machine, run.created, run.attempt + 1,
         run.step, run.tokens, run.loss, run.val, run.best_val, run.target, run.train_s,
         run.note)
        for run in runs
    ]  # fmt: skip
    return Sheet(name="runs", columns=columns, rows=rows) if runs else None
