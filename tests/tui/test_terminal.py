"""The program in a real pseudo-terminal: signals, leaving, and what happens without one."""

import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness import format as fmt
from harness import runs
from nmoe import events as ev
from tests.conftest import REPO_ROOT
from tests.tui import recordings as rec
from tests.tui.screen import held
from tests.tui.terminal import PATIENCE_S, Terminal


class Emulator:
    """A real terminal emulator, tmux, whose screen can be read; its shell outlives the app."""

    def __init__(self, folder, *args, size=(80, 24)):
        self._command = ["tmux", "-S", str(folder), "-f", "/dev/null"]
        columns, rows = map(str, size)
        app = shlex.join([sys.executable, "-m", "tui", *args])
        shell = ["-x", columns, "-y", rows, "-s", "s", "env", "-u", "CI", "sh", "-c"]
        self.tmux("new-session", "-d", *shell, f"{app}; sleep 1000")

    def tmux(self, *args):
        environ = os.environ | {"LANG": "C.UTF-8", "TERM": "xterm-256color"}
        done = subprocess.run(
            [*self._command, *args], env=environ, cwd=REPO_ROOT, capture_output=True, text=True,
            check=True, timeout=PATIENCE_S,
        )  # fmt: skip
        return done.stdout

    @property
    def screen(self):
        return self.tmux("capture-pane", "-p", "-t", "s")

    def wait_for(self, *wanted):
        """The screen once it shows all of them and stands still."""
        deadline, before = time.monotonic() + PATIENCE_S, ""
        while True:
            seen = self.screen
            if seen == before and all(each in seen for each in wanted):
                return seen
            assert time.monotonic() < deadline, seen
            before = seen
            time.sleep(0.2)

    def kill_viewer(self):
        """kill -9 for the app, as the out-of-memory killer does it."""
        pane = self.tmux("display-message", "-p", "-t", "s", "#{pane_pid}").strip()
        children = Path(f"/proc/{pane}/task/{pane}/children").read_text().split()
        for child in children:
            os.kill(int(child), signal.SIGKILL)


@pytest.fixture
def emulator(tmp_path):
    if shutil.which("tmux") is None:
        pytest.skip("needs tmux, this machine has none")
    opened = []

    def start(*args, **options):
        opened.append(Emulator(tmp_path / f"tmux{len(opened)}", *args, **options))
        return opened[-1]

    yield start
    for each in opened:
        each.tmux("kill-server")


@pytest.fixture
def terminal():
    opened = []

    def start(*args, **options):
        opened.append(Terminal(*args, **options))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


@pytest.fixture
def run(data_dir):
    return rec.done(rec.data_root(data_dir))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    ("args", "seen"),
    [
        (("attach", rec.RUN_ID), b"DONE"),
        (("replay", rec.RUN_ID, "--speed", "1"), b"playing"),
        (("start", "pocket"), b"pocket"),
    ],
)
def test_terminal_is_restored_when_signalled(terminal, run, number, args, seen):
    shown = terminal(*args)
    shown.read_until(seen, b"\x1b[?1049h")

    shown.child.send_signal(number)
    output = shown.read_to_end()

    assert shown.child.returncode == 128 + number
    assert output.rindex(b"\x1b[?1049l") > output.rindex(b"\x1b[?1049h")
    assert b"\x1b[?1000l" in output
    assert b"\x1b[?25h" in output
    assert b"Traceback" not in output


def test_q_leaves_the_run_alone_and_says_how_to_come_back(terminal, data_dir):
    folder = rec.training(rec.data_root(data_dir)).folder
    with held(folder):
        before = {path: path.stat().st_mtime_ns for path in folder.root.rglob("*")}
        shown = terminal("attach", folder.run_id[:12])
        shown.read_until(b"step", b"1,500")
        os.write(shown.master, b"q")
        output = shown.read_to_end()

        assert {path: path.stat().st_mtime_ns for path in folder.root.rglob("*")} == before
    assert shown.child.returncode == 0
    assert output.rstrip().endswith(f"n attach {folder.run_id}".encode())


def test_viewer_ends_when_its_terminal_is_closed(terminal, run):
    shown = terminal("attach", run.run_id)
    shown.read_until(b"DONE")
    os.close(shown.master)
    shown.master = os.open(os.devnull, os.O_RDWR)  # closed again with the rest
    assert shown.child.wait(PATIENCE_S) != 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_viewer_ends_though_its_terminal_takes_nothing_any_more(terminal, run, number):
    """Whoever draws waits for the terminal, for ever."""
    shown = terminal("attach", run.run_id)
    shown.read_until(b"DONE")
    for _ in range(50):
        os.write(shown.master, b"81")
        time.sleep(0.05)
    shown.child.send_signal(number)
    assert shown.child.wait(PATIENCE_S) == 128 + number


