"""Rows of finished runs, from their record."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.recorded import rows_of
from bench.rows import CORE_SUITE, CPU, Row, load, summarize
from nmoe.config import Hardware, Plan, read_config
from nmoe.events import CoreEvent, OutcomeEvent
from nmoe.paths import REPO_ROOT, DataRoot
from tests.bench.test_suite import bench
from tests.harness.finished_run import make_plan, write_run


@pytest.fixture
def root(tmp_path: Path) -> DataRoot:
    return DataRoot(path=tmp_path, reason="test")


def gpu_plan() -> Plan:
    config = read_config(REPO_ROOT / "configs/speedrun/super.toml")
    hardware = Hardware(gpu="H200", num_gpus=1, driver="580.0")
    plan = make_plan(config=config, device="cuda", dtype="bf16", hardware=hardware)
    return replace(plan, digests=replace(plan.digests, commit="c" * 40, is_dirty=False))


def by_what(rows: list[Row]) -> dict[str, Row]:
    return {row.what: row for row in rows}


def test_rows_hold_what_the_run_recorded(root: DataRoot):
    changes: dict[type[Any], dict[str, Any]] = {
        OutcomeEvent: {"tokens": 4000, "train_s": 8.0, "peak_memory_bytes": 3_000_000_000},
        CoreEvent: {"seconds": 170.25, "cap": None},
    }
    run_id, rows = rows_of(write_run(root, plan=gpu_plan(), changes=changes).root)
    assert run_id == gpu_plan().run_id
    found = by_what(rows)
    assert (found["run"].rate, found["run"].unit) == (500.0, "tok/s")
    assert found["run peak memory"].rate == 3.0
    assert found[CORE_SUITE].rate == 170.25
    assert {row.shape for row in rows} == {"super"}
    assert {(row.machine.gpu, row.machine.gpus) for row in rows} == {("NVIDIA H200", 1)}
    assert {row.machine.commit for row in rows} == {"c" * 40}
    assert summarize({}, rows)["core_suite_s_1gpu"]["value"] == 170.2


def test_capped_core_is_no_figure_of_the_suite(root: DataRoot):
    folder = write_run(root, plan=gpu_plan(), changes={CoreEvent: {"cap": 100}})
    _, rows = rows_of(folder.root)
    assert CORE_SUITE not in by_what(rows)
    assert "CORE, 100 items a task" in by_what(rows)
    assert summarize({}, rows) == {}


def test_run_of_a_cpu_is_shown_and_kept_where_asked_only(root: DataRoot, tmp_path: Path):
    folder = write_run(root)
    kept = tmp_path / "rows.jsonl"
    done = bench("run", str(folder.root), "--rows", str(kept))
    assert done.returncode == 0, done.stderr
    assert "tok/s" in done.stdout
    assert {row.machine.gpu for row in load(kept)} == {CPU}


def test_run_that_has_not_ended_is_refused(root: DataRoot, tmp_path: Path):
    folder = write_run(root)
    folder.train.write_text("")
    done = bench("run", str(folder.root))
    assert done.returncode == 2
    assert "a run that has not ended" in done.stderr
    done = bench("run", str(tmp_path / "nothing"))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
