"""CORE of a run as values for the widgets, beside the best run of its cohort. Pure functions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness import format as fmt
from harness.best import Best
from harness.run_state import RunState
from harness.sheet import Sheet, Value
from harness.significance import proportions_p
from nmoe.events import CoreEvent, CoreTaskEvent
from tui.feed import RunView
from tui.widgets.grid import Record, Table
from tui.widgets.meters import meter
from tui.widgets.rows import Role, Row, clean
from tui.widgets.table import Column

_BAR = 16
_UNLIKELY = 0.05
COLUMNS = (
    Column(title="task"),
    Column(title="items", align="right", rank=5),
    Column(title="acc", align="right", rank=1),
    Column(title="chance", align="right", rank=2),
    Column(title="centered", align="right"),
    Column(title="95 %", align="right", rank=3),
    Column(title="record", align="right", rank=4),
    Column(title="change", align="right"),
    Column(title="p", align="right", rank=4),
    Column(title="s", align="right", rank=6),
    Column(title="cropped", align="right", rank=8),
    Column(title="", rank=7),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Tasks as far as they are scored, the final ones before interim ones; the record by task."""

    tasks: tuple[CoreTaskEvent, ...]
    score: CoreEvent | None
    count: int
    is_final: bool
    best: Best | None

    def record(self, task: str) -> float | None:
        """The centered score of a task in the best run."""
        return self._of_best(task).get("centered")

    def p(self, task: CoreTaskEvent) -> float | None:
        """The chance of such a change of accuracy if both models are equally good at the task."""
        best = self._of_best(task.name)
        acc, items = best.get("acc"), best.get("items")
        if acc is None or not items or not task.items or not math.isfinite(task.acc):
            return None
        return proportions_p(task.acc, task.items, acc, int(items))

    def _of_best(self, task: str) -> Mapping[str, float | None]:
        tasks = {} if self.best is None else self.best.entry.core.tasks
        return tasks.get(task) or {}

    @property
    def pending(self) -> list[str]:
        """Tasks of the best run that are not scored here yet."""
        if self.best is None or len(self.tasks) >= self.count:
            return []
        done = {task.name for task in self.tasks}
        return [name for name in self.best.entry.core.tasks if name not in done]


def scores(state: RunState, best: Best | None, *, is_scoring: bool) -> Scores:
    """The final scores once there are any, else the newest interim ones."""
    is_final = bool(state.core_tasks) or is_scoring
    tasks = state.core_tasks if is_final else state.interim_tasks
    return Scores(
        tasks=tasks,
        score=state.core if is_final else state.interim_core,
        count=max((task.count for task in tasks), default=0),
        is_final=is_final,
        best=best,
    )


def half_width(task: CoreTaskEvent) -> float | None:
    """Half of the 95 % interval of the centered score; None where it is not told."""
    if task.ci95 is None or task.baseline is None or task.baseline >= 1:
        return None
    return (task.ci95[1] - task.ci95[0]) / 2 / (1 - task.baseline)


def table(found: Scores) -> Table:
    """A row a task, then those to come as far as their names are known."""
    records = [_record(index, task, found) for index, task in enumerate(found.tasks)]
    records += [
        _pending(len(found.tasks) + index, name, found) for index, name in enumerate(found.pending)
    ]
    return Table(
        columns=COLUMNS,
        records=tuple(records),
        empty="CORE is scored once the target is reached",
    )


def _record(index: int, task: CoreTaskEvent, found: Scores) -> Record:
    record, half = found.record(task.name), half_width(task)
    change, p = None if record is None else task.centered - record, found.p(task)
    at = f"±{fmt.fixed(half, decimals=3)}" if half is not None else fmt.NOT_AVAILABLE
    return Record(
        id=task.name,
        cells=(
            clean(task.name),
            fmt.count(task.items),
            fmt.percent(task.acc, decimals=1),
            fmt.percent(task.baseline, decimals=1, none=fmt.NOT_AVAILABLE),
            fmt.fixed(task.centered, decimals=3),
            at,
            fmt.fixed(record, decimals=3),
            _change(change, p),
            fmt.NOT_YET if p is None else fmt.probability(p),
            fmt.fixed(task.seconds, decimals=1),
            fmt.count(task.cropped, none=fmt.NOT_AVAILABLE),
            meter(max(0.0, task.centered), _BAR, "line", none=""),
        ),
        orders=(task.name, task.items, task.acc, task.baseline, task.centered, half, record,
                change, p, task.seconds, task.cropped, task.centered),
    )  # fmt: skip


