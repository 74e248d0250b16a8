"""The file of a scoreboard: a chain of entries that only grows, and loses nothing.

    {"format":2,"entries":[
    {"entry_id":"...", an entry a line, oldest first},
    ...
    ],"published":[
    {a result of others a line}
    ],"head":"the id of the last entry"}

A file of format 1 is read, too, and written in format 2 by the next entry.
"""

import fcntl
import json
import math
import stat
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

from harness import migrate
from harness.entry import (
    CHANGEABLE,
    SCHEMA_VERSION,
    Entry,
    canonical,
    has_own_hash,
    sealed,
    to_line,
)
from harness.errors import BoardError
from nmoe.config import ConfigError, build
from nmoe.paths import write_atomic

FORMAT = SCHEMA_VERSION
_OPEN = '{"format":2,"entries":['
_MIDDLE = '],"published":['
_CLOSE = '],"head":'

T = TypeVar("T")


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


@dataclass(frozen=True, kw_only=True)
class Board:
    """The content of one scoreboard file; `lines` are its entries as they stand there."""

    path: Path
    lines: tuple[str, ...] = ()
    published: tuple[Published, ...] = ()
    head: str | None = None

    @staticmethod
    def of(path: Path, entries: Sequence[Entry], published: tuple[Published, ...] = ()) -> "Board":
        """The board of these entries as they are, ids and all; its head is the last one."""
        head = entries[-1].entry_id if entries else None
        lines = tuple(map(to_line, entries))
        return Board(path=path, lines=lines, published=published, head=head)

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """The whole chain, oldest first, with every record of a run; BoardError for a forged one.

        Read when it is asked for, because a line that hashes to its id was written from an entry.
        """
        return _rows(self.path, "entries", self.lines, lambda line, at: _entry(_loads(line), at))

    @property
    def current(self) -> tuple[Entry, ...]:
        """The last record of each run, in the order in which the runs were entered."""
        return tuple({entry.result.run_id: entry for entry in self.entries}.values())

    def of_run(self, run_id: str) -> Entry | None:
        """The last record of a run."""
        mark = f'"run_id":{json.dumps(run_id, ensure_ascii=False)}'
        for line in reversed(self.lines):
            if mark in line:
                entry = _entry(_loads(line), "entry")
                if entry.result.run_id == run_id:
                    return entry
        return None


