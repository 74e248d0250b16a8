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
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from harness import bundle, dataset, exits, experiments, hardware, launch, leaderboard, runs
from harness.errors import HarnessError, MachineError, RunError
from harness.exits import Failure, Stop
from harness.launch import Rank
from nmoe.config import ConfigError, Plan, read_plan
from nmoe.events import (
    AlertEvent,
    Event,
    EventLog,
    ExitEvent,
    LaunchEvent,
    Level,
    PhaseEvent,
    PrepEvent,
    ResultEvent,
    StopRequestEvent,
)
from nmoe.paths import DataRoot, RunFolder, write_atomic

POLL_S = 0.1
SNAPSHOT_EVERY_S = 1.0
SAMPLE_EVERY_S = 1.0
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

PrepCommands = Callable[[Plan, DataRoot], Sequence[Sequence[str]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """Seconds before the supervisor insists."""

    stop_s: float = 300.0  # from a request to stop to SIGTERM
    term_s: float = 30.0  # from there to SIGKILL
    peers_s: float = 5.0  # from SIGTERM to SIGKILL, for the ranks beside a failed one
    linger_s: float = 60.0  # for the other ranks after the first that ended in order


class Stopped(Exception):
    """A request to stop came before the ranks were started."""


class Supervisor:
    """One attempt: its log, what is known of it, and the request to stop it, if any."""

    def __init__(self, folder: RunFolder, plan: Plan, *, lock_fd: int, patience: Patience) -> None:
        self.folder = folder
        self.plan = plan
        self.root = DataRoot(path=folder.root.parent.parent, reason="the run's folder")
        self.patience = patience
        self.lock_fds = [lock_fd]
        self.reader = runs.RunReader(folder)
        while self.reader.read():
            pass
        state = self.reader.state
        self.attempt = state.attempt + 1 if state.events else 0
        self.stop: Stop | None = None
        self.caught: list[signal.Signals] = []
        self._log: EventLog | None = None
        self._snapshot_at = 0.0

    def run(self, *, command: Sequence[str], prep: PrepCommands) -> ExitEvent:
        """Everything in order; returns the exit record, which is written last."""
        self.say(PhaseEvent(phase="checking"))
        try:
            self._record_start()
            prepare(self, prep(self.plan, self.root))
            ended = train(self, command)
        except Stopped:
            ended = ExitEvent(status="interrupted", rc=self.stop.code if self.stop else 130)
        except PrepFailed as failed:
            ended = failed.exit
        except HarnessError as error:
            ended = ExitEvent(status="failed", rc=error.exit_code, hint=str(error))
        except OSError as error:
            ended = ExitEvent(
                status="failed", rc=MachineError.exit_code, hint=f"the supervisor failed: {error}"
            )
        return self._conclude(ended)

    def say(self, event: Event) -> bool:
        """Append an event to supervisor.jsonl; False when that is impossible, as on a full disk."""
        try:
            if self._log is None:
                self._log = EventLog(self.folder.supervisor, attempt=self.attempt)
            self._log.write(event)
        except OSError as error:
            # What was cut off is closed by the next one to open the file.
            self._log = None
            sys.stderr.write(f"cannot write a {event.kind} event: {error}\n")
            return False
        return True

    def alert(self, code: str, message: str, *, level: Level = "warning") -> None:
        """Say something that a person should know."""
        self.say(AlertEvent(code=code, level=level, message=message))

    def tick(self) -> None:
        """Look for requests to stop; once a second read the events and write state.json."""
        if self.stop is None:
            self._look_for_stop()
        if time.monotonic() - self._snapshot_at >= SNAPSHOT_EVERY_S:
            self.write_snapshot()

    def write_snapshot(self) -> None:
        """state.json from all events so far; a disk that is full keeps the old one."""
        self._snapshot_at = time.monotonic()
        self.reader.read()
        state, now = self.reader.state, time.time()
        snapshot = runs.Snapshot(
            status=runs.status(state, True, now),
            is_over=state.is_over,
            attempt=state.attempt,
            phase=state.phase,
            step=state.step,
            tokens=state.tokens,
            loss=state.loss,
            val=state.val.loss if state.val else None,
            best_val=state.best_val,
            train_s=state.train_s,
            pid=os.getpid(),
            pid_start=_pid_start(),
            boot_id=_boot_id(),
            heartbeat=now,
        )
        try:
            write_atomic(self.folder.state, json.dumps(asdict(snapshot)) + "\n")
        except OSError as error:
            sys.stderr.write(f"cannot write {self.folder.state}: {error}\n")

    def _look_for_stop(self) -> None:
        if self.caught:
            name = self.caught[0].name
            is_interrupt = self.caught[0] == signal.SIGINT
            self.stop = Stop(by=name, code=exits.INTERRUPTED if is_interrupt else exits.TERMINATED)
            launch.write_stop(self.folder, name)
        elif self.folder.stop_request.exists():
            self.stop = Stop(by=_who_asked(self.folder))
        else:
            return
        self.say(StopRequestEvent(by=self.stop.by, action="checkpoint"))

    def _record_start(self) -> None:
        note = self._index(lambda: experiments.record_start(self.folder, self.plan))
        if note:
            self.alert("experiments", note)
        for row in runs.list_runs(self.root):
            if row.is_alive and row.run_id != self.folder.run_id:
                self.alert("other-run", f"{row.run_id} is running too: each slows the other")

    def _index(self, write: Callable[[], str | None]) -> str | None:
        """The index of runs can be made again: what is wrong with it does not stop a run."""
        try:
            return write()
        except (HarnessError, OSError) as error:
            return str(error)

    def _conclude(self, ended: ExitEvent) -> ExitEvent:
        """Score what was trained, enter the end everywhere, and write the exit record."""
        self.reader.read()
        try:
            result = self._score(ended)
        except (HarnessError, OSError) as error:
            result = self._no_score(ended, str(error))
            self.alert("score", str(error), level="error")
            if ended.rc == 0:
                code = error.exit_code if isinstance(error, HarnessError) else 3
                ended = replace(ended, rc=code, hint=str(error))
        self.say(result)
        note = self._index(lambda: experiments.record_end(self.folder, result))
        if note:
            self.alert("experiments", note)
        is_written = self.say(ended) or self.say(ended)
        self.write_snapshot()
        if not is_written and ended.rc == 0:
            return replace(ended, rc=MachineError.exit_code)
        return ended

    def _score(self, ended: ExitEvent) -> ResultEvent:
        if self.reader.state.outcome is None:
            return self._no_score(ended, ended.hint)
        self.say(PhaseEvent(phase="scoring"))
        return leaderboard.finish(self.folder, self.root)

    def _no_score(self, ended: ExitEvent, reason: str) -> ResultEvent:
        """The result of an attempt without an outcome: how far it came."""
        state = self.reader.state
        return ResultEvent(
            reached=False,
            status=ended.status,
            target=self.plan.target.target_loss,
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


# --------------------------------------------------------------------------------- preparation


class PrepFailed(Exception):
    """A preparation child failed; `exit` says how."""

    def __init__(self, ended: ExitEvent) -> None:
        super().__init__(ended.hint)
        self.exit = ended


def prepare(supervisor: Supervisor, commands: Sequence[Sequence[str]]) -> None:
    """Run the commands one after the other; raises PrepFailed, Stopped."""
    if commands:
        supervisor.say(PhaseEvent(phase="preparing"))
    for command in commands:
        log = supervisor.folder.log("prep")
        log_start = log.stat().st_size if log.exists() else 0
        child = launch.spawn_prep(supervisor.folder, command, lock_fds=supervisor.lock_fds)
        try:
            _forward_progress(supervisor, child)
        finally:
            launch.end([child], patience_s=supervisor.patience.peers_s)
        if child.returncode:
            tail = exits.read_tail(log, since=log_start)
            raise PrepFailed(exits.judge_prep(child.returncode, tail))


def _forward_progress(supervisor: Supervisor, child: launch.Process) -> None:
    """The child's progress lines as prep events, until it ends."""
    assert child.stdout is not None
    pending = b""
    is_over = False
    while not is_over:
        is_over = child.poll() is not None
        *lines, pending = (pending + (child.stdout.read() or b"")).split(b"\n")
        for event in filter(None, map(_read_progress, lines)):
            supervisor.say(event)
        supervisor.tick()
        if supervisor.stop:
            raise Stopped
        time.sleep(0 if is_over else POLL_S)
    child.stdout.close()


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


# ------------------------------------------------------------------------------------ training


def train(supervisor: Supervisor, command: Sequence[str]) -> ExitEvent:
    """Start the ranks, watch them to their end and say how it was."""
    supervisor.tick()
    if supervisor.stop:
        raise Stopped
    supervisor.say(PhaseEvent(phase="launching"))
    with _gpus(supervisor), _ranks(supervisor, command) as ranks:
        failure, was_killed = Watch(supervisor, ranks).to_the_end()
    supervisor.reader.read()
    shown = ranks[failure.rank if failure else 0]
    return exits.judge(
        failure,
        supervisor.reader.state.outcome,
        code=ranks[0].process.returncode,
        stop=supervisor.stop,
        was_killed=was_killed,
        tail=exits.read_tail(shown.log, since=shown.log_start),
    )


@contextmanager
def _ranks(supervisor: Supervisor, command: Sequence[str]) -> Generator[list[Rank]]:
    """The ranks of the plan, all gone when the block is left; they see when this process is gone."""
    ranks: list[Rank] = []
    pipe, own_end = os.pipe()
    try:
        port = launch.free_port()
        for index in range(supervisor.plan.world):
            rank = launch.spawn_rank(
                supervisor.folder,
                supervisor.plan,
                index,
                command=command,
                attempt=supervisor.attempt,
                port=port,
                lock_fds=supervisor.lock_fds,
                pipe=pipe,
            )
            ranks.append(rank)
        pids = tuple(rank.process.pid for rank in ranks)
        supervisor.say(LaunchEvent(pids=pids, command=tuple(command)))
        yield ranks
    finally:
        launch.end([rank.process for rank in ranks], patience_s=supervisor.patience.peers_s)
        os.close(pipe)
        os.close(own_end)


@contextmanager
def _gpus(supervisor: Supervisor) -> Generator[None]:
    """The GPUs of the plan, ours alone and sampled; nothing on a CPU run."""
    if supervisor.plan.device == "cpu":
        yield
        return
    for gpu in hardware.detect().gpus[: supervisor.plan.world]:
        lock = supervisor.root.runs / f".gpu-{gpu.uuid or gpu.index}.lock"
        refusal = RunError(f"GPU {gpu.index} is used by another run", "Run: n runs")
        supervisor.lock_fds.append(launch.take_lock(lock, refusal=refusal))
    over = threading.Event()
    sampling = threading.Thread(target=sample_gpus, args=(supervisor, over), daemon=True)
    sampling.start()
    try:
        yield
    finally:
        over.set()
        sampling.join(timeout=supervisor.patience.peers_s)


def sample_gpus(supervisor: Supervisor, over: threading.Event) -> None:
    """Append a sample of every GPU once a second; ends early only by an error, which is printed."""
    sampler = hardware.open_sampler(supervisor.plan.world)
    log = EventLog(supervisor.folder.gpus, attempt=supervisor.attempt)
    while not over.wait(SAMPLE_EVERY_S):
        for event in sampler.sample():
            log.write(event)
    sampler.close()
    log.close()


class Watch:
    """Ranks from their start to their end: the first failure, and a stop that is not honoured."""

    def __init__(self, supervisor: Supervisor, ranks: Sequence[Rank]) -> None:
        self._supervisor = supervisor
        self._ranks = ranks
        self._processes = [rank.process for rank in ranks]
        self._stop_at: float | None = None
        self._forced: list[signal.Signals] = []

    def to_the_end(self) -> tuple[Failure | None, bool]:
        """The first rank that failed, if any, and whether a stop had to be forced by SIGKILL."""
        patience = self._supervisor.patience
        ended_at: float | None = None
        while any(process.poll() is None for process in self._processes):
            failure = self._failure()
            if failure is not None:
                launch.end(self._processes, patience_s=patience.peers_s)
                return failure, self._was_killed
            if ended_at is None and any(p.returncode is not None for p in self._processes):
                ended_at = time.monotonic()
            if ended_at is not None and time.monotonic() - ended_at > patience.linger_s:
                launch.end(self._processes, patience_s=patience.peers_s)
                break
            self._supervisor.tick()
            self._insist()
            time.sleep(POLL_S)
        return self._failure(), self._was_killed

    @property
    def _was_killed(self) -> bool:
        return signal.SIGKILL in self._forced

    def _failure(self) -> Failure | None:
        for rank in self._ranks:
            code = rank.process.returncode
            if code is not None and code not in exits.ORDERLY:
                return Failure(rank=rank.index, code=code)
        return None

    def _insist(self) -> None:
        """SIGTERM and then SIGKILL for ranks that do not stop, each an event."""
        if self._supervisor.stop is None:
            return
        now = time.monotonic()
        if self._stop_at is None:
            self._stop_at = now
        patience = self._supervisor.patience
        for number, after_s in (
            (signal.SIGTERM, patience.stop_s),
            (signal.SIGKILL, patience.stop_s + patience.term_s),
        ):
            if number not in self._forced and now - self._stop_at > after_s:
                self._forced.append(number)
                self._supervisor.say(StopRequestEvent(by="supervisor", action=number.name))
                launch.send(self._processes, number)


# -------------------------------------------------------------------------------- the process


def missing_pieces(plan: Plan, root: DataRoot) -> list[list[str]]:
    """The commands that make what the plan needs and is not there: data, then eval bundle."""
    return [*dataset.prep_commands(plan, root), *bundle.prep_commands(plan, root)]


def supervise(
    folder: RunFolder,
    *,
    lock_fd: int | None = None,
    command: Sequence[str] = launch.RANK,
    prep: PrepCommands = missing_pieces,
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
    supervisor = Supervisor(
        folder, plan, lock_fd=lock_fd, patience=Patience() if patience is None else patience
    )
    with _signals(supervisor):
        ended = supervisor.run(command=command, prep=prep)
    for fd in supervisor.lock_fds:
        os.close(fd)
    return ended.rc


@contextmanager
def _signals(supervisor: Supervisor) -> Generator[None]:
    """Signals to end are requests to stop with a checkpoint."""

    def note(number: int, frame: FrameType | None) -> None:
        supervisor.caught.append(signal.Signals(number))

    before = {number: signal.signal(number, note) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _who_asked(folder: RunFolder) -> str:
    try:
        raw: Any = json.loads(folder.stop_request.read_bytes())
        return str(raw["by"])
    except (OSError, ValueError, LookupError, TypeError):
        return "unknown"


def _pid_start() -> int:
    """When this process started, in clock ticks since boot; 0 where /proc does not tell."""
    try:
        text = Path("/proc/self/stat").read_text(encoding="utf-8")
        return int(text.rpartition(")")[2].split()[19])
    except (OSError, ValueError, LookupError):
        return 0


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of the supervisor process; what it cannot record goes to its stderr, a log."""
    parser = argparse.ArgumentParser(prog="python -m harness.supervise", description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="the run folder")
    parser.add_argument("--lock-fd", type=int, help="the run's lock, already held")
    args = parser.parse_args(argv)
    try:
        return supervise(RunFolder(root=args.run.absolute()), lock_fd=args.lock_fd)
    except HarnessError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
