"""What the run that `n speedrun` would start may be expected to be, and what is in its way."""

from collections.abc import Iterator

from harness import format as fmt
from harness import plan as planner
from harness import preflight
from harness.doctor.check import Check, judged
from harness.errors import HarnessError
from harness.hardware import Detection
from harness.outlook import Outlook, time_words
from nmoe.config import ConfigError, Plan
from nmoe.paths import DataRoot

NAME = "n speedrun"


def choose(detection: Detection, root: DataRoot) -> Plan | Check:
    """The default run of this machine, or why there is none."""
    try:
        return planner.resolve(preset=None, detection=detection, root=root)
    except HarnessError as error:
        return Check(name=NAME, verdict="problem", value=error.problem, fix=error.fix)
    except ConfigError as error:
        return Check(name=NAME, verdict="problem", value=str(error))


def examine(plan: Plan, found: Outlook, detection: Detection, root: DataRoot) -> Iterator[Check]:
    """The choice, memory, time and spread, then every problem of the start."""
    yield Check(name=NAME, verdict="ok", value=plan.choice)
    yield from _memory(plan, found)
    yield Check(name="expected time", verdict="ok", value=time_words(found))
    yield _spread(found)
    for problem in preflight.problems(plan, detection, root):
        verdict = "problem" if problem.is_blocking else "note"
        yield Check(name=NAME, verdict=verdict, value=problem.what, fix=problem.fix)


def _memory(plan: Plan, found: Outlook) -> Iterator[Check]:
    if found.memory is None:
        return
    size = plan.train.micro_batch
    yield judged(
        "memory of a step",
        f"about {fmt.gib(found.memory.total)} at micro-batches of {size}, by arithmetic",
        f"<= {fmt.gib(found.memory_bytes, none=fmt.NOT_AVAILABLE)} less what CUDA takes",
        "Use more GPUs.",
        is_well=found.fits,
    )


def _spread(found: Outlook) -> Check:
    spread = found.spread
    if spread.loss is None or spread.train_s is None:
        value = f"not known: {spread.runs} such run(s) on the boards, two are needed"
        return Check(name="variance", verdict="ok", value=value)
    value = (
        f"standard deviations of {spread.runs} such runs: loss"
        f" {fmt.fixed(spread.loss, decimals=4)}, time {fmt.exact_seconds(spread.train_s)}"
    )
    return Check(name="variance", verdict="ok", value=value)
