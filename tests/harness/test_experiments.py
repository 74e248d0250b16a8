"""The SQLite index: what is recorded, two writers, a broken database made again."""

import fcntl
import json
import os
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from harness import experiments, leaderboard
from harness.errors import MachineError
from nmoe.paths import REPO_ROOT, DataRoot, RunFolder
from tests.harness.finished_run import RUN_ID, make_plan, write_run


@pytest.fixture
def root(tmp_path: Path) -> DataRoot:
    return DataRoot(path=tmp_path / "data", reason="test")


def rows(root: DataRoot) -> list[dict[str, Any]]:
    """All runs with the name of their experiment."""
    with closing(sqlite3.connect(root.experiments)) as connection:
        connection.row_factory = sqlite3.Row
        found = connection.execute(
            "SELECT runs.*, experiments.name AS experiment FROM runs"
            " JOIN experiments ON experiments.id = experiment_id ORDER BY runs.id"
        )
        return [dict(row) for row in found]


def record(root: DataRoot, run_id: str = RUN_ID) -> RunFolder:
    """A run from start to end."""
    plan = make_plan(run_id)
    folder = write_run(root, plan=plan)
    assert experiments.record_start(folder, plan) is None
    assert experiments.record_end(folder, leaderboard.finish(folder, root)) is None
    return folder


def test_tables_are_as_the_contract_names_them(root: DataRoot) -> None:
    record(root)
    with closing(sqlite3.connect(root.experiments)) as connection:
        columns = {
            table: [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            for table in ("experiments", "runs")
        }
    assert columns == {
        "experiments": ["id", "name", "created_at"],
        "runs": [
            "id",
            "experiment_id",
            "config_json",
            "git_hash",
            "git_dirty",
            "started_at",
            "ended_at",
            "status",
            "results_json",
        ],
    }


def test_record_start_enters_a_run_that_is_running(root: DataRoot) -> None:
    plan = make_plan()
    experiments.record_start(write_run(root, plan=plan), plan)
    (row,) = rows(root)
    assert (row["id"], row["experiment"], row["status"]) == (RUN_ID, "pocket", "running")
    assert (row["git_hash"], row["git_dirty"]) == ("c" * 40, 0)
    assert (row["started_at"], row["ended_at"]) == (plan.created, None)
    assert json.loads(row["config_json"])["train"]["seed"] == plan.train.seed


def test_record_end_enters_the_result(root: DataRoot) -> None:
    folder = record(root)
    (row,) = rows(root)
    assert row["status"] == "done"
    assert row["ended_at"] == json.loads(folder.result.read_text())["finished"]
    assert json.loads(row["results_json"]) == json.loads(folder.result.read_text())


def test_record_start_opens_the_run_again_when_it_is_resumed(root: DataRoot) -> None:
    folder = record(root)
    experiments.record_start(folder, make_plan())
    (row,) = rows(root)
    assert (row["status"], row["ended_at"], row["results_json"]) == ("running", None, None)


def test_rebuild_gives_the_same_rows(root: DataRoot) -> None:
    for digit in "123":
        record(root, f"pocket-20260101-000000-000{digit}")
    before = rows(root)
    assert experiments.rebuild(root) == 3
    assert rows(root) == before
    root.experiments.unlink()
    assert experiments.rebuild(root) == 3
    assert rows(root) == before
    assert not list(root.path.glob("*.corrupt-*"))


def test_rebuild_tells_running_from_interrupted_when_there_is_no_result(root: DataRoot) -> None:
    write_run(root)
    alive = write_run(root, plan=make_plan("pocket-20260101-000000-0001"))
    (root.runs / "no-run").mkdir()
    broken = root.run("broken")
    broken.root.mkdir()
    broken.plan.write_text("{")
    with alive.lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert experiments.rebuild(root) == 2
    assert {row["id"]: row["status"] for row in rows(root)} == {
        RUN_ID: "interrupted",
        alive.run_id: "running",
    }


@pytest.mark.parametrize("damage", ["text", "pages", "tables"])
def test_record_replaces_a_broken_database_and_says_so(root: DataRoot, damage: str) -> None:
    for digit in "123":
        record(root, f"pocket-20260101-000000-000{digit}")
    if damage == "text":
        root.experiments.write_text("this is no database, and long enough to be read as one" * 50)
    elif damage == "pages":
        content = root.experiments.read_bytes()
        root.experiments.write_bytes(content[:100] + b"\xa5" * (len(content) - 100))
    else:
        root.experiments.unlink()
        with closing(sqlite3.connect(root.experiments)) as connection:
            connection.execute("CREATE TABLE runs (something TEXT)")
    damaged = root.experiments.read_bytes()
    plan = make_plan("pocket-20260101-000000-0004")
    message = experiments.record_start(write_run(root, plan=plan), plan)
    assert message
    assert "experiments.db.corrupt-1" in message
    kept = root.path.joinpath("experiments.db.corrupt-1").read_bytes()
    assert (b"something TEXT" in kept) if damage == "tables" else (kept == damaged)
    assert [row["status"] for row in rows(root)] == ["done", "done", "done", "running"]


def test_broken_databases_are_all_kept(root: DataRoot) -> None:
    plan = make_plan()
    folder = write_run(root, plan=plan)
    for number in (1, 2):
        root.experiments.write_text(f"broken {number} " * 100)
        experiments.record_start(folder, plan)
    for number in (1, 2):
        kept = root.path / f"experiments.db.corrupt-{number}"
        assert kept.read_text().startswith(f"broken {number}")


def test_record_names_the_file_when_it_cannot_be_written(root: DataRoot) -> None:
    plan = make_plan()
    folder = write_run(root, plan=plan)
    root.experiments.mkdir()
    with pytest.raises(MachineError, match=r"cannot write .*experiments\.db"):
        experiments.record_start(folder, plan)
    assert root.experiments.is_dir()


WRITER = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from harness import experiments
    from nmoe.paths import DataRoot
    from tests.harness.finished_run import make_plan

    root = DataRoot(path=Path(sys.argv[1]), reason="test")
    for number in range(20):
        plan = make_plan(f"{sys.argv[2]}-{number}")
        message = experiments.record_start(root.run(plan.run_id), plan)
        assert message is None, message
    """
)


def test_record_loses_nothing_when_two_processes_write(root: DataRoot) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(root.path), name],
            cwd=REPO_ROOT,
            env={**os.environ, "PYTHONPATH": str(REPO_ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    for writer in writers:
        _, errors = writer.communicate(timeout=120)
        assert writer.returncode == 0, errors
    assert len(rows(root)) == 40
    assert {row["experiment"] for row in rows(root)} == {"pocket"}
