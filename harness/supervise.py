"""The supervisor of one attempt of a run: `python -m harness.supervise --run RUN_FOLDER`.

It prepares data and bundle, starts the ranks, samples GPUs, forwards requests to stop, scores what
came out and writes the exit record last. Killed, it leaves ranks that see the end of its pipe and
stop by themselves. Exit codes are those of the run.
"""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from harness import bundle, dataset, exits, experiments, history, launch, leaderboard, ranks, runs
from harness.attempt import Attempt, Patience, Stopped
from harness.errors import HarnessError, MachineError, RunError
from nmoe.config import ConfigError, Plan, read_plan
from nmoe.events import ExitEvent, PhaseEvent, PrepEvent, ResultEvent
from nmoe.paths import DataRoot, RunFolder

POLL_S = 0.1
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

PrepCommands = Callable[[Plan, DataRoot], Sequence[Sequence[str]]]


class PrepFailed(Exception):
    """A preparation child failed; `exit` says how."""

    def __init__(self, ended: ExitEvent) -> None:
        super().__init__(ended.hint)
        self.exit = ended


def prep_commands(
    plan: Plan, root: DataRoot, *, mirror: str | None = None
) -> Sequence[Sequence[str]]:
    """The commands that make what the plan needs and is not there: eval bundle, then data.

    The bundle is small: what keeps it away is found before hours of preparation.
    """
    return [
        *bundle.prep_commands(plan, root, mirror=mirror),
        *dataset.prep_commands(plan, root, mirror=mirror),
    ]


def supervise(
    folder: RunFolder,
    *,
    lock_fd: int | None = None,
    command: Sequence[str] = launch.RANK,
    prep: PrepCommands = prep_commands,
    patience: Patience | None = None,
) -> int:
    """Supervise one attempt in this process; returns the exit code of the run.

    Raises HarnessError when the run is alive already or is no run.
    """
    lock_fd = launch.take_run_lock(folder) if lock_fd is None else lock_fd
    try:
        plan = read_plan(folder.plan)
    except ConfigError as error:
        raise RunError(str(error), "Start a new run.") from None
    folder.logs.mkdir(exist_ok=True)
    attempt = Attempt(
        folder, plan, lock_fd=lock_fd, patience=Patience() if patience is None else patience
    )
    with _signals(attempt):
        ended = run(attempt, command=command, prep=prep)
    for fd in attempt.lock_fds:
        os.close(fd)
    return ended.rc


