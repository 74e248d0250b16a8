"""How a run ended, or what is wrong with it, in a few paragraphs with the command to go on."""

from harness import format as fmt
from harness.runs import RunState
from tui.feed import RunView
from tui.widgets.rows import Role, Span

_TAIL_LINES = 3


def report(view: RunView) -> tuple[Span, ...]:
    """Paragraphs for a run that is over or in trouble; none while all is well."""
    state = view.state
    match view.status:
        case "done":
            lines = _done(state)
        case "missed":
            lines = _missed(state)
        case "failed" | "diverged":
            lines = _failed(view)
        case "interrupted":
            lines = [*_interrupted(state), *_resume(view)]
        case "stalled":
            lines = _stalled(view)
        case _:
            lines = _alert(state)
    return tuple(lines)


def _resume(view: RunView) -> list[Span]:
    """The command that goes on with a run that is over."""
    if view.is_alive:
        return []
    return [(f"Go on: n resume {view.state.run_id}", "accent")]


def _done(state: RunState) -> list[Span]:
    result, loss = state.result, state.val.loss if state.val else None
    if result is not None:
        loss = result.loss
    train_s = result.train_s if result else state.train_s
    wall_s = result.wall_s if result else state.wall_s
    lines: list[Span] = [
        (
            f"Target {fmt.loss(state.target)} reached: {fmt.loss(loss)} at step"
            f" {fmt.count(result.step if result else state.step)},"
            f" {fmt.exact_seconds(train_s)} of training, {fmt.seconds(wall_s)} in all.",
            "good",
        )
    ]
    core = state.core
    score = f"CORE {fmt.core(core.score)}{fmt.interval(core.ci95)}. " if core else ""
    if result is not None and result.rank is not None:
        lines.append((f"{score}Rank {result.rank} in its cohort: 6 shows the board.", "text"))
    elif score:
        lines.append((score, "text"))
    if result is not None and result.rank is None and result.reason:
        lines.append((f"Not on the board: {result.reason}.", "warn"))
    return lines


def _missed(state: RunState) -> list[Span]:
    return [
        (
            f"Out of steps: best validation loss {fmt.loss(state.best_val)},"
            f" target {fmt.loss(state.target)}.",
            "warn",
        )
    ]


def _failed(view: RunView) -> list[Span]:
    state, end = view.state, view.state.exit
    lines: list[Span] = []
    message = state.outcome.message if state.outcome else ""
    if message:
        lines.append((message, "bad"))
    if end is None:
        return lines or [("The trainer ended and nobody wrote why.", "bad")]
    who = "The run" if end.rank is None else f"Rank {end.rank}"
    how = f"ended by {end.signal}" if end.signal else f"ended with exit code {end.rc}"
    lines.append((f"{who} {how} after step {fmt.count(state.step)}.", "bad"))
    if end.hint:
        lines.append((end.hint, "accent"))
    if view.status == "failed":
        lines += _resume(view)
    lines.extend((line, "dim") for line in end.tail[-_TAIL_LINES:])
    lines.append((f"Everything it said: {state.run_id}/logs", "text"))
    return lines


def _interrupted(state: RunState) -> list[Span]:
    saved = state.checkpoint
    if saved is None:
        return [(f"Stopped after step {fmt.count(state.step)}, before a checkpoint.", "warn")]
    lost = state.step - saved.step
    cost = f"{fmt.count(lost)} steps are lost" if lost > 0 else "nothing is lost"
    return [(f"Stopped after step {fmt.count(state.step)}; saved {saved.name}: {cost}.", "warn")]


def _stalled(view: RunView) -> list[Span]:
    silent_s = view.now - view.state.progressed
    return [
        (
            f"Alive, but no word from the trainer for {fmt.age(silent_s)}: look at the logs,"
            " or stop it with S.",
            "warn",
        )
    ]


def _alert(state: RunState) -> list[Span]:
    """The newest alert of a run that goes on."""
    if not state.alerts:
        return []
    alert = state.alerts[-1]
    role: Role = {"info": "dim", "warning": "warn", "error": "bad"}.get(alert.level, "text")  # pyright: ignore[reportAssignmentType]
    return [(f"{alert.level}: {alert.message}", role)]
