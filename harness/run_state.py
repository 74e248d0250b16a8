"""What is known about a run, as a pure fold of its events: apply(record) gives the next state.

The same fold serves the screens, the headless printer, the scorer and the supervisor. Records of
one file come in its order; how the files of a run interleave does not change the result.
"""

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from itertools import groupby
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from harness.describe import describe
from harness.series import Point, Series
from nmoe import events as ev
from nmoe.config import Plan

MAX_ALERTS = 100
MAX_LINES = 500
MAX_MARKS = 500
# Alerts of GPUs that run slower than they could.
SLOWED = ("gpu-hot", "gpu-slowdown", "gpu-straggler", "gpu-power-cap")
# Step times that the median is taken over; recent ones, as a run may change its speed.
MAX_STEP_TIMES = 15
# The order of phases within an attempt; the trainer moves between those of the same stage.
STAGES: Mapping[str, int] = MappingProxyType(
    {"checking": 0, "preparing": 1, "launching": 2, "scoring": 4}
)
TRAINER_STAGE = 3


class Mark(NamedTuple):
    """What happened after a step and belongs on its curves."""

    step: int
    kind: Literal["resume", "checkpoint", "throttle"]


# Fields of step events that are kept as curves beside the loss; NaN is not known.
CURVES = ("tok_s", "ms", "grad_norm", "lr", "mfu")


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
    # What the clock of the score excludes, as far as events have told of it.
    compile_s: float = 0.0
    checkpoint_s: float = 0.0
    val: ev.ValEvent | None = None
    best_val: float | None = None
    target: float | None = None
    losses: Series = field(default_factory=Series)
    curves: Mapping[str, Series] = field(default_factory=dict[str, Series])
    vals: Series = field(default_factory=Series)
    val_events: tuple[ev.ValEvent, ...] = ()
    router: ev.RouterEvent | None = None
    prep: tuple[ev.PrepEvent, ...] = ()
    checkpoint: ev.CheckpointEvent | None = None
    marks: tuple[Mark, ...] = ()
    core_tasks: tuple[ev.CoreTaskEvent, ...] = ()
    core: ev.CoreEvent | None = None
    # The newest evaluation during training, as far as it got.
    interim_tasks: tuple[ev.CoreTaskEvent, ...] = ()
    interim_core: ev.CoreEvent | None = None
    gpus: tuple[ev.GpuEvent, ...] = ()
    topology: ev.TopologyEvent | None = None
    energy: ev.EnergyEvent | None = None
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

    def apply_all(self, records: Iterable[ev.Record]) -> "RunState":
        """The state after these records, as one by one; samples of GPUs between others at once."""
        state = self
        for kind, group in groupby(records, key=lambda record: type(record.event)):
            if kind is ev.GpuEvent:
                state = state._sampled(list(group))
            else:
                for record in group:
                    state = state.apply(record)
        return state

    def _sampled(self, records: Sequence[ev.Record]) -> "RunState":
        """As apply, of samples alone: of each GPU the newest counts."""
        stream, seen = ev.GpuEvent.kind, self.seen.get(ev.GpuEvent.kind, -1)
        if any(record.attempt > self.attempt for record in records):
            return reduce(RunState.apply, records, self)
        fresh = list[ev.Record]()
        for record in records:
            if record.seq > seen:
                seen = record.seq
                fresh.append(record)
        if not fresh:
            return self
        gpus = {gpu.index: gpu for gpu in self.gpus}
        gpus |= {
            each.event.index: each.event for each in fresh if isinstance(each.event, ev.GpuEvent)
        }
        times = [record.time for record in fresh]
        return replace(
            self,
            events=self.events + len(fresh),
            started=self.started or next(filter(None, times), 0.0),
            updated=max(self.updated, *times),
            seen={**self.seen, stream: seen},
            gpus=tuple(gpus[index] for index in sorted(gpus)),
        )

    @property
    def joules_per_token(self) -> float | None:
        """GPU energy of this attempt's training over its tokens; None where GPUs do not tell."""
        energy = self.energy
        return energy.joules / energy.tokens if energy and energy.tokens else None

    @property
    def is_over(self) -> bool:
        """Whether the current attempt has ended and said so."""
        return self.exit is not None


def _stream(event: ev.Event) -> str:
    """The kind, told apart by writer where trainer and supervisor both write it."""
    if isinstance(event, ev.PhaseEvent):
        return "phase" if event.phase not in STAGES else "phase of the supervisor"
    return event.kind


_TRAINER_STREAMS = frozenset(
    {
        *("phase", "rank", "compile", "step", "val", "router", "ckpt", "epoch"),
        *("core_task", "core", "stop_ack", "outcome"),
    }
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
        energy=None,
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
        "curves": {name: series.until(step) for name, series in state.curves.items()},
        "tokens": _tokens_at(state, step),
        "loss": last.value if last else None,
        "train_s": last.train_s if last else 0.0,
        "vals": state.vals.until(step),
        "val_events": val_events,
        "val": val_events[-1] if val_events else None,
        "best_val": _best(val_events),
        "checkpoint": checkpoint if checkpoint and checkpoint.step <= step else None,
        "marks": (*(m for m in state.marks if m.step <= step), Mark(step, "resume"))[-MAX_MARKS:],
        "interim_tasks": tuple(task for task in state.interim_tasks if _is_until(task, step)),
        "interim_core": state.interim_core if _is_until(state.interim_core, step) else None,
    }


