"""Curves from Parquet parts: whole, resumed, torn, and with names that look like queries."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness import history
from nmoe.paths import DataRoot

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
