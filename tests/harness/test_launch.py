"""Runs as real processes: started, watched, stopped, killed and resumed, with a fake trainer."""

import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from harness import exits, gpu_process, gpu_watch, hardware, launch, ranks, runs
from harness.attempt import Attempt, Patience
from harness.errors import MachineError, RunError
from harness.exits import Failure, Stop
from harness.pins import OFFICIAL_URL
from harness.run_state import RunState
from nmoe import paths
from nmoe.config import read_config, with_train
from nmoe.event_log import EventLog, read_events
from nmoe.events import LaunchEvent, OutcomeEvent, PhaseEvent, Status, StopRequestEvent
from nmoe.paths import REPO_ROOT, DataRoot, RunFolder
from tests.harness.finished_run import make_plan
from tests.tui.recordings import step_event

SUPERVISOR = Path(__file__).with_name("fake_supervisor.py")
DEADLINE_S = 20.0
POCKET = REPO_ROOT / "configs/speedrun/pocket.toml"
CONFIG = read_config(POCKET, overrides=["train.micro_batch=1"])

T = TypeVar("T")


def wait_for(what: str, probe: Callable[[], T], *, seconds: float = DEADLINE_S) -> T:
    """The first true answer of `probe`; fails the test when there is none in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        answer = probe()
        if answer:
            return answer
        time.sleep(0.02)
    pytest.fail(f"waited {seconds} s for {what}")


def is_running(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def rank_pids(folder: RunFolder) -> tuple[int, ...]:
    """The pids of the ranks of the last launch."""
    events = [record.event for record in read_events(folder.supervisor)]
    launches = [event for event in events if isinstance(event, LaunchEvent)]
    return launches[-1].pids if launches else ()


def supervisor_pid(folder: RunFolder) -> int:
    snapshot = wait_for("state.json", lambda: runs.read_snapshot(folder))
    return snapshot.pid


def is_training(folder: RunFolder) -> bool:
    return runs.load(folder).step > 0


class Lab:
    """A data root, and runs in it by the mode of their fake trainer."""

    def __init__(self, root: DataRoot, patch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.patch = patch
        self.folders: list[RunFolder] = []

    def set_mode(self, mode: str, prep: str = "") -> None:
        command = (sys.executable, str(SUPERVISOR), mode, *([prep] if prep else []))
        self.patch.setattr(launch, "SUPERVISOR", command)

    def start(self, mode: str, *, world: int = 1, prep: str = "") -> RunFolder:
        self.set_mode(mode, prep)
        plan = make_plan(f"r-{len(self.folders)}", config=CONFIG, world=world)
        folder = launch.start(plan, self.root)
        self.folders.append(folder)
        return folder

    def training(self, mode: str, *, world: int = 1) -> RunFolder:
        """A run whose trainer has logged a step."""
        folder = self.start(mode, world=world)
        wait_for("the first step", lambda: is_training(folder))
        wait_for("the ranks", lambda: len(rank_pids(folder)) == world)
        logs = [folder.log(f"rank{rank}") for rank in range(world)]
        wait_for("their first words", lambda: all(log.stat().st_size for log in logs))
        return folder

    def finished(self, folder: RunFolder, *, seconds: float = DEADLINE_S) -> RunState:
        """The state after the last process of the run is gone."""
        wait_for("the end of the run", lambda: not runs.is_alive(folder), seconds=seconds)
        return runs.load(folder)

    def close(self) -> None:
        """Kill what still runs; a supervisor that just started has not said who it is yet."""
        for folder in self.folders:
            wait_for(f"the end of {folder.run_id}", lambda at=folder: self._is_dead(at))

    def _is_dead(self, folder: RunFolder) -> bool:
        if not runs.is_alive(folder):
            return True
        snapshot = runs.read_snapshot(folder)
        for pid in (*rank_pids(folder), *([snapshot.pid] if snapshot else [])):
            if is_running(pid):
                os.kill(pid, signal.SIGKILL)
        return False


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    lab = Lab(DataRoot(path=tmp_path / "[/bold] data", reason="test"), monkeypatch)
    yield lab
    lab.close()


# ------------------------------------------------------------------------------- whole runs


def test_run_leaves_events_result_and_snapshot_when_it_ends_in_order(lab: Lab) -> None:
    folder = lab.start("steps", world=2, prep='echo \'{"job":"j","done":3,"total":3,"unit":"x"}\'')
    state = lab.finished(folder)
    assert state.exit is not None
    assert (state.exit.status, state.exit.rc, state.exit.tail) == ("missed", 6, ())
    assert [(job.job, job.done) for job in state.prep] == [("j", 3)]
    assert state.result is not None
    assert state.result.reached is False
    kinds = [record.event.kind for record in read_events(folder.supervisor)]
    assert kinds[-2:] == ["result", "exit"]
    assert json.loads(folder.result.read_text())["status"] == "missed"
    snapshot = runs.read_snapshot(folder)
    assert snapshot is not None
    assert (snapshot.status, snapshot.is_over, snapshot.step) == ("missed", True, 50)
    assert "rank 1 of 2" in folder.log("rank1").read_text()
    assert not any(is_running(pid) for pid in rank_pids(folder))


def test_snapshot_is_whole_whenever_it_is_read(lab: Lab) -> None:
    folder = lab.training("endless")
    wait_for("state.json", folder.state.exists)
    seen: set[float] = set()

    def has_changed_thrice() -> bool:
        snapshot = runs.read_snapshot(folder)
        assert snapshot is not None
        seen.add(snapshot.heartbeat)
        return len(seen) >= 3

    wait_for("three heartbeats", has_changed_thrice)
    snapshot = runs.read_snapshot(folder)
    assert snapshot is not None
    assert snapshot.status == "training"
    assert snapshot.pid_start > 0
    assert snapshot.boot_id
    assert runs.summarize(folder).status == "training"


def test_start_refuses_when_the_run_exists(lab: Lab) -> None:
    lab.start("endless")
    with pytest.raises(RunError, match="run r-0 exists"):
        launch.start(make_plan("r-0"), lab.root)


def test_start_says_where_it_cannot_write(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(MachineError, match="cannot write"):
        launch.start(make_plan("r"), DataRoot(path=file, reason="test"))


def test_other_run_is_announced_when_one_is_alive(lab: Lab) -> None:
    lab.training("endless")
    state = lab.finished(lab.start("steps"))
    assert [alert.code for alert in state.alerts] == ["other-run"]
    assert "r-0 is running too" in state.alerts[0].message


# -------------------------------------------------------------------------------------- GPUs


@pytest.fixture
def busy_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sampled are described GPUs under load, by a real child."""
    machine = REPO_ROOT / "tests" / "data" / "hardware" / "b200x8_busy.json"
    command = (*gpu_process.COMMAND, "--fake-hardware", str(machine))
    monkeypatch.setattr(gpu_process, "COMMAND", command)


