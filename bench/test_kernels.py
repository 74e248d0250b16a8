"""Each kernel of the layer by itself, in turn with plain torch."""

from collections.abc import Callable
from functools import partial

import torch

from bench.kernels import KERNELS, Kernel, Result, Stage
from bench.problem import Source
from bench.report import Report
from bench.rows import LIMIT, OURS, right
from bench.shapes import Shape
from bench.timing import Contest
from nmoe.probe import TIMINGS, WARMUPS, Stopwatch

PEER = "torch"


def test_kernels(benchmark, shape: Shape, device: str, watch: Stopwatch, report: Report):
    """One round times every kernel and every peer once, on inputs that are new to all."""
    source = Source(shape, device=device)
    weights = source.weights()
    into = {"dw13": torch.empty_like(weights.w13_EDG), "dw2": torch.empty_like(weights.w2_EFD)}
    impl = "triton" if device == "cuda" else "reference"
    stage: list[Stage] = []
    results: dict[tuple[str, str], Result] = {}

    def prepare() -> None:
        results.clear()
        stage.clear()
        for each in into.values():
            each.fill_(torch.nan)  # what a kernel leaves out is found
        stage.append(Stage(shape=shape, impl=impl, inputs=source.draw(), weights=weights, **into))

    contests = {
        kernel.name: Contest(
            prepare=lambda: None,
            entrants={
                name: partial(_timed, watch, kernel, name, run, stage, results)
                for name, run in ((OURS, kernel.ours), (PEER, kernel.peer))
            },
        )
        for kernel in KERNELS
    }

    def round_of_all() -> None:
        prepare()
        for contest in contests.values():
            contest.round()

    benchmark.pedantic(round_of_all, rounds=TIMINGS, warmup_rounds=WARMUPS)
    for kernel in KERNELS:
        _report(report, kernel, shape, contests[kernel.name], stage[0], results)
    stage.clear()


def _timed(
    watch: Stopwatch,
    kernel: Kernel,
    name: str,
    run: Callable[[Stage], Result],
    stage: list[Stage],
    results: dict[tuple[str, str], Result],
) -> dict[str, float]:
    def work() -> None:
        results[kernel.name, name] = run(stage[0])

    return {kernel.name: watch.time(work)[0]}


def _report(
    report: Report,
    kernel: Kernel,
    shape: Shape,
    contest: Contest,
    stage: Stage,
    results: dict[tuple[str, str], Result],
) -> None:
    """Outputs of the last round are checked, and its buffers let go one by one."""
    errors: dict[str, dict[str, float]] = {}
    for name in (OURS, PEER):
        if (result := results.pop((kernel.name, name), None)) is not None:
            normal = kernel.normal(stage, result) if name == OURS else result
            errors[name] = kernel.errors(stage, normal)
    for name in (OURS, PEER):
        report.add(
            contest,
            name,
            what=kernel.name,
            shape=shape.name,
            work=kernel.work(shape),
            unit=kernel.unit,
            errors=errors.get(name),
            plain=errors.get(PEER),
        )
    limit = 0.0 if kernel.is_exact else LIMIT
    assert right(errors[OURS], limit=limit), f"{kernel.name}: {errors[OURS]}"
