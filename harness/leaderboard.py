"""The scoreboard: which runs may be ranked together, in what order, and whether to believe it.

Entries are ranked within their cohort only; published rows are results of others, shown apart.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from harness import score
from harness.board_file import Board, Published, append, changed_facts, load
from harness.entry import (
    SCHEMA_VERSION,
    Achievement,
    Cohort,
    Entry,
    Status,
    StatusChange,
    has_own_hash,
    link,
    sealed,
)
from harness.errors import BoardError, MachineError
from harness.score import Score
from nmoe.config import ConfigError, build
from nmoe.events import ResultEvent
from nmoe.paths import REPO_BOARD, DataRoot, RunFolder, write_atomic

__all__ = [
    "PUBLISHED_MARK",
    "REPO_BOARD",
    "Board",
    "Entry",
    "Published",
    "Row",
    "Standing",
    "append",
    "boards",
    "finish",
    "load",
    "make_entry",
    "standings",
    "verify",
    "verify_chain",
]

PUBLISHED_MARK = "published, not verified here"
REPLICATED_RUNS = 3
CERTIFIED_RUNS = 10
# Above the first rung, an entry rests on a verification.
VERIFIED: tuple[Status, ...] = ("verified", "replicated", "certified")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """An entry and its place in its cohort; equal times and steps share a place."""

    rank: int
    entry: Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One cohort, best first."""

    cohort: Cohort
    rows: tuple[Row, ...]


def finish(folder: RunFolder, root: DataRoot, *, repo_board: Path = REPO_BOARD) -> ResultEvent:
    """Score a run that is over, enter it where it belongs and write its result.json.

    A run that missed, has no CORE score or contradicts itself gets result.json only, and `reason`
    in it says why. A board that cannot be written is such a reason too: the score is not lost.
    """
    scored = score.compute(folder, root)
    result, reason = scored.result, _why_not_entered(scored)
    entry_id = rank = board_path = None
    if not reason:
        path = repo_board if scored.is_official else root.board
        try:
            entry, board = append(path, make_entry(scored))
        except (BoardError, ConfigError) as error:
            reason = str(error)
        else:
            entry_id, board_path = entry.entry_id, str(board.path)
            rank = rank_of(board, entry)
    event = ResultEvent(
        reached=result.reached,
        status=result.status,  # pyright: ignore[reportArgumentType]
        target=result.target,
        loss=result.loss,
        step=result.step,
        tokens=result.tokens,
        train_s=result.train_s,
        wall_s=result.wall_s,
        core=result.core,
        rank=rank,
        entry_id=entry_id,
        board=board_path,
        reason=reason,
    )
    content = asdict(result) | {
        "entry_id": entry_id,
        "rank": rank,
        "board": board_path,
        "reason": reason,
    }
    try:
        write_atomic(folder.result, json.dumps(_strict(content), indent=1) + "\n")
    except OSError as error:
        raise MachineError(
            f"cannot write {folder.result}: {error.strerror}",
            f"Free space there; nothing of the run is lost, see {folder.train}.",
        ) from None
    return event


def make_entry(scored: Score) -> Entry:
    """The entry of a score, as the first of a chain."""
    result, evidence = scored.result, scored.evidence
    same = {
        name: getattr(result, name)
        for name in (
            *("run_id", "preset", "task", "target", "reached", "loss", "step", "tokens"),
            *("train_s", "wall_s", "compile_s", "eval_s", "checkpoint_s", "tok_s"),
            *("peak_memory_bytes", "core", "seed", "dtype", "dtype_reason", "deterministic"),
            *("val_tokens", "attempts", "created", "finished"),
        )
    }
    reason = "; ".join(scored.breaches) or "entered by its run"
    entry = Entry(
        schema_version=SCHEMA_VERSION,
        entry_id="",
        prev_entry_id=None,
        created_utc=result.finished,
        status="provisional",
        status_history=(StatusChange(status="provisional", utc=result.finished, reason=reason),),
        cohort=scored.cohort,
        result=Achievement(**same, mfu=evidence.mfu, energy_j=evidence.energy_j),
        selection=evidence.selection,
        replicates=None,
        core=evidence.core,
        model=evidence.model,
        code=evidence.code,
        data=evidence.data,
        env=evidence.env,
        telemetry=evidence.telemetry,
        timing=evidence.timing,
        artifacts=evidence.artifacts,
        verification=None,
    )
    # Through JSON and back, so that the id is that of the values a reader of the file will see.
    entry = build(Entry, json.loads(json.dumps(_strict(asdict(entry)))), where="entry")
    return sealed(entry, prev=None)


def boards(root: DataRoot) -> tuple[Board, Board]:
    """The repository's board and the one of the data root; BoardError when either is broken."""
    return load(REPO_BOARD), load(root.board)


def standings(board: Board) -> tuple[Standing, ...]:
    """The runs of a board by cohort: fastest first, then fewer steps; a set of repeats is one row.

    Withdrawn entries have no place.
    """
    cohorts: dict[Cohort, list[Entry]] = {}
    for entry in _representatives(board):
        cohorts.setdefault(entry.cohort, []).append(entry)
    return tuple(
        Standing(cohort=cohort, rows=_ranked(entries))
        for cohort, entries in sorted(cohorts.items(), key=lambda item: item[0].label)
    )


def rank_of(board: Board, entry: Entry) -> int | None:
    """The place of an entry in its cohort; None for one that another of its repeats stands for."""
    for standing in standings(board):
        for row in standing.rows:
            if row.entry.entry_id == entry.entry_id:
                return row.rank
    return None


