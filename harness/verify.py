"""`n verify`: the ladder of checks on a run, and what it makes of the run's entry.

The first rungs are read from files here; the others are looked at by `nmoe.verify` in a process of
its own, because they need torch. What was found becomes a later record of the entry: a check that
fails makes it disputed, V0 to V3 without a failure make it verified, unless nobody has measured
the data of its task.
"""

import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any

from harness import board_file, consistency, hardware, launch, leaderboard, rules, runs
from harness.board_file import Board
from harness.entry import Check, Entry, Status, StatusChange, Verdict, Verification
from harness.errors import BoardError, RunError
from nmoe.config import ConfigError, build, read_plan
from nmoe.paths import DataRoot, RunFolder, code_version

MIN_ID = 6
REPLAYED_STEPS = 20
DEFAULT_OVERLAP = 0.01
NO_GPU_EXIT = 3
# What must have passed before an entry is called verified.
NEEDED = ("V2.data", "V2.checkpoint", "V2.reeval", "V3.causality", "V3.normalisation", "V3.batch")
_NUMBERS = tuple(
    item.name
    for item in fields(Verification)
    if item.name not in ("checks", "verifier_commit", "verifier_machine", "utc")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a verification found; `status` is the entry's afterwards, None without an entry."""

    run_id: str
    verification: Verification
    status: Status | None
    board: str | None

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.verification.checks if check.verdict == "fail")


def verify(name: str, root: DataRoot, *, level: int, steps: int = REPLAYED_STEPS) -> Report:
    """Climb the ladder to V`level` for a run, or for the run of an entry by its id.
    The results go into the entry. Raises RunError when there is nothing of that name, or when the
    run is alive; BoardError for a board that is broken.
    """
    boards = leaderboard.boards(root)
    run_id = find(name, root, boards)
    board, entry = _entry_of(run_id, boards)
    folder = root.run(run_id)
    checks = [] if board is None else [_board_check(board)]
    numbers: dict[str, Any] = {}
    if not folder.root.is_dir():
        checks.append(Check(id="V0.run", verdict="skip", reason=f"{folder.root} is not here"))
    else:
        if runs.is_alive(folder):
            raise RunError(f"run {run_id} is not over", f"Run: n attach {run_id}")
        checks += consistency.examine(consistency.read(folder, root), entry)
        if level >= 2:
            found, numbers = look_closer(folder, level=level, steps=steps)
            checks += found
    made = Verification(
        checks=tuple(checks),
        **numbers,
        verifier_commit=code_version().commit,
        verifier_machine=machine(),
        utc=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    status = None
    if board is not None:
        after, _ = board_file.amend(board.path, run_id, lambda before: judged(before, made))
        status = after.status
    path = None if board is None else str(board.path)
    return Report(run_id=run_id, verification=made, status=status, board=path)


def find(name: str, root: DataRoot, boards: Sequence[Board]) -> str:
    """The run of that name (its id, a beginning of it, "last"), or of the entry with that id."""
    if len(name) >= MIN_ID and all(char in "0123456789abcdef" for char in name):
        found = {
            entry.result.run_id
            for board in boards
            for entry in board.entries
            if entry.entry_id.startswith(name)
        }
        if len(found) == 1:
            return found.pop()
    try:
        return runs.find(root, name).run_id
    except RunError:
        if any(board.of_run(name) for board in boards):
            return name
        raise


def judged(before: Entry, made: Verification) -> Entry:
    """The record of an entry after a verification; results of other rungs are kept."""
    merged = merge(before.verification, made)
    status, reason = judge(before, merged)
    changes: tuple[StatusChange, ...] = ()
    if status != before.status:
        changes = (StatusChange(status=status, utc=made.utc or "", reason=reason),)
    return replace(
        before,
        status=status,
        status_history=(*before.status_history, *changes),
        verification=merged,
    )


def judge(entry: Entry, verification: Verification) -> tuple[Status, str]:
    """(status, why) of an entry with these results; higher ones are given by repeats."""
    verdicts = {check.id: check.verdict for check in verification.checks}
    failed = sorted(name for name, verdict in verdicts.items() if verdict == "fail")
    if entry.status == "withdrawn":
        return entry.status, ""
    if failed:
        return "disputed", f"failed: {', '.join(failed)}"
    if entry.status not in ("provisional", "disputed"):
        return entry.status, ""
    if any(verdicts.get(name) != "pass" for name in NEEDED):
        return "provisional", "not verified up to V3"
    if not rules.is_measured(entry.result.task):
        return "provisional", "nobody has measured the data of its task"
    return "verified", f"{len(verdicts)} checks, none failed"


def merge(before: Verification | None, made: Verification) -> Verification:
    """The newer result of every check, and the newer value of every number."""
    before = Verification() if before is None else before
    checks = {check.id: check for check in before.checks} | {c.id: c for c in made.checks}
    known = {
        name: getattr(before, name) if getattr(made, name) is None else getattr(made, name)
        for name in _NUMBERS
    }
    return replace(made, checks=tuple(checks[name] for name in sorted(checks)), **known)


def look_closer(folder: RunFolder, *, level: int, steps: int) -> tuple[list[Check], dict[str, Any]]:
    """(checks, numbers) of V2 and above, from a process of `nmoe.verify`."""
    plan = read_plan(folder.plan)
    task = rules.task(plan.data.task)
    overlap = DEFAULT_OVERLAP if task is None else task.max_overlap
    done = launch.call(
        *(folder, "nmoe.verify", "--run", str(folder.root), "--level", str(level)),
        *("--steps", str(steps), "--max-overlap", str(overlap)),
    )
    try:
        told: Any = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None
        numbers = {name: told[name] for name in _NUMBERS} if told else {}
        checks = [build(Check, raw, where="check") for raw in told["checks"]] if told else []
    except (ValueError, LookupError, TypeError, ConfigError) as error:
        told, checks, numbers = None, [], {}
        done.stderr += f"\nits answer cannot be read: {error}"
    if told is None:
        words = [line for line in done.stderr.splitlines() if line.strip()] or ["nothing was said"]
        verdict: Verdict = "skip" if done.returncode == NO_GPU_EXIT else "fail"
        checks = [Check(id="V2.process", verdict=verdict, reason=words[-1].strip())]
    return checks, numbers


def machine() -> str:
    """The machine that verifies, by the name of its GPU or CPU."""
    found = hardware.detect().hardware
    return found.gpu or found.cpu or platform.machine()


def _entry_of(run_id: str, boards: Iterable[Board]) -> tuple[Board | None, Entry | None]:
    for board in boards:
        entry = board.of_run(run_id)
        if entry is not None:
            return board, entry
    return None, None


def _board_check(board: Board) -> Check:
    try:
        problems = leaderboard.verify(board)
    except BoardError as error:
        problems = (str(error),)
    reason = "; ".join(problems[:3]) or f"{len(board.lines)} records, the chain is whole"
    return Check(id="V0.board", verdict="fail" if problems else "pass", reason=reason)
