"""A live run's step under the profiler, and its parts as rows beside their floors."""

import json
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from bench.parts import GAPS, PARTS, STEP, Breakdown, breakdown
from bench.regions import regions
from bench.report import Report
from bench.rows import OURS
from nmoe.build import Run
from nmoe.flops import BACKWARD_FACTOR, forward_flops, padded_vocab
from nmoe.train import train_step

KERNELS, LETTERS = 3, 40  # of a part that its row names, and of a name
# What nmoe.flops calls the products of a part; the other parts have no product.
PRODUCTS = {
    "attention": "attention",
    "projections": "projections",
    "router": "router",
    "experts": "experts",
    "shared expert": "shared",
    "dense FFN": "dense",
    "head": "head",
}


def traced_step(run: Run, folder: Path) -> Breakdown:
    """One step under the profiler, regions around its parts; the trace is left in the folder."""
    on_gpu = run.device.type == "cuda"
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with regions(run), profile(activities=kinds) as profiler:
        with record_function(STEP):
            train_step(run)
        if on_gpu:
            torch.cuda.synchronize()
    file = folder / f"trace-{run.world.rank}.json"
    profiler.export_chrome_trace(str(file))
    return breakdown(json.loads(file.read_text()))


def add_parts(report: Report, found: Breakdown, run: Run, *, shape: str, step_us: float) -> None:
    """A row a part; gaps are what steps of `step_us` have left, not the profiled one."""
    forward = forward_flops(run.plan, padded_vocab(run.model.vocab_size))
    us_of = {**found.parts, GAPS: found.gaps_us(step_us)}
    for part in filter(us_of.__contains__, PARTS):
        once = getattr(forward, PRODUCTS[part]) if part in PRODUCTS else 0
        kernels = found.kernels[part].most_common(KERNELS) if part in found.kernels else []
        report.part(
            OURS,
            part=part,
            shape=shape,
            us=us_of[part],
            of_us=step_us,
            flops=BACKWARD_FACTOR * once * tokens_of(run),
            note=", ".join(f"{_short(name)} {us / 1000:,.2f}" for name, us in kernels),
        )


def tokens_of(run: Run) -> int:
    """Tokens of one rank in a step."""
    train = run.plan.train
    return train.batch_size * train.seq_len // run.world.size


def _short(kernel: str) -> str:
    """The beginning of a kernel's name that tells it from others."""
    return kernel.removeprefix("void ").removeprefix("at::native::")[:LETTERS]
