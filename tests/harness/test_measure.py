"""The bench suite started from a screen: one at a time, beside no run, and to its end."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

from harness import hardware, launch, measure
from harness.errors import MachineError, RunError
from nmoe.paths import DataRoot, take_lock
from tests.tui import recordings as rec
from tests.tui.screen import held

SCENARIOS = Path(__file__).parent.parent / "data" / "hardware"
SUITE = """
import json, sys, time, pathlib
print("\\x1b[1mcollecting", *sys.argv[1:], flush=True)
while not pathlib.Path("@go").exists():
    time.sleep(0.01)
print(json.dumps({"rows": sys.argv[1:]}))
"""


@pytest.fixture
def root(tmp_path):
    return DataRoot(path=tmp_path, reason="test")


@pytest.fixture
def go(tmp_path, monkeypatch):
    """The file that lets a small suite end."""
    path = tmp_path / "go"
    suite = tmp_path / "suite.py"
    suite.write_text(SUITE.replace("@go", str(path)))
    monkeypatch.setattr(launch, "BENCH", (sys.executable, str(suite)))
    yield path
    path.touch()


def machine(monkeypatch, name):
    found = hardware.detect(fake=SCENARIOS / f"{name}.json")
    monkeypatch.setattr(measure, "detect", lambda: found)


def wait(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("name", "part", "arguments"),
    [
        ("h200x1", "kernels", ["kernels"]),
        ("h100x2_recorded", "transport", ["transport", "--gpus", "2"]),
        ("b200x8_healthy", "loss", ["loss"]),
    ],
)
def test_suite_is_started_once_and_seen_until_it_ends(root, go, monkeypatch, name, part, arguments):
    machine(monkeypatch, name)
    assert not measure.is_running(root)
    assert measure.last_words(root) == ""
    measure.start(part, root)

    assert measure.is_running(root)
    wait(lambda: "collecting" in measure.last_words(root))
    with pytest.raises(RunError, match="at work already"):
        measure.start(part, root)
    go.touch()
    wait(lambda: not measure.is_running(root))
    assert json.loads(measure.last_words(root)) == {"rows": arguments}


def test_suite_is_in_a_session_of_its_own(root, go, monkeypatch):
    """A terminal that is closed takes its session with it, and no more."""
    machine(monkeypatch, "h200x1")
    started = []
    real = launch.subprocess.Popen
    monkeypatch.setattr(
        launch.subprocess, "Popen", lambda *a, **k: started.append(real(*a, **k)) or started[-1]
    )
    measure.start("kernels", root)

    assert os.getsid(started[0].pid) == started[0].pid != os.getsid(0)


@pytest.mark.parametrize(
    ("name", "part", "why"),
    [
        ("none", "kernels", "nothing to measure: "),
        ("mig", "kernels", "MIG"),
        ("h200x1", "transport", "two GPUs or more: got 1"),
    ],
)
def test_machine_that_cannot_measure_is_refused(root, go, monkeypatch, name, part, why):
    machine(monkeypatch, name)
    with pytest.raises(MachineError, match=why):
        measure.start(part, root)
    assert not root.bench.exists()


def test_nothing_is_measured_beside_a_live_run(root, go, monkeypatch):
    machine(monkeypatch, "h200x1")
    run = rec.training(root)
    with held(run.folder), pytest.raises(RunError, match=f"{run.run_id} is alive"):
        measure.start("kernels", root)
    assert not root.bench.exists()


def test_folder_that_cannot_be_made_is_told(root, go, monkeypatch):
    machine(monkeypatch, "h200x1")
    root.bench.write_text("a file")
    with pytest.raises(MachineError, match="cannot write"):
        measure.start("kernels", root)


def test_suite_that_was_killed_is_not_at_work(root):
    root.bench.mkdir()
    os.close(take_lock(root.bench / "lock"))
    assert not measure.is_running(root)
