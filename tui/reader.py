"""The one thread that reads: tails a run folder, folds its events, posts what changed.

It posts at most `fps` messages a second, each replacing one that was not taken yet, and reads a
bounded amount at a time. Whatever goes wrong while reading becomes a message; nothing is raised.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from textual.message import Message

from harness import runs
from harness.replay import Replay
from harness.runs import RunReader, RunState
from nmoe.paths import RunFolder
from tui.feed import Failure, FeedFailed, Position, RunChanged, RunView, attempt

FPS = 2.0
# One read of at most so much of each file: some 2,000 events, well under 50 ms.
READ_BYTES = 256 * 1024
HEARTBEAT_S = 1.0  # a living run is shown anew this often, so that silence shows too
OVER_S = 2.0  # a finished run is looked at this often: it may be resumed
REPLAY_FPS = 4.0
SLOWEST, FASTEST = 0.125, 65536.0  # times the speed of the run
_REPLAY_TICK_S = 0.05  # between two looks at what was asked of a replay
_BREATH_S = 0.005  # between two reads while catching up, so that keys are answered


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
        if self._reader.is_behind and since_s < self._interval_s:
            return _BREATH_S
        view = self._look(self._reader.state)
        if self._is_due(view, since_s):
            self._is_dirty = False
            self._last, self._posted = view, time.monotonic()
            self._post(RunChanged(view))
        if self._reader.is_behind:
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


class ReplayFeed(Feed):
    """Plays a run folder at `speed` times its own pace, and goes where it is told to."""

    def __init__(
        self,
        folder: RunFolder,
        post: Callable[[Message], object],
        *,
        speed: float,
        fps: float = REPLAY_FPS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(folder, post, fps=fps, clock=clock)
        self._lock = threading.Lock()
        self._replay: Replay | None = None
        speed = min(FASTEST, max(SLOWEST, speed))
        self._position = Position(elapsed_s=0.0, duration_s=0.0, speed=speed, is_playing=True)
        self._moved = clock()
        self._shown: Position | None = None
        self._is_urgent = False

    def toggle(self) -> None:
        """Pause, or play on; at the end, from the start."""
        with self._lock:
            here = self._position
            is_over = here.elapsed_s >= here.duration_s
            self._change(
                is_playing=is_over or not here.is_playing,
                elapsed_s=0.0 if is_over else here.elapsed_s,
            )

    def seek(self, elapsed_s: float) -> None:
        """Go to a time of the recording; beyond its ends to the nearer one."""
        with self._lock:
            self._change(elapsed_s=min(max(0.0, elapsed_s), self._position.duration_s))

    def jump(self, frac: float) -> None:
        """Go on, or back, by a share of the whole."""
        self.seek(self._position.elapsed_s + frac * self._position.duration_s)

    def scale_speed(self, factor: float) -> None:
        """Play faster or slower."""
        with self._lock:
            self._change(speed=min(FASTEST, max(SLOWEST, self._position.speed * factor)))

    def _change(self, **changes: Any) -> None:
        self._position = replace(self._position, **changes)
        self._is_urgent = True

    def _tick(self) -> float:
        if self._replay is None:
            self._replay = Replay(self.folder)
            with self._lock:
                self._change(duration_s=self._replay.duration_s, marks_s=self._replay.attempts_s)
                self._moved = self._clock()
        position, is_urgent = self._advance()
        is_due = self._clock() - self._posted >= self._interval_s
        if position != self._shown and (is_due or is_urgent):
            self._shown, self._posted = position, self._clock()
            self._post(RunChanged(self._view_at(self._replay, position)))
        return _REPLAY_TICK_S

    def _advance(self) -> tuple[Position, bool]:
        """The position now, and whether somebody has asked for a change of it."""
        with self._lock:
            now = self._clock()
            here, since_s, self._moved = self._position, now - self._moved, now
            if here.is_playing:
                elapsed_s = min(here.duration_s, here.elapsed_s + since_s * here.speed)
                is_playing = elapsed_s < here.duration_s
                self._position = replace(here, elapsed_s=elapsed_s, is_playing=is_playing)
            is_urgent, self._is_urgent = self._is_urgent, False
            return self._position, is_urgent or not self._position.is_playing

    def _view_at(self, replay: Replay, position: Position) -> RunView:
        state = replay.state_at(replay.count_at(position.elapsed_s))
        is_over = position.elapsed_s >= position.duration_s
        is_alive = runs.is_alive(self.folder) if is_over else True
        now = replay.now_at(position.elapsed_s)
        return RunView(
            state=state,
            status=runs.status(state, is_alive, now),
            is_alive=is_alive,
            now=now,
            position=position,
        )
