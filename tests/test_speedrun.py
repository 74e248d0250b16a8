"""The whole path as a user takes it: `n speedrun pocket`, killed, stopped, left and come back to.

Real processes throughout: command, supervisor, preparation, ranks, scoring.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import runs
from nmoe.event_log import read_events
from nmoe.events import ExitEvent, LaunchEvent, ResultEvent, StepEvent, ValEvent
from nmoe.paths import REPO_ROOT, DataRoot, RunFolder

BOARD = REPO_ROOT / "LEADERBOARD.json"
QUICK = (
    *("--set", "target.target_loss=2.4"),
    *("--set", "validation.every=20"),
    *("--set", "validation.windows=32"),
    *("--set", "checkpoint.every=20"),
    *("--set", "eval.cap=10"),
)
ENDLESS = (*QUICK, "--set", "target.target_loss=0.01", "--steps", "100000")


def n(root: Path, *args: str) -> list[str]:
    return [sys.executable, "-m", "harness.cli", *args]


def start(root: Path, *args: str) -> subprocess.Popen[str]:
    env = os.environ | {"DATA_DIR": str(root), "PYTHONPATH": str(REPO_ROOT)}
    pipe = subprocess.PIPE
    return subprocess.Popen(n(root, *args), env=env, stdout=pipe, stderr=pipe, text=True)


def call(root: Path, *args: str, expect: int = 0, timeout_s: float = 120) -> str:
    """One command to its end; its standard output."""
    process = start(root, *args)
    output, errors = process.communicate(timeout=timeout_s)
    assert process.returncode == expect, errors
    return output


def wait_for(condition: Callable[[], Any], *, timeout_s: float = 60) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)
    return value


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root after one whole run of three steps: data and bundle are there."""
    root = tmp_path_factory.mktemp("prepared")
    call(root, "speedrun", "pocket", "--headless", "--json", *QUICK, "--steps", "3", expect=6)
    return root


@pytest.fixture
def root(prepared: Path, tmp_path: Path) -> Iterator[Path]:
    """A fresh data root with data and bundle in it and no runs; none is left running in it."""
    root = tmp_path / "root"
    for name in ("pocket", "eval"):
        shutil.copytree(prepared / name, root / name)
    yield root
    for plan in root.glob("runs/*/plan.json"):
        folder = RunFolder(root=plan.parent)
        if runs.is_alive(folder):
            os.kill(supervisor(folder), signal.SIGKILL)  # its ranks follow


def only_run(root: Path) -> RunFolder:
    (folder,) = [path for path in (root / "runs").iterdir() if not path.name.startswith(".")]
    return DataRoot(path=root, reason="test").run(folder.name)


def losses(folder: RunFolder) -> dict[int, float]:
    steps = [r.event for r in read_events(folder.train) if isinstance(r.event, StepEvent)]
    return {event.step: event.loss for event in steps}


def has_step(root: Path, step: int) -> bool:
    if not (root / "runs").exists():
        return False
    return bool(list((root / "runs").glob("*/plan.json"))) and step in losses(only_run(root))


def ranks(folder: RunFolder) -> tuple[int, ...]:
    launches = [r.event for r in read_events(folder.supervisor) if isinstance(r.event, LaunchEvent)]
    return launches[-1].pids


def supervisor(folder: RunFolder) -> int:
    return int(json.loads(folder.state.read_text())["pid"])


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def last_exit(folder: RunFolder) -> ExitEvent:
    exits = [r.event for r in read_events(folder.supervisor) if isinstance(r.event, ExitEvent)]
    return exits[-1]


def status_of(root: Path) -> str:
    (run,) = json.loads(call(root, "runs", "--json"))
    return str(run["status"])


def test_speedrun_reaches_its_target_and_enters_the_board(tmp_path: Path) -> None:
    """From nothing: prepare, train, validate, CORE, result, entry; the tracked board untouched."""
    root, tracked = tmp_path / "root", BOARD.read_bytes()
    lines = call(root, "speedrun", "pocket", "--headless", "--json", *QUICK).splitlines()
    events = [json.loads(line) for line in lines]
    kinds = [event["k"] for event in events]
    for earlier, later in zip(
        ("prep", "launch", "step", "val", "core_task", "core"),
        ("launch", "step", "val", "core_task", "core", "result"),
        strict=True,
    ):
        assert kinds.index(earlier) < kinds.index(later)
    result = events[-1]
    assert result["k"] == "result"
    assert result["reached"] is True
    assert result["loss"] <= 2.4
    assert BOARD.read_bytes() == tracked
    board = json.loads(call(root, "leaderboard", "--json"))
    assert result["entry_id"] in json.dumps(board)
    entries = json.loads((root / "LEADERBOARD.json").read_text())["entries"]
    assert [entry["entry_id"] for entry in entries] == [result["entry_id"]]
    assert json.loads(only_run(root).result.read_text())["entry_id"] == result["entry_id"]


