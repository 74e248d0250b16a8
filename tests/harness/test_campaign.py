"""`n speedrun --repeat` as a user takes it: real runs, one of them killed, and the verdict."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import leaderboard, repeats
from nmoe.paths import REPO_ROOT, DataRoot

# Every run reaches this early; a horizon of 20 steps keeps it short.
QUICK = (
    *("--steps", "20", "--set", "target.target_loss=5.3", "--set", "validation.every=20"),
    *("--set", "validation.windows=16", "--set", "eval.cap=10"),
)


def start(root: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "harness.cli", *arguments],
        env=os.environ | {"DATA_DIR": str(root), "PYTHONPATH": str(REPO_ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 120
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)
    return value


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> DataRoot:
    return DataRoot(path=tmp_path_factory.mktemp("campaign"), reason="test")


def only_set(root: DataRoot) -> repeats.Series:
    (path,) = root.repeats.glob("*.json")
    return repeats.read(path.stem, root)


def test_three_real_runs_are_replicated(root: DataRoot) -> None:
    command = ("speedrun", "pocket", "--headless", "--quiet", "--repeat", "3", *QUICK)
    process = start(root.path, *command)
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    series = only_set(root)
    results = [json.loads(line) for line in output.splitlines()]
    assert [result["step"] for result in results] == [20, 20, 20]
    board = leaderboard.load(root.board)
    assert not leaderboard.verify(board)
    assert not leaderboard.removed(board, root)
    (standing,) = leaderboard.standings(board)
    (row,) = standing.rows
    made = row.entry.replicates
    assert made is not None
    assert row.entry.status == "replicated"
    assert made.run_ids == tuple(each.run_id for each in series.runs)
    assert sorted(made.losses) == sorted(result["loss"] for result in results)
    assert len(set(made.losses)) == 3
    assert made.p < 0.05
    shown = start(root.path, "leaderboard").communicate(timeout=60)[0]
    assert "replicated (3/3, p " in shown


@pytest.mark.soak
def test_set_of_which_a_run_was_killed_is_not_replicated(root: DataRoot) -> None:
    before = set(root.repeats.glob("*.json"))
    command = ("speedrun", "pocket", "--headless", "--quiet", "--repeat", "3", *QUICK)
    process = start(root.path, *command)
    (path,) = wait_for(lambda: set(root.repeats.glob("*.json")) - before)
    series = repeats.read(path.stem, root)
    victim = root.run(series.runs[1].run_id)
    wait_for(lambda: victim.state.exists() and json.loads(victim.state.read_text())["step"] >= 0)
    os.kill(int(json.loads(victim.state.read_text())["pid"]), signal.SIGKILL)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 6, errors
    assert "2 of 3 runs finished, 1 failed" in errors
    board = leaderboard.load(root.board)
    assert not leaderboard.verify(board)
    entries = [e for e in board.current if e.replicates and e.replicates.series == series.series]
    (entry,) = entries
    assert entry.status == "verified"
    assert entry.replicates is not None
    assert victim.run_id in entry.replicates.run_ids  # what failed stays visible
    assert entry.replicates.failed == 1


def test_repeats_without_a_horizon_are_refused(root: DataRoot) -> None:
    process = start(root.path, "speedrun", "pocket", "--quiet", "--repeat", "3")
    assert "Add: --steps N" in process.communicate(timeout=60)[1]
    assert process.returncode == 2