def gpu_attempt(root: DataRoot, run_id: str, *, world: int = 1) -> Attempt:
    config = read_config(REPO_ROOT / "configs/speedrun/pocket.toml")
    config = with_train(config, micro_batch=1)
    plan = make_plan(run_id, config=config, device="cuda", world=world)
    folder = root.run(run_id)
    folder.root.mkdir(parents=True)
    lock_fd = launch.take_run_lock(folder)
    return Attempt(folder, plan, lock_fd=lock_fd, patience=Patience())


@pytest.mark.usefixtures("busy_gpus")
def test_samples_alerts_and_energy_are_in_the_files_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "SAMPLE_EVERY_S", 0.001)
    monkeypatch.setattr(gpu_watch, "HOLD_S", 0.0)
    monkeypatch.setattr(gpu_watch, "PATIENCE_S", 0.0)
    monkeypatch.setattr(gpu_watch, "ENERGY_EVERY_S", 0.0)
    attempt = gpu_attempt(DataRoot(path=tmp_path, reason="test"), "a", world=8)
    train = EventLog(attempt.folder.train, attempt=0)
    over = threading.Event()
    sampling = threading.Thread(target=ranks.sample_gpus, args=(attempt, over))
    train.write(PhaseEvent(phase="training"))
    sampling.start()

    def is_told() -> bool:
        step = attempt.reader.state.step + 10
        train.write(step_event(step))
        attempt.reader.read()
        return runs.load(attempt.folder).energy is not None

    wait_for("energy", is_told)
    over.set()
    sampling.join()
    state = runs.load(attempt.folder)
    assert len(state.gpus) == 8
    assert state.gpus[7].nvlink_tx_bytes_s is not None
    assert "GPUs 0, 1, 2, 3, 4, 5, 6, 7 are power-capped" in state.alerts[0].message
    assert state.joules_per_token is not None
    assert state.joules_per_token > 0
    for fd in attempt.lock_fds:
        os.close(fd)


