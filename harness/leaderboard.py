"""The scoreboard: which runs may be ranked together, in what order, and a file that loses nothing.

A board is `{"format": 1, "entries": [...], "published": [...]}`. Entries are ranked within their
cohort only; published rows are results of others, shown apart. The only writer of the file.
"""

import fcntl
import hashlib
import json
import math
import stat
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, cast

from harness import score
from harness.errors import BoardError, MachineError
from harness.score import Cohort, Result, Score
from nmoe.config import ConfigError, build
from nmoe.events import ResultEvent
from nmoe.paths import BOARD_NAME, REPO_ROOT, DataRoot, RunFolder, write_atomic

FORMAT = 1
PUBLISHED_MARK = "published, not verified here"
REPO_BOARD = REPO_ROOT / BOARD_NAME
# Fields of a result that entries may lack; absent, they do not count for the id of an entry.
_ADDED_FIELDS = (
    *("core_low", "core_high", "core_without_boolq", "core_cropped", "core_empty_regions"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A run that reached its target; `entry_id` is the sha256 of everything else in it."""

    entry_id: str
    status: str
    cohort: Cohort
    result: Result


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A result that somebody else published; `status` says that nobody verified it here."""

    status: str
    source: str
    task: str
    preset: str
    machine: str
    devices: int
    dtype: str
    target: float
    train_s: float
    step: int
    tokens: int
    loss: float
    core: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """The content of one scoreboard file."""

    path: Path
    entries: tuple[Entry, ...] = ()
    published: tuple[Published, ...] = ()


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
            rank = _rank(board, entry)
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
    """The entry of a score, with its id."""
    entry = Entry(entry_id="", status="provisional", cohort=scored.cohort, result=scored.result)
    # Through JSON and back, so that the id is that of the values a reader of the file will see.
    entry = build(Entry, json.loads(json.dumps(_strict(asdict(entry)))), where="entry")
    return replace(entry, entry_id=compute_id(entry))


def compute_id(entry: Entry) -> str:
    """sha256 of the entry's canonical JSON without its id."""
    content = asdict(entry)
    del content["entry_id"]
    for name in _ADDED_FIELDS:
        if content["result"][name] is None:
            del content["result"][name]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def boards(root: DataRoot) -> tuple[Board, Board]:
    """The repository's board and the one of the data root; BoardError when either is broken."""
    return load(REPO_BOARD), load(root.board)


def load(path: Path) -> Board:
    """Read and check a board; a missing file is an empty one, anything else wrong a BoardError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Board(path=path)
    except (OSError, UnicodeDecodeError) as error:
        _refuse(path, f"cannot be read: {error}")
    try:
        raw: object = json.loads(text, parse_constant=_no_constant, parse_float=_finite_float)
    except (ValueError, RecursionError) as error:
        _refuse(path, f"is not JSON: {error}")
    content = cast("dict[str, Any]", raw) if isinstance(raw, dict) else {}
    if set(content) != {"format", "entries", "published"}:
        _refuse(path, "holds something else than format, entries and published")
    if content["format"] != FORMAT:
        _refuse(path, f"has format {content['format']!r}, this version reads {FORMAT}")
    return Board(
        path=path,
        entries=_rows(Entry, content["entries"], path, "entries"),
        published=_rows(Published, content["published"], path, "published"),
    )


def append(path: Path, entry: Entry) -> tuple[Entry, Board]:
    """Add an entry to the board at `path`, once a run; returns what stands there and the board.

    Readers see the old file or the new one, writers wait for each other. BoardError leaves the
    file as it was, byte for byte.
    """
    path = path.resolve()
    with _locked(path):
        board = load(path)
        for known in board.entries:
            if known.result.run_id == entry.result.run_id:
                return known, board
        if path.exists() and not path.stat().st_mode & stat.S_IWUSR:
            raise BoardError(f"{path} is read-only", f"Run: chmod u+w {path}")
        board = replace(board, entries=(*board.entries, entry))
        _write(board)
    return entry, board


def standings(board: Board) -> tuple[Standing, ...]:
    """The entries of a board by cohort: fastest first, then fewer steps."""
    cohorts: dict[Cohort, list[Entry]] = {}
    for entry in board.entries:
        cohorts.setdefault(entry.cohort, []).append(entry)
    return tuple(
        Standing(cohort=cohort, rows=_ranked(entries))
        for cohort, entries in sorted(cohorts.items(), key=lambda item: item[0].label)
    )


def verify(board: Board) -> tuple[str, ...]:
    """What is wrong with the entries of a board: changed after the fact, doubled, impossible."""
    problems: list[str] = []
    seen: set[str] = set()
    for entry in board.entries:
        result, cohort, name = entry.result, entry.cohort, entry.result.run_id
        if entry.entry_id != compute_id(entry):
            problems.append(f"{name}: the entry was changed after it was made")
        if name in seen:
            problems.append(f"{name}: the run is entered twice")
        seen.add(name)
        if not result.reached or result.loss is None or result.loss > result.target:
            problems.append(f"{name}: the run did not reach its target")
        if (cohort.task, cohort.target, cohort.dtype) != (
            result.task,
            result.target,
            result.dtype,
        ):
            problems.append(f"{name}: the entry stands in a cohort that is not its own")
    return tuple(problems)


def _ranked(entries: list[Entry]) -> tuple[Row, ...]:
    def key(entry: Entry) -> tuple[float, int]:
        return entry.result.train_s, entry.result.step

    ordered = sorted(entries, key=lambda entry: (*key(entry), entry.result.finished))
    rows: list[Row] = []
    for place, entry in enumerate(ordered, start=1):
        is_tie = bool(rows) and key(rows[-1].entry) == key(entry)
        rows.append(Row(rank=rows[-1].rank if is_tie else place, entry=entry))
    return tuple(rows)


def _rank(board: Board, entry: Entry) -> int | None:
    for standing in standings(board):
        for row in standing.rows:
            if row.entry.entry_id == entry.entry_id:
                return row.rank
    return None


def _why_not_entered(scored: Score) -> str:
    result = scored.result
    if not result.reached:
        return f"the run did not reach its target: {result.status}"
    if result.core is None:
        return "the run has no CORE score"
    return "; ".join(scored.doubts)


def _rows(cls: type[Any], raw: object, path: Path, name: str) -> tuple[Any, ...]:
    if not isinstance(raw, list):
        _refuse(path, f"has {name} that are no list")
    rows = cast("list[object]", raw)
    try:
        return tuple(build(cls, row, where=f"{name}[{i}]") for i, row in enumerate(rows))
    except (ConfigError, OverflowError) as error:
        _refuse(path, str(error))


def _write(board: Board) -> None:
    content = {
        "format": FORMAT,
        "entries": [asdict(entry) for entry in board.entries],
        "published": [asdict(row) for row in board.published],
    }
    path = board.path
    try:
        # Whoever left a temporary file here is gone: this process holds the lock.
        for stale in path.parent.glob(f".{path.name}.*.tmp"):
            stale.unlink(missing_ok=True)
        write_atomic(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise BoardError(
            f"cannot write {path}: {error.strerror}",
            "The board is as it was. Free space or fix the permissions there.",
        ) from None


@contextmanager
def _locked(path: Path) -> Generator[None]:
    lock = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("a")
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        raise BoardError(
            f"cannot lock {path}: {error.strerror}", f"Make {path.parent} writable."
        ) from None
    with file:
        yield


def _refuse(path: Path, problem: str) -> NoReturn:
    raise BoardError(
        f"{path} {problem}",
        "It was left as it is: restore it from version control or move it away.",
    )


def _strict(value: Any) -> Any:
    """The value with None for every number that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in cast("dict[str, Any]", value).items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number of JSON")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large")
    return value