def time_of(entry: Entry) -> float:
    """Seconds by which an entry is ranked: the mean of its repeats, else its own."""
    repeats = entry.replicates
    return repeats.mean_train_s if repeats is not None else entry.result.train_s


def removed(board: Board, root: DataRoot) -> tuple[str, ...]:
    """Runs of the data root whose result.json names this board, which has no entry of them."""
    known = {entry.result.run_id for entry in board.entries}
    problems: list[str] = []
    for path in sorted(root.runs.glob("*/result.json")):
        try:
            told: Any = json.loads(path.read_bytes())
            board_path, entry_id = told["board"], told["entry_id"]
        except (OSError, ValueError, LookupError, TypeError):
            continue
        is_named = isinstance(board_path, str) and Path(board_path) == board.path.resolve()
        if is_named and entry_id and path.parent.name not in known:
            problems.append(f"{path.parent.name}: the run was entered here and its entry is gone")
    return tuple(problems)


def verify_chain(board: Board) -> tuple[str, ...]:
    """Where entries were edited, removed, added or moved: from hashes and links alone."""
    problems: list[str] = []
    prev: str | None = None
    for number, line in enumerate(board.lines, start=1):
        entry_id, before = link(line)
        if not has_own_hash(line):
            problems.append(f"entry {number}: it was changed after it was made")
        if before != prev:
            problems.append(
                f"entry {number}: the one before it was removed, added, changed or moved"
            )
        prev = entry_id
    if board.head != prev:
        problems.append(f"the last entry is {prev}, the file says it was {board.head}")
    return tuple(problems)


def verify(board: Board) -> tuple[str, ...]:
    """What is wrong with a board: its chain, and entries that are doubled or cannot be true."""
    problems, last = list(verify_chain(board)), dict[str, Entry]()
    for entry in board.entries:
        name = entry.result.run_id
        if name in last:
            problems += [f"{name}: {each}" for each in _wrong_after(last[name], entry)]
        last[name] = entry
        problems += [f"{name}: {each}" for each in _impossible(entry)]
    return tuple(problems)


def _wrong_after(before: Entry, after: Entry) -> Iterator[str]:
    """What is wrong with a later record of a run."""
    different = changed_facts(before, after)
    if different:
        yield f"a later record changes its {', '.join(different)}"
    since = len(before.status_history)
    if after.status_history[:since] != before.status_history:
        yield "a later record changes the history of its status"
    if (after.status_history, after.verification) == (before.status_history, before.verification):
        yield "the run is entered twice"


def _impossible(entry: Entry) -> Iterator[str]:
    """What cannot be true of an entry, whatever its id."""
    result, cohort, repeats = entry.result, entry.cohort, entry.replicates
    if not result.reached or result.loss is None or result.loss > result.target:
        yield "the run did not reach its target"
    if (cohort.task, cohort.target, cohort.dtype) != (result.task, result.target, result.dtype):
        yield "the entry stands in a cohort that is not its own"
    if not entry.status_history or entry.status_history[-1].status != entry.status:
        yield "its status is not the last of its history"
    checks = entry.verification.checks if entry.verification else ()
    if entry.status in VERIFIED and (not checks or any(c.verdict == "fail" for c in checks)):
        yield f"it is called {entry.status} without a verification that passed"
    needed = {"replicated": REPLICATED_RUNS, "certified": CERTIFIED_RUNS}.get(entry.status, 0)
    may_fail = 1 if needed == CERTIFIED_RUNS else 0
    if needed and (
        repeats is None or repeats.n < needed or repeats.failed > may_fail or repeats.finished < 2
    ):
        yield f"it is called {entry.status} with fewer than {needed} repeats that finished"
    if repeats is not None:
        counts = len(repeats.run_ids), len(set(repeats.seeds)), repeats.finished + repeats.failed
        if counts != (repeats.n,) * 3 or len(repeats.losses) != repeats.finished:
            yield "its repeats do not add up, or have seeds in common"
        if result.run_id not in repeats.run_ids:
            yield "it is none of its own repeats"


def _representatives(board: Board) -> list[Entry]:
    """One entry for each run that is alone, and one for each set of repeats: of the median time."""
    chosen, series = list[Entry](), dict[str, list[Entry]]()
    for entry in board.current:
        if entry.status == "withdrawn":
            continue
        if entry.selection.series is None:
            chosen.append(entry)
        else:
            series.setdefault(entry.selection.series, []).append(entry)
    return chosen + [median_of(entries) for entries in series.values()]


def median_of(entries: list[Entry]) -> Entry:
    """The entry of the median time, the faster of the middle two; one with repeats goes first."""
    judged = [entry for entry in entries if entry.replicates is not None] or entries
    ordered = sorted(judged, key=lambda entry: (entry.result.train_s, entry.result.run_id))
    return ordered[(len(ordered) - 1) // 2]


def _ranked(entries: list[Entry]) -> tuple[Row, ...]:
    def key(entry: Entry) -> tuple[float, int]:
        return time_of(entry), entry.result.step

    ordered = sorted(entries, key=lambda entry: (*key(entry), entry.result.finished))
    rows: list[Row] = []
    for place, entry in enumerate(ordered, start=1):
        is_tie = bool(rows) and key(rows[-1].entry) == key(entry)
        rows.append(Row(rank=rows[-1].rank if is_tie else place, entry=entry))
    return tuple(rows)


def _why_not_entered(scored: Score) -> str:
    result = scored.result
    if not result.reached:
        return f"the run did not reach its target: {result.status}"
    if result.core is None:
        return "the run has no CORE score"
    return "; ".join(scored.doubts)


def _strict(value: Any) -> Any:
    """The value with None for every number that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in cast("dict[str, Any]", value).items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
