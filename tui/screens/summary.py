"""What the run screen shows: a view of a run as values for the widgets. Pure functions."""

import math

import numpy as np

from harness import format as fmt
from harness.best import Best, ahead_s
from harness.ledger import ledger
from harness.runs import RunState
from nmoe.config import Plan
from tui.feed import RunView
from tui.screens.curves import CurveOf
from tui.widgets.core import Core, Task
from tui.widgets.figure import Chart, EventMark
from tui.widgets.forecast import Forecast, forecast
from tui.widgets.meters import Share
from tui.widgets.numbers import Number
from tui.widgets.progress import Job, Progress
from tui.widgets.rows import Role, Row, clean
from tui.widgets.strip import Status

_BEFORE_STEPS = ("idle", "checking", "preparing", "launching", "compiling")
_WAITING = {
    "checking": "checking machine and files",
    "preparing": "what is prepared stays so, whatever happens to this screen",
    "launching": "starting the ranks",
    "compiling": "building and warming up; the clock does not run yet",
    "training": "waiting for the first step",
}


def hardware(plan: Plan) -> str:
    """The machine in a few words: 8 x B200, or the ranks on the CPU's cores."""
    if plan.hardware.gpu:
        return f"{plan.world} x {clean(plan.hardware.gpu)}"
    ranks = f"{plan.world} ranks on " if plan.world > 1 else ""
    return f"{ranks}CPU, {plan.hardware.cores} cores"


def strip(view: RunView, *, frozen_at: int | None = None, best: Best | None = None) -> Status:
    """State, facts, clock and progress, against the best run of the cohort.

    `frozen_at` is the event count when the view was frozen.
    """
    state, plan = view.state, view.state.plan
    facts = [clean(state.run_id)]
    if plan is not None:
        facts = [clean(plan.preset), plan.dtype, hardware(plan), clean(state.run_id)]
    if state.attempt:
        facts.insert(-1, f"attempt {state.attempt + 1}")
    badge = ""
    if frozen_at is not None:
        new = state.events - frozen_at
        badge = f"FROZEN +{fmt.count(new)} new" if new else "FROZEN"
    return Status(
        status=view.status,
        note=clean(_note(view)),
        facts=tuple(facts),
        clock=f"{fmt.seconds(state.train_s)} train" if state.losses.length else _waited(view),
        progress=tuple(_progress(view, best)),
        badge=badge,
    )


def _note(view: RunView) -> str:
    state = view.state
    if view.status == "stalled":
        return f"no word for {fmt.age(view.now - state.progressed)}"
    if view.status == "stopping":
        return "a checkpoint comes first"
    return state.phase_note if view.is_alive and state.losses.length else ""


def _waited(view: RunView) -> str:
    """How long a run without steps has been going on."""
    if not view.is_alive or not view.state.started:
        return ""
    return fmt.seconds(max(0.0, view.now - view.state.started))


def _progress(view: RunView, best: Best | None) -> list[Row]:
    """Parts of the second row, most important first."""
    state = view.state
    if not state.losses.length:
        return _preparation(view)
    last = state.val.loss if state.val else None
    has_passed = last is not None and state.target is not None and last <= state.target
    parts: list[Row] = [
        (
            ("val ", "dim"),
            (fmt.loss(last), "good" if has_passed else "strong"),
            (f" → {fmt.loss(state.target)}", "dim"),
        ),
        (
            ("step ", "dim"),
            (fmt.count(state.step), "strong"),
            (f" / {fmt.count(state.steps or None)}", "dim"),
        ),
    ]
    if view.status in ("training", "validating", "stalled", "stopping"):
        parts += _forecast(state)
    parts += _against(state, best)
    parts.append(((fmt.rate(state.tok_s), "text"),))
    if state.mfu is not None:
        parts.append(((fmt.percent(state.mfu), "text"), (" MFU", "dim")))
    parts.append((("tokens ", "dim"), (fmt.tokens(state.tokens), "text")))
    return parts


def _against(state: RunState, best: Best | None) -> list[Row]:
    """Seconds of training to the last validation loss, less than the best run took or more."""
    seconds = None if best is None else ahead_s(state, best)
    if seconds is None:
        return []
    role: Role = "good" if seconds > 0 else "warn"
    sign = "-" if seconds > 0 else "+"
    return [((f"{sign}{fmt.seconds(abs(seconds))}", role), (" vs best", "dim"))]


def _preparation(view: RunView) -> list[Row]:
    """The job that is not done yet, or what is waited for."""
    if not view.is_alive:
        return []
    for job in reversed(view.state.prep):
        if view.status == "preparing" and job.done < job.total:
            done = fmt.percent(job.done / job.total)
            return [((f"{clean(job.job)} ", "dim"), (done, "strong"))]
    waiting = _WAITING.get(view.status, "")
    return [((waiting, "dim"),)] if waiting else []


def _forecast(state: RunState) -> list[Row]:
    ahead = target_forecast(state)
    if ahead is not None and state.ms is not None:
        eta, low, high = (
            max(0.0, step - state.step) * state.ms / 1000
            for step in (ahead.step, ahead.low, ahead.high)
        )
        band = f" ±{fmt.seconds((high - low) / 2)}"
        return [(("ETA ", "dim"), (f"~{fmt.seconds(eta)}", "accent"), (band, "dim"))]
    cap = cap_eta_s(state)
    return [(("cap in ", "dim"), (fmt.seconds(cap), "text"))] if cap is not None else []


def cap_eta_s(state: RunState) -> float | None:
    """Seconds of training until the budget of steps is gone, at the present speed."""
    if not state.steps or state.ms is None or not math.isfinite(state.ms):
        return None
    return max(0, state.steps - state.step) * state.ms / 1000


