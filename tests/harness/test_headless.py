"""Following a run without a screen: lines as in the files, exit codes, broken pipes, old markup."""

import io
import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from harness import headless, launch, runs
from harness.run_state import RunState
from nmoe.event_log import EventLog
from nmoe.events import (
    AlertEvent,
    CoreTaskEvent,
    EnergyEvent,
    ExitEvent,
    GpuEvent,
    PhaseEvent,
    PrepEvent,
    Record,
    ResultEvent,
    Status,
    StepEvent,
    ValEvent,
)
from nmoe.paths import REPO_ROOT, DataRoot, RunFolder
from tests.harness.finished_run import make_plan

STEP = StepEvent(
    step=10,
    tokens=10_240,
    loss=float("nan"),
    lr=1e-3,
    grad_norm=1.0,
    ms=10.0,
    tok_s=1000.0,
    mfu=None,
    train_s=1.0,
    wall_s=1.5,
)
VAL = ValEvent(step=10, loss=1.6, bpb=2.3, tokens=100, train_s=1.0, seconds=0.1)
RESULT = ResultEvent(
    reached=True,
    status="done",
    target=1.7,
    loss=1.6,
    step=10,
    tokens=10_240,
    train_s=1.0,
    wall_s=1.5,
    core=0.2,
    rank=1,
    entry_id="e",
    board="/b/LEADERBOARD.json",
)


@pytest.fixture
def folder(tmp_path):
    folder = DataRoot(path=tmp_path, reason="a test").run("pocket-20260101-000000-abcd")
    folder.root.mkdir(parents=True)
    folder.plan.write_text(make_plan().to_json())
    return folder


def write_run(folder: RunFolder, *, status: Status = "done", rc: int | None = 0, **exit_fields):
    train = EventLog(folder.train, attempt=0)
    for event in (PhaseEvent(phase="training"), STEP, VAL):
        train.write(event)
    train.close()
    supervisor = EventLog(folder.supervisor, attempt=0)
    supervisor.write(PhaseEvent(phase="scoring"))
    if status == "done":
        supervisor.write(RESULT)
    if rc is not None:
        supervisor.write(ExitEvent(status=status, rc=rc, **exit_fields))
    supervisor.close()
    gpus = EventLog(folder.gpus, attempt=0)
    gpus.write(GpuEvent(index=0, util=50))
    gpus.close()


def file_lines(folder: RunFolder) -> set[str]:
    return {line for path in (folder.train, folder.supervisor) for line in path.read_text().split()}


def test_lines_are_those_of_the_files_and_the_result_is_last(folder, capsys):
    write_run(folder)
    assert headless.follow(folder, output="json", passes_stop=False) == 0
    seen = capsys.readouterr()
    lines = seen.out.splitlines()
    assert set(lines) == file_lines(folder)
    assert len(lines) == 6
    assert json.loads(lines[-1])["k"] == "result"
    assert seen.err == ""


def test_people_read_milestones_and_the_outcome(folder, capsys):
    write_run(folder)
    headless.follow(folder, output="all", passes_stop=False)
    seen = capsys.readouterr()
    assert "validation loss 1.600" in seen.err
    assert "target 1.700 reached: 1.600 after 1.0 s" in seen.err
    assert "place 1 on /b/LEADERBOARD.json" in seen.err
    assert "\x1b" not in seen.err  # no control codes where there is no terminal
    assert len(seen.out.splitlines()) == 6


def test_quiet_prints_only_the_result(folder, capsys):
    write_run(folder)
    headless.follow(folder, output="quiet", passes_stop=False)
    seen = capsys.readouterr()
    assert [json.loads(line)["k"] for line in seen.out.splitlines()] == ["result"]
    assert seen.err == ""


@pytest.mark.parametrize(
    ("status", "rc"),
    [("missed", 6), ("failed", 5), ("failed", 4), ("core-failed", 7), ("interrupted", 143)],
)
def test_exit_code_is_the_one_of_the_exit_record(folder, status, rc):
    write_run(folder, status=status, rc=rc)
    assert headless.follow(folder, output="quiet", passes_stop=False) == rc


def test_run_without_an_exit_record_counts_as_interrupted(folder, capsys):
    write_run(folder, status="interrupted", rc=None)
    assert headless.follow(folder, output="all", passes_stop=False) == 130
    assert f"n resume {folder.run_id}" in capsys.readouterr().err


def test_failure_shows_the_last_words_and_where_the_logs_are(folder, capsys):
    write_run(folder, status="failed", rc=5, tail=("Traceback", "Boom: it broke"), hint="free disk")
    headless.follow(folder, output="all", passes_stop=False)
    seen = capsys.readouterr().err
    assert "Boom: it broke" in seen
    assert "failed: free disk" in seen
    assert str(folder.logs) in seen


