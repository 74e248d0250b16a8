"""A run for programs: its state as one JSON object, its events as a stream that can be resumed."""

import json
import math
from dataclasses import asdict, is_dataclass
from typing import Any

from harness.run_state import RunState
from harness.series import Series
from harness.status import RunStatus
from harness.tails import READ_BYTES, Tail, merge
from nmoe.events import Record
from nmoe.paths import RunFolder

MAX_POINTS = 2000
MAX_LINES = 100
SCALARS = (
    *("attempt", "phase", "phase_note", "started", "updated", "step", "steps", "tokens", "loss"),
    *("lr", "grad_norm", "ms", "tok_s", "mfu", "train_s", "wall_s", "best_val", "target"),
    *("stop_requested", "bad_lines", "events", "joules_per_token"),
)
NEWEST = (
    *("val", "router", "checkpoint", "core", "interim_core", "topology", "energy", "outcome"),
    *("exit", "result"),
)
LISTS = ("val_events", "prep", "core_tasks", "interim_tasks", "gpus", "alerts")


def state_json(state: RunState, *, status: RunStatus, is_alive: bool, now: float) -> str:
    """What is known about a run as strict JSON; curves thinned to MAX_POINTS, NaN as null."""
    shown = facts(state, status=status, is_alive=is_alive, now=now)
    return json.dumps(shown | {"losses": plain(_columns(state.losses))}, allow_nan=False)


def facts(state: RunState, *, status: RunStatus, is_alive: bool, now: float) -> dict[str, Any]:
    """What is known about a run but its curves, as values of strict JSON.

    Times are unix seconds; fields have the names and units of the events they come from.
    """
    shown: dict[str, Any] = {
        "run_id": state.run_id,
        "status": status,
        "is_alive": is_alive,
        "now": now,
        **{name: getattr(state, name) for name in (*SCALARS, *NEWEST, *LISTS)},
        "marks": [mark._asdict() for mark in state.marks],
        "lines": state.lines[-MAX_LINES:],
        "plan": state.plan,
    }
    return plain(shown)


def _columns(series: Series) -> dict[str, list[float]]:
    """The columns of a curve: every so many points, and always the last."""
    stride = max(1, -(-series.length // MAX_POINTS))
    kept = sorted({*range(0, series.length, stride), series.length - 1} - {-1})
    columns = {
        "step": series.steps,
        "tokens": series.tokens,
        "train_s": series.train_s,
        "wall_s": series.wall_s,
        "loss": series.values,
    }
    return {name: [column[at] for at in kept] for name, column in columns.items()}


def plain(value: Any) -> Any:
    """The value with dataclasses as objects and None for numbers that JSON cannot hold."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}  # pyright: ignore
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]  # pyright: ignore
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class EventStream:
    """The events of a run in order, each with a mark; one that begins after a mark repeats none.

    A mark tells how far each file has been read, so that it holds however the files interleave.
    """

    def __init__(self, folder: RunFolder, *, after: str = "") -> None:
        """Begin after the mark `after`; one that is not a mark begins at the start."""
        names = ("train", "supervisor", "gpus")
        self._tails = {name: Tail(getattr(folder, name)) for name in names}
        self._seqs = dict.fromkeys(names, -1) | _read_mark(after, names)

    def read(self, max_bytes: int = READ_BYTES) -> list[tuple[str, Record]]:
        """What is new, at most so much of each file; RunError for another version's lines."""
        batches = {name: tail.read(max_bytes) for name, tail in self._tails.items()}
        source = {id(record): name for name, batch in batches.items() for record in batch}
        found: list[tuple[str, Record]] = []
        for record in merge(list(batches.values())):
            name = source[id(record)]
            if record.seq > self._seqs[name]:
                self._seqs[name] = record.seq
                found.append((".".join(str(seq) for seq in self._seqs.values()), record))
        return found


def _read_mark(mark: str, names: tuple[str, ...]) -> dict[str, int]:
    parts = mark.split(".")
    if len(parts) != len(names) or not all(part.lstrip("-").isdecimal() for part in parts):
        return {}
    return dict(zip(names, map(int, parts), strict=True))
