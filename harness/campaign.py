"""`n speedrun --repeat N`: the runs of a set one after the other, then the verdict on all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from harness import board_file, headless, launch, leaderboard, repeats, runs, verify
from harness import format as text
from harness.entry import Entry, Replicates, StatusChange
from harness.errors import UsageError
from harness.headless import Output
from harness.repeats import Series
from nmoe.config import Plan
from nmoe.paths import DataRoot

STOPPED = (headless.INTERRUPTED, headless.TERMINATED)
VERIFIED_LEVEL = 3
BELIEVED = ("replicated", "certified")
MISSED = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Conclusion:
    """What a set of repeats came to; `entry` stands for it on a board, if any run may."""

    series: str
    replicates: Replicates | None
    entry: Entry | None
    reason: str


def run(
    plans: Sequence[Plan],
    root: DataRoot,
    *,
    times: int,
    seed: int | None,
    output: Output,
    mirror: str | None,
    say: Callable[..., None],
) -> tuple[int, list[Conclusion]]:
    """Register, run and judge a set of repeats of each plan; (exit code, verdicts).

    Several sets take turns, ABBA and so on, so that the machine is the same to all. The code is 0
    once all are replicated, 6 when one is less than that, that of the stop when it was stopped.
    """
    sets = [repeats.make_plans(plan, times=times, seed=seed) for plan in plans]
    for series, _ in sets:
        path = repeats.register(series, root)
        say(f"{series.series}: {times} runs of {series.horizon} steps, registered in {path}")
    turns = [sets if turn % 2 == 0 else sets[::-1] for turn in range(times)]
    order = [made[turn] for turn, side in enumerate(turns) for _, made in side]
    stopped = _run_all(order, root, output=output, mirror=mirror, say=say)
    concluded = [conclude(series, root, say=say) for series, _ in sets]
    for each in concluded:
        say(*sentences(each))
    good = all(each.entry and each.entry.status in BELIEVED for each in concluded)
    return stopped or (0 if good else MISSED), concluded


def _run_all(
    plans: Sequence[Plan],
    root: DataRoot,
    *,
    output: Output,
    mirror: str | None,
    say: Callable[..., None],
) -> int:
    """One run after the other; the exit code of the one that was stopped, or 0."""
    for number, plan in enumerate(plans, start=1):
        say(f"run {number} of {len(plans)}: {plan.run_id}, seed {plan.train.seed}")
        folder = launch.start(plan, root, mirror=mirror)
        code = headless.follow(folder, output=output, passes_stop=True)
        # a run that died without a word is a failure of its set, and the set goes on
        if code in STOPPED and runs.load(folder).exit is not None:
            say(f"stopped: {len(plans) - number} runs were not started, and count as failed")
            return code
    return 0


def conclude(series: Series, root: DataRoot, *, say: Callable[..., None]) -> Conclusion:
    """Verify every entry of a set up to V3, then judge the set; the verdict goes into its entry.

    The entry of the median time stands for the set. May be done again: nothing is counted twice.
    """
    found = repeats.outcomes(series, root)
    for each in found:
        for board in leaderboard.boards(root):
            if board.of_run(each.run_id) is not None:
                report = verify.verify(each.run_id, root, level=VERIFIED_LEVEL)
                failures = ", ".join(check.id for check in report.failures) or "no check failed"
                say(f"{each.run_id}: {report.status}, {failures}")
    boards = leaderboard.boards(root)
    entries = [
        (board, entry)
        for board in boards
        for each in found
        if (entry := board.of_run(each.run_id)) is not None
    ]
    others = [
        entry
        for board in boards
        for entry in board.current
        if entry.replicates is not None and entry.replicates.series != series.series
    ]
    try:
        made = repeats.replicates(series, found, others)
    except UsageError as error:
        return Conclusion(series=series.series, replicates=None, entry=None, reason=str(error))
    if not entries:
        reason = "no run of the set is on a board"
        return Conclusion(series=series.series, replicates=made, entry=None, reason=reason)
    chosen = leaderboard.median_of([entry for _, entry in entries])
    path = next(board.path for board, entry in entries if entry == chosen)
    disputed = [entry.result.run_id for _, entry in entries if entry.status == "disputed"]
    after, _ = board_file.amend(
        path, chosen.result.run_id, lambda before: _judged(before, made, disputed)
    )
    reason = after.status_history[-1].reason
    return Conclusion(series=series.series, replicates=made, entry=after, reason=reason)


def sentences(concluded: Conclusion) -> list[str]:
    """The verdict on a set, for reading."""
    made = concluded.replicates
    lines: list[str] = []
    if made is not None:
        lines.append(
            f"{made.finished} of {made.n} runs finished, {made.failed} failed; loss"
            f" {text.fixed(made.mean_loss, decimals=5)} sd {text.fixed(made.sd_loss, decimals=5)},"
            f" time {text.exact_seconds(made.mean_train_s)}"
            f" sd {text.exact_seconds(made.sd_train_s)}"
        )
        df = "" if made.sigma_df is None else f", {made.sigma_df} degrees of freedom"
        lines.append(
            f"z {text.fixed(made.z, decimals=2)}, p {text.probability(made.p)} (sigma"
            f" {text.fixed(made.sigma, decimals=5)} from {made.sigma_from}{df})"
        )
    status = concluded.entry.status if concluded.entry else "not on a board"
    return [*lines, f"{status}: {concluded.reason}"]


def _judged(before: Entry, made: Replicates, disputed: list[str]) -> Entry:
    """The record of the entry that stands for a set."""
    status, reason = repeats.judge(before, made)
    if disputed and status in BELIEVED:
        status, reason = "verified", f"disputed: {', '.join(disputed)}"
    utc = datetime.now(UTC).isoformat(timespec="seconds")
    change = StatusChange(status=status, utc=utc, reason=f"{made.series}: {reason}")
    if before.replicates == made and before.status == status:
        return before
    return replace(
        before,
        status=status,
        status_history=(*before.status_history, change),
        replicates=made,
    )
