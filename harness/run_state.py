"""What is known about a run, as a pure fold of its events: apply(record) gives the next state.

The same fold serves the screens, the headless printer, the scorer and the supervisor. Records of
one file come in its order; how the files of a run interleave does not change the result.
"""

import math
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from statistics import median
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from harness import format as text
from nmoe import events as ev
from nmoe.config import Plan

RunStatus = Literal[
    "no-gpu",
    "idle",
    "checking",
    "preparing",
    "launching",
    "compiling",
    "training",
    "validating",
    "stopping",
    "core-eval",
    "done",
    "missed",
    "failed",
    "interrupted",
    "stalled",
    "diverged",
]
MAX_ALERTS = 100
MAX_LINES = 500
# Step times that the median is taken over; recent ones, as a run may change its speed.
MAX_STEP_TIMES = 15
# A run is stalled after ten times what its step events usually take, but not before a minute; a
# first step may compile, so it gets longer.
STALL_FACTOR = 10
STALL_S = 60.0
FIRST_STEP_S = 600.0
# The order of phases within an attempt; the trainer moves between those of the same stage.
STAGES: Mapping[str, int] = MappingProxyType(
    {"checking": 0, "preparing": 1, "launching": 2, "scoring": 4}
)
TRAINER_STAGE = 3


class Point(NamedTuple):
    """One point of a series."""

    step: int
    tokens: int
    train_s: float
    value: float


