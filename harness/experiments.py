"""experiments.db: an SQLite index of the run folders, for those who would rather query than walk.

The folders are the truth: a database that is lost or broken is made again from them. Every
function that writes returns a sentence when it had to do that, else None.
"""

import fcntl
import json
import os
import sqlite3
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast

from harness import runs
from harness.errors import MachineError
from nmoe.config import ConfigError, Plan, read_plan
from nmoe.events import ResultEvent
from nmoe.paths import DataRoot, RunFolder

_SCHEMA = """
CREATE TABLE IF NOT EXISTS experiments (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    created_at TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS runs (
    id TEXT PRIMARY KEY,
    experiment_id INTEGER NOT NULL REFERENCES experiments (id),
    config_json TEXT NOT NULL,
    git_hash TEXT,
    git_dirty INTEGER,
    started_at TEXT NOT NULL,
    ended_at TEXT,
    status TEXT NOT NULL,
    results_json TEXT
);
"""
_BUSY_S = 10.0

# A file that is no database, a damaged one, and one whose tables are not these.
_BROKEN = frozenset({sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR})

Write = Callable[[sqlite3.Connection], None]


def record_start(folder: RunFolder, plan: Plan) -> str | None:
    """Enter a run that is about to start, or that starts again, under the name of its preset."""
    return _apply(_root(folder), lambda connection: _insert(connection, plan, status="running"))


def record_end(folder: RunFolder, result: ResultEvent) -> str | None:
    """Enter how a run ended, with the content of its result.json."""
    status = result.status
    content = _read_result(folder)

    def write(connection: sqlite3.Connection) -> None:
        _update(connection, folder.run_id, status=status, content=content)

    return _apply(_root(folder), write)


def rebuild(root: DataRoot) -> int:
    """Make the index again from the run folders; returns the number of runs in it."""
    counts: list[int] = []
    _apply(root, lambda connection: counts.append(_fill(connection, root)))
    return counts[-1]


def _apply(root: DataRoot, write: Write) -> str | None:
    """Run `write` in a transaction; a broken database is replaced by one made from the folders."""
    with _write_lock(root):
        try:
            with _database(root.experiments) as connection:
                write(connection)
            return None
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode & 0xFF not in _BROKEN:
                raise
            problem = str(error)
        moved = _move_aside(root.experiments)
        with _database(root.experiments) as connection:
            count = _fill(connection, root)
            write(connection)
    return (
        f"{root.experiments} was broken ({problem}): moved to {moved.name} and made again"
        f" from {count} run folders"
    )


def _fill(connection: sqlite3.Connection, root: DataRoot) -> int:
    connection.execute("DELETE FROM runs")
    connection.execute("DELETE FROM experiments")
    count = 0
    for path in sorted(root.runs.glob("*/plan.json")):
        folder = RunFolder(root=path.parent)
        try:
            plan = read_plan(folder.plan)
        except ConfigError:
            continue  # the folder is still there for whoever can read it
        content = _read_result(folder)
        status = "running" if runs.is_alive(folder) else "interrupted"
        _insert(connection, plan, status=status)
        if content:
            _update(connection, plan.run_id, status=_status(content, status), content=content)
        count += 1
    return count


def _insert(connection: sqlite3.Connection, plan: Plan, *, status: str) -> None:
    connection.execute(
        "INSERT OR IGNORE INTO experiments (name, created_at) VALUES (?, ?)",
        (plan.preset, plan.created),
    )
    connection.execute(
        "INSERT INTO runs (id, experiment_id, config_json, git_hash, git_dirty, started_at, status)"
        " VALUES (?, (SELECT id FROM experiments WHERE name = ?), ?, ?, ?, ?, ?)"
        " ON CONFLICT (id) DO UPDATE SET"
        " status = excluded.status, ended_at = NULL, results_json = NULL",
        (
            plan.run_id,
            plan.preset,
            plan.to_json(),
            plan.digests.commit,
            plan.digests.is_dirty,
            plan.created,
            status,
        ),
    )


def _update(
    connection: sqlite3.Connection, run_id: str, *, status: str, content: dict[str, Any]
) -> None:
    connection.execute(
        "UPDATE runs SET status = ?, ended_at = ?, results_json = ? WHERE id = ?",
        (status, content.get("finished"), json.dumps(content), run_id),
    )


def _read_result(folder: RunFolder) -> dict[str, Any]:
    try:
        content: object = json.loads(folder.result.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return cast("dict[str, Any]", content) if isinstance(content, dict) else {}


def _status(content: dict[str, Any], otherwise: str) -> str:
    status = content.get("status")
    return status if isinstance(status, str) else otherwise


@contextmanager
def _database(path: Path) -> Generator[sqlite3.Connection]:
    """A connection whose block is one transaction; readers are never blocked (WAL)."""
    with closing(sqlite3.connect(path, timeout=_BUSY_S)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.executescript(_SCHEMA)
        with connection:
            yield connection


@contextmanager
def _write_lock(root: DataRoot) -> Generator[None]:
    """One writer at a time, so that nobody moves a database aside that another just made.

    What keeps a writer from writing (disk, permissions, a lock held too long) is a MachineError.
    """
    try:
        root.path.mkdir(parents=True, exist_ok=True)
        with root.experiments.with_name(f".{root.experiments.name}.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    except (OSError, sqlite3.DatabaseError) as error:
        raise MachineError(
            f"cannot write {root.experiments}: {error}",
            f"Free space or fix the permissions in {root.path}.",
        ) from None


def _move_aside(path: Path) -> Path:
    """Rename a database and its journals to the first free `.corrupt-<n>`."""
    number = 1
    while (moved := path.with_name(f"{path.name}.corrupt-{number}")).exists():
        number += 1
    for suffix in ("", "-wal", "-shm"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            os.replace(part, moved.with_name(moved.name + suffix))
    return moved


def _root(folder: RunFolder) -> DataRoot:
    return DataRoot(path=folder.root.parent.parent, reason="the run's folder")
