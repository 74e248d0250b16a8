"""Events to text: one readable line for a milestone, none for what comes every second."""

from collections.abc import Callable
from typing import Any

from harness import format as text
from nmoe import events as ev


def describe(event: ev.Event) -> str | None:
    """One readable line for a milestone; None for the events of every second."""
    match event:
        case ev.StepEvent() | ev.RouterEvent() | ev.GpuEvent():
            return None
        case ev.PrepEvent():
            return f"prepared {event.job}" if event.done >= event.total else None
        case ev.PhaseEvent(phase="training" | "validating", note=""):
            return None  # back and forth at every validation, which has a line of its own
        case ev.AlertEvent():
            return f"{event.level}: {event.message}"
        case _:
            write = _LINES.get(type(event))
            return write(event) if write else None


def _phase_line(event: ev.PhaseEvent) -> str:
    resumed = "" if event.resume_step is None else f" from step {text.count(event.resume_step)}"
    return f"{event.phase}{resumed}" + (f": {event.note}" if event.note else "")


def _exit_line(event: ev.ExitEvent) -> str:
    by = f" by {event.signal}" if event.signal else ""
    where = "" if event.rank is None else f", rank {event.rank}"
    hint = f": {event.hint}" if event.hint else ""
    return f"{event.status}{by}, exit code {event.rc}{where}{hint}"


def _core_line(event: ev.CoreEvent) -> str:
    boolq = (
        "" if event.without_boolq is None else f", {text.core(event.without_boolq)} without boolq"
    )
    return (
        f"{_kind(event)} {text.core(event.score)}{text.interval(event.ci95)}"
        f" over {event.tasks} tasks{boolq}"
    )


def _kind(event: ev.CoreEvent | ev.CoreTaskEvent) -> str:
    return f"step {text.count(event.step)}: interim CORE" if event.is_interim else "CORE"


def _core_task_line(event: ev.CoreTaskEvent) -> str:
    return (
        f"{_kind(event)} {event.index}/{event.count} {event.name}"
        f" {text.percent(event.acc, decimals=1)}"
        f" of {text.count(event.items)} items, centered {text.core(event.centered)}"
    )


def _topology_line(event: ev.TopologyEvent) -> str:
    """How many GPUs, and what joins them, the worst way included."""
    ways = sorted({path or text.NOT_AVAILABLE for path in event.paths} - {"self"})
    links = sorted({count for count in event.nvlinks if count})
    joined = f", joined by {', '.join(ways)}" if ways else ""
    each = f", {' or '.join(map(str, links))} NVLinks each" if links else ""
    return f"{len(event.indices)} GPU(s){joined}{each}"


_LINES: dict[type[ev.Event], Callable[[Any], str]] = {
    ev.PhaseEvent: _phase_line,
    ev.LaunchEvent: lambda event: f"started {len(event.pids)} rank(s)",
    ev.TopologyEvent: _topology_line,
    ev.RankEvent: lambda event: (
        f"rank {event.rank} is {'ready' if event.is_ready else 'not ready'}"
    ),
    ev.CompileEvent: lambda event: f"{event.what}: {text.seconds(event.seconds)}",
    ev.ValEvent: lambda event: (
        f"step {text.count(event.step)}: validation loss {text.loss(event.loss)},"
        f" {text.loss(event.bpb)} bits per byte"
    ),
    ev.CheckpointEvent: lambda event: f"saved {event.name} ({text.bytes_(event.bytes)})",
    ev.EpochEvent: lambda event: (
        f"step {text.count(event.step)}: epoch {event.epoch}"
        f"{event.source and f' of {event.source}'} begins"
    ),
    ev.StageEvent: lambda event: (
        f"step {text.count(event.step)}: stage {event.index + 1}, {event.name}, begins"
    ),
    ev.CoreTaskEvent: _core_task_line,
    ev.CoreEvent: _core_line,
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
