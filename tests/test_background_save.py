"""Checkpoints that are written while training goes on: the same bits, always one that is whole."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import duckdb
import pytest

from nmoe import build, checkpoint, report
from nmoe.checkpoint import FileInfo, Writer
from nmoe.event_log import read_events
from nmoe.events import (
    AlertEvent,
    CheckpointEvent,
    ExitEvent,
    OutcomeEvent,
    StepEvent,
    StopAckEvent,
)
from nmoe.paths import DataRoot, RunFolder
from tests import tiny
from tests.test_train import copy_data, wait_for

STEPS = ("--set", "train.steps=18", "--set", "checkpoint.keep=9")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root with the tiny data set in it."""
    tiny.write_data(tmp_path / "root")
    return tmp_path / "root"


class Disk:
    """A disk that stands still at the files of step 6 until it is let go."""

    def __init__(self) -> None:
        self.moves = threading.Event()
        self._write = checkpoint.write_part

    def write(self, path: Path, content: Mapping[str, Any]) -> FileInfo:
        if path.parent.name == ".step_00000006.tmp":
            self.moves.wait()
        return self._write(path, content)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """The disk of the trainer in this process."""
    slow = Disk()
    monkeypatch.setattr(checkpoint, "write_part", slow.write)
    yield slow
    slow.moves.set()


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], None]) -> None:
    """Do something when `step` is logged."""
    publish: Callable[..., None] = report.Reporter.step

    def publish_and_act(self: report.Reporter, at: int, *args: object, **options: object) -> None:
        publish(self, at, *args, **options)
        if at == step:
            act()

    monkeypatch.setattr(report.Reporter, "step", publish_and_act)


