"""The logs screen: events and what every process printed, by level and filter, followed."""

import re
import threading
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.message import Message

from harness.logs import Level, Line, Log, LogReader, level
from harness.sheet import Sheet
from nmoe.paths import DataRoot
from tui.feed import RunView, Success, attempt
from tui.screens.filter import FilterLine
from tui.screens.watch import WatchScreen
from tui.widgets.pager import Pager, Pages, TextLine
from tui.widgets.prose import Facts
from tui.widgets.rows import Role, Row, clean

EVENTS = "events"
LEVELS: tuple[Level, ...] = ("info", "warning", "error")
_ROLES: dict[Level, Role] = {"info": "text", "warning": "warn", "error": "bad"}
_NAMES: dict[Level, str] = {
    "info": "all lines",
    "warning": "warnings and errors",
    "error": "errors only",
}


class LogsRead(Message):
    """The logs of a run as far as they are kept."""

    def __init__(self, run_id: str, logs: tuple[Log, ...]) -> None:
        super().__init__()
        self.run_id, self.logs = run_id, logs


class LogsScreen(WatchScreen):
    """One source at a time; those with errors say so in the row of sources."""

    NAME = "logs"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "left_square_bracket",
            "source(-1)",
            "",
            show=False,
            key_display="[ ]",
            tooltip="logs: the source before, after",
        ),
        Binding("right_square_bracket", "source(1)", "", show=False),
        Binding("l", "level", "", show=False, tooltip="logs: all, warnings and errors, errors"),
        Binding("slash", "filter", "", show=False, key_display="/", tooltip="logs: filter (regex)"),
        Binding("j", "first_error", "", show=False, tooltip="logs: to the first error"),
    ]

    def __init__(self, root: DataRoot) -> None:
        super().__init__()
        self._root = root
        self._lock = threading.Lock()
        self._reader: LogReader | None = None
        self._run_id = ""
        self._failed_rank: int | None = None
        self._events = Log(name=EVENTS)
        self._logs: tuple[Log, ...] = ()
        self._source = EVENTS
        self._level: Level = "info"
        self._pattern: re.Pattern[str] | None = None
        self._problem = ""
        self._sources = Facts((), id="sources")
        self._pager = Pager(Pages(), id="pager")
        self._filter = FilterLine("filter: a regular expression")

    def panels(self) -> ComposeResult:
        self._pager.add_class("framed")
        with Container(classes="body column"):
            yield self._sources
            yield self._pager
        yield self._filter

    def fill(self, view: RunView) -> None:
        state = view.state
        if state.run_id != self._run_id:
            self._run_id, self._source, self._logs = state.run_id, EVENTS, ()
            self._reader = LogReader(self._root.run(state.run_id))
        self._failed_rank = state.exit.rank if state.exit else None
        self._events = Log(
            name=EVENTS,
            lines=tuple(
                Line(number=number, text=text, level=level(text), time=time)
                for number, (time, text) in enumerate(state.lines)
            ),
        )
        self._draw()
        self.run_worker(self._read, thread=True, exclusive=True, exit_on_error=False)

    def _read(self) -> None:
        with self._lock:
            reader, run_id = self._reader, self._run_id
            outcome = None if reader is None else attempt(reader.read)
        if isinstance(outcome, Success):
            self.post_message(LogsRead(run_id, outcome.value))

    def on_logs_read(self, message: LogsRead) -> None:
        if message.run_id == self._run_id and message.logs != self._logs:
            self._logs = message.logs
            self._draw()

    def on_filter_line_typed(self, event: FilterLine.Typed) -> None:
        try:
            self._pattern = re.compile(event.text, re.IGNORECASE) if event.text else None
            self._problem = ""
        except re.error as error:
            self._problem = f"no regular expression: {error}"
        self._draw()

    def action_filter(self) -> None:
        self._filter.ask()

    def action_source(self, direction: int) -> None:
        names = [log.name for log in self._all()]
        at = names.index(self._source) if self._source in names else 0
        self._source = names[(at + direction) % len(names)]
        self._draw()

    def action_level(self) -> None:
        self._level = LEVELS[(LEVELS.index(self._level) + 1) % len(LEVELS)]
        self._draw()

    def action_first_error(self) -> None:
        """The first error of the rank that ended the run, else of any source."""
        logs = sorted(self._all(), key=lambda log: log.name != f"rank{self._failed_rank}")
        log = next((log for log in logs if log.num_errors), None)
        if log is None:
            self.notify("no line sounds like an error", markup=False)
            return
        self._source = log.name
        self._draw()
        self._pager.go_near(next(line.number for line in log.lines if line.level == "error"))
        self._pager.focus()

    def _all(self) -> tuple[Log, ...]:
        return (self._events, *self._logs)

    def _current(self) -> Log:
        return next((log for log in self._all() if log.name == self._source), self._events)

    def _shown(self) -> list[Line]:
        least = LEVELS.index(self._level)
        return [
            line
            for line in self._current().lines
            if LEVELS.index(line.level) >= least
            and (self._pattern is None or self._pattern.search(line.text))
        ]

    def _draw(self) -> None:
        log, shown = self._current(), self._shown()
        self._sources.show((tuple(map(self._named, self._all())),))
        lines = tuple(
            TextLine(number=line.number, text=line.text, role=_ROLES[line.level], time=line.time)
            for line in shown
        )
        empty = "nothing logged yet" if not log.lines else "no line fits"
        self._pager.show(Pages(key=f"{self._run_id} {log.name}", lines=lines, empty=empty))
        cut = ", earlier ones are in the file" if log.is_cut else ""
        count = f"{len(shown)} of {len(log.lines)}" if len(shown) < len(log.lines) else len(shown)
        title = f"{clean(log.name)}  {_NAMES[self._level]}  {count} lines{cut}"
        self._pager.border_title = title.replace("[", "\\[")
        self._pager.border_subtitle = self._problem.replace("[", "\\[")

    def _named(self, log: Log) -> Row:
        """A source, in brackets when it is shown, with the number of its errors."""
        name = clean(log.name)
        is_current = log.name == self._source
        text = f"[{name}]" if is_current else f" {name} "
        errors = f"✖{log.num_errors}" if log.num_errors else ""
        return ((text, "strong" if is_current else "dim"), (errors, "bad"))

    def sheet(self) -> Sheet | None:
        rows = [(line.number, line.time, line.level, line.text) for line in self._shown()]
        columns = ("number", "time", "level", "text")
        return Sheet(name="log", columns=columns, rows=rows) if rows else None
