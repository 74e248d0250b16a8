"""What a run may be expected to take: from runs, else from benchmarks, else nothing."""

import json
from dataclasses import replace

import pytest

from harness import leaderboard, score
from harness import plan as planner
from harness.hardware import detect
from harness.outlook import outlook
from nmoe.config import read_plan
from nmoe.paths import DataRoot
from tests.conftest import REPO_ROOT
from tests.harness.finished_run import write_run

SCENARIOS = REPO_ROOT / "tests" / "data" / "hardware"


@pytest.fixture
def root(tmp_path):
    return DataRoot(path=tmp_path, reason="a test")


def write_rows(folder, *rows):
    """A folder of results with one row each: (GPU, how many, tok/s of one, date)."""
    folder.mkdir()
    lines = [
        {
            "what": "step", "shape": "super", "implementation": "nmoe", "gpu": gpu, "gpus": gpus,
            "commit": "c" * 40, "date": date, "us": 1.0, "rate": rate, "unit": "tok/s",
        }
        for gpu, gpus, rate, date in rows
    ]  # fmt: skip
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def plan_on(machine, root):
    detection = detect(fake=SCENARIOS / f"{machine}.json")
    return planner.resolve(preset="super", detection=detection, root=root)


def test_step_of_the_bench_bounds_the_time_on_as_many_of_such_gpus(root, tmp_path):
    plan = plan_on("h200x2", root)
    rows = write_rows(
        tmp_path / "results",
        ("NVIDIA H200", 2, 300_000.0, "2026-01-01"),
        ("NVIDIA H200", 2, 330_000.0, "2026-01-02"),
        ("NVIDIA H200", 1, 900_000.0, "2026-01-03"),
        ("NVIDIA H100 80GB HBM3", 2, 900_000.0, "2026-01-03"),
    )
    found = outlook(plan, root, repo_board=tmp_path / "none.json", results=rows)

    budget = plan.train.steps * plan.train.batch_size * plan.train.seq_len
    assert found.tok_s == 660_000.0
    assert found.pace is not None
    assert found.pace.is_most
    assert found.pace.train_s == pytest.approx(budget / 660_000.0)
    assert "2 x H200 on 2026-01-02" in found.pace.basis
    assert found.spread.runs == 0
    assert found.fits


def test_nothing_is_expected_of_a_machine_nobody_measured(root, tmp_path):
    found = outlook(
        plan_on("b200x8", root), root, repo_board=tmp_path / "none.json", results=tmp_path / "none"
    )

    assert found.pace is None
    assert found.tok_s is None
    assert (found.spread.loss, found.spread.train_s) == (None, None)


def test_runs_of_the_cohort_tell_time_and_spread(root, tmp_path):
    folder = write_run(root)
    scored = score.compute(folder, root)
    for number, (train_s, loss) in enumerate([(100.0, 1.29), (110.0, 1.28), (150.0, 1.27)]):
        entry = leaderboard.make_entry(scored)
        result = replace(
            entry.result, run_id=f"pocket-{number}", train_s=train_s, loss=loss, reached=True
        )
        leaderboard.append(root.board, replace(entry, result=result))
    plan = replace(read_plan(folder.plan), run_id="another")
    found = outlook(plan, root, repo_board=tmp_path / "none.json", results=tmp_path / "none")

    assert found.pace is not None
    assert not found.pace.is_most
    assert found.pace.train_s == 110.0
    assert "3 run(s) of pocket" in found.pace.basis
    assert found.spread.runs == 3
    assert found.spread.loss == pytest.approx(0.01)
    assert found.spread.train_s == pytest.approx(26.4575, abs=1e-3)
    assert found.memory is None  # of a GPU; this was a CPU
