"""The first two rungs of verification, from the files of a run alone.

V0: the files can be read, and say what the scoreboard's entry says. V1: they agree with each other
and with what the machine can do. A check that cannot be made here is skipped with its reason.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from harness import evidence, score
from harness.entry import CHANGEABLE, Check, Entry, Verdict
from harness.errors import RunError
from harness.evidence import Span
from harness.leaderboard import make_entry
from harness.run_state import RunState
from harness.score import Score
from nmoe.config import Plan
from nmoe.data.manifest import DataError, read_manifest
from nmoe.event_log import read_events
from nmoe.events import (
    CoreEvent,
    EventError,
    GpuEvent,
    OutcomeEvent,
    Record,
    StepEvent,
    ValEvent,
    decode,
)
from nmoe.flops import flops_per_token, padded_vocab
from nmoe.paths import DataRoot, RunFolder

# Event times are rounded to milliseconds and taken after the clock was read.
STAMP_S = 0.05
# What may pass beside training, validation, checkpoints and interim CORE.
IDLE_SHARE, IDLE_S = 0.01, 1.0
RATE_SHARE = 0.02
POWER_SHARE = 1.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """What was read of a run, once: its plan, every record of its trainer, the state they make."""

    folder: RunFolder
    root: DataRoot
    plan: Plan
    state: RunState
    span: Span
    records: tuple[Record, ...]
    seqs: tuple[int, ...]
    bad_lines: int


def read(folder: RunFolder, root: DataRoot) -> Files:
    """Read a run; RunError when it has no usable plan or its events are of another version."""
    state, span = score.read(folder)
    if state.plan is None:
        raise RunError(f"{folder.run_id} has no readable plan", "Only a run can be verified.")
    records, seqs, bad = _records(folder.train)
    return Files(
        folder=folder,
        root=root,
        plan=state.plan,
        state=state,
        span=span,
        records=records,
        seqs=seqs,
        bad_lines=bad,
    )


def examine(files: Files, entry: Entry | None) -> list[Check]:
    """Every check of V0 and V1."""
    scored = score.compute(files.folder, files.root, history=(files.state, files.span))
    return [*_v0(files, scored, entry), *_v1(files)]


def _v0(files: Files, scored: Score, entry: Entry | None) -> Iterator[Check]:
    whole = files.seqs == tuple(range(len(files.seqs)))
    # what a killed attempt left torn is closed off by the next one
    holds = whole and files.bad_lines <= files.state.attempt
    yield _check(
        "V0.events",
        holds,
        f"{len(files.seqs)} lines, {files.bad_lines} unreadable,"
        f" {'numbered without a gap' if whole else 'numbers are missing or repeated'}",
    )
    yield _check("V0.doubts", not scored.doubts, "; ".join(scored.doubts) or "none")
    broken = "; ".join(scored.breaches)
    yield _check(
        "V0.rules",
        True,
        f"ranked under custom rules: {broken}" if broken else "the rules of its task are kept",
    )
    if entry is None:
        yield _check("V0.entry", None, "the run has no entry on a board")
        return
    fresh = make_entry(scored)
    free = ("entry_id", "prev_entry_id", "artifacts", *CHANGEABLE)
    names = [item.name for item in fields(Entry) if item.name not in free]
    says, found = asdict(entry), asdict(fresh)
    other = [name for name in names if not _agrees(says[name], found[name])]
    yield _check(
        "V0.entry",
        not other,
        f"the files say otherwise about its {', '.join(other)}" if other else "as the files say",
    )
    told, now = entry.artifacts, evidence.artifacts(files.folder)
    changed = [
        item.name.removesuffix("_sha")
        for item in fields(told)
        if getattr(told, item.name) not in (None, getattr(now, item.name))
    ]
    yield _check(
        "V0.artifacts",
        not changed,
        f"changed since the entry was made: {', '.join(changed)}" if changed else "unchanged",
    )


def _agrees(told: Any, found: Any) -> bool:
    """Whether files say what an entry tells; what it does not tell cannot be wrong."""
    if isinstance(told, dict) and isinstance(found, dict):
        pairs = cast("dict[str, Any]", told), cast("dict[str, Any]", found)
        return all(_agrees(value, pairs[1].get(key)) for key, value in pairs[0].items())
    return told is None or told == () or told == found


def _v1(files: Files) -> Iterator[Check]:
    outcome = files.state.outcome
    if outcome is None:
        yield _check("V1.outcome", False, "the run did not say how it ended")
        return
    yield _tokens(files, outcome)
    yield _clock(files, outcome)
    yield _elapsed(files, outcome)
    yield _loss(files, outcome)
    yield _selection(files)
    yield _rate(files)
    yield _roofline(files, outcome)
    yield _power(files)
    yield _core(files)


def _tokens(files: Files, outcome: OutcomeEvent) -> Check:
    """Tokens are steps times the batch, everywhere."""
    batch = files.plan.train.batch_size * files.plan.train.seq_len
    wrong = [point.step for point in files.state.losses if point.tokens != point.step * batch]
    if outcome.tokens != outcome.step * batch:
        wrong.append(outcome.step)
    reason = f"{outcome.step} steps of {batch} tokens make {outcome.step * batch}"
    return _check("V1.tokens", not wrong, f"not so at step {wrong[0]}" if wrong else reason)


def _clock(files: Files, outcome: OutcomeEvent) -> Check:
    """Steps and both clocks never run backwards, and training is part of the whole."""
    points = list(files.state.losses)
    for before, after in pairwise(points):
        if not (
            before.step < after.step
            and before.train_s <= after.train_s
            and (before.wall_s or 0.0) <= (after.wall_s or 0.0)
        ):
            return _check("V1.clock", False, f"the step events run backwards at {after.step}")
    for before, after in pairwise(files.state.val_events):
        if not (before.step < after.step and before.train_s <= after.train_s):
            return _check("V1.clock", False, f"the validations run backwards at {after.step}")
    parts = outcome.train_s + outcome.eval_s + outcome.checkpoint_s
    holds = outcome.train_s >= 0 and parts <= outcome.wall_s + STAMP_S
    reason = f"{outcome.train_s:.2f} s of training in {outcome.wall_s:.2f} s"
    return _check("V1.clock", holds, reason)


def _elapsed(files: Files, outcome: OutcomeEvent) -> Check:
    """The clock of the score runs as fast as the time stamps of its events."""
    last = max((record.attempt for record in files.records), default=0)
    stamps = [
        (record.time, record.event)
        for record in files.records
        if record.attempt == last and isinstance(record.event, StepEvent)
    ]
    for (t0, before), (t1, after) in pairwise(stamps):
        if after.train_s - before.train_s > t1 - t0 + STAMP_S:
            return _check(
                "V1.elapsed",
                False,
                f"{after.train_s - before.train_s:.3f} s of training in {t1 - t0:.3f} s"
                f" before step {after.step}",
            )
    if len(stamps) < 2:
        return _check("V1.elapsed", None, "the last attempt logged fewer than two steps")
    (t0, first), (t1, end) = stamps[0], stamps[-1]
    idle = (t1 - t0) - (end.train_s - first.train_s)
    if idle < -STAMP_S:
        return _check("V1.elapsed", False, f"{-idle:.2f} s more of training than passed")
    explained = outcome.checkpoint_s + sum(
        record.event.seconds
        for record in files.records
        if isinstance(record.event, ValEvent | CoreEvent) and t0 <= record.time <= t1
    )
    return _check(
        "V1.elapsed",
        idle <= explained + IDLE_SHARE * (t1 - t0) + IDLE_S,
        f"{idle:.2f} s of {t1 - t0:.2f} s were not training, validations and checkpoints took"
        f" {explained:.2f} s",
    )


def _loss(files: Files, outcome: OutcomeEvent) -> Check:
    """The loss that counts is that of the last validation, which is of the step that counts."""
    val = files.state.val
    if val is None:
        return _check("V1.loss", False, "nothing was validated")
    if outcome.loss is None:
        return _check("V1.loss", None, "the run did not reach its target")
    holds = (outcome.loss, outcome.step) == (val.loss, val.step)
    holds = holds and outcome.loss <= files.plan.target.target_loss
    reason = (
        f"the outcome says {outcome.loss:.6f} at step {outcome.step}, the last validation"
        f" {val.loss:.6f} at {val.step}, the target {files.plan.target.target_loss:g}"
    )
    return _check("V1.loss", holds, reason)


def _selection(files: Files) -> Check:
    """Every validation that was due is there, and the step that counts is the one of the rule."""
    plan, vals = files.plan, files.state.val_events
    due = {step for step in range(1, files.state.step + 1) if plan.validation.is_due(step)}
    missing = sorted(due - {val.step for val in vals})
    if missing:
        return _check("V1.selection", False, f"the validation of step {missing[0]} is missing")
    extra = sorted({val.step for val in vals} - due - {plan.train.steps})
    if extra:
        return _check("V1.selection", False, f"nothing was to be validated at step {extra[0]}")
    if plan.target.stop_rule == "fixed_horizon":
        holds = bool(vals) and vals[-1].step == plan.train.steps
        return _check("V1.selection", holds, f"the horizon of {plan.train.steps} steps was kept")
    early = [val.step for val in vals[:-1] if val.loss <= plan.target.target_loss]
    reason = f"{len(vals)} validations, the first below the target ends the run"
    return _check(
        "V1.selection", not early, f"step {early[0]} had crossed the target" if early else reason
    )


def _rate(files: Files) -> Check:
    """Logged rates are those of tokens and clock."""
    batch = files.plan.train.batch_size * files.plan.train.seq_len
    steps = [r.event for r in files.records if isinstance(r.event, StepEvent)]
    for before, after in pairwise(steps):
        count, seconds = after.step - before.step, after.train_s - before.train_s
        if count <= 0 or seconds <= STAMP_S:
            continue
        if abs(after.ms * count / 1000 - seconds) > RATE_SHARE * seconds + STAMP_S:
            return _check(
                "V1.rate",
                False,
                f"step {after.step}: {count} steps of {after.ms:.1f} ms in {seconds:.3f} s",
            )
        if abs(after.tok_s * seconds - count * batch) > 2 * RATE_SHARE * count * batch:
            return _check(
                "V1.rate", False, f"step {after.step}: {after.tok_s:.0f} tokens/s do not fit"
            )
    return _check("V1.rate", True, f"{len(steps)} logged rates fit tokens and clock")


def _roofline(files: Files, outcome: OutcomeEvent) -> Check:
    """No machine is faster than its data sheet."""
    plan, peak = files.plan, files.plan.hardware.peak_tflops
    if not peak:
        name = plan.hardware.gpu or plan.hardware.cpu
        return _check("V1.roofline", None, f"no peak is known of {name} in {plan.dtype}")
    try:
        vocab = read_manifest(files.root.dataset(plan.data.data_path) / "val").vocab_size
    except DataError as error:
        return _check("V1.roofline", None, str(error))
    rate = outcome.tokens / outcome.train_s if outcome.train_s > 0 else float("inf")
    used = rate * flops_per_token(plan, padded_vocab(vocab)) / 1e12
    return _check(
        "V1.roofline",
        used <= peak * plan.world,
        f"{used:.1f} of {peak * plan.world:.1f} TFLOP/s",
    )


def _power(files: Files) -> Check:
    """No GPU takes more energy than its limit allows in the time between two samples."""
    last: dict[int, tuple[float, GpuEvent]] = {}
    num_pairs = 0
    for record in read_events(files.folder.gpus):
        event = record.event
        if not isinstance(event, GpuEvent) or event.energy_j is None or not event.power_limit_w:
            continue
        if event.index in last:
            t0, before = last[event.index]
            taken = event.energy_j - (before.energy_j or 0.0)
            allowed = event.power_limit_w * (record.time - t0 + 1.0) * POWER_SHARE
            num_pairs += 1
            if not 0 <= taken <= allowed:
                reason = f"GPU {event.index} took {taken:.0f} J where {allowed:.0f} J are possible"
                return _check("V1.power", False, reason)
        last[event.index] = (record.time, event)
    if not num_pairs:
        return _check("V1.power", None, "no energy was sampled")
    return _check("V1.power", True, f"{num_pairs} samples are within the power limit")


def _core(files: Files) -> Check:
    problems = list(score.core_errors(files.state))
    if files.state.core is None:
        return _check("V1.core", None, "the run has no CORE score")
    return _check("V1.core", not problems, "; ".join(problems) or "the mean of its tasks")


def _records(path: Path) -> tuple[tuple[Record, ...], tuple[int, ...], int]:
    """(records, sequence numbers of all readable lines, lines that cannot be read)."""
    records: list[Record] = []
    seqs: list[int] = []
    bad = 0
    try:
        lines: Sequence[bytes] = path.read_bytes().split(b"\n")
    except OSError:
        return (), (), 0
    bad += bool(lines[-1])
    for line in lines[:-1]:
        try:
            record = decode(line)
        except (EventError, RecursionError, TypeError, ValueError):
            bad += 1
            continue
        if record is not None:
            records.append(record)
            seqs.append(record.seq)
    return tuple(records), tuple(seqs), bad


def _check(check_id: str, holds: bool | None, reason: str) -> Check:
    verdict: Verdict = "skip" if holds is None else "pass" if holds else "fail"
    return Check(id=check_id, verdict=verdict, reason=reason)
