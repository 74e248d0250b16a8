"""Follows a run without a screen: event lines on stdout, progress for people on stderr.

It only reads the run's files: closing it, or the pipe it writes to, never stops a run. A request
to stop (ctrl-C, SIGTERM) is passed on and then waited for; a second one leaves the run to itself.
"""

import os
import select
import signal
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Literal, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from harness import format as text
from harness import launch, runs
from harness.describe import describe
from harness.errors import RunError
from harness.ledger import ledger
from harness.replay import Replay
from harness.run_state import RunState
from harness.terminal import safe
from nmoe.events import (
    CoreTaskEvent,
    Event,
    ExitEvent,
    GpuEvent,
    PhaseEvent,
    PrepEvent,
    Record,
    ResultEvent,
    encode,
)
from nmoe.paths import RunFolder

Output = Literal["all", "json", "quiet"]

POLL_S = 0.2
HEARTBEAT_S = 60.0
INTERRUPTED = 130
TERMINATED = 143
TAIL_LINES = 8
# Phases that end without saying before how far they are.
WITHOUT_COUNT = frozenset({"checking", "launching", "compiling", "stopping", "scoring"})


def follow(folder: RunFolder, *, output: Output, passes_stop: bool) -> int:
    """Print a run until it is over; returns its exit code.

    `passes_stop`: a signal to this process stops the run; otherwise it only ends the following.
    """
    reader = runs.RunReader(folder)
    people = People(sys.stderr, is_silent=output != "all")
    lines = EventLines(sys.stdout, output=output, complain=people.say)
    with _caught_signals() as caught, people:
        is_asked = False
        while True:
            is_alive = runs.is_alive(folder)  # asked first: a dead run writes nothing more
            records = reader.read()
            for record in records:
                lines.write(record)
                people.show(record.event, reader.state)
            people.update(reader.state, runs.status(reader.state, is_alive, time.time()))
            if not is_alive and not records:
                break
            if lines.is_gone and is_alive and not passes_stop:
                return 0  # nobody reads, and the run needs nobody
            if len(caught) > is_asked:
                if is_asked or not passes_stop:
                    people.say(f"left; the run goes on. Come back with: n attach {folder.run_id}")
                    return INTERRUPTED if passes_stop else 0
                is_asked = True
                _ask_to_stop(folder, caught[0], people)
            time.sleep(POLL_S if is_alive else 0)
    lines.finish()
    code = exit_code(reader.state)
    _conclude(folder, reader.state, people)
    return TERMINATED if code == INTERRUPTED and signal.SIGTERM in caught else code


def replay(recording: Replay, *, output: Output, speed: float | None) -> int:
    """Print a recorded run as it went; returns its exit code.

    `speed` is in times its own pace; None does not wait. A signal ends the printing.
    """
    state = recording.state_at(0)
    people = People(sys.stderr, is_silent=output != "all")
    lines = EventLines(sys.stdout, output=output, complain=people.say)
    began = time.monotonic()
    with _caught_signals() as caught, people:
        for count, record in enumerate(recording.records, 1):
            due = began + recording.time_of(count) / speed if speed else 0.0
            while not caught and (left := due - time.monotonic()) > 0:
                time.sleep(min(left, POLL_S))
                people.update(state, state.phase)
            if caught or lines.is_gone:
                return 128 + caught[0] if caught else 0
            state = state.apply(record)
            lines.write(record)
            people.show(record.event, state)
    lines.finish()
    _conclude(recording.folder, state, people)
    return exit_code(state)


def exit_code(state: RunState) -> int:
    """What the run ended with; a run that ended without a word was interrupted."""
    return state.exit.rc if state.exit else INTERRUPTED