def load(path: Path) -> Board:
    """Read and check a board; a missing file is an empty one, anything else wrong a BoardError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Board(path=path)
    except (OSError, UnicodeDecodeError) as error:
        _refuse(path, f"cannot be read: {error}")
    try:
        content, lines = _parse(text)
    except (ValueError, RecursionError) as error:
        _refuse(path, f"is not JSON: {error}")
    if content.get("format") == migrate.FORMAT and set(content) == {
        *("format", "entries", "published")
    }:
        return _load_old(path, content)
    if set(content) != {"format", "entries", "published", "head"}:
        _refuse(path, "holds something else than format, entries, published and head")
    if content["format"] != FORMAT:
        _refuse(path, f"has format {content['format']!r}, this version reads {FORMAT}")
    entries = _rows(path, "entries", content["entries"], _entry)
    lines, head = lines or tuple(map(to_line, entries)), content["head"]
    if not isinstance(head, str if lines else type(None)):
        _refuse(path, f"has the head {head!r} behind {len(lines)} entries")
    published = _published(path, content["published"])
    return Board(path=path, lines=lines, published=published, head=head)


def append(path: Path, entry: Entry) -> tuple[Entry, Board]:
    """Add an entry to the board at `path`, once a run; returns what stands there and the board.

    Readers see the old file or the new one, writers wait for each other. BoardError leaves the
    file as it was, byte for byte.
    """
    with _opened(path) as board:
        known = board.of_run(entry.result.run_id)
        return (known, board) if known else _added(board, entry)


def amend(path: Path, run_id: str, change: Callable[[Entry], Entry]) -> tuple[Entry, Board]:
    """Add a later record of a run to the board: what `change` makes of the last one.

    BoardError when the board has no such run, or when more than CHANGEABLE was changed.
    """
    with _opened(path) as board:
        known = board.of_run(run_id)
        if known is None:
            raise BoardError(f"{path} has no entry of run {run_id}", "Run: n leaderboard")
        changed = change(known)
        different = changed_facts(known, changed)
        if different:
            raise BoardError(
                f"a later record of {run_id} may not change its {', '.join(different)}",
                "Only status, replicates and verification may change.",
            )
        return (known, board) if changed == known else _added(board, changed)


def changed_facts(before: Entry, after: Entry) -> list[str]:
    """Sections that differ between two records of a run although they may not."""
    free = ("entry_id", "prev_entry_id", *CHANGEABLE)
    return [
        item.name
        for item in fields(Entry)
        if item.name not in free and getattr(before, item.name) != getattr(after, item.name)
    ]


def write(board: Board) -> None:
    """Replace the file by this board; the caller holds its lock or is its only user."""
    rows = [canonical(asdict(row)) for row in board.published]
    text = "\n".join(
        (
            *(_OPEN, *_commas(board.lines), _MIDDLE, *_commas(rows)),
            f"{_CLOSE}{json.dumps(board.head)}}}",
            "",
        )
    )
    try:
        # Whoever left a temporary file here is gone: this process holds the lock.
        for stale in board.path.parent.glob(f".{board.path.name}.*.tmp"):
            stale.unlink(missing_ok=True)
        write_atomic(board.path, text)
    except OSError as error:
        raise BoardError(
            f"cannot write {board.path}: {error.strerror}",
            "The board is as it was. Free space or fix the permissions there.",
        ) from None


def _added(board: Board, entry: Entry) -> tuple[Entry, Board]:
    if board.path.exists() and not board.path.stat().st_mode & stat.S_IWUSR:
        raise BoardError(f"{board.path} is read-only", f"Run: chmod u+w {board.path}")
    entry = sealed(entry, prev=board.head)
    lines = (*board.lines, to_line(entry))
    board = Board(path=board.path, lines=lines, published=board.published, head=entry.entry_id)
    write(board)
    return entry, board


@contextmanager
def _opened(path: Path) -> Generator[Board]:
    """The board as it is, while this process alone may write it."""
    path = path.resolve()
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
        yield load(path)


def _parse(text: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The content of the file, and its entries as lines where it has the layout of `write`.

    With lines, the content holds only those entries that do not hash to their ids.
    """
    lines = text.split("\n")
    try:
        end = lines.index(_MIDDLE) if lines[0] == _OPEN else 0
    except ValueError:
        end = 0
    if not end:
        raw = _loads(text)
        return (cast("dict[str, Any]", raw) if isinstance(raw, dict) else {}), ()
    entries = [line.removesuffix(",") for line in lines[1:end]]
    if _commas(entries) != lines[1:end]:
        raise ValueError("the lines of its entries are not joined by commas")
    # closes what _MIDDLE closes in the file
    rest = _loads("\n".join(('{"entries":[', *lines[end:])))
    edited = [_loads(line) for line in entries if not has_own_hash(line)]
    return {"format": FORMAT, **rest, "entries": edited}, tuple(entries)


def _commas(lines: Sequence[str]) -> list[str]:
    return [*(f"{line}," for line in lines[:-1]), *lines[-1:]]


def _load_old(path: Path, content: dict[str, Any]) -> Board:
    """A board of format 1, as a chain of format 2 that is not written yet."""
    chain = list[Entry]()
    for entry in _rows(path, "entries", content["entries"], migrate.migrated):
        chain.append(sealed(entry, prev=chain[-1].entry_id if chain else None))
    return Board.of(path, chain, _published(path, content["published"]))


def _entry(raw: object, where: str) -> Entry:
    entry = build(Entry, raw, where=where)
    if entry.schema_version != SCHEMA_VERSION:
        raise ConfigError(
            f"{where}: schema_version: got {entry.schema_version}, expected {SCHEMA_VERSION}"
        )
    return entry


def _published(path: Path, raw: object) -> tuple[Published, ...]:
    return _rows(path, "published", raw, lambda row, at: build(Published, row, where=at))


def _rows(path: Path, name: str, raw: object, make: Callable[[Any, str], T]) -> tuple[T, ...]:
    if not isinstance(raw, list | tuple):
        _refuse(path, f"has {name} that are no list")
    rows = cast("Sequence[object]", raw)
    try:
        return tuple(make(row, f"{name}[{i}]") for i, row in enumerate(rows))
    except (ConfigError, OverflowError, ValueError) as error:
        _refuse(path, str(error))


def _refuse(path: Path, problem: str) -> NoReturn:
    raise BoardError(
        f"{path} {problem}",
        "It was left as it is: restore it from version control or move it away.",
    )


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number of JSON")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large")
    return value


_loads = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite_float).decode
