"""The best run of a cohort, to race against: its entry, its curve where its folder is here."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from harness import leaderboard, runs, score
from harness.errors import BoardError, HarnessError
from harness.leaderboard import REPO_BOARD, Entry
from harness.run_state import RunState
from nmoe.config import Plan
from nmoe.events import ValEvent
from nmoe.paths import DataRoot


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The fastest entry; `state` is None when its run folder is not on this machine."""

    entry: Entry
    state: RunState | None = None


def find(plan: Plan, root: DataRoot, *, repo_board: Path = REPO_BOARD) -> Best | None:
    """The best other run that a run of this plan may be ranked with; None when there is none."""
    found = entries(plan, root, repo_board=repo_board)
    if not found:
        return None
    entry = min(found, key=lambda each: (each.result.train_s, each.result.step))
    return Best(entry=entry, state=_state(root, entry))


def entries(plan: Plan, root: DataRoot, *, repo_board: Path = REPO_BOARD) -> list[Entry]:
    """The other runs on the boards that a run of this plan may be ranked with.

    Whether the rules were kept is known at the end only, so that they do not count here. A board
    that does not parse has no runs.
    """
    wanted = replace(score.plan_cohort(plan, root), rules="")
    return [
        row.entry
        for path in (repo_board, root.board)
        for standing in _standings(path)
        if replace(standing.cohort, rules="") == wanted
        for row in standing.rows
        if row.entry.result.run_id != plan.run_id
    ]


def ahead_s(state: RunState, best: Best) -> float | None:
    """Seconds of training that the run was faster to its last validation loss; None if unknown.

    The other run is taken to have gone straight from one of its validations to the next. A loss
    that it never reached cannot be timed.
    """
    if state.val is None or best.state is None:
        return None
    then = reached_s(best.state.val_events, state.val.loss)
    return None if then is None else then - state.val.train_s


def reached_s(vals: tuple[ValEvent, ...], loss: float) -> float | None:
    """Training seconds at which validations first were down to `loss`."""
    before: ValEvent | None = None
    for val in vals:
        if not math.isfinite(val.loss):
            continue
        if val.loss <= loss:
            if before is None or before.loss <= val.loss:
                return val.train_s if before is not None or val.loss == loss else None
            frac = (before.loss - loss) / (before.loss - val.loss)
            return before.train_s + frac * (val.train_s - before.train_s)
        before = val
    return None


def _standings(path: Path) -> tuple[leaderboard.Standing, ...]:
    try:
        return leaderboard.standings(leaderboard.load(path))
    except BoardError:
        return ()


def _state(root: DataRoot, entry: Entry) -> RunState | None:
    try:
        return runs.load(root.run(entry.result.run_id))
    except (HarnessError, ValueError):
        return None
