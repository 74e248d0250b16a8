"""A run as a log in the format of MLPerf training: `:::MLLOG {json}`, a line a fact.

Only what is true is said. A run is no submission: it names no organisation and no benchmark of
MLPerf, and clears no caches, so that a checker misses these keys, and on one rank the precision of
what is sent; all others keep its rules (https://github.com/mlcommons/logging, training 6.1).
`submission_division` is open, whose model and recipe are free. Samples are sequences, and
`eval_accuracy` is the validation loss in nats a token, as in MLPerf's language models. Where a log
names a line of source code, this one names the line of the run's file that holds the fact.

After a resume, what was trained beyond the checkpoint did not happen and is not told; the clock
went on.
"""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NamedTuple

from harness import tables
from harness.errors import RunError
from harness.export import Account
from nmoe import events as ev
from nmoe.config import Plan
from nmoe.data.manifest import MANIFEST_NAME
from nmoe.paths import DataRoot, RunFolder

EventType = Literal["INTERVAL_START", "INTERVAL_END", "POINT_IN_TIME"]
PREFIX = ":::MLLOG "
PRECISIONS = {"fp32": "fp32", "bf16": "bfloat16", "fp8": "fp8", "nvfp4": "nvfp4"}


class Source(NamedTuple):
    """The line of a file that says something, counted from 1."""

    file: str
    lineno: int


class Told(NamedTuple):
    """An event and the line that told it."""

    record: ev.Record
    source: Source


@dataclass(slots=True)
class _Log:
    """Lines in the order of their times, which never fall."""

    lines: list[str] = field(default_factory=list[str])
    time_ms: int = 0

    def add(
        self, kind: EventType, key: str, value: Any, *, at: float, source: Source, **more: Any
    ) -> None:
        """One line; `at` is a unix time. A number that JSON lacks is null and named in `nf`."""
        self.time_ms = max(self.time_ms, round(at * 1000))
        if isinstance(value, float) and not math.isfinite(value):
            value, more = None, more | {"nf": ["value"]}
        line = {
            "namespace": "",
            "time_ms": self.time_ms,
            "event_type": kind,
            "key": key,
            "value": value,
            "metadata": {**source._asdict(), **more},
        }
        self.lines.append(PREFIX + json.dumps(line, allow_nan=False))


def text(account: Account, root: DataRoot) -> str:
    """The log of a run, as far as it went; RunError when its plan cannot be read.

    A run that has not begun to train has no run_start, one that still trains no run_stop.
    """
    plan = account.state.plan
    if plan is None:
        raise RunError(f"{account.folder.plan} cannot be read", "A log needs the plan of its run.")
    log, told = _Log(), sorted(_read(account.folder), key=_when)
    _say_plan(log, account, plan, root, at=_created(plan, told))
    _say_run(log, account, plan, told)
    return "".join(f"{line}\n" for line in log.lines)


def _read(folder: RunFolder) -> Iterator[Told]:
    """The records of trainer and supervisor, each with its line."""
    for path in (folder.supervisor, folder.train):
        if not path.exists():
            continue
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    record = ev.decode(line) if line.endswith(b"\n") else None
                except ev.EventError:
                    continue
                if record is not None:
                    yield Told(record, Source(path.name, number))


def _when(told: Told) -> tuple[int, float]:
    return told.record.attempt, told.record.time


def _created(plan: Plan, told: Sequence[Told]) -> float:
    """When the plan was made; a plan that does not say it was there before the first event."""
    try:
        return datetime.fromisoformat(plan.created).timestamp()
    except ValueError:
        return told[0].record.time if told else 0.0


def _say_plan(log: _Log, account: Account, plan: Plan, root: DataRoot, *, at: float) -> None:
    """What was decided before the run, each at its line of plan.json."""
    path = account.folder.plan
    places = line_numbers(path.read_text(encoding="utf-8"))
    for key, value, name in _settings(account, plan):
        source = Source(path.name, places.get(name, 1))
        log.add("POINT_IN_TIME", key, value, at=at, source=source)
    samples = _train_samples(account, plan, root, places)
    if samples is not None:
        value, source = samples
        log.add("POINT_IN_TIME", "train_samples", value, at=at, source=source)


