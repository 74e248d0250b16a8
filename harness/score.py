"""The score of a run from the files of its folder: what it achieved, its cohort, its doubts.

Reading the same folder twice gives the same score: nothing is measured here and no clock is read.
"""

import hashlib
import json
import math
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness import evidence, rules, runs
from harness.entry import Cohort, check_tasks
from harness.errors import RunError
from harness.evidence import Evidence, Span
from harness.pins import read_record
from nmoe.config import ConfigError, Digests, Hardware, Plan, read_plan
from nmoe.data.manifest import DataError, Manifest, digest, read_manifest
from nmoe.events import OutcomeEvent, PhaseEvent, Record, ValEvent
from nmoe.paths import DataRoot, RunFolder

CUSTOM = "custom"

# Outcomes of runs that trained up to a passing validation.
RACE_ENDED = ("done", "core-failed")
# CORE is the mean of at most some tens of centered accuracies; a mean taken in another order
# differs by rounding only.
_CORE_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a run achieved and everything it depends on; None is not told by the run's files.

    `loss`, `step`, `tokens` and `train_s` belong to the validation that ended the race when the
    target was reached, else to the last thing the run logged. Times are seconds. `core_low` and
    `core_high` bound CORE (95 %, items drawn again); `core_without_boolq` is ours and no part of
    it; then the items with an option that was cut to the context, or had nothing to score.
    """

    run_id: str
    preset: str
    task: str
    status: str
    reached: bool
    target: float
    loss: float | None
    val_tokens: int | None
    step: int
    tokens: int
    train_s: float
    wall_s: float
    compile_s: float | None
    eval_s: float | None
    checkpoint_s: float | None
    tok_s: float | None
    peak_memory_bytes: int | None
    params_total: int | None
    params_active: int | None
    core: float | None
    core_tasks: dict[str, dict[str, float | None]]
    core_bundle: str | None
    seed: int
    dtype: str
    dtype_reason: str
    deterministic: bool
    world: int
    attempts: int
    hardware: Hardware
    digests: Digests
    data_source: str | None
    train_data: str | None
    val_data: str | None
    versions: dict[str, str]
    created: str
    finished: str
    core_low: float | None = None
    core_high: float | None = None
    core_without_boolq: float | None = None
    core_cropped: int | None = None
    core_empty_regions: int | None = None

    def __post_init__(self) -> None:
        check_tasks(self.core_tasks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A result, what the run's files say beside it, and where it belongs.

    `breaches` are rules of its task that the run broke: then it is ranked under custom rules.
    `doubts` say why it may not be entered anywhere. `began` is the unix time of its first step.
    """

    result: Result
    began: float
    evidence: Evidence
    cohort: Cohort
    is_official: bool
    breaches: tuple[str, ...]
    doubts: tuple[str, ...]


def compute(
    folder: RunFolder, root: DataRoot, *, history: tuple[runs.RunState, Span] | None = None
) -> Score:
    """The score of a run that is over; RunError when the folder holds no usable plan.

    `history` is what `read` told of the folder, for those who have read it already.
    """
    try:
        plan = read_plan(folder.plan)
    except ConfigError as error:
        raise RunError(f"cannot score {folder.run_id}: {error}") from None
    state, span = history or read(folder)
    dataset = root.dataset(plan.data.data_path)
    train, val = _manifest(dataset / "train"), _manifest(dataset / "val")
    result = _result(plan, state, train=train, val=val, finished=span.finished)
    doubts = [] if state.outcome is None else list(_contradictions(plan, state, state.outcome))
    if (train is None and plan.flow is None) or val is None:
        doubts.append(f"the data of the run cannot be identified: no whole dataset in {dataset}")
    if plan.hardware.is_fake:
        doubts.append("the plan was made for hardware that is not there")
    if not _machine(plan):
        doubts.append("the machine is not known by name, so nothing can be compared with it")
    breaches = _breaches(plan, result, state.val)
    task, bundle = rules.task(result.task), read_record(root.bundle(plan.data.bundle))
    has_official_bundle = bundle is not None and bundle.is_official
    if task is not None and task.is_official and not has_official_bundle:
        breaches = (*breaches, "the eval bundle is not recorded as the official one")
    return Score(
        result=result,
        began=span.began,
        evidence=evidence.gather(
            *(folder, plan, state), train=train, val=val, span=span, train_s=result.train_s
        ),
        cohort=_cohort(plan, result.val_data, follows=not breaches),
        is_official=task is not None and task.is_official and not breaches,
        breaches=breaches,
        doubts=tuple(doubts),
    )


