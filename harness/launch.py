"""Starts, resumes and stops runs, and starts every process that belongs to one.

A run's lock is held by its supervisor and inherited by all its children: it is free only when the
last process of the run is gone.
"""

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from harness import exits, runs
from harness.errors import HarnessError, MachineError, RunError
from nmoe import paths
from nmoe.config import Plan
from nmoe.paths import REPO_ROOT, DataRoot, RunFolder, write_atomic

SUPERVISOR = (sys.executable, "-m", "harness.supervise")
RANK = (sys.executable, "-m", "nmoe.train")
BENCH = (sys.executable, "-m", "bench")
RETRY_S = 0.02
KILLED_S = 2.0  # from SIGKILL to the end
# Longer lines are no lines of ours; and this much of the end of what a child says on stderr.
MAX_LINE_BYTES, LAST_WORDS_BYTES = 1 << 16, 1000

Process = subprocess.Popen[bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """A started rank; its log before `log_start` is of earlier attempts."""

    index: int
    process: Process
    log: Path
    log_start: int


def start(plan: Plan, root: DataRoot, *, mirror: str | None = None) -> RunFolder:
    """Make the run folder and start its supervisor, which outlives this process and terminal.

    `mirror` is the base URL from which the supervisor fetches what the plan needs.
    """
    folder = root.run(plan.run_id)
    try:
        folder.root.mkdir(parents=True)
        write_atomic(folder.plan, plan.to_json())
        folder.logs.mkdir()
    except FileExistsError:
        raise RunError(f"run {plan.run_id} exists", f"Run: n attach {plan.run_id}") from None
    except OSError as error:
        shutil.rmtree(folder.root, ignore_errors=True)
        raise _cannot_write(folder.root, error) from None
    _spawn_supervisor(folder, mirror)
    return folder


def resume(folder: RunFolder, *, mirror: str | None = None) -> None:
    """Start the next attempt of a run that is not alive, from its newest whole checkpoint."""
    state = runs.load(folder)
    if state.plan is None:
        raise RunError(f"run {folder.run_id} has no readable plan", "Start a new run.")
    if state.exit and state.exit.status in ("done", "missed"):
        raise RunError(
            f"run {folder.run_id} is over ({state.exit.status}): nothing to resume", "Run: n runs"
        )
    _spawn_supervisor(folder, mirror)


def request_stop(folder: RunFolder, by: str) -> None:
    """Ask a run to stop at its next log step with a checkpoint; RunError when it is not alive."""
    if not runs.is_alive(folder):
        raise RunError(f"run {folder.run_id} is not running", "Run: n runs")
    write_stop(folder, by)


def write_stop(folder: RunFolder, by: str) -> None:
    """The request to stop, as the trainer and the supervisor read it."""
    text = json.dumps({"mode": "checkpoint", "by": by})
    try:
        write_atomic(folder.stop_request, text + "\n")
    except OSError as error:
        raise _cannot_write(folder.stop_request, error) from None


def take_lock(path: Path, *, refusal: HarnessError) -> int:
    """The descriptor of the lock file `path`, held; raises `refusal` when another holds it."""
    fd = paths.take_lock(path)
    if fd is None:
        raise refusal
    return fd


def take_run_lock(folder: RunFolder) -> int:
    """The run's lock; RunError when a process of the run still holds it."""
    refusal = RunError(
        f"run {folder.run_id} is alive: another process holds its lock",
        f"Run: n attach {folder.run_id}, or n stop {folder.run_id}",
    )
    return take_lock(folder.lock, refusal=refusal)


def spawn_prep(folder: RunFolder, command: Sequence[str], *, lock_fds: Sequence[int]) -> Process:
    """A preparation child: progress on its stdout, non-blocking; errors in logs/prep.log."""
    with folder.log("prep").open("ab") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=REPO_ROOT,
            env=_child_env(folder),
            pass_fds=tuple(lock_fds),
        )
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    return process


def spawn_rank(
    folder: RunFolder,
    plan: Plan,
    index: int,
    *,
    command: Sequence[str],
    attempt: int,
    port: int,
    lock_fds: Sequence[int],
    pipe: int,
) -> Rank:
    """One rank with its output in logs/rank<r>.log; the end of `pipe` tells it to stop."""
    log = folder.log(f"rank{index}")
    log_start = log.stat().st_size if log.exists() else 0
    arguments = ["--run", str(folder.root), "--attempt", str(attempt)]
    descriptors = ["--lock-fd", str(lock_fds[0]), "--supervisor-fd", str(pipe)]
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*command, *arguments, *descriptors],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=REPO_ROOT,
            env=_rank_env(folder, plan, index, port),
            pass_fds=(*lock_fds, pipe),
        )
    return Rank(index=index, process=process, log=log, log_start=log_start)


def spawn_answering(command: Sequence[str]) -> Process:
    """A child that answers on its stdout what is asked on its stdin; its errors are ours."""
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=REPO_ROOT,
        env=_python_env(),
    )


def spawn_bench(root: DataRoot, arguments: Sequence[str]) -> None:
    """The bench suite, which outlives this process; it holds the lock and writes the log."""
    refusal = RunError("the bench suite is at work already", f"See {root.bench / 'log'}")
    try:
        root.bench.mkdir(parents=True, exist_ok=True)
        lock_fd = take_lock(root.bench / "lock", refusal=refusal)
        try:
            with (root.bench / "log").open("wb") as log:
                _detach([*BENCH, *arguments], log=log, lock_fd=lock_fd, env=_python_env())
        finally:
            os.close(lock_fd)
    except OSError as error:
        raise _cannot_write(root.bench, error) from None


