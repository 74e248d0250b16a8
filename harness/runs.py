"""Run folders as they are on disk: tails of their files, the state they add up to, who is alive."""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.alive import is_alive, run_folders
from harness.errors import RunError
from harness.run_state import RunState
from harness.status import RunStatus, status
from harness.tails import READ_BYTES, Tail, merge, placed
from nmoe.config import ConfigError, build, read_plan
from nmoe.events import Record
from nmoe.paths import DataRoot, RunFolder

# A list of runs reads this much of the end of a file: with a validation in it, as a rule.
LIST_BYTES = 1 << 14
MAX_NOTE = 200  # characters that people write beside a run

__all__ = [
    "RunReader",
    "RunState",
    "RunStatus",
    "Snapshot",
    "Summary",
    "find",
    "is_alive",
    "list_runs",
    "load",
    "read_all",
    "read_snapshot",
    "status",
    "summarize",
]


class RunReader:
    """Follows a run folder: `read()` fetches what is new, `state` is what it adds up to."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.state = RunState.of(folder.run_id)
        self._tails = self._open()
        self._kept: list[list[Record]] = [[] for _ in self._tails]

    def read(self, max_bytes: int = READ_BYTES) -> list[Record]:
        """New records of all files in time order, already applied; at most so much of each file.

        What one file says is kept back until the others are read up to that time.
        """
        if self.state.plan is None:
            self._read_plan()
        batches = [
            kept or _some(tail, max_bytes)
            for kept, tail in zip(self._kept, self._tails, strict=True)
        ]
        if sum(tail.restarts for tail in self._tails):
            return self._read_again(max_bytes)
        keyed = [list(placed(batch)) for batch in batches]
        behind = [keys for keys, tail in zip(keyed, self._tails, strict=True) if tail.is_behind]
        until = min((keys[-1][0] for keys in behind if keys), default=(sys.maxsize, 0.0))
        self._kept = [[record for key, record in keys if key > until] for keys in keyed]
        due = [[record for key, record in keys if key <= until] for keys in keyed]
        records = list(merge(due))
        state = self.state.apply_all(records)
        bad_lines = sum(tail.bad_lines for tail in self._tails)
        if bad_lines != state.bad_lines:
            state = replace(state, bad_lines=bad_lines)
        self.state = state
        return records

    @property
    def is_behind(self) -> bool:
        """Whether the last read left something that is there."""
        return any(tail.is_behind for tail in self._tails)

    def _open(self) -> tuple[Tail, ...]:
        return tuple(Tail(path) for path in _event_files(self.folder))

    def _read_again(self, max_bytes: int) -> list[Record]:
        """A file was replaced: what it said before no longer holds."""
        self._tails = self._open()
        self._kept = [[] for _ in self._tails]
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
    """One row of a list of runs; `problem` says why a folder could not be read.

    `note` is what a person wrote beside the run.
    """

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
    note: str = ""
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


def find(root: DataRoot, run_id: str) -> RunFolder:
    """The folder of a run by its id, a unique beginning of it, or "last"; RunError otherwise."""
    if run_id == "last":
        rows = list_runs(root)
        if not rows:
            raise RunError(f"no runs in {root.runs}", "Run: n speedrun")
        return root.run(rows[0].run_id)
    names = [folder.run_id for folder in run_folders(root)]
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
    summaries = [summarize(folder) for folder in run_folders(root)]
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
            "note": _note(folder),
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


def _note(folder: RunFolder) -> str:
    try:
        with folder.note.open(encoding="utf-8", errors="replace") as file:
            return file.readline(MAX_NOTE).strip()
    except OSError:
        return ""


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


def _load_ends(folder: RunFolder, *paths: Path) -> tuple[RunState, str]:
    """The state that the ends of the files add up to, and why they cannot be read."""
    state = RunState.of(folder.run_id)
    try:
        state = state.apply_all(merge([_last_records(path) for path in paths]))
    except RunError as error:
        return state, str(error)
    return state, ""


def _last_records(path: Path) -> list[Record]:
    tail = Tail(path)
    tail.skip_to_end(LIST_BYTES)
    return tail.read()


def _some(tail: Tail, max_bytes: int) -> list[Record]:
    """The next records of a file; none only when it has no more for now."""
    records = tail.read(max_bytes)
    while tail.is_behind and not records:
        records = tail.read(max_bytes)
    return records