@pytest.mark.parametrize("size", [(80, 24), (160, 48)])
def test_screen_is_the_same_when_the_viewer_was_killed_and_attached_again(emulator, run, size):
    first = emulator("attach", run.run_id, size=size)
    before = first.wait_for("DONE", "0.3020")
    first.kill_viewer()

    second = emulator("attach", run.run_id, size=size)

    assert second.wait_for("DONE", "0.3020") == before


def test_state_goes_on_where_it_is_when_the_viewer_of_a_living_run_is_killed(emulator, data_dir):
    recording = rec.training(rec.data_root(data_dir))
    with held(recording.folder):
        first = emulator("attach", recording.run_id)
        first.wait_for("1,500")
        first.kill_viewer()
        recording.train(*rec.steps(1700, start=1500))
        seen = emulator("attach", recording.run_id).wait_for("1,700")
        state = runs.load(recording.folder)
    assert fmt.loss(state.loss) in seen
    assert fmt.loss(state.best_val) in seen
    assert not recording.folder.stop_request.exists()


@pytest.mark.parametrize("args", [("attach", rec.RUN_ID), ("replay", rec.RUN_ID), ("start",)])
def test_terminal_of_one_column_or_row_is_no_trouble(terminal, run, args):
    for size in ((1, 24), (80, 1), (1, 1)):
        shown = terminal(*args, size=size)
        shown.read_until(b"\x1b[?1049h")
        shown.read_for(0.4)
        assert shown.child.poll() is None
        os.write(shown.master, b"q")
        output = shown.read_to_end()
        assert shown.child.returncode == 0
        assert b"Traceback" not in output


@pytest.mark.parametrize("args", [("attach", rec.RUN_ID), ("replay", rec.RUN_ID)])
def test_storm_of_resizes_is_no_trouble(terminal, run, args):
    chance = random.Random(7)
    shown = terminal(*args)
    shown.read_until(b"\x1b[?1049h", b"step")
    for _ in range(80):
        shown.resize(chance.choice((1, 2, 7, 59, 80, 160, 240)), chance.choice((1, 2, 15, 24, 67)))
        shown.read_for(0.01)
    shown.output = b""
    shown.resize(80, 24)
    shown.read_until(b"step")
    os.write(shown.master, b"q")
    output = shown.read_to_end()
    assert shown.child.returncode == 0
    assert b"Traceback" not in output


def test_names_from_outside_are_text(emulator, data_dir):
    """Markup, emoji, right to left, control codes and 500 characters, wherever names are shown."""
    recording = rec.Recording(rec.data_root(data_dir))
    recording.plan(preset="[/bold]🚀\u05d0\u05d1", choice="[red]" + "w" * 500)
    rec.prepare(recording)
    recording.supervisor(
        ev.PrepEvent(job="[/]" + "j" * 500, done=1, total=2, unit="[b]"),
        ev.AlertEvent(code="[x]", level="error", message="[/bold] 🚀 \u202egnp\x1b[2J\u05d0\u05d1"),
    )
    recording.train(*rec.steps(100), *rec.core_events(1))
    recording.train(
        ev.CoreTaskEvent(
            name="[blink]" + "t" * 500, index=2, count=9, items=1, acc=1.0, centered=1.0, seconds=1
        )
    )
    recording.supervisor(
        ev.ExitEvent(status="failed", rc=5, tail=("[/bold] \x1b]0;pwned\x07",), hint="[link]")
    )
    shown = emulator("attach", recording.run_id)
    seen = shown.wait_for("FAILED", "[/bold]")
    assert "🚀" in seen
    assert "\u202e" not in seen
    assert "pwned" not in shown.tmux("display-message", "-p", "-t", "s", "#{pane_title}")
    shown.tmux("send-keys", "-t", "s", "q")
    shown.wait_for(f"n attach {recording.run_id}")


def test_home_shows_the_living_run(terminal, data_dir):
    folder = rec.training(rec.data_root(data_dir)).folder
    with held(folder):
        terminal().read_until(b"step", b"1,500")


@pytest.mark.parametrize(
    ("args", "command"),
    [
        ((), "n speedrun --headless"),
        (("attach", rec.RUN_ID), f"n attach {rec.RUN_ID} --headless"),
        (("start", "pocket"), "n speedrun pocket --headless"),
    ],
)
def test_no_terminal_is_refused_with_the_headless_command(run, args, command):
    result = subprocess.run(
        [sys.executable, "-m", "tui", *args],
        cwd=REPO_ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )

    assert result.returncode == 2
    assert result.stdout == ""
    assert command in result.stderr


def test_unknown_run_is_refused(terminal, data_dir):
    shown = terminal("attach", "nothing")
    output = shown.read_to_end()

    assert shown.child.returncode == 5
    assert b"no run 'nothing'" in output
    assert b"\x1b[?1049h" not in output


def test_import_reaches_nothing_heavy():
    heavy = "{'torch', 'duckdb', 'pyarrow', 'aiohttp', 'textual_serve'}"
    code = f"import sys, tui.__main__; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO_ROOT, capture_output=True, text=True, check=True
    )

    assert result.stdout.strip() == "[]"
