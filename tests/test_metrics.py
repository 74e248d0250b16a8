"""The clock's arithmetic and the Parquet parts."""

import time
from pathlib import Path

import duckdb
import pytest
import torch

from nmoe import metrics
from nmoe.metrics import Clock, Meter, MetricsWriter, Stopwatch


class FakeTime:
    """perf_counter that moves only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def fake_time(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(metrics.time, "perf_counter", fake.perf_counter)
    return fake


def test_clock_counts_training_and_charges_pauses_apart(fake_time: FakeTime) -> None:
    clock = Clock()
    fake_time.now += 5
    clock.start()
    fake_time.now += 10
    with clock.paused("eval_s"):
        fake_time.now += 3
    fake_time.now += 2
    with clock.paused("checkpoint_s"):
        fake_time.now += 1
    clock.stop()
    fake_time.now += 100
    assert clock.read() == 12
    assert (clock.eval_s, clock.checkpoint_s, clock.wall_s) == (3, 1, 121)


def test_clock_stays_paused_when_it_was_not_running(fake_time: FakeTime) -> None:
    clock = Clock(train_s=40.0)
    with clock.paused("eval_s"):
        fake_time.now += 3
    fake_time.now += 7
    assert clock.read() == 40.0


def test_clock_resumes_and_charges_when_a_pause_fails(fake_time: FakeTime) -> None:
    clock = Clock()
    clock.start()

    def fail() -> None:
        with clock.paused("eval_s"):
            fake_time.now += 3
            raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        fail()
    fake_time.now += 1
    assert (clock.read(), clock.eval_s) == (1, 3)


def test_clock_waits_for_the_device_at_both_ends_of_a_pause() -> None:
    waits: list[str] = []
    clock = Clock(sync=lambda: waits.append("sync"))
    clock.start()
    with clock.paused("eval_s"):
        waits.append("inside")
    assert waits == ["sync", "inside", "sync"]


def test_clock_reads_real_time() -> None:
    clock = Clock()
    clock.start()
    began = time.perf_counter()
    while time.perf_counter() - began < 0.02:
        pass
    assert 0.02 <= clock.read() < 5


def test_stopwatch_adds_up_and_starts_again(fake_time: FakeTime) -> None:
    watch = Stopwatch()
    for seconds in (1, 2):
        with watch.running():
            fake_time.now += seconds
    assert watch.take() == 3
    assert watch.take() == 0


def test_meter_gives_means_over_the_interval() -> None:
    meter = Meter(num_layers=1, num_experts=4, device=torch.device("cpu"))
    meter.restart(train_s=10.0)
    for loss in (2.0, 4.0):
        meter.add(
            loss=torch.tensor(loss),
            grad_norm=torch.tensor(loss / 2),
            loads_LE=torch.tensor([[1, 2, 3, 4]]),
        )
    interval = meter.take(loss_sum=meter.loss_share().item(), train_s=11.5)
    assert (interval.steps, interval.loss, interval.grad_norm) == (2, 3.0, 1.5)
    assert interval.seconds == 1.5
    assert interval.loads_LE.tolist() == [[2, 4, 6, 8]]
    assert meter.loss_share().item() == 0


def rows(folder: Path) -> list[tuple[str, str, int, float]]:
    query = f"select run, tag, step, value from '{folder}/step_*.parquet' order by step, tag"
    return duckdb.sql(query).fetchall()


def test_metrics_parts_hold_every_row_once(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, "run-1")
    writer.add(10, {"train/loss": 2.5, "efficiency/mfu": None})
    writer.add(20, {"train/loss": 2.0})
    writer.flush()
    writer.flush()
    writer.add(20, {"valid/loss": 2.1})
    writer.add(30, {"train/loss": 1.5})
    writer.flush()
    assert sorted(part.name for part in tmp_path.iterdir()) == [
        "step_00000020.parquet",
        "step_00000030.parquet",
    ]
    assert [(tag, step, value) for _, tag, step, value in rows(tmp_path)] == [
        ("train/loss", 10, 2.5),
        ("train/loss", 20, 2.0),
        ("valid/loss", 20, 2.1),
        ("train/loss", 30, 1.5),
    ]


def test_metrics_part_grows_when_a_step_is_flushed_twice(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, "run-1")
    for tag in ("a", "b"):
        writer.add(20, {tag: 1.0})
        writer.flush()
    assert [row[1] for row in rows(tmp_path)] == ["a", "b"]


def test_metrics_past_a_resume_are_dropped(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, "run-1")
    for step in (10, 20, 30):
        writer.add(step, {"train/loss": 1.0})
        writer.flush()
    MetricsWriter(tmp_path, "run-1").discard_after(20)
    assert [row[2] for row in rows(tmp_path)] == [10, 20]
