"""Notes beside runs and runs deleted: what is refused, what stays, what an interruption leaves."""

import json
import os
import shutil

import pytest

from harness import curate, launch, query, runs
from harness.errors import RunError, UsageError
from nmoe.event_log import EventLog
from nmoe.events import PhaseEvent
from nmoe.paths import DataRoot, write_atomic
from tests.harness.finished_run import make_plan


@pytest.fixture
def root(tmp_path):
    return DataRoot(path=tmp_path, reason="test")


def write_run(root, run_id="pocket-20260101-000000-abcd", **changes):
    folder = root.run(run_id)
    folder.root.mkdir(parents=True)
    folder.plan.write_text(make_plan(run_id=run_id, **changes).to_json())
    EventLog(folder.train, attempt=0).write(PhaseEvent(phase="training"))
    folder.metrics.mkdir(parents=True)
    (folder.metrics / "step_00000001.parquet").write_bytes(b"x" * 5000)
    return folder


def listed(root):
    return [row.run_id for row in runs.list_runs(root)]


def test_note_is_listed_found_replaced_and_taken_away(root):
    folder = write_run(root)
    curate.write_note(folder, "  lr too\nhigh  [/bold] ")
    (row,) = runs.list_runs(root)
    assert row.note == "lr too high [/bold]"
    assert query.select([row], query.parse("note:high")) == [row]
    assert query.select([row], query.parse("bold")) == [row]
    assert query.select([row], query.parse("note:low")) == []

    curate.write_note(folder, "")
    assert runs.list_runs(root)[0].note == ""
    assert not folder.note.exists()
    curate.write_note(folder, "")


def test_note_that_is_too_long_is_refused_and_the_old_one_stays(root):
    folder = write_run(root)
    curate.write_note(folder, "n" * runs.MAX_NOTE)
    with pytest.raises(UsageError, match=f"got {runs.MAX_NOTE + 1}"):
        curate.write_note(folder, "m" * (runs.MAX_NOTE + 1))
    assert runs.list_runs(root)[0].note == "n" * runs.MAX_NOTE


def test_note_that_is_not_text_harms_nothing(root):
    folder = write_run(root)
    folder.note.write_bytes(b"\xff\xfe\x00 caf\xe9\n" + b"x" * 10_000)
    (row,) = runs.list_runs(root)
    assert "caf" in row.note
    assert len(row.note) <= runs.MAX_NOTE


def test_deleted_run_leaves_nothing_and_others_stay(root):
    folder, other = write_run(root), write_run(root, "pocket-20260102-000000-abcd")
    assert curate.size_bytes(folder) >= 5000

    curate.delete(folder, root)

    assert listed(root) == [other.run_id]
    assert other.metrics.is_dir()
    assert [path.name for path in root.runs.iterdir()] == [other.run_id]
    assert not folder.metrics.exists()


def test_living_run_is_not_deleted(root):
    folder = write_run(root)
    lock = launch.take_run_lock(folder)
    with pytest.raises(RunError, match="alive"):
        curate.delete(folder, root)
    os.close(lock)
    assert folder.plan.is_file()
    assert folder.metrics.is_dir()


def test_run_of_registered_repeats_is_not_deleted(root):
    series = "pocket-x3-20260101-000000-abcd"
    folder = write_run(root, series=series)
    write_atomic(root.repeats / f"{series}.json", json.dumps({"series": series}))
    with pytest.raises(RunError, match="without it they prove nothing"):
        curate.delete(folder, root)
    assert folder.plan.is_file()

    (root.repeats / f"{series}.json").unlink()
    curate.delete(folder, root)
    assert listed(root) == []


def test_interrupted_deletion_is_in_no_list_and_ends_with_the_next(root, monkeypatch):
    folder, other = write_run(root), write_run(root, "pocket-20260102-000000-abcd")

    def killed(path, **_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            curate.delete(folder, root)
    assert listed(root) == [other.run_id]
    assert len(list(root.runs.iterdir())) == 2

    curate.delete(other, root)
    assert list(root.runs.iterdir()) == []
    assert list((root.path / "metrics").iterdir()) == []