class EventLines:
    """Event lines as they stand in the files; the result is kept back to be the last line.

    Trouble other than a reader who left is told to `complain`.
    """

    def __init__(
        self, stream: TextIO, *, output: Output, complain: Callable[[str], None] = lambda _: None
    ) -> None:
        self._stream = stream
        self._complain = complain
        # Between progress bars on the same terminal they would only be noise.
        self._prints_result = output != "all" or not stream.isatty()
        self._prints_events = self._prints_result and output != "quiet"
        self._result: Record | None = None
        self._is_gone = False

    @property
    def is_gone(self) -> bool:
        """Nobody reads them any more: writing failed, or would."""
        self._is_gone = self._is_gone or has_left(self._stream)
        return self._is_gone

    def write(self, record: Record) -> None:
        """Print one record, except GPU samples."""
        if isinstance(record.event, ResultEvent):
            self._result = record
        elif self._prints_events and not isinstance(record.event, GpuEvent):
            self._print(record)

    def finish(self) -> None:
        """Print the result."""
        if self._result is not None and self._prints_result:
            self._print(self._result)

    def _print(self, record: Record) -> None:
        try:
            self._stream.write(encode(record) + "\n")
            self._stream.flush()
        except OSError as error:
            self._is_gone = isinstance(error, BrokenPipeError)
            if not self._is_gone:
                self._complain(
                    f"no more event lines: {error.strerror}; they are in the run's files"
                )
            discard(self._stream)
            self._prints_events = self._prints_result = False


def has_left(stream: TextIO) -> bool:
    """Whether the reader of a pipe is gone, told without writing: a quiet run writes nothing."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
    except (OSError, ValueError):  # a stream without a file
        return False
    return any(what & (select.POLLERR | select.POLLHUP) for _, what in poll.poll(0))


def discard(stream: TextIO) -> None:
    """Send what is still written to `stream` to nowhere: its reader is gone."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


class People:
    """Progress for people: bars on a terminal; else lines, and a heartbeat once a minute."""

    def __init__(self, stream: TextIO, *, is_silent: bool) -> None:
        self._stream = stream
        self._is_silent = is_silent
        self._beat = time.monotonic()
        self._pace = Pace()
        self._bars = None if is_silent or not stream.isatty() else Bars(stream)

    def __enter__(self) -> "People":
        if self._bars:
            self._bars.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars:
            self._bars.progress.stop()
            self._bars = None

    def show(self, event: Event, state: RunState) -> None:
        """A line for a milestone, progress for the rest."""
        self._pace.see(event)
        line = describe(event)
        if line is not None:
            self.say(line)
        if self._bars:
            self._bars.show(event, state, self._pace.note)

    def update(self, state: RunState, word: str | None) -> None:
        """The heartbeat, when nothing moves on a screen; `word` says what the run is doing."""
        now = time.monotonic()
        if self._bars:
            self._bars.tick()
        elif now - self._beat >= HEARTBEAT_S:
            self._beat = now
            self.say(f"{word or 'waiting'}: {self._pace.note or numbers(state)}")

    def say(self, line: str) -> None:
        """Print one line."""
        if self._is_silent:
            return
        try:
            if self._bars:
                self._bars.progress.console.print(Text(safe(line)))
            else:
                self._stream.write(safe(line) + "\n")
                self._stream.flush()
        except OSError:  # nobody reads, the terminal is gone, or the disk is full
            discard(self._stream)
            self._is_silent = True


class Pace:
    """How far the job in preparation is and how long it will take, from its own speed."""

    def __init__(self) -> None:
        self.note = ""
        self._job: str = ""
        self._since: tuple[float, int] = (0.0, 0)

    def see(self, event: Event) -> None:
        """Take note of progress, until the next phase."""
        if isinstance(event, PhaseEvent):
            self.note = ""
        if not isinstance(event, PrepEvent):
            return
        now = time.monotonic()
        if event.job != self._job:
            self._job, self._since = event.job, (now, event.done)
        began, first = self._since
        amount = text.bytes_ if event.unit == "bytes" else text.count
        self.note = f"{event.job} {amount(event.done)} of {amount(event.total)}"
        if first < event.done < event.total:
            left = (now - began) * (event.total - event.done) / (event.done - first)
            self.note += f", {text.seconds(left)} left"


