"""Dispatch, return and the layer on several ranks, in turn with collectives."""

import pickle
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from bench.machine import machine
from bench.ranks import COLLECTIVE, PASSES, Job, Measured, run
from bench.report import Report
from bench.rows import BOTH, FORWARD, OURS, right
from bench.shapes import Shape, shapes_for
from bench.timing import Contest

LIMIT_S = 300


def test_transport(benchmark, device: str, report: Report, tmp_path: Path, pytestconfig):
    """A GPU for each rank, or processes where there is none; the first shape of this machine."""
    world = pytestconfig.getoption("--gpus")
    if device == "cuda" and torch.cuda.device_count() < world:
        pytest.skip(f"needs {world} GPUs, this machine has {torch.cuda.device_count()}")
    shape = shapes_for(device, pytestconfig.getoption("--shapes"))[0]
    job = Job(shape=shape, device=device, world=world, folder=tmp_path)
    if benchmark.disabled:
        job = replace(job, rounds=1, warmups=0)
    benchmark.pedantic(_run_ranks, args=(job,), rounds=1)
    measured: Measured = pickle.loads((tmp_path / "measured").read_bytes())
    facts = machine(gpus=world, commit=pytestconfig.getoption("--commit"))
    _add(replace(report, machine=facts), shape, measured)
    assert right(measured.errors.get(OURS, {})), measured.errors


def _run_ranks(job: Job) -> None:
    """Start the ranks and wait; one that fails ends the others."""
    context = mp.start_processes(run, (job,), nprocs=job.world, join=False, start_method="spawn")
    assert context is not None
    end = time.monotonic() + LIMIT_S
    try:
        while not context.join(timeout=1.0):
            if time.monotonic() > end:
                raise TimeoutError(f"the ranks did not end within {LIMIT_S} s")
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()


def _add(report: Report, shape: Shape, measured: Measured) -> None:
    """GB/s of the rows that leave a rank for another, TFLOP/s of a rank's own tokens."""
    contest = Contest(prepare=lambda: None, entrants={}, failures=measured.failures)
    contest.times = measured.times
    plain = measured.errors.get(COLLECTIVE)
    for name in (OURS, COLLECTIVE):
        what_is_timed = {what for entrant, what in measured.times if entrant == name}
        for what in PASSES:
            if what in what_is_timed or name in measured.failures:
                report.add(
                    contest,
                    name,
                    what=what,
                    shape=shape.name,
                    work=measured.useful_bytes,
                    unit="GB/s",
                    ceiling=report.ceilings.peer,
                )
        for what, part in ((FORWARD, "forward"), (BOTH, "forward + backward")):
            report.add(
                contest,
                name,
                what=what,
                shape=shape.name,
                work=shape.flops(part),
                unit="TFLOP/s",
                errors=measured.errors.get(name),
                plain=plain,
            )
