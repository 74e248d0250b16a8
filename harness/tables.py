"""Runs, boards, checks and plans as plain lines of text; what comes from files is made harmless."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from harness import format as text
from harness.entry import Entry, Verification
from harness.errors import Problem
from harness.leaderboard import Board, standings, time_of
from harness.terminal import safe

if TYPE_CHECKING:  # a list need not wait for numpy and NVML, which these modules load
    from harness.compare import Comparison, RunComparison
    from harness.doctor import Check
    from harness.runs import Summary
    from harness.significance import Interval
    from nmoe.config import Plan
    from nmoe.paths import DataRoot


def columns(rows: Iterable[Sequence[object]], *, indent: str = "") -> list[str]:
    """Rows as lines with aligned columns, two spaces apart."""
    cells = [[safe(value) for value in row] for row in rows]
    if not cells:
        return []
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        (
            indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def run_lines(rows: "Sequence[Summary]", root: "DataRoot") -> list[str]:
    """The list of runs, newest first."""
    if not rows:
        return [f"no runs in {safe(root.runs)}. Run: n speedrun"]
    head = ("RUN", "STATUS", "STEP", "VAL", "TARGET", "TRAINED", "MACHINE", "CREATED")
    body = [
        (
            row.run_id,
            row.status,
            f"{text.count(row.step)}/{text.count(row.steps)}",
            text.loss(row.val),
            text.loss(row.target),
            text.seconds(row.train_s),
            row.machine or row.problem,
            row.created,
        )
        for row in rows
    ]
    return columns([head, *body])


def board_lines(boards: Sequence[Board]) -> list[str]:
    """Every board with its cohorts, best first, and the published results apart."""
    lines: list[str] = []
    for board in boards:
        lines += ["", safe(board.path)] if lines else [safe(board.path)]
        if not board.entries:
            lines.append("  no entries yet")
        for standing in standings(board):
            lines.append(f"  {safe(standing.cohort.label)}")
            lines += columns(
                (
                    (
                        row.rank,
                        text.exact_seconds(time_of(row.entry)),
                        f"{text.count(row.entry.result.step)} steps",
                        f"{text.tokens(row.entry.result.tokens)} tokens",
                        f"val {text.loss(row.entry.result.loss)}",
                        f"CORE {text.core(row.entry.result.core)}",
                        row.entry.result.preset,
                        _standing(row.entry),
                        row.entry.result.run_id,
                    )
                    for row in standing.rows
                ),
                indent="    ",
            )
        if board.published:
            lines.append("  published, not verified here")
        lines += columns(
            (
                (
                    row.preset,
                    f"{row.devices} x {row.machine}",
                    row.dtype,
                    text.exact_seconds(row.train_s),
                    f"{text.count(row.step)} steps",
                    f"{text.tokens(row.tokens)} tokens",
                    f"val {text.loss(row.loss)}",
                    f"CORE {text.core(row.core)}",
                    row.source,
                )
                for row in board.published
            ),
            indent="    ",
        )
    return lines


def _standing(entry: Entry) -> str:
    """The status of an entry, and what its repeats say."""
    repeats = entry.replicates
    if repeats is None:
        return entry.status
    return f"{entry.status} ({repeats.finished}/{repeats.n}, p {text.probability(repeats.p)})"


def check_lines(check: "Check") -> list[str]:
    """A finding of the doctor in columns of fixed widths, and below it the fix."""
    expected = f"  expected {safe(check.expected)}" if check.expected else ""
    line = f"{check.verdict:7}  {safe(check.name):21}  {safe(check.value):36}{expected}".rstrip()
    return [line, *([f"    → {safe(check.fix)}"] if check.fix else [])]


def verification_lines(run_id: str, found: Verification, status: str | None) -> list[str]:
    """Every check with its verdict and reason, and what became of the entry."""
    counts = Counter(check.verdict for check in found.checks)
    total = ", ".join(f"{counts[verdict]} {verdict}" for verdict in ("pass", "fail", "skip"))
    entry = "no entry on a board" if status is None else f"the entry is {status}"
    return [
        *columns((check.verdict, check.id, check.reason) for check in found.checks),
        f"{safe(run_id)}: {total}; {entry}",
    ]


def comparison_lines(comparison: "Comparison") -> list[str]:
    """Two scored models by task: accuracies, the items only one has right, McNemar's p; CORE."""
    head = ("TASK", "N", "ACC A", "ACC B", "ONLY A", "ONLY B", "P")
    body = [
        (
            row.task,
            text.count(row.n),
            text.fixed(row.acc_a, decimals=4),
            text.fixed(row.acc_b, decimals=4),
            text.count(row.only_a),
            text.count(row.only_b),
            text.probability(row.p),
        )
        for row in (*comparison.tasks, comparison.total)
    ]
    lines = [f"A {safe(comparison.a)}", f"B {safe(comparison.b)}", *columns([head, *body])]
    core = comparison.core
    if core is not None:
        lines.append(
            f"CORE A {text.core(core.a)}, B {text.core(core.b)},"
            f" B - A {text.core(core.difference)}{text.interval(core.ci95)}"
        )
    return lines + [f"note: {safe(note)}" for note in comparison.notes]