def _breaches(plan: Plan, result: Result, val: ValEvent | None) -> tuple[str, ...]:
    return rules.breaches(
        plan,
        data_source=result.data_source,
        train_data=result.train_data,
        val_data=result.val_data,
        val_tokens=val.tokens if val else None,
        params_total=result.params_total,
        params_active=result.params_active,
    )


def _result(
    plan: Plan,
    state: runs.RunState,
    *,
    train: Manifest | None,
    val: Manifest | None,
    finished: float,
) -> Result:
    outcome, last = state.outcome, state.val
    reached = _has_reached(plan, last, outcome)
    # The race ends at the passing validation: its step and its clock are the score's.
    ended = (last if reached else None) or outcome or state
    tokens = outcome.tokens if outcome else state.tokens
    return Result(
        run_id=plan.run_id,
        preset=plan.preset,
        task=plan.data.task,
        status=_status(state),
        reached=reached,
        target=plan.target.target_loss,
        loss=_finite(last.loss if last else None),
        val_tokens=last.tokens if last else None,
        step=ended.step,
        tokens=tokens,
        train_s=ended.train_s,
        wall_s=outcome.wall_s if outcome else state.wall_s,
        compile_s=outcome.compile_s if outcome else None,
        eval_s=outcome.eval_s if outcome else None,
        checkpoint_s=outcome.checkpoint_s if outcome else None,
        tok_s=tokens / ended.train_s if ended.train_s > 0 else None,
        peak_memory_bytes=outcome.peak_memory_bytes if outcome else None,
        params_total=outcome.params_total if outcome else None,
        params_active=outcome.params_active if outcome else None,
        **_core_values(state),
        seed=plan.train.seed,
        dtype=plan.dtype,
        dtype_reason=plan.dtype_reason,
        deterministic=plan.train.deterministic,
        world=plan.world,
        attempts=state.attempt + 1,
        hardware=plan.hardware,
        digests=plan.digests,
        data_source=evidence.source(plan, train),
        train_data=plan.flow.digest if plan.flow else digest(train) if train else None,
        val_data=digest(val) if val else None,
        versions=plan.versions,
        created=plan.created,
        finished=datetime.fromtimestamp(finished, UTC).isoformat(timespec="seconds"),
    )


def _core_values(state: runs.RunState) -> dict[str, Any]:
    """The fields of a result that tell of CORE."""
    core = state.core
    low, high = core.ci95 if core and core.ci95 else (None, None)
    return {
        "core": _finite(core.score if core else None),
        "core_low": _finite(low),
        "core_high": _finite(high),
        "core_without_boolq": _finite(core.without_boolq if core else None),
        "core_cropped": core.cropped if core else None,
        "core_empty_regions": core.empty_regions if core else None,
        "core_tasks": {
            task.name: {"items": task.items, "acc": task.acc, "centered": task.centered}
            for task in state.core_tasks
        },
        "core_bundle": core.bundle if core else None,
    }


def _has_reached(plan: Plan, val: ValEvent | None, outcome: OutcomeEvent | None) -> bool:
    if outcome is None or val is None or outcome.status not in RACE_ENDED:
        return False
    return val.loss <= plan.target.target_loss


def _status(state: runs.RunState) -> str:
    """The trainer's word; else the supervisor's; a run that ended without either has failed."""
    if state.outcome is not None:
        return state.outcome.status
    return state.exit.status if state.exit else "failed"