def test_markup_and_control_codes_are_shown_as_they_are(folder, capsys):
    log = EventLog(folder.train, attempt=0)
    log.write(AlertEvent(code="x", level="error", message="[/bold] \x1b[31mred\nline"))
    log.write(
        CoreTaskEvent(name="[red]t", index=1, count=1, items=1, acc=1.0, centered=1.0, seconds=0.1)
    )
    log.close()
    headless.follow(folder, output="all", passes_stop=False)
    seen = capsys.readouterr().err
    assert "[/bold] ?[31mred?line" in seen
    assert "[red]t" in seen


def test_bars_survive_markup_on_a_terminal(folder, monkeypatch):
    write_run(folder)
    log = EventLog(folder.train, attempt=0)
    log.write(
        CoreTaskEvent(name="[/bold]", index=1, count=1, items=1, acc=1.0, centered=1.0, seconds=0.1)
    )
    log.close()
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stderr", terminal)
    assert headless.follow(folder, output="all", passes_stop=False) == 0
    assert "[/bold]" in terminal.getvalue()


def test_heartbeat_says_where_training_stands(folder, monkeypatch, capsys):
    write_run(folder)
    monkeypatch.setattr(headless, "HEARTBEAT_S", 0.0)
    headless.follow(folder, output="all", passes_stop=False)
    assert "step 10/" in capsys.readouterr().err


def test_heartbeat_says_when_a_living_run_is_silent(folder, monkeypatch, capsys):
    write_run(folder, status="interrupted", rc=None)
    folder.supervisor.unlink()
    lock = launch.take_run_lock(folder)
    monkeypatch.setattr(headless, "HEARTBEAT_S", 0.0)
    real = headless.time.time
    monkeypatch.setattr(headless.time, "time", lambda: real() + 3600)
    monkeypatch.setattr(headless.time, "sleep", lambda _: os.kill(os.getpid(), 2))
    headless.follow(folder, output="all", passes_stop=False)
    os.close(lock)
    assert "stalled: step 10/" in capsys.readouterr().err


def test_full_disk_is_said_once_and_the_following_goes_on(folder, monkeypatch, capsys):
    write_run(folder, status="missed", rc=6)
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        assert headless.follow(folder, output="all", passes_stop=False) == 6
    seen = capsys.readouterr().err
    assert seen.count("no more event lines: No space left on device") == 1
    assert "validation loss 1.600" in seen


def test_progress_that_cannot_be_written_ends_nothing(folder, monkeypatch, capsys):
    write_run(folder, status="missed", rc=6)
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stderr", full)
        assert headless.follow(folder, output="all", passes_stop=False) == 6
    assert len(capsys.readouterr().out.splitlines()) == 5


def bars_of(*events):
    """Descriptions of the bars after the events, and whether each knows its total."""
    bars = headless.Bars(io.StringIO())
    state = RunState.of("r", make_plan())
    for seq, event in enumerate(events):
        state = state.apply(Record(seq=seq, time=float(seq), attempt=0, event=event))
        bars.show(event, state, "")
        bars.tick()
    return [(task.description, task.total is not None) for task in bars.progress.tasks]


def test_phase_that_cannot_be_counted_has_a_bar_that_goes_with_it():
    prep = PrepEvent(job="data", done=1, total=2, unit="tokens")
    checking, preparing, compiling, training = (
        PhaseEvent(phase=phase) for phase in ("checking", "preparing", "compiling", "training")
    )
    assert bars_of(checking) == [("checking", False)]
    assert bars_of(checking, preparing, prep) == [("data", True)]
    assert bars_of(checking, preparing, prep, compiling) == [("data", True), ("compiling", False)]
    assert bars_of(compiling, training, STEP) == [("training", True)]
    scoring = PhaseEvent(phase="scoring")
    assert bars_of(training, STEP, scoring) == [("training", True), ("scoring", False)]
    assert bars_of(training, STEP, scoring, ExitEvent(status="done", rc=0)) == [("training", True)]


def test_energy_is_told_at_the_end(folder, capsys):
    write_run(folder)
    gpus = EventLog(folder.gpus, attempt=0)
    gpus.write(EnergyEvent(step=10, tokens=10_000_000, joules=7.2e6))
    gpus.close()
    headless.follow(folder, output="all", passes_stop=False)
    told = capsys.readouterr().err
    assert "used 2.000 kWh to train, 720.00 mJ a token" in told
    assert "where the time went: training " in told


# ------------------------------------------------------------------------- as real processes


def shell(folder, command):
    """What bash says of `command`, in which `n` is the real command; it must end by itself."""
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", f'n() {{ "{sys.executable}" -P -m harness.cli "$@"; }}; '
         + command],
        cwd=REPO_ROOT,
        env=os.environ | {"DATA_DIR": str(folder.root.parent.parent), "TERM": "xterm"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )  # fmt: skip


