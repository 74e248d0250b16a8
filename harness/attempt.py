"""One attempt of a run as its supervisor holds it: log, state, snapshot, the request to stop."""

import json
import math
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness import exits, launch, runs
from harness.errors import MachineError
from harness.exits import Stop
from nmoe.config import Plan
from nmoe.event_log import EventLog
from nmoe.events import AlertEvent, Event, Level, StopRequestEvent
from nmoe.paths import DataRoot, RunFolder, write_atomic

SNAPSHOT_EVERY_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """Seconds before the supervisor insists."""

    stop_s: float = 300.0  # from a request to stop to SIGTERM
    term_s: float = 30.0  # from there to SIGKILL
    peers_s: float = 5.0  # from SIGTERM to SIGKILL, for the ranks beside a failed one
    linger_s: float = 60.0  # for the other ranks after the first that ended in order


class Stopped(Exception):
    """A request to stop came before the ranks were started."""


class Attempt:
    """One attempt under way: its log, what is known of it, and the request to stop it, if any."""

    def __init__(self, folder: RunFolder, plan: Plan, *, lock_fd: int, patience: Patience) -> None:
        self.folder = folder
        self.plan = plan
        self.root = DataRoot(path=folder.root.parent.parent, reason="the run's folder")
        self.patience = patience
        self.lock_fds = [lock_fd]
        self.reader = runs.RunReader(folder)
        while self.reader.read():
            pass
        state = self.reader.state
        self.number = state.attempt + 1 if state.events else 0
        self.stop: Stop | None = None
        self.is_stop_written = True
        self.caught: list[signal.Signals] = []
        self._log: EventLog | None = None
        self._snapshot_at = 0.0

    def say(self, event: Event) -> bool:
        """Append an event to supervisor.jsonl; False when that is impossible, as on a full disk."""
        try:
            if self._log is None:
                self._log = EventLog(self.folder.supervisor, attempt=self.number)
            self._log.write(event)
        except OSError as error:
            # What was cut off is closed by the next one to open the file.
            self._log = None
            sys.stderr.write(f"cannot write the event {event.kind}: {error}\n")
            return False
        return True

    def alert(self, code: str, message: str, *, level: Level = "warning") -> None:
        """Say something that a person should know."""
        self.say(AlertEvent(code=code, level=level, message=message))

    def tick(self) -> None:
        """Look for requests to stop; once a second read the events and write state.json."""
        if self.stop is None:
            self._look_for_stop()
        if time.monotonic() - self._snapshot_at >= SNAPSHOT_EVERY_S:
            self.write_snapshot()

    def write_snapshot(self) -> None:
        """state.json from all events so far; a disk that is full keeps the old one."""
        self._snapshot_at = time.monotonic()
        self.reader.read()
        state, now = self.reader.state, time.time()
        snapshot = runs.Snapshot(
            status=runs.status(state, True, now),
            is_over=state.is_over,
            attempt=state.attempt,
            phase=state.phase,
            step=state.step,
            tokens=state.tokens,
            loss=_finite(state.loss),
            val=_finite(state.val.loss if state.val else None),
            best_val=state.best_val,
            train_s=state.train_s,
            pid=os.getpid(),
            pid_start=_pid_start(),
            boot_id=_boot_id(),
            heartbeat=now,
        )
        try:
            write_atomic(self.folder.state, json.dumps(asdict(snapshot), allow_nan=False) + "\n")
        except OSError as error:
            sys.stderr.write(f"cannot write {self.folder.state}: {error}\n")

    def _look_for_stop(self) -> None:
        if self.caught:
            name = self.caught[0].name
            is_interrupt = self.caught[0] == signal.SIGINT
            self.stop = Stop(by=name, code=exits.INTERRUPTED if is_interrupt else exits.TERMINATED)
            self._pass_on(name)
        elif self.folder.stop_request.exists():
            self.stop = Stop(by=_who_asked(self.folder))
        else:
            return
        self.say(StopRequestEvent(by=self.stop.by, action="checkpoint"))

    def _pass_on(self, name: str) -> None:
        try:
            launch.write_stop(self.folder, name)
        except MachineError as error:
            self.is_stop_written = False
            self.alert("stop", str(error))


def _who_asked(folder: RunFolder) -> str:
    try:
        raw: Any = json.loads(folder.stop_request.read_bytes())
        return str(raw["by"])
    except (OSError, ValueError, LookupError, TypeError):
        return "unknown"


def _finite(value: float | None) -> float | None:
    """The value, or None for one that JSON cannot say."""
    return value if value is not None and math.isfinite(value) else None


def _pid_start() -> int:
    """When this process started, in clock ticks since boot; 0 where /proc does not tell."""
    try:
        text = Path("/proc/self/stat").read_text(encoding="utf-8")
        return int(text.rpartition(")")[2].split()[19])
    except (OSError, ValueError, LookupError):
        return 0


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""