@pytest.mark.usefixtures("busy_gpus")
def test_gpu_is_sampled_and_refused_to_a_second_run_while_one_uses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = hardware.detect(fake=REPO_ROOT / "tests/data/hardware/h100x8.json")
    monkeypatch.setattr(hardware, "detect", lambda: machine)
    monkeypatch.setattr(ranks, "SAMPLE_EVERY_S", 0.01)
    monkeypatch.setattr(paths, "LOCK_PATIENCE_S", 0.0)
    root = DataRoot(path=tmp_path, reason="test")
    first, second = gpu_attempt(root, "a"), gpu_attempt(root, "b")
    with ranks.own_gpus(first):
        wait_for("a sample", lambda: runs.load(first.folder).gpus)
        with pytest.raises(RunError, match="GPU 0 is used by another run"), ranks.own_gpus(second):
            pass
    state = runs.load(first.folder)
    assert [(gpu.index, gpu.util, gpu.power_w) for gpu in state.gpus] == [(0, 99, 953.0)]
    assert state.topology is not None
    assert state.topology.nvlinks == (18,)
    for fd in (*first.lock_fds, *second.lock_fds):
        os.close(fd)
    third = gpu_attempt(root, "c")
    with ranks.own_gpus(third):
        assert len(third.lock_fds) == 2
    for fd in third.lock_fds:
        os.close(fd)


# ------------------------------------------------------------------------------------- stops


def test_stop_request_ends_in_a_checkpoint_and_resume_goes_on(lab: Lab) -> None:
    folder = lab.training("endless", world=2)
    launch.request_stop(folder, by="a [/bold] person")
    state = lab.finished(folder)
    assert state.exit is not None
    assert (state.exit.status, state.exit.rc, state.exit.tail) == ("interrupted", 130, ())
    requests = [r.event for r in read_events(folder.supervisor)]
    assert StopRequestEvent(by="a [/bold] person", action="checkpoint") in requests
    stopped_at = state.step
    launch.resume(folder)
    wait_for("steps after the stop", lambda: runs.load(folder).step > stopped_at)
    state = runs.load(folder)
    assert (state.attempt, state.exit, state.stop_requested) == (1, None, False)
    steps = list(state.losses.steps)
    assert steps == list(range(10, state.step + 1, 10))


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGHUP, 143), (signal.SIGINT, 130)],
)
def test_signal_to_the_supervisor_stops_with_a_checkpoint(
    lab: Lab, number: signal.Signals, code: int
) -> None:
    folder = lab.training("endless")
    os.kill(supervisor_pid(folder), number)
    state = lab.finished(folder)
    assert state.exit is not None
    assert (state.exit.status, state.exit.rc) == ("interrupted", code)
    assert (folder.checkpoints / "step.json").exists()


def test_stop_is_enforced_when_the_trainer_does_not_heed_it(lab: Lab) -> None:
    folder = lab.training("deaf", world=2)
    launch.request_stop(folder, by="me")
    state = lab.finished(folder)
    assert state.exit is not None
    assert (state.exit.status, state.exit.signal) == ("interrupted", "SIGKILL")
    events = [r.event for r in read_events(folder.supervisor)]
    actions = [event.action for event in events if isinstance(event, StopRequestEvent)]
    assert actions == ["checkpoint", "SIGTERM", "SIGKILL"]


def test_stop_ends_the_preparation_and_the_run_can_be_resumed(lab: Lab) -> None:
    folder = lab.start("steps", prep="exec sleep 60")
    wait_for("the preparation", lambda: runs.load(folder).phase == "preparing")
    launch.request_stop(folder, by="me")
    state = lab.finished(folder)
    assert state.exit is not None
    assert (state.exit.status, state.exit.rc) == ("interrupted", 130)
    assert rank_pids(folder) == ()
    lab.set_mode("steps")
    launch.resume(folder)
    state = lab.finished(folder)
    assert state.exit is not None
    assert (state.attempt, state.exit.status) == (1, "missed")