def test_speedrun_gives_the_same_losses_when_run_twice(root: Path) -> None:
    first = call(root, "speedrun", "pocket", "--headless", "--json", *QUICK)
    second = call(root, "speedrun", "pocket", "--headless", "--json", *QUICK)

    def measured(output: str) -> list[tuple[str, int, float]]:
        events = [json.loads(line) for line in output.splitlines()]
        return [(e["k"], e["step"], e["loss"]) for e in events if e["k"] in ("step", "val")]

    assert measured(first) == measured(second)
    assert len(measured(first)) > 10
    assert len(json.loads((root / "LEADERBOARD.json").read_text())["entries"]) == 2


@pytest.mark.parametrize("world", ["1", "2"])
def test_run_is_exact_when_its_supervisor_was_killed_and_it_is_resumed(
    root: Path, tmp_path: Path, world: str
) -> None:
    viewer = start(root, "speedrun", "pocket", "--headless", "--json", *ENDLESS, "--gpus", world)
    wait_for(lambda: has_step(root, 50))
    folder = only_run(root)
    pids = ranks(folder)
    assert len(pids) == int(world)
    os.kill(supervisor(folder), signal.SIGKILL)
    began = time.monotonic()
    wait_for(lambda: not any(is_running(pid) for pid in pids), timeout_s=10)
    assert time.monotonic() - began < 10
    viewer.communicate(timeout=30)
    assert viewer.returncode != 0
    assert status_of(root) == "interrupted"
    before = losses(folder)
    viewer = start(root, "resume", folder.run_id, "--json")
    goal = max(before) + 20
    wait_for(lambda: goal in losses(folder))
    call(root, "stop", folder.run_id)
    viewer.communicate(timeout=30)
    assert viewer.returncode == 130
    after = losses(folder)
    other = tmp_path / "other"
    for name in ("pocket", "eval"):
        shutil.copytree(root / name, other / name)
    steps = (*QUICK, "--set", "target.target_loss=0.01", "--steps", str(goal))
    call(other, "speedrun", "pocket", "--headless", "--json", *steps, "--gpus", world, expect=6)
    whole = losses(only_run(other))
    common = [step for step in after if step <= goal and step % 10 == 0]
    assert len(common) == goal // 10
    assert {step: after[step] for step in common} == {step: whole[step] for step in common}


def test_run_fails_within_seconds_when_a_rank_is_killed_and_can_be_resumed(root: Path) -> None:
    viewer = start(root, "speedrun", "pocket", "--headless", "--json", *ENDLESS, "--gpus", "2")
    wait_for(lambda: has_step(root, 30))
    folder = only_run(root)
    pids = ranks(folder)
    began = time.monotonic()
    os.kill(pids[1], signal.SIGKILL)
    viewer.communicate(timeout=30)
    assert time.monotonic() - began < 10
    assert viewer.returncode == 5
    assert not any(is_running(pid) for pid in pids)
    end = last_exit(folder)
    assert (end.status, end.signal, end.rank) == ("failed", "SIGKILL", 1)
    assert status_of(root) == "failed"
    viewer = start(root, "resume", folder.run_id, "--json")
    reached = max(losses(folder))
    wait_for(lambda: max(losses(folder)) > reached)
    call(root, "stop", folder.run_id)
    viewer.communicate(timeout=30)
    assert viewer.returncode == 130


def test_run_goes_on_when_its_viewer_is_killed_and_can_be_attached(root: Path) -> None:
    viewer = start(root, "speedrun", "pocket", "--headless", *QUICK)
    wait_for(lambda: has_step(root, 10))
    folder = only_run(root)
    viewer.kill()
    viewer.communicate(timeout=30)
    output = call(root, "attach", folder.run_id, "--headless", "--json")
    assert json.loads(output.splitlines()[-1])["reached"] is True
    results = [r.event for r in read_events(folder.supervisor) if isinstance(r.event, ResultEvent)]
    assert len(results) == 1
    assert status_of(root) == "done"


def test_run_stops_with_a_checkpoint_and_reaches_its_target_when_resumed(root: Path) -> None:
    viewer = start(root, "speedrun", "pocket", "--headless", "--json", *QUICK)
    wait_for(lambda: has_step(root, 10))
    folder = only_run(root)
    call(root, "stop", folder.run_id)
    viewer.communicate(timeout=30)
    assert viewer.returncode == 130
    saved = list(folder.checkpoints.glob("step_*/manifest.json"))
    assert saved
    output = call(root, "resume", folder.run_id, "--json")
    assert json.loads(output.splitlines()[-1])["reached"] is True
    validations = [r.event for r in read_events(folder.train) if isinstance(r.event, ValEvent)]
    assert validations[-1].loss <= 2.4
    call(root, "resume", folder.run_id, expect=5)


def test_speedrun_repairs_a_damaged_shard_before_it_trains(root: Path) -> None:
    shard = next((root / "pocket").glob("*/val/*.npy"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    call(root, "speedrun", "pocket", "--headless", "--json", *QUICK, "--steps", "3", expect=6)
    assert shard.read_bytes() == whole
