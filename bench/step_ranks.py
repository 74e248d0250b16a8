"""The step's bench as its command runs it: kernels compiled ahead, one process or one a GPU."""

import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.multiprocessing as mp

from bench.plain_trainer import PlainTrainer
from bench.runs import (
    SMALLEST,
    VOCABULARY,
    Size,
    draw_weights,
    opened,
    plan_of,
    preset_file,
    size_for,
    write_data,
)
from bench.shapes import Shape
from bench.step import Job, measure
from bench.timing import FAILURES, reason
from bench.warm import experts_of, in_processes
from nmoe import dist
from nmoe.build import make_model, make_transport
from nmoe.config import Plan, read_config
from nmoe.train import log_step, train_step

LIMIT_S = 900
FEW = {"batch": 32, "micro_batch": 16}  # kernels do not tell 16 sequences from the official 32
ALONE = dist.World(rank=0, size=1)


def run(job: Job, *, gpus: int) -> list[str]:
    """What went wrong, in words; the rows are in the job's file."""
    if job.device == "cuda":
        say = partial(_say, began=time.monotonic())
        for problem in in_processes(_to_compile(job), on_done=lambda name: say(f"compiled {name}")):
            say(f"not compiled: {problem}")
    if gpus == 1:
        return measure(job, ALONE)
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "problems"
        context = mp.start_processes(
            _rank, (job, gpus, _free_port(), told), nprocs=gpus, join=False, start_method="spawn"
        )
        assert context is not None
        try:
            _join(context)
        except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
            print(error, file=sys.stderr, flush=True)
            return [f"a rank failed: {str(error).strip().splitlines()[-1]}"]
        except TimeoutError as error:
            return [str(error)]
        return told.read_text().splitlines()


def _join(context: mp.ProcessContext) -> None:
    """Wait for the ranks; when one fails or none ends, all do."""
    end = time.monotonic() + LIMIT_S
    try:
        while not context.join(timeout=1.0):
            if time.monotonic() > end:
                raise TimeoutError(f"the ranks did not end within {LIMIT_S} s")
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()


def _rank(rank: int, job: Job, size: int, port: int, told: Path) -> None:
    """One rank from start to end."""
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    world = dist.World(rank=rank, size=size)
    if job.device == "cuda":
        torch.cuda.set_device(rank)
    dist.start(world)
    problems = measure(job, world)
    if world.is_main:
        told.write_text("\n".join(problems))
    dist.shutdown()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _say(text: str, *, began: float) -> None:
    print(f"[{time.monotonic() - began:5.0f} s] {text}", file=sys.stderr, flush=True)


def _to_compile(job: Job) -> dict[str, Callable[[], str]]:
    """What each process compiles, the longest first.

    A trainer compiles all kernels that it needs, one after the other; those of the experts, which
    take longest, are compiled beside it and are on disk when it comes to them. What has no smallest
    form compiles where it is measured.
    """
    todo: dict[str, Callable[[], str]] = {}
    presets = [preset for preset in job.presets if preset in SMALLEST]
    if job.has_peer and not job.is_quick:
        for preset in presets:
            todo[f"peer of {preset}"] = partial(_train_peer, preset, job)
    for preset in presets:
        todo[f"trainer of {preset}"] = partial(_train_few, preset, job)
        if not job.is_quick:
            muon = ("optim.matrices=muon",)
            todo[f"trainer of {preset}, Muon"] = partial(_train_few, preset, job, *muon)
    for preset in job.presets:
        config = read_config(preset_file(preset))
        if config.experts.num_experts:
            shape = Shape(
                name=preset,
                tokens=FEW["micro_batch"] * config.train.seq_len,
                dim=config.model.dim,
                hidden=config.experts.hidden,
                num_experts=config.experts.num_experts,
                top_k=config.experts.top_k,
            )
            todo |= experts_of(shape)
    return todo


def _train_few(preset: str, job: Job, *more: str) -> str:
    """A step of the smallest run of a preset, and what is logged of it; why it failed."""
    size = replace(size_for(job.device), **FEW)
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_data(folder, size, device=job.device)
            plan = _smallest(preset, folder, size, job, more)
            with opened(plan, folder, world=ALONE, say=lambda _: None) as trained:
                train_step(trained)
                log_step(trained)
    except FAILURES as error:
        return reason(error)
    return ""


def _train_peer(preset: str, job: Job) -> str:
    """The peer's step on the smallest form of a preset, micro-batches of full size."""
    size, device = size_for(job.device, job.micro_batch), torch.device(job.device)
    vocab_size = VOCABULARY[job.device]
    try:
        plan = _smallest(preset, Path(), size, job, ())
        transport = make_transport(plan, ALONE, device)
        model = make_model(plan, transport, vocab_size=vocab_size, device=device)
        draw_weights(model, seed=0)
        trainer = PlainTrainer(plan, model, is_compiled=job.device == "cuda")
        window = (size.micro_batch, plan.train.seq_len + 1)
        trainer.step([torch.randint(vocab_size, window, device=device)])
        if job.device == "cuda":
            torch.cuda.synchronize()
    except FAILURES as error:
        return reason(error)
    return ""


def _smallest(preset: str, folder: Path, size: Size, job: Job, more: tuple[str, ...]) -> Plan:
    more = (*SMALLEST[preset], *more)
    return plan_of(preset, folder, size, device=job.device, world=ALONE, more=more)