def test_stop_refuses_when_the_run_is_not_alive(lab: Lab) -> None:
    folder = lab.start("steps")
    lab.finished(folder)
    with pytest.raises(RunError, match="is not running"):
        launch.request_stop(folder, by="me")
    assert not folder.stop_request.exists()


def test_resume_refuses_when_nothing_is_left_to_do(lab: Lab) -> None:
    folder = lab.start("steps")
    lab.finished(folder)
    with pytest.raises(RunError, match=r"is over \(missed\)"):
        launch.resume(folder)


# ---------------------------------------------------------------------------------- bad days


def test_killed_rank_fails_the_run_within_ten_seconds(lab: Lab) -> None:
    folder = lab.training("endless", world=2)
    began = time.monotonic()
    os.kill(rank_pids(folder)[1], signal.SIGKILL)
    state = lab.finished(folder, seconds=10)
    assert time.monotonic() - began < 10
    assert state.exit is not None
    assert (state.exit.status, state.exit.rc) == ("failed", 5)
    assert (state.exit.signal, state.exit.rank) == ("SIGKILL", 1)
    assert "memory ran out" in state.exit.hint
    assert state.exit.tail == ("rank 1 of 2",)
    assert state.result is not None
    assert state.result.status == "failed"
    assert not any(is_running(pid) for pid in rank_pids(folder))


def test_deaf_ranks_are_killed_when_another_one_fails(lab: Lab) -> None:
    folder = lab.training("deaf", world=2)
    os.kill(rank_pids(folder)[0], signal.SIGKILL)
    state = lab.finished(folder, seconds=10)
    assert state.exit is not None
    assert (state.exit.status, state.exit.rank) == ("failed", 0)


def test_killed_supervisor_leaves_ranks_that_stop_and_a_run_to_resume(lab: Lab) -> None:
    folder = lab.training("endless", world=2)
    pids = rank_pids(folder)
    os.kill(supervisor_pid(folder), signal.SIGKILL)
    wait_for("the ranks to end", lambda: not any(map(is_running, pids)), seconds=10)
    for rank in range(2):
        assert folder.log(f"orphan{rank}").read_text() == "the supervisor is gone"
    state = lab.finished(folder)
    assert state.exit is None
    assert runs.status(state, False, time.time()) == "interrupted"
    assert runs.summarize(folder).status == "interrupted"
    lab.set_mode("steps")
    launch.resume(folder)
    state = lab.finished(folder)
    assert state.exit is not None
    assert (state.attempt, state.exit.status) == (1, "missed")


def test_lock_is_held_until_the_last_process_is_gone(lab: Lab) -> None:
    folder = lab.training("deaf")
    [pid] = rank_pids(folder)
    supervisor = supervisor_pid(folder)
    os.kill(supervisor, signal.SIGKILL)
    wait_for("the supervisor to end", lambda: not is_running(supervisor))
    assert runs.is_alive(folder)
    with pytest.raises(RunError, match="is alive"):
        launch.resume(folder)
    os.kill(pid, signal.SIGKILL)
    wait_for("the lock", lambda: not runs.is_alive(folder))


def test_second_supervisor_is_refused_while_the_first_lives(lab: Lab) -> None:
    folder = lab.training("endless")
    before = folder.supervisor.read_bytes()
    second = subprocess.run(
        [sys.executable, "-m", "harness.supervise", "--run", str(folder.root)],
        capture_output=True,
        text=True,
        cwd=REPO_ROOT,
        timeout=DEADLINE_S,
        check=False,
    )
    assert second.returncode == 5
    assert "is alive" in second.stderr
    assert folder.supervisor.read_bytes() == before


def test_exit_has_tail_and_hint_when_a_rank_runs_out_of_memory(lab: Lab) -> None:
    state = lab.finished(lab.start("oom", world=2))
    assert state.exit is not None
    assert (state.exit.status, state.exit.rank, state.exit.rc) == ("failed", 1, 1)
    assert "CUDA out of memory" in state.exit.tail[-1]
    assert "train.micro_batch" in state.exit.hint


