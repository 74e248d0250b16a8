"""The first steps of a run, trained again on one rank: what its logged losses must have been.

Kernels that add in any order, and batches that are cut otherwise, round otherwise. What that is
worth in the loss grows from step to step, the faster the higher the learning rate: on an H100,
`super` with Muon at its full rate after 20 steps, two trainings from one seed were .0007 apart at
step 12 and .3 at step 20. Losses that are not found again are therefore judged up to the step where
two trainings, cut differently, part: beyond it they say nothing.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from nmoe import train
from nmoe.build import build, close
from nmoe.config import ConfigError, Plan
from nmoe.control import Control
from nmoe.data.manifest import DataError
from nmoe.evaluate import ALONE
from nmoe.event_log import read_events
from nmoe.events import StepEvent
from nmoe.memory import fit_micro_batch
from nmoe.paths import DataRoot, RunFolder
from nmoe.report import Reporter
from nmoe.step import train_step

# Nats a token, between a logged loss and the same one trained again.
TOLERANCE = {"fp32": 1e-3, "bf16": 3e-2}
# Of it, what two trainings may differ by where losses are still judged.
PARTING = 1 / 3

Losses = Mapping[int, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Whether the losses of `steps` steps were found again; None where that cannot be told."""

    holds: bool | None
    reason: str
    steps: int | None = None
    worst: float | None = None


def retrain(plan: Plan, folder: RunFolder, root: DataRoot, *, steps: int) -> Agreement:
    """Train up to `steps` again and compare; where they differ, once more, cut differently."""
    recorded = first_losses(folder, upto=steps)
    if not recorded:
        return Agreement(holds=None, reason=f"the run logged no loss up to step {steps}")
    tolerance = TOLERANCE.get(plan.dtype, 0.0)
    try:
        alone = on_one_rank(plan, steps=max(recorded))
        once = train_again(alone, root, logged=sorted(recorded))
        found = compare(recorded, once, tolerance=tolerance)
        if found.holds:
            return found
        twice = train_again(cut_differently(alone), root, logged=sorted(recorded))
    except torch.OutOfMemoryError:
        return Agreement(holds=None, reason=f"one GPU cannot hold what {plan.world} did")
    except (ConfigError, DataError, OSError, RuntimeError) as error:
        return Agreement(holds=False, reason=f"the run cannot be repeated: {error}")
    return compare(recorded, once, twice, tolerance=tolerance)


def compare(
    recorded: Losses, once: Losses, twice: Losses | None = None, *, tolerance: float
) -> Agreement:
    """Judge recorded losses by one training, or up to the step where two of them part."""
    judged, note = sorted(recorded), ""
    if twice is not None:
        parted = [s for s in judged if _apart(once, twice, s) > PARTING * tolerance]
        if parted:
            judged = [step for step in judged if step < parted[0]]
            distance = _apart(once, twice, parted[0])
            note = f"; at step {parted[0]} two trainings are {distance:.2g} apart by rounding alone"
    if not judged:
        return Agreement(holds=None, reason=f"no loss can be judged{note}")
    worst_step = max(judged, key=lambda step: _apart(recorded, once, step))
    worst = _apart(recorded, once, worst_step)
    return Agreement(
        holds=worst <= tolerance,
        reason=f"{len(judged)} logged losses up to step {judged[-1]} differ by at most {worst:.2g},"
        f" at step {worst_step}, expected at most {tolerance:g}{note}",
        steps=judged[-1],
        worst=worst if worst < float("inf") else None,
    )


def _apart(first: Losses, second: Losses, step: int) -> float:
    """How far two losses are apart; infinite where one is missing or no number."""
    distance = abs(first.get(step, float("inf")) - second.get(step, float("inf")))
    return distance if distance == distance else float("inf")


def first_losses(folder: RunFolder, *, upto: int) -> dict[int, float]:
    """Logged losses by step, up to a step."""
    events = (record.event for record in read_events(folder.train))
    steps = [event for event in events if isinstance(event, StepEvent) and event.step <= upto]
    return {event.step: event.loss for event in steps}


def on_one_rank(plan: Plan, *, steps: int) -> Plan:
    """The plan for its first steps on one rank, with the micro-batch that fits there."""
    alone = replace(plan, world=1, train=replace(plan.train, steps=steps))
    fitted = fit_micro_batch(alone, 1, plan.hardware.memory_bytes)
    assert isinstance(fitted, Plan)
    return fitted


def cut_differently(plan: Plan) -> Plan:
    """The plan with half the micro-batch, where it has a half: the same sums, other roundings."""
    micro_batch = plan.train.micro_batch
    if micro_batch % 2:
        return plan
    return replace(plan, train=replace(plan.train, micro_batch=micro_batch // 2))


def train_again(plan: Plan, root: DataRoot, *, logged: Sequence[int]) -> dict[int, float]:
    """The losses at the `logged` steps of a plan, trained anew in a folder that is deleted."""
    with tempfile.TemporaryDirectory(prefix="n-verify-") as place:
        again = RunFolder(root=Path(place) / "runs" / plan.run_id)
        again.root.mkdir(parents=True)
        report = Reporter(again, plan, attempt=0, is_writer=True, say=lambda _: None)
        control = Control(again, supervisor_fd=None)
        run = build(plan, again, root, world=ALONE, control=control, report=report)
        run.clock.start()
        run.meter.restart(train_s=run.clock.train_s)
        while run.step < logged[-1]:
            train_step(run)
            if run.step in logged:
                train.log_step(run)
        close(run)
        return first_losses(again, upto=logged[-1])
