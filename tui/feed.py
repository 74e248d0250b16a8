"""The one thread that reads: tails a run folder, folds its events, posts what changed.

It posts at most `fps` messages a second, each replacing one that was not taken yet, and reads a
bounded amount at a time. Whatever goes wrong while reading becomes a message; nothing is raised.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from textual.message import Message

from harness import runs
from harness.errors import HarnessError
from harness.runs import RunReader, RunState, RunStatus
from nmoe.paths import RunFolder

FPS = 2.0
# One read of at most so much of each file: some 2,000 events, well under 50 ms.
READ_BYTES = 256 * 1024
HEARTBEAT_S = 1.0  # a living run is shown anew this often, so that silence shows too
OVER_S = 2.0  # a finished run is looked at this often: it may be resumed
_BREATH_S = 0.005  # between two reads while catching up, so that keys are answered

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """A run as of `now`: what its events add up to, and whether a process holds its lock."""

    state: RunState
    status: RunStatus
    is_alive: bool
    now: float


class RunChanged(Message):
    """The newest view of the run; an older one still waiting is dropped."""

    def __init__(self, view: RunView) -> None:
        super().__init__()
        self.view = view

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, RunChanged)


class FeedFailed(Message):
    """The run cannot be read at the moment; an empty problem says that it can again."""

    def __init__(self, problem: str) -> None:
        super().__init__()
        self.problem = problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why some work gave no value."""

    problem: str
    fix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Success(Generic[T]):
    """The value of some work."""

    value: T


def attempt(work: Callable[[], T]) -> Success[T] | Failure:
    """The worker edge: the value of `work`, or what kept it from giving one."""
    try:
        return Success(value=work())
    except HarnessError as error:
        return Failure(problem=error.problem, fix=error.fix)
    except Exception as error:  # noqa: BLE001 - a thread must not take the screen down
        return Failure(problem=str(error) or type(error).__name__)


class Feed:
    """Follows one run folder in a thread of its own and posts views of it."""

    def __init__(
        self,
        folder: RunFolder,
        post: Callable[[Message], object],
        *,
        fps: float = FPS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.folder = folder
        self._post = post
        self._clock = clock
        self._interval_s = 1 / fps
        self._stopped = threading.Event()
        self._reader: RunReader | None = None
        self._last: RunView | None = None
        self._is_dirty = False
        self._problem = ""
        self._posted = 0.0
        self._thread = threading.Thread(target=self._follow, name="feed", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and wait for it."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2.0)

    def _follow(self) -> None:
        wait_s = 0.0
        while not self._stopped.wait(wait_s):
            outcome = attempt(self._tick)
            if isinstance(outcome, Failure):
                self._report(f"{outcome.problem}. {outcome.fix}".rstrip(". ") + ".")
                wait_s = OVER_S
            else:
                self._report("")
                wait_s = outcome.value

    def _tick(self) -> float:
        """Read once and post when it is time; returns how long to wait for the next tick."""
        if self._reader is None:
            self._reader = RunReader(self.folder)
        before = self._reader.state
        has_records = bool(self._reader.read(READ_BYTES))
        self._is_dirty |= has_records or self._reader.state is not before
        since_s = time.monotonic() - self._posted
        if has_records and since_s < self._interval_s:
            return _BREATH_S
        view = self._look(self._reader.state)
        if self._is_due(view, since_s):
            self._is_dirty = False
            self._last, self._posted = view, time.monotonic()
            self._post(RunChanged(view))
        if has_records:
            return _BREATH_S
        return self._interval_s if view.is_alive or not view.state.is_over else OVER_S

    def _look(self, state: RunState) -> RunView:
        now = self._clock()
        is_alive = runs.is_alive(self.folder)
        return RunView(
            state=state, status=runs.status(state, is_alive, now), is_alive=is_alive, now=now
        )

    def _is_due(self, view: RunView, since_s: float) -> bool:
        if self._last is None or view.status != self._last.status:
            return True
        return self._is_dirty or (view.is_alive and since_s >= HEARTBEAT_S)

    def _report(self, problem: str) -> None:
        if problem != self._problem:
            self._problem = problem
            self._post(FeedFailed(problem))
