"""A run as files for others: all that is known about it, gathered once, and where it is written."""

import json
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness import curves, leaderboard, publish, replay, runs, score
from harness.entry import Cohort, Entry
from harness.errors import BoardError, MachineError, RunError, UsageError
from harness.evidence import Evidence
from harness.leaderboard import REPO_BOARD, Board
from harness.run_state import RunState
from harness.sheet import Sheet, Value
from harness.status import RunStatus
from nmoe.event_log import read_events
from nmoe.events import GpuEvent
from nmoe.paths import DataRoot, RunFolder, write_atomic

FORMAT = 1
STDOUT = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A run's entry on a board; `rank` of `count`, None when another of its repeats stands there.

    `count` are the rows of its cohort.
    """

    board: Path
    entry: Entry
    rank: int | None
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """All that an export tells of a run, as of `now` (unix seconds).

    `began` is when training began, 0 before that. `evidence` and
    `cohort` are None for a run whose plan cannot be read; `place` is None for one that is on no
    board, and `board_problem` says when that could not be found out.
    """

    folder: RunFolder
    state: RunState
    status: RunStatus
    is_alive: bool
    now: float
    began: float = 0.0
    evidence: Evidence | None = None
    cohort: Cohort | None = None
    train_s: float | None = None
    reached: bool = False
    place: Place | None = None
    board_problem: str = ""


def gather(name: str, root: DataRoot, *, repo_board: Path = REPO_BOARD) -> Account:
    """The account of a run by its id, a beginning of it, "last", or the path of its folder.

    RunError when there is none, or when its files are of another version.
    """
    folder = replay.find(root, name)
    is_alive = runs.is_alive(folder)
    state, span = score.read(folder)
    _refuse_nothing(folder, state)
    now = time.time()
    known: dict[str, Any] = {}
    if state.plan is not None:
        scored = score.compute(folder, root, history=(state, span))
        known = {
            "evidence": scored.evidence,
            "cohort": scored.cohort,
            "train_s": scored.result.train_s,
            "reached": scored.result.reached,
        }
    place, problem = _find_place(folder.run_id, (repo_board, root.board))
    return Account(
        folder=folder,
        state=state,
        status=runs.status(state, is_alive, now),
        is_alive=is_alive,
        now=now,
        began=span.began,
        place=place,
        board_problem=problem,
        **known,
    )


def read_state(folder: RunFolder) -> RunState:
    """The state alone, for exports that tell no more; RunError as in `gather`."""
    state = runs.load(folder)
    _refuse_nothing(folder, state)
    return state


def power(account: Account) -> tuple[tuple[float, float], ...]:
    """(seconds since training began, W of all GPUs), a sample each in which all of them told it."""
    return tuple(_power(account.folder, account.began))


def to_json(account: Account) -> str:
    """State, curves and entry as strict JSON; `nf` names what of a row is not finite."""
    table = curves.sheet(account.state)
    place = account.place
    content = {
        "format": FORMAT,
        "run": publish.facts(
            account.state,
            status=account.status,
            is_alive=account.is_alive,
            now=account.now,
        ),
        "series": [_strict_row(table, row) for row in table.rows],
        "evidence": publish.plain(account.evidence),
        "cohort": publish.plain(account.cohort),
        "entry": None if place is None else publish.plain(asdict(place.entry)),
        "place": None
        if place is None
        else {"board": str(place.board), "rank": place.rank, "count": place.count},
    }
    return json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def destination(file: str, folder: RunFolder, suffix: str, *, force: bool) -> Path | None:
    """Where an export goes: None is stdout, a folder gets a file that is named after the run.

    UsageError for a file that exists already, unless forced; for what is no file and for the
    files of a run, whatever was asked.
    """
    if file == STDOUT:
        return None
    path = Path(file).expanduser().absolute()
    if path.is_dir():
        path = path / f"{folder.run_id}.{suffix}"
    path = path.resolve()
    if path.is_relative_to(folder.root.resolve()):
        raise UsageError(
            f"{path} is in the run folder, where nobody but the run writes", "Name another file."
        )
    if not path.parent.is_dir():
        raise UsageError(f"no folder {path.parent}", f"Run: mkdir -p {path.parent}")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is no regular file", "Use - for stdout, or name a file.")
    if path.exists() and not force:
        raise UsageError(f"{path} exists", "Name another file, or add --force to replace it.")
    return path


def write(path: Path, text: str) -> None:
    """Write a whole file or nothing; MachineError when the disk refuses."""
    try:
        write_atomic(path, text)
    except OSError as error:
        raise MachineError(
            f"cannot write {path}: {error.strerror}", "Free space or fix the permissions there."
        ) from None


def _refuse_nothing(folder: RunFolder, state: RunState) -> None:
    if state.plan is None and not state.events:
        raise RunError(f"{folder.root} holds neither a plan nor events", "Run: n runs")


def _find_place(run_id: str, paths: Iterable[Path]) -> tuple[Place | None, str]:
    """(place, why it is not known) of a run on the first board that has an entry of it."""
    problem = ""
    for path in paths:
        try:
            board = leaderboard.load(path)
            entry = board.of_run(run_id)
            if entry is not None:
                return _place(board, entry), ""
        except BoardError as error:
            problem = str(error)
    return None, problem


def _place(board: Board, entry: Entry) -> Place:
    standing = next(
        (each for each in leaderboard.standings(board) if each.cohort == entry.cohort), None
    )
    return Place(
        board=board.path,
        entry=entry,
        rank=leaderboard.rank_of(board, entry),
        count=0 if standing is None else len(standing.rows),
    )


def _power(folder: RunFolder, began: float) -> Iterator[tuple[float, float]]:
    if not began:
        return
    tick: dict[int, float | None] = {}
    at = 0.0
    for record in read_events(folder.gpus):
        event = record.event
        if not isinstance(event, GpuEvent):
            continue
        if event.index in tick:
            yield from _told(at - began, tick)
            tick = {}
        tick[event.index], at = event.power_w, record.time
    yield from _told(at - began, tick)


def _told(seconds: float, tick: dict[int, float | None]) -> Iterator[tuple[float, float]]:
    watts = [value for value in tick.values() if value is not None]
    if seconds >= 0 and watts and len(watts) == len(tick):
        yield seconds, sum(watts)


def _strict_row(table: Sheet, row: Iterable[Value]) -> dict[str, Any]:
    named = dict(zip(table.columns, row, strict=True))
    lost = [
        name
        for name, value in named.items()
        if isinstance(value, float) and not math.isfinite(value)
    ]
    return named | (dict.fromkeys(lost) | {"nf": lost} if lost else {})
