"""Run folders as they are on disk: tails of their files, the state they add up to, who is alive."""

import fcntl
import heapq
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.errors import RunError
from harness.run_state import RunState, RunStatus, status
from nmoe.config import ConfigError, build, read_plan
from nmoe.events import VERSION, EventError, Record, decode
from nmoe.paths import RUN_ID, DataRoot, RunFolder

# A list of runs reads this much of the end of a file: with a validation in it, as a rule.
LIST_BYTES = 1 << 14
READ_BYTES = 1 << 20

__all__ = [
    "RunReader",
    "RunState",
    "RunStatus",
    "Snapshot",
    "Summary",
    "Tail",
    "find",
    "is_alive",
    "list_runs",
    "load",
    "merge",
    "read_all",
    "read_snapshot",
    "status",
    "summarize",
]


class Tail:
    """Reads a file of events as it grows: whole lines once each, in order.

    A line without its newline waits for it. `bad_lines` counts what could not be read; `restarts`
    counts how often the file was replaced or cut, after which reading began anew.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bad_lines = 0
        self.restarts = 0
        self._inode: int | None = None
        self._offset = 0
        self._seq = -1

    def read(self, max_bytes: int = READ_BYTES) -> list[Record]:
        """What was appended since the last call, `max_bytes` of it or one line if that is longer.

        RunError when a line was written by another version of the format.
        """
        try:
            with self.path.open("rb") as file:
                lines = self._read_lines(file.fileno(), max_bytes)
        except FileNotFoundError:
            return []
        return [record for record in map(self._decode, lines) if record is not None]

    def skip_to_end(self, num_bytes: int) -> None:
        """Begin with the first whole line of the last `num_bytes`; for a tail not read yet."""
        try:
            with self.path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size > num_bytes:
                    file.seek(size - num_bytes)
                    self._offset = size - num_bytes + len(file.readline())
        except FileNotFoundError:
            return

    def _read_lines(self, fd: int, max_bytes: int) -> list[bytes]:
        info = os.fstat(fd)
        is_replaced = self._inode is not None and info.st_ino != self._inode
        if is_replaced or info.st_size < self._offset:
            self.restarts += 1
            self.bad_lines, self._offset, self._seq = 0, 0, -1
        self._inode = info.st_ino
        data = b""
        while self._offset + len(data) < info.st_size:
            chunk = os.pread(fd, max_bytes, self._offset + len(data))
            if not chunk:
                break
            data += chunk
            if b"\n" in chunk:
                break
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole.split(b"\n")[:-1]

    def _decode(self, line: bytes) -> Record | None:
        try:
            record = decode(line)
        except (EventError, RecursionError, TypeError, ValueError) as error:
            version = _version(line)
            if version is not None and version != VERSION:
                raise RunError(
                    f"{self.path} cannot be read: got event version {version}, expected {VERSION}",
                    "Use the version of the code that wrote it.",
                ) from error
            self.bad_lines += 1
            return None
        if record is None or record.seq <= self._seq:
            return None
        self._seq = record.seq
        return record


def _version(line: bytes) -> int | None:
    try:
        version: Any = json.loads(line)["v"]
    except (ValueError, RecursionError, LookupError, TypeError):
        return None
    return version if type(version) is int else None


class RunReader:
    """Follows a run folder: `read()` fetches what is new, `state` is what it adds up to."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.state = RunState.of(folder.run_id)
        self._tails = self._open()

    def read(self, max_bytes: int = READ_BYTES) -> list[Record]:
        """New records of all files in time order, already applied; at most so much of each file."""
        if self.state.plan is None:
            self._read_plan()
        batches = [tail.read(max_bytes) for tail in self._tails]
        if sum(tail.restarts for tail in self._tails):
            return self._read_again(max_bytes)
        records = list(merge(batches))
        state = self.state
        for record in records:
            state = state.apply(record)
        bad_lines = sum(tail.bad_lines for tail in self._tails)
        if bad_lines != state.bad_lines:
            state = replace(state, bad_lines=bad_lines)
        self.state = state
        return records

    def _open(self) -> tuple[Tail, ...]:
        return tuple(Tail(path) for path in _event_files(self.folder))

    def _read_again(self, max_bytes: int) -> list[Record]:
        """A file was replaced: what it said before no longer holds."""
        self._tails = self._open()
        self.state = RunState.of(self.folder.run_id, self.state.plan)
        return self.read(max_bytes)

    def _read_plan(self) -> None:
        try:
            self.state = self.state.with_plan(read_plan(self.folder.plan))
        except ConfigError:
            return  # not there yet, or unreadable: then the state has no plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """state.json: the run as its supervisor last saw it, so that a list needs no event files.

    `pid_start` (clock ticks since boot) and `boot_id` tell a process from a later one of its pid.
    """

    status: RunStatus
    is_over: bool
    attempt: int
    phase: str | None
    step: int
    tokens: int
    loss: float | None
    val: float | None
    best_val: float | None
    train_s: float
    pid: int
    pid_start: int
    boot_id: str
    heartbeat: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One row of a list of runs; `problem` says why a folder could not be read."""

    run_id: str
    status: RunStatus
    is_alive: bool = False
    preset: str = ""
    task: str = ""
    dtype: str = ""
    machine: str = ""
    created: str = ""
    updated: float = 0.0
    attempt: int = 0
    step: int = 0
    steps: int = 0
    tokens: int = 0
    loss: float | None = None
    val: float | None = None
    best_val: float | None = None
    target: float | None = None
    train_s: float = 0.0
    problem: str = ""


