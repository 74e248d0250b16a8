"""Curves from Parquet parts: whole, resumed, torn, and with names that look like queries."""

import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness import history
from harness.errors import RunError
from nmoe.events import Event, GpuEvent, Record, StepEvent, encode
from nmoe.paths import DataRoot, RunFolder

RUN = "pocket-20260101-000000-abcd"


@pytest.fixture
def root(tmp_path: Path) -> DataRoot:
    return DataRoot(path=tmp_path / "data [/bold]*?", reason="test")


def write_part(
    root: DataRoot, rows: list[tuple[str, int, int, float]], *, run_id: str = RUN
) -> Path:
    """One part of rows (tag, step, ts_ms, value), named after its last step."""
    folder = root.metrics(run_id)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{rows[-1][1]:08}.parquet"
    names = ["tag", "step", "ts_ms", "value"]
    columns = {
        name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)
    }
    pq.write_table(pa.table({"run": [run_id] * len(rows), **columns}), path)
    return path


def test_curve_joins_parts_in_step_order(root: DataRoot) -> None:
    write_part(root, [("train/loss", 30, 3, 1.5), ("train/loss", 40, 4, 1.25)])
    write_part(root, [("train/loss", 10, 1, 3.0), ("lr", 10, 1, 0.1), ("train/loss", 20, 2, 2.0)])
    curve = history.curve(root, RUN, "train/loss")
    assert curve.steps == (10, 20, 30, 40)
    assert curve.values == (3.0, 2.0, 1.5, 1.25)
    assert curve.ts_ms == (1, 2, 3, 4)
    assert curve.problems == ()


def test_curve_takes_the_later_value_when_a_step_was_run_again(root: DataRoot) -> None:
    write_part(root, [("train/loss", 10, 1, 3.0), ("train/loss", 20, 2, 9.0)])
    write_part(root, [("train/loss", 20, 7, 2.0), ("train/loss", 30, 8, 1.0)])
    assert history.curve(root, RUN, "train/loss").values == (3.0, 2.0, 1.0)


@pytest.mark.parametrize("damage", ["cut", "pages", "other"])
def test_curve_names_the_part_when_one_cannot_be_read(root: DataRoot, damage: str) -> None:
    write_part(root, [("train/loss", 10, 1, 3.0)])
    broken = write_part(root, [("train/loss", 20, 2, 2.0)])
    whole = broken.read_bytes()
    if damage == "cut":
        broken.write_bytes(whole[: len(whole) // 2])
    elif damage == "pages":
        broken.write_bytes(whole[:10] + bytes(200) + whole[210:])
    else:
        pq.write_table(pa.table({"something": [1]}), broken)
    curve = history.curve(root, RUN, "train/loss")
    assert curve.steps == (10,)
    assert len(curve.problems) == 1
    assert broken.name in curve.problems[0]


def test_curve_is_empty_with_a_reason_when_there_are_no_metrics(root: DataRoot) -> None:
    curve = history.curve(root, RUN, "train/loss")
    assert curve.steps == ()
    assert "no metrics" in curve.problems[0]


def test_curve_treats_a_tag_as_a_value_when_it_looks_like_a_query(root: DataRoot) -> None:
    tag = "x' OR 1=1 --"
    write_part(root, [("train/loss", 10, 1, 3.0), (tag, 10, 1, 5.0)])
    assert history.curve(root, RUN, tag).values == (5.0,)


def test_curve_refuses_a_run_id_when_it_leaves_the_folder(root: DataRoot) -> None:
    with pytest.raises(ValueError, match="run id"):
        history.curve(root, "../other", "train/loss")


def write_samples(root: DataRoot, *samples: tuple[float, GpuEvent]) -> RunFolder:
    """Samples at their times, beside a run that logs step 10 at 1 s, 20 at 2 s and so on."""
    folder = root.run(RUN)
    folder.root.mkdir(parents=True)
    steps = [(float(at), step_event(10 * at)) for at in range(1, 5)]
    for path, events in ((folder.train, steps), (folder.gpus, samples)):
        path.write_text("".join(line(seq, *told) for seq, told in enumerate(events)))
    return folder


def line(seq: int, time: float, event: Event) -> str:
    return encode(Record(seq=seq, time=time, attempt=0, event=event)) + "\n"


def step_event(step: int) -> StepEvent:
    return StepEvent(
        step=step, tokens=step, loss=2.0, lr=0.1, grad_norm=1.0, ms=1.0, tok_s=1.0, mfu=None,
        train_s=1.0, wall_s=1.0,
    )  # fmt: skip


def test_gpus_become_rows_at_the_step_that_was_logged_last(root: DataRoot) -> None:
    folder = write_samples(
        root,
        (0.5, GpuEvent(index=0, power_w=90.0)),
        (2.5, GpuEvent(index=0, power_w=700.5, util=99)),
        (2.5, GpuEvent(index=1, power_w=None, util=98)),
        (9.0, GpuEvent(index=0, power_w=math.inf, is_lost=True)),
    )
    history.write_gpus(folder)

    power = history.curve(root, RUN, "gpu/0/power_w")
    assert (power.steps, power.ts_ms, power.values) == ((0, 20), (500, 2500), (90.0, 700.5))
    assert history.curve(root, RUN, "gpu/1/util").values == (98.0,)
    assert history.curve(root, RUN, "gpu/1/power_w").values == ()
    assert pq.read_table(folder.gpu_metrics).column_names == [
        "run",
        "tag",
        "step",
        "ts_ms",
        "value",
    ]
    assert not list(folder.root.glob("*.tmp"))


def test_torn_samples_are_passed_over(root: DataRoot) -> None:
    folder = write_samples(root, (1.5, GpuEvent(index=0, util=50)))
    with folder.gpus.open("a") as file:
        file.write('{"v":1,"s":1,"t":2.0,"a":0,"k":"gp')
    history.write_gpus(folder)
    assert history.curve(root, RUN, "gpu/0/util").values == (50.0,)


def test_run_without_samples_has_no_rows_of_gpus(root: DataRoot) -> None:
    folder = write_samples(root)
    history.write_gpus(folder)
    folder.gpus.write_text("")
    history.write_gpus(folder)
    assert not folder.gpu_metrics.exists()


def test_rows_of_gpus_that_cannot_be_written_are_an_error(root: DataRoot) -> None:
    folder = write_samples(root, (1.5, GpuEvent(index=0, util=50)))
    folder.gpu_metrics.mkdir()
    (folder.gpu_metrics / "in the way").touch()
    with pytest.raises(RunError, match="was not written"):
        history.write_gpus(folder)
    assert not list(folder.root.glob("*.tmp"))
