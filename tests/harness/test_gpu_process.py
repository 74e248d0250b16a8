"""GPUs are asked by a child: it may crash, hang, talk nonsense or die; it is started again."""

import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from harness import gpu_process, launch, ranks, runs
from harness.attempt import Attempt, Patience
from harness.errors import MachineError
from harness.gpu_process import GpuProcess
from nmoe.event_log import read_events
from nmoe.events import AlertEvent
from nmoe.paths import REPO_ROOT, DataRoot
from tests.harness.finished_run import make_plan
from tests.harness.test_launch import wait_for

MACHINES = REPO_ROOT / "tests" / "data" / "hardware"


def child(monkeypatch: pytest.MonkeyPatch, *command: str) -> None:
    monkeypatch.setattr(gpu_process, "COMMAND", command)


def fake(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    child(monkeypatch, *gpu_process.COMMAND, "--fake-hardware", str(MACHINES / f"{name}.json"))


def script(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """A child that does something else; the number of GPUs is left to it."""
    child(monkeypatch, sys.executable, "-c", text)


def test_child_says_what_the_gpus_say(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, "h100x2_recorded")
    gpus = GpuProcess(2)
    gpus.start()
    samples = [gpus.sample() for _ in range(3)]
    gpus.close()

    assert gpus.topology is not None
    assert gpus.topology.nvlinks == (18, 18)
    assert [[gpu.index for gpu in sample] for sample in samples] == [[0, 1]] * 3
    assert samples[0][0].power_w is not None
    assert not gpus.is_started


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import os; input(); print(); input(); os.abort()", "ended with SIGABRT"),
        ("input(); print(); raise SystemExit(3)", "ended with exit code 3"),
        ("input(); print(flush=True); input(); print('nonsense\\n', flush=True); input()", "JSON"),
        ("input(); print(flush=True); import time; time.sleep(60)", "did not answer in 0.5 s"),
    ],
)
def test_child_that_fails_is_an_error_and_gone(
    monkeypatch: pytest.MonkeyPatch, text: str, words: str
) -> None:
    script(monkeypatch, text)
    gpus = GpuProcess(1)
    gpus.start()
    process = gpus._process
    assert process is not None
    monkeypatch.setattr(gpu_process, "ANSWER_S", 0.5)
    with pytest.raises(MachineError, match=words):
        gpus.sample()
    assert process.returncode is not None
    assert not gpus.is_started


def test_child_that_cannot_be_started_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    child(monkeypatch, "/no/such/python")
    with pytest.raises(MachineError, match="cannot be started: No such file"):
        GpuProcess(1).start()


def test_child_ends_when_its_parent_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, "h100x1_recorded")
    gpus = GpuProcess(1)
    gpus.start()
    process = gpus._process
    assert process is not None
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(10) == 0


def test_run_goes_on_being_sampled_when_the_driver_crashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    fake(monkeypatch, "h100x1_recorded")
    monkeypatch.setattr(ranks, "SAMPLE_EVERY_S", 0.01)
    folder = DataRoot(path=tmp_path, reason="test").run("a")
    folder.root.mkdir(parents=True)
    started: list[int] = []
    spawn = launch.spawn_answering

    def note(command: tuple[str, ...]) -> launch.Process:
        process = spawn(command)
        started.append(process.pid)
        return process

    monkeypatch.setattr(launch, "spawn_answering", note)
    plan = make_plan("a", device="cuda")
    lock_fd = launch.take_run_lock(folder)
    attempt = Attempt(folder, plan, lock_fd=lock_fd, patience=Patience())
    over = threading.Event()
    sampling = threading.Thread(target=ranks.sample_gpus, args=(attempt, over))
    sampling.start()
    for crashes in (1, 2):
        before = len(list(read_events(folder.gpus)))
        wait_for("samples", lambda n=before: len(list(read_events(folder.gpus))) > n + 3)
        os.kill(started[-1], signal.SIGABRT)
        wait_for("another child", lambda n=crashes: len(started) > n)
    before = len(list(read_events(folder.gpus)))
    wait_for("samples", lambda: len(list(read_events(folder.gpus))) > before)
    over.set()
    sampling.join()
    os.close(lock_fd)

    events = [record.event for record in read_events(folder.gpus)]
    alerts = [event for event in events if isinstance(event, AlertEvent)]
    assert [alert.code for alert in alerts] == ["gpu-samples"]
    assert "ended with SIGABRT. It is started again" in alerts[0].message
    assert capfd.readouterr().err.count("ended with SIGABRT") == 2
    assert runs.load(folder).topology is not None