def _settings(account: Account, plan: Plan) -> Iterator[tuple[str, Any, str]]:
    """(key, value, field of the plan) of all that the plan says."""
    train, optim, schedule = plan.train, plan.optim, plan.schedule
    is_muon = optim.matrices == "muon"
    rate = optim.lr_muon if is_muon else optim.lr_dense
    decays = schedule.decay_tokens > 0
    yield "submission_division", "open", "preset"
    yield "submission_platform", tables.machine(plan), "hardware"
    yield "nmoe_run", plan.run_id, "run_id"
    yield "nmoe_task", plan.data.task, "data.task"
    yield "nmoe_target_loss", plan.target.target_loss, "target.target_loss"
    yield "config_filename", "plan.json", "preset"
    yield "seed", train.seed, "train.seed"
    yield "global_batch_size", train.batch_size, "train.batch_size"
    yield "micro_batch_size", train.micro_batch, "train.micro_batch"
    yield "gradient_accumulation_steps", plan.accumulation, "train.micro_batch"
    yield "max_sequence_length", train.seq_len, "train.seq_len"
    yield "max_steps", train.steps, "train.steps"
    val = account.state.val
    windows = plan.validation.windows if val is None else val.tokens // train.seq_len
    yield "eval_samples", windows, "validation.windows"
    yield "opt_name", optim.matrices, "optim.matrices"
    yield "opt_base_learning_rate", rate, "optim.lr_muon" if is_muon else "optim.lr_dense"
    end = rate * schedule.floor if decays else rate
    yield "opt_end_learning_rate", end, "schedule.floor"
    yield "opt_learning_rate_warmup_steps", schedule.warmup_steps, "schedule.warmup_steps"
    steps = -(-schedule.decay_tokens // (train.batch_size * train.seq_len))
    yield "opt_learning_rate_decay_steps", steps, "schedule.decay_tokens"
    shape = f"{schedule.decay if decays else 'constant'} with linear warmup"
    yield "opt_learning_rate_decay_schedule", shape, "schedule.decay"
    yield "opt_adamw_beta_1", optim.beta1, "optim.beta1"
    yield "opt_adamw_beta_2", optim.beta2, "optim.beta2"
    yield "opt_adamw_epsilon", optim.eps, "optim.eps"
    yield "opt_adamw_weight_decay", optim.weight_decay, "optim.weight_decay"
    if optim.clip:
        yield "opt_gradient_clip_norm", optim.clip, "optim.clip"
    for part in _parts(plan):
        yield f"lowest_numerical_precision_in_{part}", PRECISIONS[plan.dtype], "dtype"
    for name in ("tensor", "pipeline", "context"):
        yield f"{name}_parallelism", 1, "world"
    yield "expert_parallelism", plan.world if plan.experts.num_experts else 1, "world"


def _parts(plan: Plan) -> Iterator[str]:
    """What is computed or sent in the plan's dtype and in nothing lower."""
    yield "linear"
    if plan.dtype in ("fp32", "bf16"):
        yield "attn"
        if plan.world > 1 and plan.experts.num_experts:
            yield "comm"  # rows of experts


def _train_samples(
    account: Account, plan: Plan, root: DataRoot, places: dict[str, int]
) -> tuple[int, Source] | None:
    """Windows of the training data and the line that tells how long it is; None when it is gone."""
    if plan.flow is not None:
        return plan.flow.ends[-1], Source(account.folder.plan.name, places.get("flow", 1))
    tokens = account.evidence.data.train_tokens if account.evidence else None
    if tokens is None:
        return None
    path = root.dataset(plan.data.data_path) / "train" / MANIFEST_NAME
    places = line_numbers(path.read_text(encoding="utf-8"))
    source = Source(f"{plan.data.data_path}/train/{MANIFEST_NAME}", places.get("total_tokens", 1))
    return tokens // (plan.train.seq_len + 1), source


def line_numbers(text: str) -> dict[str, int]:
    """The line of every `section.key` and `key` of an object, as json.dumps indents it by one."""
    found, section = dict[str, int](), ""
    for number, line in enumerate(text.splitlines(), start=1):
        depth, key = len(line) - len(line.lstrip(" ")), line.strip().partition('": ')[0]
        if not key.startswith('"') or depth > 2:
            continue
        name = key[1:]
        section = name if depth == 1 else section
        found[name if depth == 1 else f"{section}.{name}"] = number
    return found


def _say_run(log: _Log, account: Account, plan: Plan, told: Sequence[Told]) -> None:
    """What happened: building, training in blocks with a validation behind each, the end."""
    first = next((each for each in told if _is_training(each)), None)
    for start in _starts(told, first):
        log.add("INTERVAL_START", "init_start", None, at=start.record.time, source=start.source)
    if first is None:
        return
    batch, at = plan.train.batch_size, first.record.time
    log.add("INTERVAL_END", "init_stop", None, at=at, source=first.source)
    log.add("INTERVAL_START", "run_start", None, at=at, source=first.source)
    log.add("INTERVAL_START", "block_start", None, at=at, source=first.source, samples_count=0)
    is_open, end = True, _end(account, told)
    for each in _milestones(account, told, end):
        event = each.record.event
        if isinstance(event, ev.ValEvent):
            is_open = account.state.step > event.step or (account.is_alive and not account.reached)
            _say_validation(log, each, event, event.step * batch, is_open=is_open)
        elif isinstance(event, ev.PhaseEvent) and event.resume_step is not None:
            log.add(
                *("POINT_IN_TIME", "nmoe_resume", each.record.attempt),
                at=each.record.time,
                source=each.source,
                samples_count=event.resume_step * batch,
            )
    if end is None:
        return
    samples, at = account.state.step * batch, end.record.time
    if is_open:
        log.add(
            *("INTERVAL_END", "block_stop", None), at=at, source=end.source, samples_count=samples
        )
    status = "success" if account.reached else "aborted"
    log.add(
        *("INTERVAL_END", "run_stop", None),
        at=end.record.time,
        source=end.source,
        samples_count=samples,
        status=status,
        nmoe_status=account.status,
    )


def _say_validation(
    log: _Log, told: Told, event: ev.ValEvent, samples: int, *, is_open: bool
) -> None:
    """The end of a block and its validation; a new block when training goes on."""
    ended, source = told.record.time, told.source
    # What took longer than time itself was damaged.
    began = ended - event.seconds if 0 <= event.seconds <= ended else ended
    marks: tuple[tuple[EventType, str, float], ...] = (
        ("INTERVAL_END", "block_stop", began),
        ("INTERVAL_START", "eval_start", began),
        ("POINT_IN_TIME", "eval_accuracy", ended),
        ("INTERVAL_END", "eval_stop", ended),
        ("INTERVAL_START", "block_start", ended),
    )
    for kind, key, at in marks if is_open else marks[:-1]:
        value = event.loss if key == "eval_accuracy" else None
        log.add(kind, key, value, at=at, source=source, samples_count=samples)


def _is_training(told: Told) -> bool:
    event = told.record.event
    return isinstance(event, ev.PhaseEvent) and event.phase == "training"


def _starts(told: Iterable[Told], first: Told | None) -> list[Told]:
    """Where the ranks of each attempt were started, up to the one that trained first."""
    starts: dict[int, Told] = {}
    for each in told:
        is_start = each.source.file == "train.jsonl" or isinstance(
            each.record.event, ev.LaunchEvent
        )
        if is_start and (first is None or each.record.attempt <= first.record.attempt):
            starts.setdefault(each.record.attempt, each)
    return list(starts.values())


def _milestones(account: Account, told: Iterable[Told], end: Told | None) -> list[Told]:
    """The validations that count, each as it was last told, and the resumes before the end."""
    kept = {val.step for val in account.state.val_events}
    vals: dict[int, Told] = {}
    resumes: list[Told] = []
    for each in told:
        event = each.record.event
        if isinstance(event, ev.ValEvent) and event.step in kept:
            vals[event.step] = each
        elif isinstance(event, ev.PhaseEvent):
            resumes += [each] if event.resume_step is not None else []
    found = sorted((*vals.values(), *resumes), key=_when)
    return [each for each in found if end is None or _when(each) <= _when(end)]


def _end(account: Account, told: Sequence[Told]) -> Told | None:
    """Where the run stopped: at the passing validation, else where it ended; None before that."""
    if account.reached:
        return next(each for each in reversed(told) if isinstance(each.record.event, ev.ValEvent))
    if account.is_alive:
        return None
    endings = [each for each in told if isinstance(each.record.event, ev.OutcomeEvent)]
    exits = [each for each in told if isinstance(each.record.event, ev.ExitEvent)]
    last = [each for each in (*endings, *exits) if each.record.attempt == account.state.attempt]
    return last[0] if last else told[-1]
