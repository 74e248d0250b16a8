"""The one word for a run, from what is known of it and whether its lock is held."""

from statistics import median
from typing import Literal

from harness.run_state import RunState

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
# A run is stalled after ten times what its step events usually take, but not before a minute; a
# first step may compile, so it gets longer.
STALL_FACTOR = 10
STALL_S = 60.0
FIRST_STEP_S = 600.0


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