def load(folder: RunFolder) -> RunState:
    """The state of a run from everything its files say; RunError when there is no such run."""
    if not folder.root.is_dir():
        raise RunError(f"no run {folder.run_id} in {folder.root.parent}", "Run: n runs")
    reader = RunReader(folder)
    while reader.read():
        pass
    return reader.state


def read_all(folder: RunFolder) -> tuple[RunState, tuple[Record, ...]]:
    """The state before a run's first record, and all its records in order."""
    reader = RunReader(folder)
    sizes = [path.stat().st_size for path in _event_files(folder) if path.exists()]
    records = reader.read(max(sizes, default=0) + 1)
    first = RunState.of(folder.run_id, reader.state.plan)
    return replace(first, bad_lines=reader.state.bad_lines), tuple(records)


def is_alive(folder: RunFolder) -> bool:
    """Whether a process of the run holds its lock."""
    try:
        fd = os.open(folder.lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # Shared, so that two who ask never see each other; a holder has it exclusively.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def find(root: DataRoot, run_id: str) -> RunFolder:
    """The folder of a run by its id, a unique beginning of it, or "last"; RunError otherwise."""
    if run_id == "last":
        rows = list_runs(root)
        if not rows:
            raise RunError(f"no runs in {root.runs}", "Run: n speedrun")
        return root.run(rows[0].run_id)
    names = [path.name for path in _run_folders(root)]
    exact = [name for name in names if name == run_id]
    matches = exact or [name for name in names if run_id and name.startswith(run_id)]
    if len(matches) == 1:
        return root.run(matches[0])
    if matches:
        shown = ", ".join(sorted(matches)[-3:])
        raise RunError(f"{run_id!r} could be {len(matches)} runs: {shown}", "Name one in full.")
    raise RunError(f"no run {run_id!r} in {root.runs}", "Run: n runs")


def list_runs(root: DataRoot) -> list[Summary]:
    """All runs, newest first; reads state.json and plan.json, event files only where those lack."""
    summaries = [summarize(root.run(path.name)) for path in _run_folders(root)]
    return sorted(summaries, key=lambda row: (row.created, row.run_id), reverse=True)


def summarize(folder: RunFolder) -> Summary:
    """One run as a row of a list; a folder that cannot be read is a row that says so."""
    try:
        plan = json.loads(folder.plan.read_bytes())
        train, hardware = plan["train"], plan["hardware"]
        gpu, num_gpus = hardware.get("gpu"), hardware.get("num_gpus") or 0
        fixed: dict[str, Any] = {
            "run_id": folder.run_id,
            "preset": str(plan["preset"]),
            "task": str(plan["data"]["task"]),
            "dtype": str(plan["dtype"]),
            "machine": f"{num_gpus}x{gpu}" if gpu and num_gpus else str(hardware.get("cpu", "")),
            "created": str(plan["created"]),
            "steps": int(train["steps"]),
            "target": float(plan["target"]["target_loss"]),
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"{folder.plan.name} cannot be read: {type(error).__name__}: {error}"
        return Summary(run_id=folder.run_id, status="failed", problem=problem)
    alive = is_alive(folder)
    snapshot = read_snapshot(folder)
    if snapshot is None:
        return _summarize_events(folder, alive=alive, fixed=fixed)
    is_current = snapshot.is_over or alive
    return Summary(
        **fixed,
        status=snapshot.status if is_current else _last_status(folder),
        is_alive=alive,
        updated=snapshot.heartbeat,
        attempt=snapshot.attempt,
        step=snapshot.step,
        tokens=snapshot.tokens,
        loss=snapshot.loss,
        val=snapshot.val,
        best_val=snapshot.best_val,
        train_s=snapshot.train_s,
    )


def read_snapshot(folder: RunFolder) -> Snapshot | None:
    """state.json, or None when it is missing or does not hold one."""
    try:
        return build(Snapshot, json.loads(folder.state.read_bytes()), where=folder.state.name)
    except (OSError, ValueError, RecursionError):
        return None


def _last_status(folder: RunFolder) -> RunStatus:
    """How a run ended whose supervisor is gone and left no last state.json."""
    state, _ = _load_ends(folder, folder.supervisor)
    return status(state, False, state.updated)


def _summarize_events(folder: RunFolder, *, alive: bool, fixed: dict[str, Any]) -> Summary:
    """From the ends of the event files: a trainer that runs without a supervisor."""
    state, problem = _load_ends(folder, folder.train, folder.supervisor)
    return Summary(
        **fixed,
        status=status(state, alive, state.updated),
        is_alive=alive,
        updated=state.updated,
        attempt=state.attempt,
        step=state.step,
        tokens=state.tokens,
        loss=state.loss,
        val=state.val.loss if state.val else None,
        best_val=state.best_val,
        train_s=state.train_s,
        problem=problem,
    )


def _event_files(folder: RunFolder) -> tuple[Path, ...]:
    return folder.train, folder.supervisor, folder.gpus


def _run_folders(root: DataRoot) -> list[Path]:
    try:
        return [path for path in root.runs.iterdir() if RUN_ID.fullmatch(path.name)]
    except OSError:
        return []


def _load_ends(folder: RunFolder, *paths: Path) -> tuple[RunState, str]:
    """The state that the ends of the files add up to, and why they cannot be read."""
    state = RunState.of(folder.run_id)
    try:
        for record in merge([_last_records(path) for path in paths]):
            state = state.apply(record)
    except RunError as error:
        return state, str(error)
    return state, ""


def _last_records(path: Path) -> list[Record]:
    tail = Tail(path)
    tail.skip_to_end(LIST_BYTES)
    return tail.read()


def merge(batches: list[list[Record]]) -> Iterator[Record]:
    """Records of several files by attempt and time, each file in its own order.

    A clock that was set back does not reorder a file: its records count as late as the latest
    one before them.
    """
    return (record for _, record in heapq.merge(*map(_keyed, batches), key=lambda item: item[0]))


def _keyed(records: list[Record]) -> Iterator[tuple[tuple[int, float], Record]]:
    latest = (0, 0.0)
    for record in records:
        latest = max(latest, (record.attempt, record.time))
        yield latest, record