def when_waited_for(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Do something each time training waits for a checkpoint."""
    wait: Callable[[Writer], checkpoint.Saved] = Writer.wait

    def act_and_wait(self: Writer) -> checkpoint.Saved:
        act()
        return wait(self)

    monkeypatch.setattr(Writer, "wait", act_and_wait)


def train(root: Path, *words: str, expect: int = 6) -> RunFolder:
    """Run 18 steps of the tiny preset here, with checkpoints at 6, 12 and 18."""
    assert tiny.run_here([str(tiny.write_config(root)), *STEPS, *words], root) == expect
    return tiny.only_run(root)


def saved_events(folder: RunFolder) -> list[CheckpointEvent]:
    found = [record.event for record in tiny.events(folder, CheckpointEvent)]
    return [event for event in found if isinstance(event, CheckpointEvent)]


def alerts(folder: RunFolder) -> list[AlertEvent]:
    found = [record.event for record in tiny.events(folder, AlertEvent)]
    return [event for event in found if isinstance(event, AlertEvent)]


def stop(folder: RunFolder) -> None:
    folder.control.mkdir(exist_ok=True)
    folder.stop_request.write_text('{"mode": "checkpoint", "by": "test"}')


def running(root: Path) -> RunFolder:
    (path,) = (root / "runs").iterdir()
    return DataRoot(path=root, reason="test").run(path.name)


def rows(folder: RunFolder) -> list[tuple[str, int, float]]:
    """Metric rows whose values do not depend on time."""
    query = (
        f"select tag, step, value from '{folder.metrics}/step_*.parquet'"
        " where tag similar to '(train|valid|optimizer|router)/.*' order by all"
    )
    return duckdb.connect().execute(query).fetchall()


def test_training_goes_on_to_the_same_bits_while_a_checkpoint_is_written(
    root: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_at_8: list[Path] = []

    def let_go() -> None:
        whole_at_8.extend(checkpoint.find(running(root).checkpoints, kind="step"))
        disk.moves.set()

    at_step(monkeypatch, 8, let_go)
    slow = train(root)
    assert whole_at_8 == []
    at_step(monkeypatch, 8, lambda: None)
    plain = train(copy_data(root, "plain"))
    for name in ("step_00000006", "step_00000012", "step_00000018"):
        assert tiny.weights_digest(slow, name) == tiny.weights_digest(plain, name)
    assert rows(slow) == rows(plain)
    kinds = [
        (record.event.kind, record.event.step)
        for record in read_events(slow.train)
        if isinstance(record.event, CheckpointEvent | StepEvent)
    ]
    assert kinds.index(("step", 8)) < kinds.index(("ckpt", 6))
    assert [event.step for event in saved_events(slow)] == [6, 12, 18]
    for event in saved_events(slow):
        assert event.paused_s is not None
        assert 0 < event.paused_s < event.seconds


def test_next_checkpoint_waits_for_the_one_that_is_being_written(
    root: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "SLOW_SAVE_S", 0.0)
    when_waited_for(monkeypatch, disk.moves.set)
    folder = train(root)
    assert [event.step for event in saved_events(folder)] == [6, 12, 18]
    (alert, *_) = alerts(folder)
    assert alert.code == "slow-checkpoint"
    assert "at step 12: the checkpoint before was still being written" in alert.message
    (outcome,) = [record.event for record in tiny.events(folder, OutcomeEvent)]
    assert isinstance(outcome, OutcomeEvent)
    paused_s = sum(event.paused_s or 0 for event in saved_events(folder))
    assert outcome.checkpoint_s == pytest.approx(paused_s)


def test_stop_ends_with_both_checkpoints_whole_when_one_is_being_written(
    root: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_step(monkeypatch, 8, lambda: stop(running(root)))
    when_waited_for(monkeypatch, disk.moves.set)
    folder = train(root, "--set", "log.every=1", expect=130)
    order = [
        (record.event.kind, record.event.step)
        for record in read_events(folder.train)
        if isinstance(record.event, CheckpointEvent | StopAckEvent)
    ]
    assert order == [("ckpt", 6), ("ckpt", 9), ("stop_ack", 9)]
    assert [path.name for path in checkpoint.find(folder.checkpoints, kind="step")] == [
        *("step_00000006", "step_00000009")
    ]


def test_diverged_run_leaves_the_checkpoint_that_was_being_written(
    root: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    when_waited_for(monkeypatch, disk.moves.set)

    def collapse(*args: object, **options: object) -> bool:
        return len(tiny.events(running(root), StepEvent)) == 3  # of steps 4, 6 and 8

    monkeypatch.setattr("nmoe.train.is_collapsed", collapse)
    folder = train(root, expect=5)
    assert [event.step for event in saved_events(folder)] == [6]
    (outcome,) = [record.event for record in tiny.events(folder, OutcomeEvent)]
    assert isinstance(outcome, OutcomeEvent)
    assert outcome.status == "diverged"


def test_run_killed_while_a_checkpoint_is_written_goes_on_from_the_one_before(root: Path) -> None:
    config = str(tiny.write_config(root))
    # rank 0 writes its files of step 12, rank 1 does not
    args = ["1", "12", config, *STEPS, "--set", "log.every=1"]
    ranks = tiny.start_ranks(args, root, world=2, module="tests.slow_disk")
    wait_for(lambda: bool(list((root / "runs").glob("*/train.jsonl"))))
    folder = running(root)
    temporary = folder.checkpoints / ".step_00000012.tmp"
    wait_for(
        lambda: (temporary / "replicated.pt").exists() and '"step":16,' in folder.train.read_text()
    )
    for rank in ranks:
        os.kill(rank.pid, signal.SIGKILL)
    tiny.finish(ranks)
    (whole,) = checkpoint.find(folder.checkpoints, kind="step")
    assert whole.name == "step_00000006"
    resume = tiny.start_ranks(["--run", str(folder.root), "--attempt", "1"], root, world=2)
    assert tiny.finish(resume) == [6, 6]
    assert not temporary.exists()
    curves: list[dict[int, float]] = [{}, {}]
    for record in tiny.events(folder, StepEvent):
        assert isinstance(record.event, StepEvent)
        curves[record.attempt][record.event.step] = record.event.loss
    assert sorted(curves[1]) == list(range(7, 19))
    taken_twice = sorted(set(curves[0]) & set(curves[1]))
    assert taken_twice[:10] == list(range(7, 17))
    assert all(curves[0][step] == curves[1][step] for step in taken_twice)
    losses = [(step, loss) for tag, step, loss in rows(folder) if tag == "train/loss"]
    assert losses == sorted((curves[0] | curves[1]).items())


def test_every_rank_ends_with_the_reason_when_the_disk_of_one_is_full(root: Path) -> None:
    args = ["1", "6", "--full", str(tiny.write_config(root)), *STEPS]
    ranks = tiny.start_ranks(args, root, world=2, module="tests.slow_disk")
    outputs = [rank.communicate(timeout=60)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [5, 5]
    for output in outputs:
        assert (
            "error: checkpoint step_00000006 could not be written: rank 1: [Errno 28] No space left"
        ) in output
    folder = tiny.only_run(root)
    assert alerts(folder)[-1].level == "error"
    assert "rank 1: [Errno 28]" in alerts(folder)[-1].message
    assert list(folder.checkpoints.glob("step_*")) == []
    (end,) = [record.event for record in tiny.events(folder, ExitEvent)]
    assert isinstance(end, ExitEvent)
    assert (end.status, end.rc) == ("failed", 5)
