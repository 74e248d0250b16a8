"""Where the seconds of a run went: what the clock of the score counts, and what it excludes."""

from collections.abc import Sequence
from dataclasses import dataclass

from harness.run_state import RunState
from nmoe.events import CoreTaskEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Seconds of one kind of work; `is_counted` by the clock of the score."""

    name: str
    seconds: float
    is_counted: bool = False


def ledger(state: RunState) -> tuple[Part, ...]:
    """The parts of the time since the ranks started, training first; none before its first step.

    Work that a resume threw away is in none of them. Until the trainer says at its end what it
    charged to each, validations and checkpoints count as long as their events say they took.
    """
    if not state.losses.length:
        return ()
    end = state.outcome
    validation_s = end.eval_s if end else sum(val.seconds for val in state.val_events)
    compile_s = end.compile_s if end else state.compile_s
    checkpoint_s = end.checkpoint_s if end else state.checkpoint_s
    train_s = end.train_s if end else state.train_s
    wall_s = end.wall_s if end else state.wall_s
    other_s = max(0.0, wall_s - train_s - validation_s - compile_s - checkpoint_s)
    return (
        Part(name="training", seconds=train_s, is_counted=True),
        Part(name="validation", seconds=validation_s),
        Part(name="compiling", seconds=compile_s),
        Part(name="checkpoints", seconds=checkpoint_s),
        Part(name="CORE", seconds=_seconds(state.core_tasks)),
        Part(name="other", seconds=other_s),
    )


def _seconds(tasks: Sequence[CoreTaskEvent]) -> float:
    return sum(task.seconds for task in tasks)