def let_end(process: Process, *, patience_s: float) -> int | None:
    """Close the pipes of a child, give it time to end by itself, else kill it.

    Returns its exit code; None of one that not even SIGKILL reaches, as in a hung driver.
    """
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        with suppress(BrokenPipeError):
            pipe.close()
    for wait_s in (patience_s, KILLED_S):
        with suppress(subprocess.TimeoutExpired):
            return process.wait(wait_s)
        process.kill()
    return None


def call(folder: RunFolder, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a module of this checkout to its end on a run's data root; its output is captured."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=REPO_ROOT,
        env=_child_env(folder),
    )


def lines_of(command: Sequence[str], *, deadline_s: float) -> Iterator[str]:
    """The lines that a command prints, each as soon as it is there.

    MachineError, its last words as the fix, when it fails or is not done in time. It ends with its
    children when nobody wants more lines.
    """
    end_at, how = time.monotonic() + deadline_s, ""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=REPO_ROOT,
            env=_python_env(),
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            yield from _lines(process.stdout.fileno(), end_at)
            code = process.wait(timeout=max(0.0, end_at - time.monotonic()))
            if code:
                how = how_it_ended(code)
        except (TimeoutError, subprocess.TimeoutExpired):
            how = f"was not done in {deadline_s:g} s"
        finally:
            # The group is there as long as the child was not waited for, or has children.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process.stdout.close()
        if how:
            raise MachineError(f"the child {how}", _last_words(errors.fileno()))


def how_it_ended(code: int | None) -> str:
    """The exit code of a child in words; None of one that not even SIGKILL reached."""
    name = None if code is None else exits.signal_name(code)
    return f"ended with {name or f'exit code {code}'}"


def _lines(fd: int, end_at: float) -> Iterator[str]:
    """Lines of a pipe to its end; TimeoutError when it is not reached in time."""
    rest = b""
    while True:
        ready, _, _ = select.select([fd], [], [], max(0.0, end_at - time.monotonic()))
        if not ready:
            raise TimeoutError
        chunk = os.read(fd, MAX_LINE_BYTES)
        *whole, rest = (rest + chunk).split(b"\n")
        if rest and (not chunk or len(rest) > MAX_LINE_BYTES):
            whole, rest = [*whole, rest], b""
        yield from (line.decode(errors="replace") for line in whole)
        if not chunk:
            return


def _last_words(fd: int) -> str:
    """The last lines of a file, as one."""
    size = os.lseek(fd, 0, os.SEEK_END)
    told = os.pread(fd, LAST_WORDS_BYTES, max(0, size - LAST_WORDS_BYTES))
    lines = [line.strip() for line in told.decode(errors="replace").splitlines() if line.strip()]
    return f"Its last words: {' | '.join(lines[-3:])}" if lines else ""


def free_port() -> int:
    """A TCP port of this host that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def end(processes: Sequence[Process], *, patience_s: float) -> None:
    """Terminate what still runs, kill what remains after `patience_s`, and collect everything."""
    send(processes, signal.SIGTERM)
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline and any(process.poll() is None for process in processes):
        time.sleep(RETRY_S)
    send(processes, signal.SIGKILL)
    for process in processes:
        process.wait()


def send(processes: Sequence[Process], number: signal.Signals) -> None:
    """Signal those that still run."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)


def _spawn_supervisor(folder: RunFolder, mirror: str | None) -> None:
    """Hand the run's lock to a supervisor; requests to stop from before it are void."""
    command = [*SUPERVISOR, "--run", str(folder.root)]
    if mirror is not None:
        command += ["--mirror", mirror]
    lock_fd = take_run_lock(folder)
    try:
        folder.stop_request.unlink(missing_ok=True)
        folder.logs.mkdir(exist_ok=True)
        with folder.log("supervisor").open("ab") as log:
            command += ["--lock-fd", str(lock_fd)]
            _detach(command, log=log, lock_fd=lock_fd, env=_child_env(folder))
    except OSError as error:
        raise _cannot_write(folder.root, error) from None
    finally:
        os.close(lock_fd)


def _detach(command: Sequence[str], *, log: BinaryIO, lock_fd: int, env: Mapping[str, str]) -> None:
    """Start a process that outlives this one and its terminal, and holds the lock."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        cwd=REPO_ROOT,
        env=env,
        pass_fds=(lock_fd,),
        start_new_session=True,
    )
    # Collected when it ends before this process does, so that it is never a zombie.
    threading.Thread(target=process.wait, daemon=True).start()


def _child_env(folder: RunFolder) -> dict[str, str]:
    """This environment with the run's data root, and this checkout first on the path."""
    return _python_env() | {"DATA_DIR": str(folder.root.parent.parent)}


def _python_env() -> dict[str, str]:
    folders = [str(REPO_ROOT), os.environ.get("PYTHONPATH", "")]
    return dict(os.environ) | {
        "PYTHONPATH": os.pathsep.join(filter(None, folders)),
        "PYTHONUNBUFFERED": "1",
    }


def _rank_env(folder: RunFolder, plan: Plan, index: int, port: int) -> dict[str, str]:
    return (
        {"OMP_NUM_THREADS": "1"}  # as torch is told, for whatever else counts the cores
        | _child_env(folder)
        | {
            "RANK": str(index),
            "LOCAL_RANK": str(index),
            "WORLD_SIZE": str(plan.world),
            "LOCAL_WORLD_SIZE": str(plan.world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    )


def _cannot_write(path: Path, error: OSError) -> MachineError:
    return MachineError(
        f"cannot write {path}: {error.strerror}",
        "Free space or fix the permissions there, or name another folder with DATA_DIR.",
    )
