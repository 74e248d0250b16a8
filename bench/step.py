"""What a training step costs, by part, for each preset, beside plain torch.

The run is a real one (`bench.runs`) and its step is `nmoe.train.train_step`, on one GPU or, a
process each, on several. First comes the official step; the others are the same work dealt
otherwise: an update for every micro-batch, and Muon.
"""

import gc
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from bench.host_syncs import count_host_syncs
from bench.machine import machine, measure_ceilings
from bench.peer import Peer, peer_of
from bench.report import Report
from bench.rows import LIMIT, LOGGING, OURS, STEP, STEP_SYNCS, save
from bench.runs import PRESETS, Size, layers_of, opened, plan_of, size_for, write_data
from bench.step_parts import add_parts, tokens_of, traced_step
from bench.timing import FAILURES, intervals, median, reason
from nmoe import dist
from nmoe.build import Run, peak_memory_bytes
from nmoe.flops import peak_tflops, product
from nmoe.train import log_step, train_step

EVERY, MUON, MEMORY = "step, update every micro-batch", "step, Muon", "step peak memory"
DETERMINISTIC = "step, deterministic"
PLAIN = "plain torch"
STEPS, WARMUPS = 10, 3
ROOM = 2.5  # times the memory of a run is what it and its peer take together


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to measure, and the file for the rows; quick is the official step and its parts only."""

    presets: tuple[str, ...]
    device: str
    rows: Path
    steps: int = STEPS
    micro_batch: int | None = None
    has_peer: bool = True
    is_quick: bool = False
    commit: str | None = None


def presets_of(names: str) -> tuple[str, ...]:
    """The presets of a list with commas; ValueError for one that there is not."""
    found = tuple(filter(None, names.split(",")))
    if not found or set(found) - set(PRESETS):
        raise ValueError(f"presets: got {names!r}, expected some of {', '.join(PRESETS)}.")
    return found


def check(job: Job, *, gpus: int) -> None:
    """ValueError for what this machine or the official step does not allow."""
    if job.device == "cuda" and gpus > torch.cuda.device_count():
        raise ValueError(f"gpus: got {gpus}, this machine has {torch.cuda.device_count()}.")
    size = size_for(job.device, job.micro_batch)
    if size.batch % (gpus * size.micro_batch):
        raise ValueError(
            f"micro-batch: got {size.micro_batch} sequences on each of {gpus} ranks, expected such"
            f" that a step of {size.batch} is a whole number of them."
        )


def measure(job: Job, world: dist.World) -> list[str]:
    """Measure every preset; what went wrong, in words. Rank 0 saves the rows as they come."""
    say = _Said(is_main=world.is_main)
    if job.device == "cuda":
        torch.cuda.set_device(world.rank)
    facts = machine(gpus=world.size, commit=job.commit)
    # the other ranks are silent meanwhile
    ceilings = dist.broadcast(measure_ceilings(job.device) if world.is_main else None)
    report = Report(rows=[], machine=facts, ceilings=ceilings)
    report.add_ceilings()
    _let_go(job.device)
    say(f"a product of {report.ceilings.matmul:,.3g} TFLOP/s is 100 %")

    def keep() -> None:
        if world.is_main:
            save(job.rows, report.rows)

    problems = []
    for preset in job.presets:
        with tempfile.TemporaryDirectory() as own:
            folder = Path(dist.broadcast(own))
            bench = _Preset(job, preset, world=world, report=report, folder=folder, say=say)
            problems += bench.measure(keep)
            dist.barrier()
    return problems


class _Said:
    """Where the time goes, on stderr."""

    def __init__(self, *, is_main: bool) -> None:
        self._is_main, self._began = is_main, time.monotonic()

    def __call__(self, text: str) -> None:
        if self._is_main:
            seconds = time.monotonic() - self._began
            print(f"[{seconds:5.0f} s] {text}", file=sys.stderr, flush=True)


@dataclass(kw_only=True)
class _Official:
    """What the official step leaves for what is measured after it."""

    step_us: float = 0.0
    tokens: int = 0
    flops: float = 0.0
    peer: Peer | None = field(default=None)


class _Preset:
    def __init__(
        self,
        job: Job,
        preset: str,
        *,
        world: dist.World,
        report: Report,
        folder: Path,
        say: Callable[[str], None],
    ) -> None:
        self._job, self._preset, self._world = job, preset, world
        self._report, self._folder = report, folder
        self._size: Size = size_for(job.device, job.micro_batch)
        layers = layers_of(preset, job.device, gpus=world.size)
        word = "layer" if layers == 1 else "layers"
        self._shape = preset if layers is None else f"{preset}, {layers} {word}"
        self._say = lambda text: say(f"{self._shape}: {text}")
        self._official = _Official()

    def measure(self, keep: Callable[[], None]) -> list[str]:
        """All figures of the preset, kept after each run; what failed."""
        if self._world.is_main:
            write_data(self._folder, self._size, device=self._job.device)
        dist.barrier()
        problems = [self._try(STEP, OURS, self._measure_official)]
        _let_go(self._job.device)
        if self._official.peer is not None:
            problems += [self._try(STEP, PLAIN, self._measure_peer)]
        if self._has_peer() and self._job.device == "cuda":
            torch.compiler.reset()  # what was compiled for the peer may hold on to it
        others = {
            EVERY: self._measure_every,
            MUON: partial(self._measure_with, MUON, "optim.matrices=muon"),
            DETERMINISTIC: partial(self._measure_with, DETERMINISTIC, "train.deterministic=true"),
        }
        todo = {} if self._job.is_quick else others
        keep()
        for what, work in todo.items():
            _let_go(self._job.device)
            problems += [self._try(what, OURS, work)]
            keep()
        _let_go(self._job.device)
        return [f"{self._shape}, {problem}" for problem in problems if problem]

    def _try(self, what: str, name: str, work: Callable[[], None]) -> str:
        """Why the work failed, which is its row then; nothing when it did not, or a peer's did."""
        problem = ""
        try:
            work()
        except FAILURES as error:
            if self._world.size > 1:  # the other ranks wait for this one
                raise
            problem = reason(error)
        if not problem:
            return ""
        _let_go(self._job.device)
        self._say(f"{what}, {name}: {problem}")
        self._report.note(name, what=what, shape=self._shape, note=problem)
        return f"{what}: {problem}" if name == OURS else ""

    def _measure_official(self) -> None:
        """The official step, its memory and its parts, and the peer's if it fits beside."""
        found = self._official
        with self._open() as run:
            peak = self._warm_up(run)
            self._report.figure(OURS, what=MEMORY, shape=self._shape, value=peak / 1e9, unit="GB")
            found.tokens, found.flops = tokens_of(run), tokens_of(run) * run.flops_per_token
            times = None
            if self._has_peer():
                self._try(STEP, PLAIN, partial(self._copy_to_peer, run))
            if found.peer is not None and self._has_room(peak):
                times = self._in_turn(run, found.peer)
                found.peer = None
            times = times or self._timed(run)
            found.step_us = median(times)
            self._add(run, STEP, times)
            traced = traced_step(run, self._folder)
            add_parts(self._report, traced, run, shape=self._shape, step_us=found.step_us)
            self._say(f"parts: busy for {traced.busy_us / 1000:,.1f} ms of the profiled step")

    def _has_peer(self) -> bool:
        return self._job.has_peer and not self._job.is_quick and self._world.size == 1

    def _has_room(self, peak_bytes: int) -> bool:
        if self._job.device == "cpu":
            return True
        return peak_bytes * ROOM < torch.cuda.get_device_properties(0).total_memory

    def _copy_to_peer(self, run: Run) -> None:
        self._official.peer = peer_of(run)

    def _in_turn(self, run: Run, peer: Peer) -> list[float] | None:
        """Our steps in turn with those of the peer; None when the peer fails."""
        times: list[float] = []

        def work() -> None:
            self._check(peer)
            turns = [partial(train_step, run), peer.step] * self._job.steps
            times.extend(intervals(turns, device=self._job.device))

        self._try(STEP, PLAIN, work)
        if not times:
            return None
        self._add_peer(peer, times[1::2], "")
        return times[0::2]

    def _measure_peer(self) -> None:
        """The peer alone, after a run that leaves it no room."""
        peer, self._official.peer = self._official.peer, None
        assert peer is not None
        self._check(peer)
        times = intervals([peer.step] * self._job.steps, device=self._job.device)
        self._add_peer(peer, times, "after ours: the two do not fit in memory together")

    def _check(self, peer: Peer) -> None:
        """Take the step that ours has taken, and one more; both compile what is left to compile."""
        self._say("checking and compiling the peer")
        peer.check()
        peer.step()
        worst = ", ".join(f"{name} {error:.1e}" for name, error in peer.errors.items())
        if not peer.is_right:
            raise RuntimeError(f"not the same work: differs by {worst}, expected {LIMIT}.")
        self._say(f"the peer does the same work: differs by {worst}")

    def _add_peer(self, peer: Peer, times: Sequence[float], note: str) -> None:
        found = self._official
        self._report.steps(
            PLAIN,
            what=STEP,
            shape=self._shape,
            times=times,
            tokens=found.tokens,
            flops=found.flops,
            errors=peer.errors,
            note=note,
        )
        self._say(f"{STEP}, {PLAIN}: {median(times) / 1000:,.1f} ms")

    def _measure_every(self) -> None:
        """An update for every micro-batch; what a log step adds; how often the host waits."""
        batch = self._world.size * self._size.micro_batch
        with self._open(f"train.batch_size={batch}") as run:
            self._warm_up(run)
            times = self._timed(run)
            self._add(run, EVERY, times)
            log_step(run)
            logged = self._timed(run, log_step)
            if self._official.step_us:
                more_us, every = median(logged) - median(times), run.plan.log.every
                self._report.figure(
                    OURS,
                    what=LOGGING,
                    shape=self._shape,
                    value=100 * more_us / every / self._official.step_us,
                    unit="% of the step",
                    note=f"{more_us / 1000:,.2f} ms a log step, one in {every}",
                )
            if self._job.device == "cuda":
                self._add_syncs(run)

    def _measure_with(self, what: str, override: str) -> None:
        with self._open(override) as run:
            self._warm_up(run)
            self._add(run, what, self._timed(run))

    def _open(self, *more: str) -> AbstractContextManager[Run]:
        self._say(f"building the run {' '.join(more)}".rstrip())
        if self._job.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        plan = plan_of(
            self._preset,
            self._folder,
            self._size,
            device=self._job.device,
            world=self._world,
            more=more,
        )
        return opened(plan, self._folder, world=self._world, say=lambda _: None)

    def _warm_up(self, run: Run) -> int:
        """The peak of memory since the run was begun, in bytes."""
        self._say("warming up")
        for _ in range(WARMUPS):
            train_step(run)
        return peak_memory_bytes(run)

    def _timed(self, run: Run, also: Callable[[Run], object] | None = None) -> list[float]:
        """us of steps in a row, each as long as on its slowest rank."""

        def step() -> None:
            train_step(run)
            if also is not None:
                also(run)

        times = torch.tensor(intervals([step] * self._job.steps, device=self._job.device))
        return dist.all_reduce(times, "max").tolist()

    def _add(self, run: Run, what: str, times: Sequence[float]) -> None:
        tokens, us = tokens_of(run), median(times)
        flops = tokens * run.flops_per_token
        self._report.steps(
            OURS, what=what, shape=self._shape, times=times, tokens=tokens, flops=flops
        )
        self._say(f"{what}: {us / 1000:,.1f} ms, {1e6 * tokens / us:,.0f} tok/s a GPU")
        peak = peak_tflops(product(self._report.machine.gpu), run.plan.dtype)
        if peak is not None:
            self._report.figure(
                OURS,
                what=f"{what}, MFU",
                shape=self._shape,
                value=100 * flops / us / 1e6 / peak,
                unit="%",
                note=f"of the datasheet's {peak:,.1f} TFLOP/s",
            )

    def _add_syncs(self, run: Run) -> None:
        found = count_host_syncs(partial(train_step, run))
        if found is None:
            note = "the profiler saw no call of CUDA"
            self._report.note(OURS, what=STEP_SYNCS, shape=self._shape, note=note)
            return
        self._report.figure(
            OURS,
            what=STEP_SYNCS,
            shape=self._shape,
            value=sum(found.values()),
            unit="syncs",
            note=", ".join(f"{count} x {name}" for name, count in found.most_common()),
        )


def _let_go(device: str) -> None:
    """What is no longer held goes back, before something else takes its place."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
