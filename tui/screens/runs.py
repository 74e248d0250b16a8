"""The runs screen: all runs, filtered and marked; curves and plans of the marked ones compared."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.message import Message

from harness import query, runs
from harness.errors import UsageError
from harness.runs import RunReader, Summary
from harness.sheet import Sheet
from nmoe.paths import DataRoot, RunFolder
from tui.feed import Failure, Success, attempt
from tui.screens import listing
from tui.screens.charts import Other, RunCharts
from tui.screens.filter import FilterLine
from tui.screens.listing import Chosen
from tui.screens.named import NamedScreen
from tui.widgets.chart import LineChart
from tui.widgets.figure import Chart
from tui.widgets.grid import Grid, Table
from tui.widgets.rows import Panel, Row, clean

REFRESH_S = 3.0
_HINT = "filter: dtype:fp8 val<3.3 state=failed, or a word"


class Attach(Message):
    """A person wants to watch this run."""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__()
        self.folder = folder


class Marked(Message):
    """These runs are marked, to be drawn over the one that is watched."""

    def __init__(self, others: tuple[Other, ...]) -> None:
        super().__init__()
        self.others = others


class Note(Message):
    """A person wants to write beside this run."""

    def __init__(self, run: Summary) -> None:
        super().__init__()
        self.run = run


class Delete(Message):
    """A person wants this run deleted."""

    def __init__(self, run: Summary) -> None:
        super().__init__()
        self.run = run


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """All runs as they are now, and the chosen ones read as far as they go."""

    runs: Success[list[Summary]] | Failure
    chosen: Chosen


class RunsRead(Message):
    """The runs were read."""

    def __init__(self, found: _Found) -> None:
        super().__init__()
        self.found = found


class Differences(Panel[Chosen]):
    """In what the marked runs differ."""

    def draw(self, width: int, height: int) -> Sequence[Row]:
        return listing.compared(self.value, width)[:height]


class RunsScreen(NamedScreen):
    """Reads the run folders while it is shown; enter watches the run under the cursor."""

    NAME = "runs"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "filter", "", show=False, key_display="/", tooltip="runs: filter"),
        Binding("m", "mark", "", show=False, tooltip="runs: mark one, or not, up to six"),
        Binding("u", "unmark", "", show=False, tooltip="runs: unmark all"),
        Binding("v", "compare", "", show=False, tooltip="runs: curves and plans of the marked"),
        Binding("N", "note", "", show=False, tooltip="runs: write a note beside one"),
        Binding("D", "delete", "", show=False, tooltip="runs: delete one; its id is asked for"),
    ]

    def __init__(self, root: DataRoot, *, is_readonly: bool, clock: Callable[[], float]) -> None:
        super().__init__()
        self._root = root
        self._is_readonly = is_readonly
        self._clock = clock
        self._lock = threading.Lock()
        self._all: list[Summary] = []
        self._problem = ""
        self._terms: tuple[query.Term, ...] = ()
        self._marked: list[str] = []
        self._readers: dict[str, RunReader] = {}
        self._chosen = Chosen(states={})
        self._charts = RunCharts()
        self._grid = Grid(Table(), id="runlist")
        self._chart = LineChart(Chart(), id="curves")
        self._differences = Differences(Chosen(states={}), id="differences")
        self._filter = FilterLine(_HINT)

    def panels(self) -> ComposeResult:
        self._differences.border_title = "plans"
        for panel in (self._grid, self._chart, self._differences):
            panel.add_class("framed")
        with Container(id="runscreen", classes="body"):
            yield self._grid
            with Container(id="comparing"):
                yield self._chart
                yield self._differences
        yield self._filter

    def on_mount(self) -> None:
        self._grid.focus()
        self.set_interval(REFRESH_S, self._read)

    def on_screen_resume(self) -> None:
        self._read()

    def _read(self) -> None:
        if self.is_current:
            self.run_worker(self._work, thread=True, exclusive=True, exit_on_error=False)

    def _work(self) -> None:
        listed = attempt(lambda: runs.list_runs(self._root))
        with self._lock:
            chosen = self._read_chosen(self._wanted())
        self.post_message(RunsRead(_Found(runs=listed, chosen=chosen)))

    def _wanted(self) -> list[str]:
        """The marked runs, else the one under the cursor."""
        current = self._grid.current
        return list(self._marked) or ([current] if current is not None else [])

    def _read_chosen(self, run_ids: Sequence[str]) -> Chosen:
        """What is new in these runs; one that cannot be read is left out."""
        readers = {
            run_id: self._readers.get(run_id) or RunReader(self._root.run(run_id))
            for run_id in run_ids
        }
        self._readers = readers
        read = {run_id: attempt(lambda each=each: _drain(each)) for run_id, each in readers.items()}
        return Chosen(
            states={
                run_id: readers[run_id].state
                for run_id, outcome in read.items()
                if isinstance(outcome, Success)
            }
        )

    def on_runs_read(self, message: RunsRead) -> None:
        found = message.found.runs
        if isinstance(found, Failure):
            self._problem = found.problem
        else:
            self._all, self._problem = found.value, ""
        self._chosen = message.found.chosen
        if self._marked:
            self.post_message(Marked(self._chosen.others))
        self._draw()

    def _say(self) -> None:
        """Below the list: what is wrong with it, else the note beside the run under the cursor."""
        run = self._current()
        told = self._problem or (clean(run.note) if run else "")
        self._grid.border_subtitle = told.replace("[", "\\[")

    def on_grid_moved(self, event: Grid.Moved) -> None:
        self._say()
        if not self._marked:
            self._read()

    def on_grid_chosen(self, event: Grid.Chosen) -> None:
        if event.record_id is not None:
            self.post_message(Attach(self._root.run(event.record_id)))

    def on_filter_line_typed(self, event: FilterLine.Typed) -> None:
        """A word that cannot be used, yet, is told and leaves the others alone."""
        terms, self._problem = list[query.Term](), ""
        for word in event.text.split():
            try:
                terms += query.parse(word)
            except UsageError as error:
                self._problem = str(error)
        self._terms = tuple(terms)
        self._draw()

    def action_filter(self) -> None:
        self._filter.ask()

    def action_mark(self) -> None:
        """Mark the run under the cursor, or take its mark."""
        run_id = self._grid.current
        if run_id is None:
            return
        if run_id in self._marked:
            self._marked.remove(run_id)
        elif len(self._marked) == listing.MAX_MARKS:
            self.notify(f"{listing.MAX_MARKS} runs are marked already: u unmarks all", markup=False)
            return
        else:
            self._marked.append(run_id)
        self._draw()
        self._marks_changed()

    def action_unmark(self) -> None:
        self._marked.clear()
        self._draw()
        self._marks_changed()

    def _marks_changed(self) -> None:
        if not self._marked:
            self.post_message(Marked(()))
        self._read()

    def action_compare(self) -> None:
        """The list alone, or curves and plans with it, where there is no room for all."""
        self.toggle_class("-comparing")

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Whether a key acts: a viewer that only looks writes and deletes nothing."""
        if action in ("note", "delete") and self._is_readonly:
            return None
        return super().check_action(action, parameters)

    def action_note(self) -> None:
        """Ask for a line to keep beside the run under the cursor."""
        run = self._current()
        if run is not None:
            self.post_message(Note(run))

    def action_delete(self) -> None:
        """Delete the run under the cursor, once its id is typed."""
        run = self._current()
        if run is not None:
            self.post_message(Delete(run))

    def _current(self) -> Summary | None:
        """The run under the cursor."""
        current = self._grid.current
        return next((run for run in self._all if run.run_id == current), None)

    def runs_changed(self) -> None:
        """Read the list again; a run that is gone has no mark."""
        self._marked = [run_id for run_id in self._marked if self._root.run(run_id).root.is_dir()]
        self._marks_changed()

    def _draw(self) -> None:
        shown = self._shown()
        total = len(self._all)
        count = f"{len(shown)} of {total}" if len(shown) < total else str(total)
        marks = f" · {len(self._marked)} marked" if self._marked else ""
        self._grid.border_title = f"runs {count}{marks}"
        self._say()
        empty = "no runs yet: 0 starts one" if not total else "no run fits the filter"
        self._grid.show(listing.table(shown, self._marked, self._clock(), empty=empty))
        self._chart.show(listing.chart(self._chosen, self._charts))
        self._differences.show(self._chosen)

    def _shown(self) -> list[Summary]:
        return query.select(self._all, self._terms)

    def sheet(self) -> Sheet | None:
        return listing.sheet(self._shown())


def _drain(reader: RunReader) -> None:
    while reader.read():
        pass
