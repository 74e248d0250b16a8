"""The run that would be started: what it needs, what it may be expected to take, what stops it."""

from collections.abc import Iterator

from harness import format as fmt
from harness import plan as planner
from harness import preflight
from harness.doctor.check import Check, judged
from harness.errors import HarnessError, UsageError
from harness.hardware import Detection
from harness.outlook import Outlook, Spread, time_words
from nmoe.config import ConfigError, Plan
from nmoe.memory import USABLE, Memory
from nmoe.paths import DataRoot


def choose(
    preset: str | None, gpus: int | None, detection: Detection, root: DataRoot
) -> Plan | Check:
    """The run of a preset, by default the machine's own, or why there can be none.

    UsageError for what was named and is wrong on any machine.
    """
    name = name_of(preset)
    try:
        return planner.resolve(preset=preset, gpus=gpus, detection=detection, root=root)
    except HarnessError as error:
        if isinstance(error, UsageError) and (preset, gpus) != (None, None):
            raise  # not the machine's fault
        return Check(name=name, verdict="problem", value=error.problem, fix=error.fix)
    except ConfigError as error:
        return Check(name=name, verdict="problem", value=str(error))


def name_of(preset: str | None) -> str:
    """The run as it is started."""
    if preset is None:
        return "n speedrun"
    return f"n {'train' if preset.endswith('.toml') else 'speedrun'} {preset}"


def examine(
    name: str, plan: Plan, found: Outlook, detection: Detection, root: DataRoot
) -> Iterator[Check]:
    """The choice, memory, time and its spread, then every problem of a start."""
    yield Check(name=name, verdict="ok", value=plan.choice)
    if found.memory is not None:
        yield _memory(plan, found.memory, found.memory_bytes)
    yield Check(name="expected time", verdict="ok", value=time_words(found))
    yield _variance(found.spread)
    for problem in preflight.problems(plan, detection, root):
        verdict = "problem" if problem.is_blocking else "note"
        yield Check(name=name, verdict=verdict, value=problem.what, fix=problem.fix)


def _memory(plan: Plan, memory: Memory, there: int | None) -> Check:
    parts = {
        "state": memory.state,
        "activations": memory.activations,
        "peers": memory.peers,
        "loss": memory.loss,
    }
    shown = ", ".join(f"{part} {fmt.gib(size, decimals=0)}" for part, size in parts.items() if size)
    usable = None if there is None else USABLE * there
    return judged(
        "memory of a step",
        f"{fmt.gib(memory.total)} on each GPU by arithmetic, micro-batches of"
        f" {plan.train.micro_batch} ({shown})",
        expected=""
        if usable is None
        else f"<= {fmt.gib(usable)}, {fmt.percent(USABLE)} of the GPU's {fmt.gib(there)}",
        is_well=None if usable is None else memory.total <= usable,
        fix="Use more GPUs, or a smaller preset.",
        otherwise="problem",
    )


def _variance(spread: Spread) -> Check:
    """How far equal runs lie apart."""
    if spread.n < 2:
        value = f"not known: {spread.n} finished run(s) of this cohort, two are needed"
        return Check(name="variance", verdict="ok", value=value)
    loss = fmt.fixed(spread.loss, decimals=4, none=fmt.NOT_AVAILABLE)
    time = fmt.exact_seconds(spread.train_s, none=fmt.NOT_AVAILABLE)
    value = f"sd of loss {loss}, of time {time} ({spread.basis})"
    return Check(name="variance", verdict="ok", value=value)
