"""What a run may be expected to take, before it is started: time, spread, memory, with the basis.

Nothing is extrapolated from data sheets: without a run or a benchmark of such a machine, nothing
is expected.
"""

from dataclasses import dataclass
from pathlib import Path
from statistics import median, stdev

from harness import benchmarks, best
from harness import format as fmt
from harness.benchmarks import OURS, RESULTS, Row
from harness.leaderboard import REPO_BOARD
from nmoe.config import Plan
from nmoe.flops import product
from nmoe.memory import USABLE, Memory, estimate
from nmoe.paths import DataRoot

STEP = "step"  # rows of `n bench step`


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Seconds of training, to the target as other runs took, or at most; `basis` says from what."""

    train_s: float
    is_most: bool
    basis: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How far `runs` of the cohort lie apart: standard deviations, None for fewer than two."""

    runs: int
    loss: float | None = None
    train_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What is known of a plan's run beforehand."""

    pace: Pace | None
    spread: Spread
    memory: Memory | None
    memory_bytes: int | None
    tok_s: float | None

    @property
    def fits(self) -> bool | None:
        """Whether a step fits a GPU's memory; None where there is no GPU or its size is unknown."""
        if self.memory is None or self.memory_bytes is None:
            return None
        return self.memory.total <= USABLE * self.memory_bytes


def outlook(
    plan: Plan, root: DataRoot, *, repo_board: Path = REPO_BOARD, results: Path = RESULTS
) -> Outlook:
    """Read the boards and the kept rows of the bench suite."""
    others = [entry.result for entry in best.entries(plan, root, repo_board=repo_board)]
    reached = [result for result in others if result.reached and result.preset == plan.preset]
    row = _row(plan, results)
    budget = plan.train.steps * plan.train.batch_size * plan.train.seq_len
    pace, tok_s = None, None if row is None or row.rate is None else row.rate * row.gpus
    if reached:
        times = [result.train_s for result in reached]
        tok_s = median(result.tokens / result.train_s for result in reached)
        basis = f"{len(times)} run(s) of {plan.preset} on such a machine, on a board"
        pace = Pace(train_s=median(times), is_most=False, basis=basis)
    elif row is not None and tok_s is not None:
        basis = (
            f"the whole budget of steps at {fmt.rate(tok_s)}, as measured on {row.gpus} x"
            f" {product(row.gpu)} on {row.date[:10]}"
        )
        pace = Pace(train_s=budget / tok_s, is_most=True, basis=basis)
    losses = [result.loss for result in reached if result.loss is not None]
    spread = Spread(
        runs=len(reached),
        loss=stdev(losses) if len(losses) > 1 else None,
        train_s=stdev(result.train_s for result in reached) if len(reached) > 1 else None,
    )
    is_gpu = plan.device == "cuda"
    return Outlook(
        pace=pace,
        spread=spread,
        memory=estimate(plan, world=plan.world) if is_gpu else None,
        memory_bytes=plan.hardware.memory_bytes if is_gpu else None,
        tok_s=tok_s,
    )


def time_words(found: Outlook) -> str:
    """The expected time with its basis, or that none is known."""
    pace = found.pace
    if pace is None:
        return "not known: no run and no benchmark of such a machine"
    most = "at most " if pace.is_most else ""
    return f"{most}{fmt.seconds(pace.train_s)} of training: {pace.basis}"


def _row(plan: Plan, results: Path) -> Row | None:
    """The newest row of this preset's step on as many of such GPUs; its rate is of one GPU."""
    rows = [bench.row for bench in benchmarks.read(results).benches]
    found = [
        row
        for row in rows
        if (row.what, row.shape, row.implementation) == (STEP, plan.preset, OURS)
        and (product(row.gpu), row.gpus) == (plan.hardware.gpu, plan.world)
        and row.rate
    ]
    return max(found, key=lambda row: row.date, default=None)