class Bars:
    """One bar a phase: preparation by job, training by step, CORE by task.

    A phase that cannot tell how far it is has one that only moves, and goes with the phase.
    """

    def __init__(self, stream: TextIO) -> None:
        console = Console(file=stream, markup=False, highlight=False, emoji=False)
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=16),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
            refresh_per_second=4,
        )
        self._tasks: dict[str, TaskID] = {}
        self._phase: TaskID | None = None
        self._since = 0.0

    def show(self, event: Event, state: RunState, pace: str) -> None:
        """Move the bar that the event belongs to; `pace` is that of preparation."""
        if isinstance(event, PhaseEvent | ExitEvent):
            self._begin(state)
        elif isinstance(event, PrepEvent):
            note = pace.removeprefix(f"{event.job} ")
            self._set(safe(event.job), event.done, event.total, safe(note))
        elif event.kind in ("step", "val"):
            self._set("training", state.step, state.steps, numbers(state))
        elif isinstance(event, CoreTaskEvent) and not event.is_interim and state.core_tasks:
            last = state.core_tasks[-1]
            self._set("CORE", len(state.core_tasks), last.count, safe(last.name))

    def tick(self) -> None:
        """Let the clock of a phase go on that has nothing else to show."""
        if self._phase is not None:
            note = text.seconds(time.monotonic() - self._since)
            self.progress.update(self._phase, note=note)

    def _begin(self, state: RunState) -> None:
        if self._phase is not None:
            self.progress.remove_task(self._phase)
            self._phase = None
        if state.phase in WITHOUT_COUNT and state.exit is None:
            self._phase = self.progress.add_task(state.phase, total=None, note="")
            self._since = time.monotonic()

    def _set(self, name: str, done: int, total: int, note: str) -> None:
        if name not in self._tasks:
            self._tasks[name] = self.progress.add_task(name, total=total, note=note)
        self.progress.update(self._tasks[name], completed=done, total=total, note=note)


def numbers(state: RunState) -> str:
    """Where training stands, in one phrase."""
    val = state.val.loss if state.val else None
    return (
        f"step {text.count(state.step)}/{text.count(state.steps)}  loss {text.loss(state.loss)}"
        f"  val {text.loss(val)} → {text.loss(state.target)}  {text.rate(state.tok_s)}"
    )


def _ask_to_stop(folder: RunFolder, signum: int, people: People) -> None:
    try:
        launch.request_stop(folder, by=signal.Signals(signum).name)
    except RunError:
        return  # over already: the loop will see it
    people.say("stopping at the next step with a checkpoint; once more leaves the run to itself")


def _conclude(folder: RunFolder, state: RunState, people: People) -> None:
    """The last lines: what came of it, or why it failed and what to do."""
    end, result = state.exit, state.result
    if end is None or end.status == "interrupted":
        people.say(f"interrupted at step {text.count(state.step)}. Run: n resume {folder.run_id}")
        return
    if result is not None and result.reached:
        place = f", place {result.rank} on {result.board}" if result.rank else ""
        people.say(
            f"target {text.loss(result.target)} reached: {text.loss(result.loss)} after"
            f" {text.exact_seconds(result.train_s)} and {text.count(result.step)} steps,"
            f" CORE {text.core(result.core)}"
            f"{text.interval(state.core.ci95 if state.core else None)}{place}"
        )
        if result.reason:
            people.say(f"not on a board: {result.reason}")
    parts = [part for part in ledger(state) if part.seconds > 0]
    if parts:
        spent = ", ".join(f"{part.name} {text.exact_seconds(part.seconds)}" for part in parts)
        people.say(f"where the time went: {spent}")
    joules = state.joules_per_token
    if state.energy is not None and joules is not None:
        people.say(
            f"the GPUs used {text.fixed(state.energy.joules / 3.6e6, decimals=3, unit='kWh')} to"
            f" train, {text.fixed(1e3 * joules, decimals=2, unit='mJ')} a token"
        )
    if end.rc != 0:
        for line in end.tail[-TAIL_LINES:]:
            people.say(f"  {line}")
        people.say(f"{end.status}: {end.hint or 'see the log'}. Logs: {folder.logs}")


@contextmanager
def _caught_signals() -> Generator[list[int]]:
    """The SIGINT and SIGTERM that arrive inside, instead of their usual effect."""
    caught: list[int] = []

    def note(signum: int, _frame: FrameType | None) -> None:
        caught.append(signum)

    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, note) for number in signals]
    try:
        yield caught
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
