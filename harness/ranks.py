"""The ranks of an attempt, from their start to the judgement on how they ended."""

import os
import signal
import sys
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager

from harness import exits, hardware, launch
from harness import format as text
from harness.attempt import Attempt, Stopped
from harness.errors import MachineError, RunError
from harness.exits import Failure
from harness.gpu_process import GpuProcess
from harness.gpu_watch import EnergyMeter, GpuWatch, Pace, topology_alerts
from harness.launch import Rank
from nmoe.event_log import EventLog
from nmoe.events import AlertEvent, ExitEvent, LaunchEvent, PhaseEvent, StopRequestEvent

POLL_S = 0.1
SAMPLE_EVERY_S = 1.0
SLOW_SAMPLE_S = 0.25


def train(attempt: Attempt, command: Sequence[str]) -> ExitEvent:
    """Start the ranks, watch them to their end and say how it was."""
    attempt.tick()
    if attempt.stop:
        raise Stopped
    attempt.say(PhaseEvent(phase="launching"))
    with own_gpus(attempt), _ranks(attempt, command) as ranks:
        failure, was_forced = Watch(attempt, ranks).to_the_end()
    attempt.tick()  # ranks may honour a request before it was seen here
    attempt.reader.read()
    shown = ranks[failure.rank if failure else 0]
    return exits.judge(
        failure,
        attempt.reader.state.outcome,
        code=ranks[0].process.returncode,
        stop=attempt.stop,
        was_forced=was_forced,
        tail=exits.read_tail(shown.log, since=shown.log_start),
    )


@contextmanager
def _ranks(attempt: Attempt, command: Sequence[str]) -> Generator[list[Rank]]:
    """The ranks of the plan, all gone after the block; they see when this process is gone."""
    ranks: list[Rank] = []
    pipe, own_end = os.pipe()
    try:
        port = launch.free_port()
        for index in range(attempt.plan.world):
            rank = launch.spawn_rank(
                attempt.folder,
                attempt.plan,
                index,
                command=command,
                attempt=attempt.number,
                port=port,
                lock_fds=attempt.lock_fds,
                pipe=pipe,
            )
            ranks.append(rank)
        pids = tuple(rank.process.pid for rank in ranks)
        attempt.say(LaunchEvent(pids=pids, command=tuple(command)))
        yield ranks
    finally:
        launch.end([rank.process for rank in ranks], patience_s=attempt.patience.peers_s)
        os.close(pipe)
        os.close(own_end)


@contextmanager
def own_gpus(attempt: Attempt) -> Generator[None]:
    """The GPUs of the plan, ours alone and sampled; nothing on a CPU run."""
    if attempt.plan.device == "cpu":
        yield
        return
    for gpu in hardware.detect().gpus[: attempt.plan.world]:
        lock = attempt.root.runs / f".gpu-{gpu.uuid or gpu.index}.lock"
        refusal = RunError(f"GPU {gpu.index} is used by another run", "Run: n runs")
        attempt.lock_fds.append(launch.take_lock(lock, refusal=refusal))
    over = threading.Event()
    sampling = threading.Thread(target=sample_gpus, args=(attempt, over), daemon=True)
    sampling.start()
    try:
        yield
    finally:
        if not sampling.is_alive():
            attempt.alert("gpu-samples", "sampling of GPUs ended early; see logs/supervisor.log")
        over.set()
        sampling.join(timeout=attempt.patience.peers_s)


def sample_gpus(attempt: Attempt, over: threading.Event) -> None:
    """Append samples of all GPUs once a second, and what they mean for the run.

    A driver that is slow to answer is asked half as often; one that crashes is asked again. Ends
    early only by an error of ours, which is printed.
    """
    gpus = GpuProcess(attempt.plan.world)
    log = EventLog(attempt.folder.gpus, attempt=attempt.number)
    watch, meter, every_s = GpuWatch(), EnergyMeter(), SAMPLE_EVERY_S
    topology, has_failed = None, False
    while not over.wait(every_s):
        try:
            if not gpus.is_started:
                gpus.start()
            if topology is None and gpus.topology is not None:
                topology = gpus.topology
                for event in (topology, *topology_alerts(topology)):
                    log.write(event)
            began = time.monotonic()
            sample = gpus.sample()
        except MachineError as error:
            if not has_failed:
                log.write(AlertEvent(code="gpu-samples", level="warning", message=str(error)))
            has_failed = True
            sys.stderr.write(f"{error}\n")
            continue
        now = time.monotonic()
        pace = _pace(attempt)
        energy = meter.see(sample, now=now, pace=pace)
        alerts = watch.see(sample, now=now, pace=pace)
        if now - began > SLOW_SAMPLE_S and every_s == SAMPLE_EVERY_S:
            every_s *= 2
            message = f"a sample of the GPUs takes {text.milliseconds(1e3 * (now - began))}"
            message += f": one every {text.age(every_s)} from now on"
            alerts.append(AlertEvent(code="gpu-samples", level="info", message=message))
        for event in (*sample, *alerts, *([energy] if energy else [])):
            log.write(event)
    gpus.close()
    log.close()


def _pace(attempt: Attempt) -> Pace:
    """How far training is, as the supervisor last read it."""
    state = attempt.reader.state
    is_training = state.phase == "training" and state.attempt == attempt.number
    return Pace(step=state.step, tokens=state.tokens, tok_s=state.tok_s if is_training else None)


class Watch:
    """Ranks from their start to their end: the first failure, and a stop that is not honoured."""

    def __init__(self, attempt: Attempt, ranks: Sequence[Rank]) -> None:
        self._attempt = attempt
        self._ranks = ranks
        self._processes = [rank.process for rank in ranks]
        self._stop_at: float | None = None
        self._forced: list[signal.Signals] = []

    def to_the_end(self) -> tuple[Failure | None, bool]:
        """The first rank that failed, if any, and whether signals had to enforce a stop."""
        patience = self._attempt.patience
        ended_at: float | None = None
        while None in [process.poll() for process in self._processes]:
            failure = self._failure()
            if failure is not None:
                launch.end(self._processes, patience_s=patience.peers_s)
                return failure, bool(self._forced)
            now = time.monotonic()
            if ended_at is None and any(p.returncode is not None for p in self._processes):
                ended_at = now
            if ended_at is not None and now - ended_at > patience.linger_s:
                launch.end(self._processes, patience_s=patience.peers_s)
                break
            self._attempt.tick()
            self._insist()
            time.sleep(POLL_S)
        return self._failure(), bool(self._forced)

    def _failure(self) -> Failure | None:
        for rank in self._ranks:
            code = rank.process.returncode
            if code is not None and code not in exits.ORDERLY:
                return Failure(rank=rank.index, code=code)
        return None

    def _insist(self) -> None:
        """SIGTERM and then SIGKILL for ranks that do not stop, each an event."""
        if self._attempt.stop is None:
            return
        now = time.monotonic()
        if self._stop_at is None:
            self._stop_at = now
        patience = self._attempt.patience
        # A request that could not be written down reaches the ranks as a signal at once.
        term_s = patience.stop_s if self._attempt.is_stop_written else 0.0
        for number, after_s in (
            (signal.SIGTERM, term_s),
            (signal.SIGKILL, patience.stop_s + patience.term_s),
        ):
            if number not in self._forced and now - self._stop_at > after_s:
                self._forced.append(number)
                self._attempt.say(StopRequestEvent(by="supervisor", action=number.name))
                launch.send(self._processes, number)
