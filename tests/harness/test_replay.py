"""Replays: the end is the live state, any prefix is its fold, jumps lead where playing leads."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import headless, replay, runs
from harness.errors import RunError
from harness.replay import MAX_GAP_S, Replay
from nmoe.events import PhaseEvent, Record, encode
from nmoe.paths import DataRoot, RunFolder
from tests.harness.finished_run import make_plan, write_run
from tests.harness.test_runs import histories, records, step_event, write_lines


def root(path: Path) -> DataRoot:
    return DataRoot(path=path, reason="test")


def folder_of(path: Path, *files: list[Record]) -> RunFolder:
    folder = root(path).run("r-1")
    folder.root.mkdir(parents=True)
    folder.plan.write_text(make_plan("r-1").to_json())
    for target, lines in zip((folder.train, folder.supervisor), files, strict=False):
        write_lines(target, lines)
    return folder


@given(histories(), st.data())
@settings(max_examples=60, deadline=None)
def test_replay_ends_in_the_live_state_and_any_prefix_is_its_fold(
    tmp_path_factory: pytest.TempPathFactory,
    history: tuple[list[Record], list[Record]],
    data: st.DataObject,
) -> None:
    folder = folder_of(tmp_path_factory.mktemp("replay"), *history)
    live, recording = runs.load(folder), Replay(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay, "KEEP_EVERY", 3)
        counts = data.draw(st.lists(st.integers(0, len(recording.records)), max_size=8))
        for count in counts:
            expected = recording.state_at(0)
            for record in recording.records[:count]:
                expected = expected.apply(record)
            assert recording.state_at(count) == expected
        assert recording.state_at(len(recording.records)) == live


@given(histories(), st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_replay_clock_goes_forward_through_all_records(
    tmp_path_factory: pytest.TempPathFactory,
    history: tuple[list[Record], list[Record]],
    frac: float,
) -> None:
    recording = Replay(folder_of(tmp_path_factory.mktemp("replay"), *history))
    times = [recording.time_of(count) for count in range(1, len(recording.records) + 1)]
    assert times == sorted(times)
    assert times[0] == 0.0
    assert times[-1] == recording.duration_s
    assert recording.count_at(recording.duration_s) == len(recording.records)
    elapsed = frac * recording.duration_s
    count = recording.count_at(elapsed)
    assert recording.time_of(count) <= elapsed
    assert recording.now_at(elapsed) >= recording.records[count - 1].time


def test_replay_shortens_the_time_between_attempts_and_marks_it(tmp_path: Path) -> None:
    late = [replace(record, seq=record.seq + 2, time=record.time + 86_400, attempt=1)
            for record in records(step_event(30), step_event(40))]  # fmt: skip
    recording = Replay(folder_of(tmp_path, records(step_event(10), step_event(20)) + late))
    assert recording.duration_s == 2 + MAX_GAP_S
    assert recording.attempts_s == (1 + MAX_GAP_S,)


def test_replay_counts_broken_lines_like_the_live_run(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, records(step_event(10)))
    with folder.train.open("a") as file:
        file.write("{broken\n" + encode(records(step_event(20), seq=1)[0]) + "\n" + '{"torn')
    recording = Replay(folder)
    assert recording.state_at(len(recording.records)) == runs.load(folder)
    assert recording.state_at(0).bad_lines == 1


def test_replay_reads_a_copied_folder_and_writes_nothing_into_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original = write_run(root(tmp_path))
    copy = tmp_path / "elsewhere" / "a copy"
    copy.mkdir(parents=True)
    for path in (original.plan, original.train):
        (copy / path.name).write_bytes(path.read_bytes())
    before = {path: path.stat().st_mtime_ns for path in [copy, *copy.rglob("*")]}
    folder = replay.find(root(tmp_path / "nowhere"), f"{copy}/")
    headless.replay(Replay(folder), output="all", speed=None)
    assert {path: path.stat().st_mtime_ns for path in [copy, *copy.rglob("*")]} == before
    assert "validation loss" in capsys.readouterr().err


def test_replay_prints_the_lines_and_the_code_that_following_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(root(tmp_path))
    followed = headless.follow(folder, output="all", passes_stop=False), capsys.readouterr()
    replayed = headless.replay(Replay(folder), output="all", speed=None), capsys.readouterr()
    assert replayed == followed


def test_replay_waits_between_lines_as_the_speed_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(headless.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(
        headless.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds)
    )
    folder = folder_of(tmp_path, records(step_event(10), step_event(20), step_event(30)))
    headless.replay(Replay(folder), output="quiet", speed=4)
    assert now[0] - 100.0 == pytest.approx(2 / 4)


@pytest.mark.parametrize("name", ["./nothing", "/nothing/at/all", "..no", "nothing"])
def test_replay_of_nothing_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunError, match="no folder|no run"):
        replay.find(root(tmp_path), name)


def test_replay_of_a_folder_without_events_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no events"):
        Replay(folder_of(tmp_path))
    with pytest.raises(RunError, match="no run"):
        Replay(RunFolder(root=tmp_path / "absent"))


def test_replay_of_another_version_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, records(PhaseEvent(phase="training")))
    folder.train.write_text(folder.train.read_text().replace('"v":1', '"v":7'))
    with pytest.raises(RunError, match="version 7"):
        Replay(folder)