def test_exit_is_diverged_when_the_trainer_says_so(lab: Lab) -> None:
    state = lab.finished(lab.start("nan"))
    assert state.exit is not None
    assert (state.exit.status, state.exit.rc) == ("diverged", 5)
    assert state.result is not None
    assert state.result.status == "diverged"


def test_run_ends_when_one_rank_never_does(lab: Lab) -> None:
    folder = lab.start("late", world=2)
    state = lab.finished(folder)
    assert state.exit is not None
    assert (state.exit.status, state.exit.rank) == ("missed", 1)
    assert "after the work was done" in state.exit.hint


def test_exit_names_the_last_error_when_the_preparation_fails(lab: Lab) -> None:
    state = lab.finished(lab.start("steps", prep="echo 'error: shard 3 is torn' >&2; exit 4"))
    assert state.exit is not None
    assert (state.exit.status, state.exit.rc) == ("failed", 4)
    assert state.exit.hint == "shard 3 is torn"
    assert state.result is not None
    assert state.result.reason == "shard 3 is torn"


def test_exit_names_the_address_when_the_bundle_cannot_be_fetched(lab: Lab) -> None:
    lab.patch.setenv("https_proxy", "http://127.0.0.1:9")
    command = shlex.join([sys.executable, "-m", "harness.prep", "--json"])
    state = lab.finished(lab.start("steps", prep=command))
    assert state.exit is not None
    assert (state.exit.status, state.exit.rc) == ("failed", 4)
    assert state.exit.hint.startswith(f"cannot download {OFFICIAL_URL}: ")
    assert "n prep eval --from FILE" in state.exit.hint


def test_resume_goes_on_when_the_supervisor_died_in_preparation(lab: Lab) -> None:
    folder = lab.start("steps", prep="while echo tick; do sleep 0.05; done")
    wait_for("the preparation", lambda: runs.load(folder).phase == "preparing")
    os.kill(supervisor_pid(folder), signal.SIGKILL)
    state = lab.finished(folder)  # the child inherits the lock and dies of its closed pipe
    assert runs.status(state, False, time.time()) == "interrupted"
    lab.set_mode("steps")
    launch.resume(folder)
    state = lab.finished(folder)
    assert state.exit is not None
    assert state.exit.status == "missed"


def test_run_fails_when_the_trainer_cannot_write(lab: Lab) -> None:
    folder = lab.training("full")
    state = lab.finished(folder)
    assert state.exit is not None
    assert (state.exit.status, state.exit.rc) == ("failed", 1)
    assert "File too large" in state.exit.hint
    assert not any(is_running(pid) for pid in rank_pids(folder))


def test_supervisor_fails_loudly_when_it_cannot_write(lab: Lab) -> None:
    folder = lab.root.run("r-0")
    folder.root.mkdir(parents=True)
    folder.plan.write_text(make_plan("r-0").to_json())
    ended = subprocess.run(
        [sys.executable, str(SUPERVISOR), "fuller", "--run", str(folder.root)],
        capture_output=True,
        text=True,
        cwd=REPO_ROOT,
        env=os.environ | {"PYTHONPATH": str(REPO_ROOT)},
        timeout=DEADLINE_S,
        check=False,
    )
    assert ended.returncode == 1
    assert "cannot write the event exit" in ended.stderr
    assert runs.summarize(folder).status == "interrupted"
    assert not runs.is_alive(folder)


def test_torn_line_is_one_bad_line_when_the_run_is_resumed(lab: Lab) -> None:
    folder = lab.training("endless")
    for pid in (supervisor_pid(folder), *rank_pids(folder)):
        os.kill(pid, signal.SIGKILL)
    lab.finished(folder)
    with folder.train.open("a") as file:
        file.write('{"v":1,"s":')
    lab.set_mode("steps")
    launch.resume(folder)
    state = lab.finished(folder)
    assert state.exit is not None
    assert (state.exit.status, state.bad_lines) == ("missed", 1)


