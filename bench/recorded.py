"""Rows of a finished run, from its own record: what the trainer reached when nobody timed it."""

from pathlib import Path

from bench.rows import CORE_SUITE, CPU, OURS, TOKENS, Machine, Row
from nmoe.config import Plan, read_plan
from nmoe.event_log import read_events
from nmoe.events import CoreEvent, OutcomeEvent
from nmoe.paths import RunFolder


def rows_of(folder: Path) -> tuple[str, list[Row]]:
    """(run id, training speed and the seconds of CORE).

    ConfigError or ValueError for what is no finished run.
    """
    run = RunFolder(root=folder.absolute())
    plan = read_plan(run.plan)
    events = [record.event for record in read_events(run.train)]
    outcomes = [event for event in events if isinstance(event, OutcomeEvent)]
    if not outcomes:
        raise ValueError(
            f"{folder}: got a run that has not ended, expected one with an outcome. Let it finish."
        )
    end, machine = outcomes[-1], _machine(plan)
    speed = end.tokens / end.train_s / plan.world
    note = f"{end.status} at step {end.step}, loss {end.loss}, {plan.optim.matrices}"
    rows = [
        _row(plan, machine, what="run", value=speed, unit=TOKENS, note=note),
        _row(plan, machine, what="run peak memory", value=end.peak_memory_bytes / 1e9, unit="GB"),
    ]
    for event in events:
        if isinstance(event, CoreEvent) and not event.is_interim:
            what = CORE_SUITE if event.cap is None else f"CORE, {event.cap} items a task"
            note = f"{event.items} items of {event.tasks} tasks, CORE {event.score:.4f}"
            rows.append(_row(plan, machine, what=what, value=event.seconds, unit="s", note=note))
    return plan.run_id, rows


def _row(
    plan: Plan, machine: Machine, *, what: str, value: float, unit: str, note: str = ""
) -> Row:
    return Row(
        what=what,
        shape=plan.preset,
        implementation=OURS,
        machine=machine,
        rate=value,
        unit=unit,
        note=note,
    )


def _machine(plan: Plan) -> Machine:
    """The machine of the plan, named as torch names it."""
    hardware = plan.hardware
    return Machine(
        gpu=f"NVIDIA {hardware.gpu}" if plan.device == "cuda" else CPU,
        gpus=plan.world if plan.device == "cuda" else 0,
        driver=hardware.driver or "",
        versions=dict(plan.versions),
        commit=f"{plan.digests.commit or 'unknown'}{'+changes' if plan.digests.is_dirty else ''}",
        date=plan.created,
    )
