"""What a run may be expected to take before it is started, with the basis of every figure.

The bases, best first: runs on the boards that it may be ranked with, the newest run of this
machine, a row of the bench suite, results that others published. Without any nothing is expected.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median, stdev

from harness import benchmarks, best, leaderboard, runs
from harness import format as fmt
from harness.benchmarks import OURS, Row
from harness.entry import Entry
from harness.errors import BoardError
from harness.leaderboard import PUBLISHED_MARK, REPO_BOARD
from nmoe.config import ConfigError, Plan, read_plan
from nmoe.flops import product
from nmoe.memory import Memory, estimate
from nmoe.paths import BENCH_RESULTS, DataRoot

# What rows of results are about: a step, or what a GPU does at most.
STEP, CEILING = "step", "ceiling "


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Seconds of training and tokens a second of all ranks, and from what that is known.

    `is_most`: the time of the whole budget of steps, which the target may end before.
    """

    train_s: float
    tok_s: float
    is_most: bool
    basis: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Standard deviations of loss (nats) and time (s) between `n` runs of one cohort."""

    n: int
    loss: float | None
    train_s: float | None
    basis: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What is known beforehand; no pace without a basis, no deviations from fewer than two runs.

    `memory` is that of a step on each GPU, by arithmetic, and `memory_bytes` what a GPU has.
    """

    pace: Pace | None
    spread: Spread
    memory: Memory | None
    memory_bytes: int | None


def outlook(
    plan: Plan, root: DataRoot, *, repo_board: Path = REPO_BOARD, results: Path = BENCH_RESULTS
) -> Outlook:
    """Look through boards, run folders and rows of results."""
    entries = [
        entry
        for entry in best.entries(plan, root, repo_board=repo_board)
        if entry.result.preset == plan.preset and entry.result.tokens and entry.result.train_s > 0
    ]
    pace = (
        _of_entries(entries)
        or _of_last_run(plan, root)
        or _of_row(plan, results)
        or _of_published(plan, repo_board)
    )
    is_gpu = plan.device == "cuda"
    return Outlook(
        pace=pace,
        spread=_spread(entries),
        memory=estimate(plan, world=plan.world) if is_gpu else None,
        memory_bytes=plan.hardware.memory_bytes if is_gpu else None,
    )


def time_words(found: Outlook) -> str:
    """The expected time with its basis, or that none is known."""
    pace = found.pace
    if pace is None:
        return "not known: no run and no benchmark of such a machine"
    most = "at most " if pace.is_most else ""
    return f"{most}{fmt.seconds(pace.train_s)} of training at {fmt.rate(pace.tok_s)}: {pace.basis}"


def _of_entries(entries: list[Entry]) -> Pace | None:
    if not entries:
        return None
    basis = f"median of {len(entries)} run(s) of this cohort on the boards"
    return Pace(
        train_s=median(map(leaderboard.time_of, entries)),
        tok_s=median(each.result.tokens / each.result.train_s for each in entries),
        is_most=False,
        basis=basis,
    )


def _of_last_run(plan: Plan, root: DataRoot) -> Pace | None:
    """The speed of the newest run here of as many ranks with the same model and batch."""
    for row in runs.list_runs(root):
        if row.preset != plan.preset or row.tokens <= 0 or row.train_s <= 0:
            continue
        try:
            other = read_plan(root.run(row.run_id).plan)
        except ConfigError:
            continue
        if _sizes(other) == _sizes(plan):
            return _budget(plan, row.tokens / row.train_s, f"{row.run_id}, a run here")
    return None


def _of_row(plan: Plan, results: Path) -> Pace | None:
    """The newest row of this preset's step on as many such GPUs; its rate is of one GPU."""
    if plan.device != "cuda" or plan.dtype != "bf16":
        return None  # rows are of bf16 steps
    rows = [
        row
        for row in _kept(results)
        if (row.what, row.shape, row.implementation) == (STEP, plan.preset, OURS)
        and (product(row.gpu), row.gpus) == (plan.hardware.gpu, plan.world)
        and row.rate
    ]
    row = max(rows, key=lambda each: each.date, default=None)
    if row is None or row.rate is None:
        return None
    basis = f"`n bench step` on {row.gpus} x {product(row.gpu)}, {row.date[:10]}"
    return _budget(plan, row.rate * row.gpus, basis)


def _of_published(plan: Plan, repo_board: Path) -> Pace | None:
    try:
        published = leaderboard.load(repo_board).published
    except BoardError:
        return None
    wanted = (plan.preset, plan.hardware.gpu, plan.world, plan.dtype, plan.target.target_loss)
    rows = [
        row
        for row in published
        if (row.preset, row.machine, row.devices, row.dtype, row.target) == wanted
    ]
    if not rows:
        return None
    sources = ", ".join(dict.fromkeys(row.source for row in rows))
    return Pace(
        train_s=median(row.train_s for row in rows),
        tok_s=median(row.tokens / row.train_s for row in rows),
        is_most=False,
        basis=f"median of {len(rows)} result(s) of {sources}, {PUBLISHED_MARK}",
    )


def ceilings(gpu: str, results: Path = BENCH_RESULTS) -> dict[str, Row]:
    """The newest rows of matmul, copy and peer on such a GPU, as far as there are any."""
    rows = [
        row
        for row in _kept(results)
        if row.what.startswith(CEILING) and product(row.gpu) == gpu and row.rate
    ]
    ordered = sorted(rows, key=lambda each: each.date)
    return {row.what.removeprefix(CEILING): row for row in ordered}


def _spread(entries: list[Entry]) -> Spread:
    """Between the repeats of the largest set, all at one step, else between runs on the boards."""
    sets = [each.replicates for each in entries if each.replicates is not None]
    largest = max(sets, key=lambda each: each.finished, default=None)
    if largest is not None and largest.finished > 1:
        basis = f"{largest.finished} repeats at step {fmt.count(largest.horizon)}"
        return Spread(
            n=largest.finished, loss=largest.sd_loss, train_s=largest.sd_train_s, basis=basis
        )
    n = len(entries)
    losses = [each.result.loss for each in entries if each.result.loss is not None]
    return Spread(
        n=n,
        loss=stdev(losses) if len(losses) > 1 else None,
        train_s=stdev(each.result.train_s for each in entries) if n > 1 else None,
        basis=f"{n} runs of this cohort, each at its target",
    )


def _budget(plan: Plan, tok_s: float, basis: str) -> Pace:
    """The time of all steps at a speed."""
    tokens = plan.train.steps * plan.train.batch_size * plan.train.seq_len
    return Pace(train_s=tokens / tok_s, tok_s=tok_s, is_most=True, basis=basis)


def _sizes(plan: Plan) -> tuple[object, ...]:
    """What decides the speed of a run besides its code."""
    machine = plan.hardware.gpu if plan.device == "cuda" else plan.hardware.cpu
    batch = (plan.train.batch_size, plan.train.seq_len)
    model = (plan.model, plan.attention, plan.experts, plan.optim.matrices)
    return (plan.device, machine, plan.world, plan.dtype, batch, model)


def _kept(results: Path) -> Iterator[Row]:
    return (bench.row for bench in benchmarks.read(results).benches)