def test_run_survives_when_the_terminal_that_started_it_closes(lab: Lab) -> None:
    lab.set_mode("endless")
    plan = make_plan("r-0")
    lab.folders.append(lab.root.run(plan.run_id))
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
        launch.start(plan, lab.root)
        signal.pause()
    [folder] = lab.folders
    wait_for("the first step", lambda: folder.train.exists() and is_training(folder))
    os.close(terminal)  # the session of the terminal gets SIGHUP
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGHUP
    step = runs.load(folder).step
    wait_for("more steps", lambda: runs.load(folder).step > step)
    assert runs.is_alive(folder)
    launch.request_stop(folder, by="me")
    state = lab.finished(folder)
    assert state.exit is not None
    assert state.exit.status == "interrupted"


# --------------------------------------------------------------------------------- judgement


def outcome(status: Status) -> OutcomeEvent:
    return OutcomeEvent(
        status=status,
        step=1,
        tokens=1,
        loss=None,
        train_s=1.0,
        wall_s=1.0,
        compile_s=0.0,
        eval_s=0.0,
        checkpoint_s=0.0,
        peak_memory_bytes=1,
        params_total=1,
        params_active=1,
        message="why",
    )


@pytest.mark.parametrize(
    ("failure", "said", "code", "stop", "was_forced", "expected"),
    [
        (None, "done", 0, None, False, ("done", 0, None)),
        (None, "core-failed", 7, None, False, ("core-failed", 7, None)),
        (None, "interrupted", 130, None, False, ("interrupted", 130, None)),
        (None, "interrupted", 130, Stop(by="SIGTERM", code=143), False, ("interrupted", 143, None)),
        (None, None, 0, None, False, ("done", 0, None)),
        (Failure(rank=1, code=4), None, 0, None, False, ("failed", 4, None)),
        (Failure(rank=1, code=77), None, 0, None, False, ("failed", 5, None)),
        (Failure(rank=1, code=-11), None, 0, None, False, ("failed", 5, "SIGSEGV")),
        (Failure(rank=1, code=-6), "done", 0, None, False, ("done", 0, "SIGABRT")),
        (Failure(rank=1, code=5), "interrupted", 0, None, False, ("failed", 5, None)),
        (Failure(rank=0, code=-15), None, 0, Stop(by="me"), True, ("interrupted", 130, "SIGTERM")),
        (Failure(rank=0, code=-9), None, 0, Stop(by="me"), False, ("failed", 5, "SIGKILL")),
    ],
)
def test_exit_is_judged_by_ranks_outcome_and_stop(
    failure: Failure | None,
    said: Status | None,
    code: int,
    stop: Stop | None,
    was_forced: bool,
    expected: tuple[str, int, str | None],
) -> None:
    ended = exits.judge(
        failure,
        outcome(said) if said else None,
        code=code,
        stop=stop,
        was_forced=was_forced,
        tail=(),
    )
    assert (ended.status, ended.rc, ended.signal) == expected


@pytest.mark.parametrize(
    ("line", "name", "word"),
    [
        ("MemoryError", None, "micro_batch"),
        ("OSError: [Errno 28] No space left on device: '/dev/shm/x'", None, "/dev/shm"),
        ("OSError: [Errno 28] No space left on device", None, "disk is full"),
        ("error: the loss is nan at step 30", None, "learning rate"),
        ("RuntimeError: EADDRINUSE", None, "port"),
        ("fine", "SIGBUS", "/dev/shm"),
        ("fine", "SIGKILL", "memory"),
    ],
)
def test_hint_is_found_for_what_is_known(line: str, name: str | None, word: str) -> None:
    assert word in exits.find_hint(["before", line], name)


def test_tail_has_the_last_lines_of_this_attempt_only(tmp_path: Path) -> None:
    log = tmp_path / "rank0.log"
    log.write_text("old\n" * 50)
    start = log.stat().st_size
    with log.open("ab") as file:
        file.write(b"".join(b"new %d \xff\n" % i for i in range(30)))
    tail = exits.read_tail(log, since=start)
    assert len(tail) == 20
    assert tail[-1] == "new 29 \N{REPLACEMENT CHARACTER}"
    assert exits.read_tail(log, since=log.stat().st_size) == ()
    assert exits.read_tail(tmp_path / "missing.log") == ()