def test_attach_to_a_living_run_ends_when_its_reader_leaves(folder):
    write_run(folder, status="interrupted", rc=None)
    lock = launch.take_run_lock(folder)
    done = shell(folder, "n attach last --headless | head -1; echo ${PIPESTATUS[0]}")
    os.close(lock)
    first, code = done.stdout.splitlines()
    assert json.loads(first)["k"] == "phase"
    assert code == "0"
    assert "Traceback" not in done.stderr
    assert not folder.stop_request.exists()


def test_attach_to_a_quiet_run_ends_when_its_reader_leaves_late(folder):
    write_run(folder, status="interrupted", rc=None)
    lock = launch.take_run_lock(folder)
    # Every line is in the pipe before the first is read: no later write tells of the end.
    done = shell(folder, "n attach last --headless | (sleep 2; head -1); echo ${PIPESTATUS[0]}")
    os.close(lock)
    assert done.stdout.splitlines()[-1] == "0"


def test_reader_who_has_left_is_noticed_without_writing():
    read_fd, write_fd = os.pipe()
    with os.fdopen(write_fd, "w") as stream:
        assert not headless.has_left(stream)
        os.close(read_fd)
        assert headless.has_left(stream)
    assert not headless.has_left(io.StringIO())


@pytest.mark.parametrize("verb", ["attach", "replay"])
def test_pipe_into_cat_ends_with_the_code_of_the_run(folder, verb):
    write_run(folder, status="missed", rc=6)
    done = shell(folder, f"n {verb} last | cat")
    assert done.returncode == 6
    assert {json.loads(line)["k"] for line in done.stdout.splitlines()} == {
        "phase", "step", "val", "exit",
    }  # fmt: skip
    assert "validation loss 1.600" in done.stderr
    assert "\x1b" not in done.stderr


def test_closed_outputs_are_no_trouble(folder):
    write_run(folder, status="missed", rc=6)
    done = shell(folder, "n replay last >&- 2>&-; echo $?")
    assert done.stdout.strip() == "6"


def test_replay_refuses_a_speed_that_is_none(folder):
    write_run(folder)
    for speed in ("0", "-3", "inf", "nan"):
        done = shell(folder, f"n replay last --headless --speed {speed}")
        assert done.returncode == 2
        assert "expected a number above 0" in done.stderr


def test_following_goes_on_when_the_reader_of_stdout_is_gone(folder, monkeypatch):
    write_run(folder, status="missed", rc=6)
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    with os.fdopen(write_fd, "w") as gone:
        monkeypatch.setattr("sys.stdout", gone)
        assert headless.follow(folder, output="json", passes_stop=False) == 6


def test_signal_leaves_a_run_that_was_only_attached_to(folder, monkeypatch, capsys):
    write_run(folder, rc=None)
    lock = launch.take_run_lock(folder)
    monkeypatch.setattr(headless.time, "sleep", lambda _: os.kill(os.getpid(), 2))
    assert headless.follow(folder, output="all", passes_stop=False) == 0
    os.close(lock)
    assert not folder.stop_request.exists()
    assert f"n attach {folder.run_id}" in capsys.readouterr().err


def test_signal_asks_the_run_to_stop_and_a_second_one_leaves_it(folder, monkeypatch, capsys):
    write_run(folder, rc=None)
    lock = launch.take_run_lock(folder)
    monkeypatch.setattr(headless.time, "sleep", lambda _: os.kill(os.getpid(), 2))
    assert headless.follow(folder, output="all", passes_stop=True) == 130
    os.close(lock)
    assert json.loads(folder.stop_request.read_text())["by"] == "SIGINT"
    assert "stopping at the next step" in capsys.readouterr().err


def test_stopped_by_sigterm_ends_with_143(folder, monkeypatch):
    write_run(folder, rc=None)
    lock = launch.take_run_lock(folder)

    def end_run(_: float) -> None:
        if not folder.stop_request.exists():
            os.kill(os.getpid(), 15)
        elif runs.is_alive(folder):
            log = EventLog(folder.supervisor, attempt=0)
            log.write(ExitEvent(status="interrupted", rc=130))
            log.close()
            os.close(lock)

    monkeypatch.setattr(headless.time, "sleep", end_run)
    assert headless.follow(folder, output="quiet", passes_stop=True) == 143


def test_place_is_explained_when_there_is_none(folder, capsys):
    write_run(folder, status="interrupted", rc=None)
    log = EventLog(folder.supervisor, attempt=0)
    log.write(replace(RESULT, rank=None, board=None, reason="the board is broken"))
    log.write(ExitEvent(status="done", rc=0))
    log.close()
    headless.follow(folder, output="all", passes_stop=False)
    assert "not on a board: the board is broken" in capsys.readouterr().err