def _contradictions(plan: Plan, state: runs.RunState, outcome: OutcomeEvent) -> Iterator[str]:
    """Where the files of a run disagree with each other."""
    a_step = plan.train.batch_size * plan.train.seq_len
    if outcome.tokens != outcome.step * a_step:
        yield (
            f"tokens: got {outcome.tokens} after {outcome.step} steps,"
            f" expected {outcome.step * a_step}"
        )
    val = state.val
    if val is not None and _has_reached(plan, val, outcome):
        if outcome.loss != val.loss or outcome.step != val.step:
            yield (
                f"loss: the outcome says {outcome.loss} at step {outcome.step},"
                f" the last validation {val.loss} at step {val.step}"
            )
        if not val.train_s <= outcome.train_s <= outcome.wall_s:
            yield (
                f"time: validation at {val.train_s} s of training, outcome at {outcome.train_s} s"
                f" of {outcome.wall_s} s"
            )
    yield from _clock_errors(state, a_step)
    yield from core_errors(state)


def _clock_errors(state: runs.RunState, a_step: int) -> Iterator[str]:
    for point in state.losses:
        if point.tokens != point.step * a_step:
            yield f"tokens: got {point.tokens} at step {point.step}"
            break
    for name, points in (("step", state.losses), ("validation", state.val_events)):
        last_step, last_s = -1, 0.0
        for point in points:
            if point.step <= last_step or not point.train_s >= last_s:
                yield f"clock: the {name} events run backwards at step {point.step}"
                break
            last_step, last_s = point.step, point.train_s


def core_errors(state: runs.RunState) -> Iterator[str]:
    if state.core is None:
        return
    tasks = state.core_tasks
    if len(tasks) != state.core.tasks or len({task.name for task in tasks}) != len(tasks):
        yield f"CORE: got {len(tasks)} scored tasks, expected {state.core.tasks}"
        return
    mean = sum(task.centered for task in tasks) / max(1, len(tasks))
    if not abs(mean - state.core.score) <= _CORE_TOLERANCE:
        yield f"CORE: got {state.core.score}, the tasks give {mean}"


def plan_cohort(plan: Plan, root: DataRoot) -> Cohort:
    """The cohort that a run of this plan belongs to if it keeps to the rules."""
    val = _manifest(root.dataset(plan.data.data_path) / "val")
    return _cohort(plan, digest(val) if val else None, follows=True)


def _cohort(plan: Plan, val_data: str | None, *, follows: bool) -> Cohort:
    cut = (val_data, plan.validation.windows, plan.train.seq_len, plan.validation.every)
    python = plan.versions.get("python") or platform.python_version()
    return Cohort(
        task=plan.data.task,
        rules=rules.current().version if follows else CUSTOM,
        target=plan.target.target_loss,
        validation=hashlib.sha256(json.dumps(cut).encode()).hexdigest()[:16],
        machine=_machine(plan),
        devices=plan.world if plan.device == "cuda" else plan.hardware.cores,
        dtype=plan.dtype,
        python=python if plan.data.task == "pocket" else None,
    )


def _machine(plan: Plan) -> str:
    return (plan.hardware.gpu if plan.device == "cuda" else plan.hardware.cpu) or ""


def read(folder: RunFolder) -> tuple[runs.RunState, Span]:
    """The state of a run, and its clock's span: from its training to its outcome or last word."""
    reader, began = runs.RunReader(folder), 0.0
    finished = validated = None
    while records := reader.read():
        for record in records:
            if isinstance(record.event, OutcomeEvent):
                finished = record.time
            elif isinstance(record.event, ValEvent):
                validated = record.time
            elif not began and _is_training(record):
                began = record.time
    state = reader.state
    if state.outcome is None or finished is None:
        return state, Span(began=began, ended=state.updated, finished=state.updated)
    is_raced = state.outcome.status in RACE_ENDED
    return state, Span(began=began, ended=(is_raced and validated) or finished, finished=finished)


def _is_training(record: Record) -> bool:
    return isinstance(record.event, PhaseEvent) and record.event.phase == "training"


def _manifest(folder: Path) -> Manifest | None:
    try:
        return read_manifest(folder)
    except DataError:
        return None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