def _is_until(event: ev.CoreTaskEvent | ev.CoreEvent | None, step: int) -> bool:
    return event is not None and (event.step or 0) <= step


def _fold_prep(state: RunState, event: ev.PrepEvent, _: int) -> dict[str, Any]:
    jobs = {job.job: job for job in state.prep} | {event.job: event}
    return {"prep": tuple(jobs.values())}


def _fold_step(state: RunState, event: ev.StepEvent, attempt: int) -> dict[str, Any]:
    point = Point(event.step, event.tokens, event.train_s, event.loss, event.wall_s)
    changes: dict[str, Any] = {
        "losses": state.losses.until(event.step - 1).append(point),
        "core_tasks": (),
        "core": None,
    }
    changes["curves"] = {
        name: state.curves.get(name, Series())
        .until(event.step - 1)
        .append(point._replace(value=math.nan if (x := getattr(event, name)) is None else x))
        for name in CURVES
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
    if step == state.step:
        return state.tokens
    if state.plan is None:
        return round(state.tokens * step / state.step) if state.step else 0
    return min(step * state.plan.train.batch_size * state.plan.train.seq_len, sys.maxsize)


def _fold_core_task(state: RunState, event: ev.CoreTaskEvent, _: int) -> dict[str, Any]:
    if not event.is_interim:
        return {"core_tasks": _with_task(state.core_tasks, event)}
    own = tuple(task for task in state.interim_tasks if task.step == event.step)
    core = state.interim_core
    is_same = core is not None and core.step == event.step
    return {
        "interim_tasks": _with_task(own, event),
        "interim_core": core if is_same else None,
    }


def _with_task(
    tasks: tuple[ev.CoreTaskEvent, ...], event: ev.CoreTaskEvent
) -> tuple[ev.CoreTaskEvent, ...]:
    by_name = {task.name: task for task in tasks} | {event.name: event}
    return tuple(sorted(by_name.values(), key=lambda task: task.index))


def _fold_core(state: RunState, event: ev.CoreEvent, _: int) -> dict[str, Any]:
    return {"interim_core" if event.is_interim else "core": event}


def _fold_gpu(state: RunState, event: ev.GpuEvent, _: int) -> dict[str, Any]:
    gpus = {gpu.index: gpu for gpu in state.gpus} | {event.index: event}
    return {"gpus": tuple(gpus[index] for index in sorted(gpus))}


def _fold_checkpoint(state: RunState, event: ev.CheckpointEvent, _: int) -> dict[str, Any]:
    mark = Mark(event.step, "checkpoint")
    marks = (*(other for other in state.marks if other != mark), mark)
    paused_s = state.checkpoint_s + (event.paused_s or 0.0)
    return {"checkpoint": event, "checkpoint_s": paused_s, "marks": marks[-MAX_MARKS:]}


def _fold_compile(state: RunState, event: ev.CompileEvent, _: int) -> dict[str, Any]:
    return {"compile_s": state.compile_s + event.seconds}


def _fold_alert(state: RunState, event: ev.AlertEvent, _: int) -> dict[str, Any]:
    changes: dict[str, Any] = {"alerts": (*state.alerts[1 - MAX_ALERTS :], event)}
    if event.code in SLOWED and event.level != "info":
        changes["marks"] = (*state.marks, Mark(state.step, "throttle"))[-MAX_MARKS:]
    return changes


def _keep(name: str) -> Callable[[RunState, Any, int], dict[str, Any]]:
    """The newest event of a kind is the field `name`."""

    def fold(state: RunState, event: ev.Event, attempt: int) -> dict[str, Any]:
        return {name: event}

    return fold


def _conclude(name: str) -> Callable[[RunState, Any, int], dict[str, Any]]:
    """As _keep, for what is of one attempt: an older attempt's says nothing about this one."""

    def fold(state: RunState, event: ev.Event, attempt: int) -> dict[str, Any]:
        return {name: event} if attempt == state.attempt else {}

    return fold


def _fold_stop(state: RunState, event: ev.Event, attempt: int) -> dict[str, Any]:
    return {"stop_requested": True} if attempt == state.attempt else {}


_FOLDS: dict[type[ev.Event], Callable[[RunState, Any, int], dict[str, Any]]] = {
    ev.PhaseEvent: _fold_phase,
    ev.PrepEvent: _fold_prep,
    ev.CompileEvent: _fold_compile,
    ev.StepEvent: _fold_step,
    ev.ValEvent: _fold_val,
    ev.RouterEvent: _keep("router"),
    ev.CheckpointEvent: _fold_checkpoint,
    ev.CoreTaskEvent: _fold_core_task,
    ev.CoreEvent: _fold_core,
    ev.AlertEvent: _fold_alert,
    ev.StopRequestEvent: _fold_stop,
    ev.StopAckEvent: _fold_stop,
    ev.GpuEvent: _fold_gpu,
    ev.TopologyEvent: _keep("topology"),
    ev.EnergyEvent: _conclude("energy"),
    ev.OutcomeEvent: _conclude("outcome"),
    ev.ExitEvent: _conclude("exit"),
    ev.ResultEvent: _conclude("result"),
}