class Buffer:
    """Columns of points that only grow at their end; shared by many series."""

    __slots__ = ("step", "tokens", "train_s", "value")

    def __init__(self) -> None:
        self.step = array("q")
        self.tokens = array("q")
        self.train_s = array("d")
        self.value = array("d")

    def copy(self, length: int) -> "Buffer":
        """The first points in columns of their own."""
        other = Buffer()
        other.step = self.step[:length]
        other.tokens = self.tokens[:length]
        other.train_s = self.train_s[:length]
        other.value = self.value[:length]
        return other


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """The first `length` points of a shared buffer; never changes, whatever is appended later."""

    buffer: Buffer = field(default_factory=Buffer)
    length: int = 0

    def append(self, point: Point) -> "Series":
        """A series one longer; copies only when another series has grown the buffer meanwhile."""
        buffer = self.buffer
        if len(buffer.value) != self.length:
            buffer = buffer.copy(self.length)
        buffer.step.append(point.step)
        buffer.tokens.append(point.tokens)
        buffer.train_s.append(point.train_s)
        buffer.value.append(point.value)
        return Series(buffer, self.length + 1)

    def until(self, step: int) -> "Series":
        """The points up to and including `step`."""
        length = self.length
        while length and self.buffer.step[length - 1] > step:
            length -= 1
        return self if length == self.length else Series(self.buffer, length)

    @property
    def steps(self) -> "array[int]":
        """A copy of the steps, int64."""
        return self.buffer.step[: self.length]

    @property
    def tokens(self) -> "array[int]":
        """A copy of the tokens seen, int64."""
        return self.buffer.tokens[: self.length]

    @property
    def train_s(self) -> "array[float]":
        """A copy of the training seconds, float64."""
        return self.buffer.train_s[: self.length]

    @property
    def values(self) -> "array[float]":
        """A copy of the values, float64."""
        return self.buffer.value[: self.length]

    @property
    def last(self) -> Point | None:
        """The newest point."""
        return self[-1] if self.length else None

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Point:
        at = index + self.length if index < 0 else index
        if not 0 <= at < self.length:
            raise IndexError(f"point {index} of {self.length}")
        columns = self.buffer
        return Point(columns.step[at], columns.tokens[at], columns.train_s[at], columns.value[at])

    def __iter__(self) -> Iterator[Point]:
        return (self[index] for index in range(self.length))

    def __eq__(self, other: object) -> bool:
        """Equal bit by bit, so that a NaN equals itself."""
        if not isinstance(other, Series):
            return NotImplemented
        return self._bytes() == other._bytes()

    def __hash__(self) -> int:
        return hash((self.length, self.last))

    def _bytes(self) -> tuple[bytes, ...]:
        columns = (self.steps, self.tokens, self.train_s, self.values)
        return tuple(column.tobytes() for column in columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """Everything a viewer, the scorer or the supervisor knows; times are unix seconds."""

    run_id: str
    plan: Plan | None = None
    attempt: int = 0
    phase: ev.Phase | None = None
    phase_note: str = ""
    started: float = 0.0
    updated: float = 0.0
    step: int = 0
    steps: int = 0
    tokens: int = 0
    loss: float | None = None
    lr: float | None = None
    grad_norm: float | None = None
    ms: float | None = None
    tok_s: float | None = None
    mfu: float | None = None
    train_s: float = 0.0
    wall_s: float = 0.0
    val: ev.ValEvent | None = None
    best_val: float | None = None
    target: float | None = None
    losses: Series = field(default_factory=Series)
    vals: Series = field(default_factory=Series)
    val_events: tuple[ev.ValEvent, ...] = ()
    router: ev.RouterEvent | None = None
    prep: tuple[ev.PrepEvent, ...] = ()
    checkpoint: ev.CheckpointEvent | None = None
    core_tasks: tuple[ev.CoreTaskEvent, ...] = ()
    core: ev.CoreEvent | None = None
    gpus: tuple[ev.GpuEvent, ...] = ()
    alerts: tuple[ev.AlertEvent, ...] = ()
    lines: tuple[tuple[float, str], ...] = ()
    outcome: ev.OutcomeEvent | None = None
    exit: ev.ExitEvent | None = None
    result: ev.ResultEvent | None = None
    stop_requested: bool = False
    bad_lines: int = 0
    events: int = 0
    # When the trainer last said something, what its recent steps took, and how far each kind of
    # event has been read (sequence numbers), so that a record applied twice counts once.
    progressed: float = 0.0
    step_times_ms: tuple[float, ...] = ()
    seen: Mapping[str, int] = field(default_factory=dict[str, int])

    @staticmethod
    def of(run_id: str, plan: Plan | None = None) -> "RunState":
        """The state of a run nothing has been heard of."""
        if plan is None:
            return RunState(run_id=run_id)
        target = plan.target.target_loss
        return RunState(run_id=run_id, plan=plan, steps=plan.train.steps, target=target)

    def with_plan(self, plan: Plan) -> "RunState":
        """The same state with the plan that belongs to it."""
        return replace(self, plan=plan, steps=plan.train.steps, target=plan.target.target_loss)

    def apply(self, record: ev.Record) -> "RunState":
        """The state after one more record; a record applied before changes nothing."""
        event = record.event
        stream = _stream(event)
        if record.seq <= self.seen.get(stream, -1):
            return self
        state = self if record.attempt <= self.attempt else _next_attempt(self, record.attempt)
        if isinstance(event, ev.AlertEvent) and _is_repeated(state, record, event):
            return self
        changes: dict[str, Any] = {
            "events": self.events + 1,
            "started": self.started or record.time,
            "updated": max(self.updated, record.time),
        }
        if stream != "alert":
            changes["seen"] = {**state.seen, stream: record.seq}
        if stream in _TRAINER_STREAMS:
            changes["progressed"] = record.time
        line = describe(event)
        if line is not None:
            changes["lines"] = (*state.lines[1 - MAX_LINES :], (record.time, line))
        fold = _FOLDS.get(type(event))
        if fold is not None:
            changes |= fold(state, event, record.attempt)
        return replace(state, **changes)

    @property
    def is_over(self) -> bool:
        """Whether the current attempt has ended and said so."""
        return self.exit is not None


def status(state: RunState, alive: bool, now: float) -> RunStatus:
    """The one word for a run, from its events and whether its lock is held."""
    ended = state.exit or (None if alive else state.outcome)
    if ended is not None:
        return "failed" if ended.status == "core-failed" else ended.status
    if not alive:
        return "interrupted" if state.events else "idle"
    if state.phase == "scoring":
        return "core-eval"
    if state.stop_requested:
        return "stopping"
    if state.phase == "training" and now - state.progressed > stall_limit_s(state):
        return "stalled"
    return state.phase or "checking"


def stall_limit_s(state: RunState) -> float:
    """Seconds without a word from the trainer after which a training run is stalled."""
    if not state.step_times_ms:
        return FIRST_STEP_S
    every = state.plan.log.every if state.plan else 1
    return max(STALL_S, STALL_FACTOR * every * median(state.step_times_ms) / 1000)


def describe(event: ev.Event) -> str | None:
    """One readable line for a milestone; None for the events of every second."""
    match event:
        case ev.StepEvent() | ev.RouterEvent() | ev.GpuEvent():
            return None
        case ev.PrepEvent():
            return f"prepared {event.job}" if event.done >= event.total else None
        case ev.AlertEvent():
            return f"{event.level}: {event.message}"
        case _:
            write = _LINES.get(type(event))
            return write(event) if write else None


def _stream(event: ev.Event) -> str:
    """The kind, told apart by writer where trainer and supervisor both write it."""
    if isinstance(event, ev.PhaseEvent):
        return "phase" if event.phase not in STAGES else "phase of the supervisor"
    return event.kind


_TRAINER_STREAMS = frozenset(
    "phase rank compile step val router ckpt epoch core_task core stop_ack outcome".split()
)


def _is_repeated(state: RunState, record: ev.Record, event: ev.AlertEvent) -> bool:
    return event in state.alerts and (record.time, describe(event)) in state.lines


def _next_attempt(state: RunState, attempt: int) -> RunState:
    """What a new attempt starts from: how the last one ended no longer counts."""
    return replace(
        state,
        attempt=attempt,
        phase=None,
        phase_note="",
        outcome=None,
        exit=None,
        result=None,
        stop_requested=False,
        step_times_ms=(),
    )


def _fold_phase(state: RunState, event: ev.PhaseEvent, attempt: int) -> dict[str, Any]:
    changes = {} if event.resume_step is None else _resume(state, event.resume_step)
    stage = STAGES.get(event.phase, TRAINER_STAGE)
    now = -1 if state.phase is None else STAGES.get(state.phase, TRAINER_STAGE)
    if attempt == state.attempt and stage >= now:
        changes |= {"phase": event.phase, "phase_note": event.note}
    return changes


def _resume(state: RunState, step: int) -> dict[str, Any]:
    """Training goes on after `step`: what came later in older attempts did not happen."""
    losses, last = state.losses.until(step), state.losses.until(step).last
    val_events = tuple(val for val in state.val_events if val.step <= step)
    checkpoint = state.checkpoint
    return {
        "step": step,
        "losses": losses,
        "tokens": _tokens_at(state, step) if step else 0,
        "loss": last.value if last else None,
        "train_s": last.train_s if last else 0.0,
        "vals": state.vals.until(step),
        "val_events": val_events,
        "val": val_events[-1] if val_events else None,
        "best_val": _best(val_events),
        "checkpoint": checkpoint if checkpoint and checkpoint.step <= step else None,
    }


def _fold_prep(state: RunState, event: ev.PrepEvent, _: int) -> dict[str, Any]:
    jobs = {job.job: job for job in state.prep} | {event.job: event}
    return {"prep": tuple(jobs.values())}


def _fold_step(state: RunState, event: ev.StepEvent, attempt: int) -> dict[str, Any]:
    point = Point(event.step, event.tokens, event.train_s, event.loss)
    changes: dict[str, Any] = {
        "losses": state.losses.until(event.step - 1).append(point),
        "core_tasks": (),
        "core": None,
    }
    for name in ("step", "tokens", "loss", "lr", "grad_norm", "ms", "tok_s", "mfu"):
        changes[name] = getattr(event, name)
    changes |= {"train_s": event.train_s, "wall_s": event.wall_s}
    if attempt == state.attempt and math.isfinite(event.ms):
        changes["step_times_ms"] = (*state.step_times_ms[1 - MAX_STEP_TIMES :], event.ms)
    return changes


def _fold_val(state: RunState, event: ev.ValEvent, _: int) -> dict[str, Any]:
    point = Point(event.step, _tokens_at(state, event.step), event.train_s, event.loss)
    val_events = (*(val for val in state.val_events if val.step < event.step), event)
    return {
        "val": event,
        "best_val": _best(val_events),
        "vals": state.vals.until(event.step - 1).append(point),
        "val_events": val_events,
    }


def _best(vals: tuple[ev.ValEvent, ...]) -> float | None:
    return min((val.loss for val in vals if math.isfinite(val.loss)), default=None)


def _tokens_at(state: RunState, step: int) -> int:
    """Tokens trained on after `step` steps; the batch is constant within a run."""
    if step == state.step or not state.step:
        plan = state.plan
        return state.tokens or (step * plan.train.batch_size * plan.train.seq_len if plan else 0)
    return round(state.tokens * step / state.step)


def _fold_core_task(state: RunState, event: ev.CoreTaskEvent, _: int) -> dict[str, Any]:
    tasks = {task.name: task for task in state.core_tasks} | {event.name: event}
    return {"core_tasks": tuple(sorted(tasks.values(), key=lambda task: task.index))}


def _fold_gpu(state: RunState, event: ev.GpuEvent, _: int) -> dict[str, Any]:
    gpus = {gpu.index: gpu for gpu in state.gpus} | {event.index: event}
    return {"gpus": tuple(gpus[index] for index in sorted(gpus))}


def _fold_alert(state: RunState, event: ev.AlertEvent, _: int) -> dict[str, Any]:
    return {"alerts": (*state.alerts[1 - MAX_ALERTS :], event)}


def _keep(name: str) -> Callable[[RunState, Any, int], dict[str, Any]]:
    """The newest event of a kind is the field `name`."""

    def fold(state: RunState, event: ev.Event, attempt: int) -> dict[str, Any]:
        return {name: event}

    return fold


def _conclude(name: str) -> Callable[[RunState, Any, int], dict[str, Any]]:
    """As _keep, for what ends an attempt: an older attempt's says nothing about this one."""

    def fold(state: RunState, event: ev.Event, attempt: int) -> dict[str, Any]:
        return {name: event} if attempt == state.attempt else {}

    return fold


def _fold_stop(state: RunState, event: ev.Event, attempt: int) -> dict[str, Any]:
    return {"stop_requested": True} if attempt == state.attempt else {}


_FOLDS: dict[type[ev.Event], Callable[[RunState, Any, int], dict[str, Any]]] = {
    ev.PhaseEvent: _fold_phase,
    ev.PrepEvent: _fold_prep,
    ev.StepEvent: _fold_step,
    ev.ValEvent: _fold_val,
    ev.RouterEvent: _keep("router"),
    ev.CheckpointEvent: _keep("checkpoint"),
    ev.CoreTaskEvent: _fold_core_task,
    ev.CoreEvent: _keep("core"),
    ev.AlertEvent: _fold_alert,
    ev.StopRequestEvent: _fold_stop,
    ev.StopAckEvent: _fold_stop,
    ev.GpuEvent: _fold_gpu,
    ev.OutcomeEvent: _conclude("outcome"),
    ev.ExitEvent: _conclude("exit"),
    ev.ResultEvent: _conclude("result"),
}


def _phase_line(event: ev.PhaseEvent) -> str:
    resumed = "" if event.resume_step is None else f" from step {text.count(event.resume_step)}"
    return f"{event.phase}{resumed}" + (f": {event.note}" if event.note else "")


def _exit_line(event: ev.ExitEvent) -> str:
    by = f" by {event.signal}" if event.signal else ""
    where = "" if event.rank is None else f", rank {event.rank}"
    hint = f": {event.hint}" if event.hint else ""
    return f"{event.status}{by}, exit code {event.rc}{where}{hint}"


def _core_line(event: ev.CoreTaskEvent) -> str:
    return (
        f"CORE {event.index + 1}/{event.count} {event.name} {text.percent(event.acc, decimals=1)}"
        f" of {text.count(event.items)} items, centered {text.core(event.centered)}"
    )


_LINES: dict[type[ev.Event], Callable[[Any], str]] = {
    ev.PhaseEvent: _phase_line,
    ev.LaunchEvent: lambda event: f"started {len(event.pids)} rank(s)",
    ev.RankEvent: lambda event: (
        f"rank {event.rank} is {'ready' if event.is_ready else 'not ready'}"
    ),
    ev.CompileEvent: lambda event: f"{event.what}: {text.seconds(event.seconds)}",
    ev.ValEvent: lambda event: (
        f"step {text.count(event.step)}: validation loss {text.loss(event.loss)},"
        f" {text.loss(event.bpb)} bits per byte"
    ),
    ev.CheckpointEvent: lambda event: f"saved {event.name} ({text.bytes_(event.bytes)})",
    ev.EpochEvent: lambda event: f"step {text.count(event.step)}: epoch {event.epoch} begins",
    ev.CoreTaskEvent: _core_line,
    ev.CoreEvent: lambda event: f"CORE {text.core(event.score)} over {event.tasks} tasks",
    ev.StopRequestEvent: lambda event: f"stop asked by {event.by}: {event.action}",
    ev.StopAckEvent: lambda event: f"stopping after step {text.count(event.step)}: {event.reason}",
    ev.OutcomeEvent: lambda event: (
        f"{event.status} after step {text.count(event.step)}"
        + (f": {event.message}" if event.message else "")
    ),
    ev.ExitEvent: _exit_line,
    ev.ResultEvent: lambda event: (
        f"result: {event.status}, {text.exact_seconds(event.train_s)}, CORE {text.core(event.core)}"
    ),
}