def run_comparison_lines(found: "RunComparison") -> list[str]:
    """Two sets of runs: cohort, difference of loss and time with their intervals, the verdict."""
    loss, time = found.loss, found.train_s
    return [
        f"A {safe(found.a)}",
        f"B {safe(found.b)}",
        f"{safe(found.cohort.label)}, {loss.n} pair(s)",
        *columns(
            (
                ("loss B - A", text.fixed(loss.mean, decimals=5), _bounds(loss, 5), "nats"),
                ("time B - A", text.fixed(time.mean, decimals=2), _bounds(time, 2), "s"),
            )
        ),
        f"loss: {_verdict(found.is_other_loss, loss)}; time: {_verdict(found.is_other_time, time)}",
        *(f"note: {safe(note)}" for note in found.notes),
    ]


def _bounds(interval: "Interval", decimals: int) -> str:
    if interval.low is None or interval.high is None:
        return "no interval"
    low, high = (text.fixed(x, decimals=decimals) for x in (interval.low, interval.high))
    return f"[{low}, {high}]"


def _verdict(is_other: bool, interval: "Interval") -> str:
    if not is_other:
        return "no difference shown"
    return "B is lower" if interval.mean < 0 else "B is higher"


def plan_lines(plan: "Plan", root: "DataRoot") -> list[str]:
    """What a run will be: machine, preset, dtype and the reasons, target, data, root."""
    step_tokens = plan.train.batch_size * plan.train.seq_len
    return columns(
        (
            ("run", plan.run_id),
            ("preset", plan.choice),
            ("machine", machine(plan)),
            ("dtype", f"{plan.dtype}: {plan.dtype_reason}"),
            ("target", f"{plan.data.task} validation loss <= {plan.target.target_loss:g}"),
            (
                "steps",
                f"at most {text.count(plan.train.steps)} of {text.tokens(step_tokens)} tokens"
                f" ({plan.world} rank(s) x {plan.train.micro_batch} sequences"
                f" x {plan.accumulation} micro-batches)",
            ),
            ("seed", plan.train.seed),
            *_stage_rows(plan),
            ("data root", f"{root.path}: {root.reason}"),
        )
    )


def _stage_rows(plan: "Plan") -> Iterable[tuple[str, str]]:
    """Each stage's tokens, and of each source its share and how often it is read on average."""
    if plan.flow is None:
        return
    for stage in plan.flow.stages:
        shares = [
            f"{source.name} {text.percent(quota / stage.num_windows, decimals=1)}"
            f" ({text.fixed(quota / source.windows, decimals=2)} epochs)"
            for source, quota in zip(plan.flow.sources, stage.quotas, strict=True)
            if quota
        ]
        tokens = text.tokens(stage.num_windows * plan.train.seq_len)
        yield f"stage {stage.name}", f"{tokens} tokens: {', '.join(shares)}"


def problem_line(problem: Problem) -> str:
    """A problem and its fix on one line."""
    kind = "problem" if problem.is_blocking else "warning"
    fix = f" {problem.fix}" if problem.fix else ""
    return safe(f"{kind}: {problem.what}.{fix}")


def machine(plan: "Plan") -> str:
    """The plan's hardware in one phrase."""
    hardware = plan.hardware
    if hardware.gpu is None:
        return f"{hardware.cpu}, {hardware.cores} cores"
    memory = text.gib(hardware.memory_bytes, decimals=0, none=text.NOT_AVAILABLE)
    fake = ", fake" if hardware.is_fake else ""
    return (
        f"{plan.world} x {hardware.gpu} ({hardware.capability}, {memory},"
        f" driver {hardware.driver or text.NOT_AVAILABLE}{fake})"
    )