def _pending(index: int, name: str, found: Scores) -> Record:
    record = found.record(name)
    none = fmt.NOT_YET
    cells = (clean(name), none, none, none, none, none, fmt.fixed(record, decimals=3), none,
             none, none, none, "")  # fmt: skip
    orders: list[Value] = [None] * len(COLUMNS)
    orders[0], orders[6] = name, record
    return Record(id=name, cells=cells, orders=tuple(orders), role="faint")


def _change(change: float | None, p: float | None) -> Row:
    """Better or worse than the record, in colour only where luck hardly explains it."""
    if change is None or math.isnan(change):
        return ((fmt.NOT_YET, "faint"),)
    role: Role = "dim"
    if p is not None and p < _UNLIKELY:
        role = "good" if change > 0 else "warn"
    sign = "+" if change >= 0 else ""
    beyond = "*" if role != "dim" else " "
    return ((f"{sign}{fmt.fixed(change, decimals=3)}{beyond}", role),)


def facts(found: Scores) -> tuple[tuple[Row, ...], ...]:
    """The score or its part so far, the record beside it, and what to know about both."""
    if not found.tasks:
        return ((_against(found.best),),)
    return (tuple(_score(found)), (_against(found.best), *_notes(found)))


def _score(found: Scores) -> list[Row]:
    step = found.tasks[-1].step
    interim = "" if found.is_final else f"interim, step {fmt.count(step)}: "
    score, best = found.score, found.best
    if score is None:
        mean = sum(task.centered for task in found.tasks) / len(found.tasks)
        left = found.count - len(found.tasks)
        eta_s = left * sum(task.seconds for task in found.tasks) / len(found.tasks)
        return [
            ((f"{interim}so far ", "strong"), (fmt.core(mean), "text")),
            _fact("", f"{len(found.tasks)} of {found.count} tasks"),
            *([_fact("left about", fmt.seconds(eta_s))] if found.is_final else []),
            *_partial_change(found, mean),
        ]
    parts: list[Row] = [
        ((f"{interim}CORE ", "strong"), (fmt.core(score.score), "good"),
         (fmt.interval(score.ci95), "dim")),
    ]  # fmt: skip
    record = None if best is None else best.entry.result.core
    if record is not None:
        change = score.score - record
        parts.append(_fact("change", f"{'+' if change >= 0 else ''}{fmt.core(change)}"))
    return parts


def _partial_change(found: Scores, mean: float) -> list[Row]:
    """The same tasks of the best run."""
    records = [found.record(task.name) for task in found.tasks]
    known = [record for record in records if record is not None]
    if len(known) < len(records):
        return []
    return [_fact("record on these tasks", fmt.core(sum(known) / len(known)))]


def _against(best: Best | None) -> Row:
    if best is None:
        return (("no other run of this cohort is on a board", "dim"),)
    result = best.entry.result
    return (
        ("record ", "dim"),
        (fmt.core(result.core), "text"),
        (f" {clean(result.run_id)}, {fmt.exact_seconds(result.train_s)}", "dim"),
    )


def _notes(found: Scores) -> list[Row]:
    score = found.score
    if score is None:
        return []
    notes = [_fact("", f"{score.tasks} tasks, {fmt.count(score.items)} items")]
    if score.without_boolq is not None:
        notes.append(_fact("without boolq (ours)", fmt.core(score.without_boolq)))
    if score.cropped:
        notes.append(_fact("cropped", fmt.count(score.cropped)))
    if score.empty_regions:
        notes.append(_fact("nothing to score", fmt.count(score.empty_regions)))
    notes.append((("* p < 0.05, as one task of 20 has by luck alone", "dim"),))
    return notes


def sheet(found: Scores) -> Sheet | None:
    """The tasks, unformatted."""
    if not found.tasks:
        return None
    columns = ("task", "items", "acc", "baseline", "centered", "centered_half_width_95",
               "record_centered", "p", "seconds", "cropped", "empty_regions")  # fmt: skip
    rows: list[Sequence[Value]] = [
        (task.name, task.items, task.acc, task.baseline, task.centered, half_width(task),
         found.record(task.name), found.p(task), task.seconds, task.cropped, task.empty_regions)
        for task in found.tasks
    ]  # fmt: skip
    return Sheet(name="core", columns=columns, rows=rows)


def of_view(view: RunView, best: Best | None) -> Scores:
    """The scores of a view."""
    return scores(view.state, best, is_scoring=view.status == "core-eval")


def _fact(label: str, text: str) -> Row:
    return ((f"{label} " if label else "", "dim"), (text, "text"))