@contextmanager
def _signals(attempt: Attempt) -> Generator[None]:
    """Signals to end are requests to stop with a checkpoint."""

    def note(number: int, frame: FrameType | None) -> None:
        attempt.caught.append(signal.Signals(number))

    before = {number: signal.signal(number, note) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(attempt: Attempt, *, command: Sequence[str], prep: PrepCommands) -> ExitEvent:
    """Everything in order; returns the exit record, which is written last."""
    attempt.say(PhaseEvent(phase="checking"))
    try:
        _record_start(attempt)
        prepare(attempt, prep(attempt.plan, attempt.root))
        ended = ranks.train(attempt, command)
    except Stopped:
        ended = ExitEvent(status="interrupted", rc=attempt.stop.code if attempt.stop else 130)
    except PrepFailed as failed:
        ended = failed.exit
    except HarnessError as error:
        ended = ExitEvent(status="failed", rc=error.exit_code, hint=str(error))
    except OSError as error:
        way_on = f"Mend that (free space, permissions), then: n resume {attempt.folder.run_id}"
        ended = ExitEvent(
            status="failed", rc=MachineError.exit_code, hint=f"{error.strerror}. {way_on}"
        )
    return _conclude(attempt, ended)


def _record_start(attempt: Attempt) -> None:
    note = _index(lambda: experiments.record_start(attempt.folder, attempt.plan))
    if note:
        attempt.alert("experiments", note)
    for row in runs.list_runs(attempt.root):
        if row.is_alive and row.run_id != attempt.folder.run_id:
            attempt.alert("other-run", f"{row.run_id} is running too: each slows the other")


def _index(write: Callable[[], str | None]) -> str | None:
    """What can be made again from the files: what is wrong with it does not stop a run."""
    try:
        return write()
    except (HarnessError, OSError) as error:
        return str(error)


def _conclude(attempt: Attempt, ended: ExitEvent) -> ExitEvent:
    """Score what was trained, enter the end everywhere, and write the exit record."""
    attempt.reader.read()
    try:
        result = _score(attempt, ended)
    except (HarnessError, OSError) as error:
        result = _no_score(attempt, ended, str(error))
        attempt.alert("score", str(error), level="error")
        if ended.rc == 0:
            code = error.exit_code if isinstance(error, HarnessError) else 3
            ended = replace(ended, rc=code, hint=str(error))
    attempt.say(result)
    for code, write in (
        ("gpu-metrics", lambda: history.write_gpus(attempt.folder)),
        ("experiments", lambda: experiments.record_end(attempt.folder, result)),
    ):
        note = _index(write)
        if note:
            attempt.alert(code, note)
    is_written = attempt.say(ended) or attempt.say(ended)
    attempt.write_snapshot()
    if not is_written and ended.rc == 0:
        return replace(ended, rc=MachineError.exit_code)
    return ended


def _score(attempt: Attempt, ended: ExitEvent) -> ResultEvent:
    outcome = attempt.reader.state.outcome
    if outcome is None or outcome.status != ended.status:
        return _no_score(attempt, ended, ended.hint)
    attempt.say(PhaseEvent(phase="scoring"))
    return leaderboard.finish(attempt.folder, attempt.root)


def _no_score(attempt: Attempt, ended: ExitEvent, reason: str) -> ResultEvent:
    """The result of an attempt without an outcome: how far it came."""
    state = attempt.reader.state
    return ResultEvent(
        reached=False,
        status=ended.status,
        target=attempt.plan.target.target_loss,
        loss=state.val.loss if state.val else None,
        step=state.step,
        tokens=state.tokens,
        train_s=state.train_s,
        wall_s=state.wall_s,
        core=None,
        rank=None,
        entry_id=None,
        board=None,
        reason=reason,
    )


def prepare(attempt: Attempt, commands: Sequence[Sequence[str]]) -> None:
    """Run the commands one after the other; raises PrepFailed, Stopped."""
    if commands:
        attempt.say(PhaseEvent(phase="preparing"))
    for command in commands:
        log = attempt.folder.log("prep")
        log_start = log.stat().st_size if log.exists() else 0
        child = launch.spawn_prep(attempt.folder, command, lock_fds=attempt.lock_fds)
        try:
            _forward_progress(attempt, child)
        finally:
            launch.end([child], patience_s=attempt.patience.peers_s)
            assert child.stdout is not None
            child.stdout.close()
        if child.returncode:
            tail = exits.read_tail(log, since=log_start)
            raise PrepFailed(exits.judge_prep(child.returncode, tail))


def _forward_progress(attempt: Attempt, child: launch.Process) -> None:
    """The child's progress lines as prep events, until it ends."""
    assert child.stdout is not None
    pending = b""
    is_over = False
    while not is_over:
        is_over = child.poll() is not None
        *lines, pending = (pending + (child.stdout.read() or b"")).split(b"\n")
        for event in filter(None, map(_read_progress, lines)):
            attempt.say(event)
        attempt.tick()
        if attempt.stop:
            raise Stopped
        time.sleep(0 if is_over else POLL_S)


def _read_progress(line: bytes) -> PrepEvent | None:
    try:
        raw: Any = json.loads(line)
        return PrepEvent(
            job=str(raw["job"]),
            done=int(raw["done"]),
            total=int(raw["total"]),
            unit=str(raw["unit"]),
        )
    except (ValueError, LookupError, TypeError):
        return None


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of the supervisor process; what it cannot record goes to its stderr, a log."""
    parser = argparse.ArgumentParser(prog="python -m harness.supervise", description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="the run folder")
    parser.add_argument("--lock-fd", type=int, help="the run's lock, already held")
    parser.add_argument("--mirror", help="base URL from which missing data is fetched")
    args = parser.parse_args(argv)
    try:
        return supervise(
            RunFolder(root=args.run.absolute()),
            lock_fd=args.lock_fd,
            prep=partial(prep_commands, mirror=args.mirror),
        )
    except HarnessError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
