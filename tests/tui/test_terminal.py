"""The program in a real pseudo-terminal: signals, leaving, and what happens without one."""

import os
import signal
import subprocess
import sys

import pytest

from tests.conftest import REPO_ROOT
from tests.tui import recordings as rec
from tests.tui.screen import held
from tests.tui.terminal import PATIENCE_S, Terminal


@pytest.fixture
def terminal():
    opened = []

    def start(*args):
        opened.append(Terminal(*args))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


@pytest.fixture
def run(data_dir):
    return rec.done(rec.data_root(data_dir))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_terminal_is_restored_when_signalled(terminal, run, number):
    shown = terminal("attach", run.run_id)
    shown.read_until(b"DONE", b"\x1b[?1049h")

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


def test_viewer_that_is_killed_shows_the_same_when_attached_again(terminal, run):
    first = terminal("attach", run.run_id)
    first.read_until(b"DONE", b"0.3020")
    first.child.kill()
    first.child.wait()

    second = terminal("attach", run.run_id)

    assert b"0.3020" in second.read_until(b"DONE", b"0.3020")


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


def test_import_reaches_neither_torch_nor_duckdb():
    heavy = "{'torch', 'duckdb', 'pyarrow'}"
    code = f"import sys, tui.__main__; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO_ROOT, capture_output=True, text=True, check=True
    )

    assert result.stdout.strip() == "[]"