def target_forecast(state: RunState) -> Forecast | None:
    """When the target is reached if the last validations go on as they do.

    None when they do not fall, or not far enough within the budget of steps.
    """
    if state.target is None or state.ms is None or not math.isfinite(state.ms):
        return None
    vals = state.val_events
    losses = [val.loss for val in vals]
    return forecast([val.step for val in vals], losses, state.target, limit=state.steps)


def chart(view: RunView, losses: CurveOf | None = None) -> Chart:
    """The loss with validations, target, forecast and marks; `losses` keeps the curve."""
    state = view.state
    vals = state.vals
    curve = (losses or CurveOf()).follow(state.losses)
    is_going_on = view.status in ("training", "validating", "stalled", "stopping")
    ahead = target_forecast(state) if is_going_on else None
    marks = tuple(EventMark(step=mark.step, kind=mark.kind) for mark in state.marks)
    is_dirty = (id(curve), curve.revision, vals.length, repr(vals.last), state.target, ahead)
    return Chart(
        revision=(state.run_id, *is_dirty, marks, view.is_alive),
        curve=curve,
        mark_steps=np.asarray(vals.steps, dtype=np.float64),
        mark_values=np.asarray(vals.values, dtype=np.float64),
        target=state.target,
        forecast=ahead,
        events=marks,
        empty="no loss yet" if view.is_alive else "no loss was logged",
    )


def numbers(view: RunView) -> tuple[Number, ...]:
    """The numbers panel, most important first."""
    state = view.state
    loss_role: Role = "text" if state.loss is None or math.isfinite(state.loss) else "bad"
    items = [
        Number(label="loss", text=fmt.loss(state.loss), role=loss_role),
        Number(label="best val", text=fmt.loss(state.best_val)),
        Number(label="ms/step", text=fmt.fixed(state.ms, decimals=1)),
        Number(label="tok/s", text=fmt.tokens(state.tok_s)),
        Number(label="MFU", text=fmt.percent(state.mfu, none=_na(state.ms))),
        Number(label="lr", text=fmt.scientific(state.lr)),
        Number(label="grad norm", text=fmt.fixed(state.grad_norm, decimals=2)),
        Number(label="tokens", text=fmt.tokens(state.tokens if state.losses.length else None)),
        *_router(state),
        Number(label="wall", text=fmt.seconds(state.wall_s if state.losses.length else None)),
        Number(label="bits/byte", text=fmt.loss(state.val.bpb if state.val else None)),
        Number(
            label="checkpoint",
            text=f"step {fmt.count(state.checkpoint.step)}" if state.checkpoint else fmt.NOT_YET,
        ),
    ]
    if state.bad_lines:
        items.append(Number(label="bad lines", text=fmt.count(state.bad_lines), role="warn"))
    return tuple(items)


def shares(view: RunView) -> tuple[Share, ...]:
    """Where the time went, training first, then the largest; what took none is left out."""
    parts = sorted(ledger(view.state), key=lambda part: (not part.is_counted, -part.seconds))
    return tuple(Share(name=part.name, amount=part.seconds) for part in parts if part.seconds > 0)


def _na(measured: float | None) -> str:
    """What a missing figure is called: not known on this machine, once anything is measured."""
    return fmt.NOT_YET if measured is None else fmt.NOT_AVAILABLE


def _router(state: RunState) -> list[Number]:
    router, plan = state.router, state.plan
    if router is None or not router.cv:
        return []
    experts = plan.experts.num_experts if plan else None
    active = min(router.experts_active, default=None)
    dead_role: Role = "warn" if experts and active is not None and active < experts else "text"
    return [
        Number(label="router cv", text=fmt.percent(max(router.cv))),
        Number(
            label="experts",
            text=f"{fmt.count(active)}/{fmt.count(experts)}",
            role=dead_role,
        ),
    ]


def progress(view: RunView) -> Progress:
    """The jobs before the first step, and what is waited for."""
    state = view.state
    jobs = tuple(
        Job(name=event.job, done=event.done, total=event.total, unit=event.unit)
        for event in state.prep
    )
    note = _WAITING.get(view.status, "") if view.is_alive else ""
    return Progress(heading="before the first step", note=note, jobs=jobs)


def core(view: RunView) -> Core:
    """The CORE table as far as it is scored: the final one, else the newest interim one."""
    state = view.state
    is_final = bool(state.core_tasks) or view.status == "core-eval"
    events = state.core_tasks if is_final else state.interim_tasks
    score = state.core if is_final else state.interim_core
    tasks = tuple(
        Task(
            name=clean(event.name),
            items=event.items,
            acc=event.acc,
            centered=event.centered,
            seconds=event.seconds,
        )
        for event in events
    )
    count = max((event.count for event in events), default=0)
    step = None if is_final or not events else events[0].step
    if score is None:
        return Core(tasks=tasks, count=count, step=step)
    return Core(
        tasks=tasks,
        count=count,
        score=score.score,
        ci95=score.ci95,
        without_boolq=score.without_boolq,
        cropped=score.cropped,
        empty_regions=score.empty_regions,
        step=step,
    )


def has_chart(view: RunView) -> bool:
    """Whether there is a curve to look at, or still only preparation."""
    return view.state.losses.length > 0 or view.status not in _BEFORE_STEPS


def has_core(view: RunView) -> bool:
    """Whether CORE deserves room: it is being scored or was."""
    state = view.state
    return view.status == "core-eval" or bool(state.core_tasks or state.interim_tasks)
