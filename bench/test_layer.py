"""The whole layer, forward and backward, in turn with its peers; and how often the host waits."""

from functools import partial

import pytest

from bench.host_syncs import count_host_syncs
from bench.layers import EAGER, REPLAY, Layer, entrants, ours, transport_of
from bench.problem import Inputs, Source, layer_errors
from bench.report import Report
from bench.rows import BOTH, FORWARD, OURS, SYNCS, right
from bench.shapes import SHAPES, Shape
from bench.timing import Contest
from nmoe.probe import TIMINGS, WARMUPS, Stopwatch


def test_layer(benchmark, shape: Shape, device: str, watch: Stopwatch, report: Report):
    """From (x, ids, gates) to y, and on to all gradients; all entrants meet the same inputs."""
    source = Source(shape, device=device)
    weights, drawn = source.weights(), [source.draw()]
    layers, absent = entrants(shape, weights, drawn[0], device=device)

    def prepare() -> None:
        drawn[0] = source.draw()

    contest = Contest(
        prepare=prepare,
        entrants={name: partial(_timed, watch, layer, drawn) for name, layer in layers.items()},
    )
    benchmark.pedantic(contest.round, rounds=TIMINGS, warmup_rounds=WARMUPS)
    outputs = {
        name: layer.outputs() for name, layer in layers.items() if name not in contest.failures
    }
    errors = layer_errors(drawn[0], weights, outputs)
    plain = errors.get(EAGER, {})
    for what, part in ((FORWARD, "forward"), (BOTH, "forward + backward")):
        for name in layers:
            mine = errors.get(name, {})
            report.add(
                contest,
                name,
                what=what,
                shape=shape.name,
                work=shape.flops(part),
                unit="TFLOP/s",
                errors=_of(mine, what),
                plain=_of(plain, what),
            )
        for name, note in absent.items():
            report.note(name, what=what, shape=shape.name, note=note)
    for name in (OURS, REPLAY):
        assert right(errors.get(name, {})), f"{name}: {errors[name]}"


def _timed(watch: Stopwatch, layer: Layer, drawn: list[Inputs]) -> dict[str, float]:
    layer.load(drawn[0])
    forward_us, both_us = watch.time(layer.forward, layer.backward)
    return {FORWARD: forward_us, BOTH: both_us}


def _of(errors: dict[str, float], what: str) -> dict[str, float]:
    """Those outputs that this part computes."""
    return {name: error for name, error in errors.items() if what == BOTH or name == "y"}


def test_layer_host_syncs(device: str, report: Report):
    """Calls by which the host waits, in a forward and a backward pass after the warm-up."""
    if device != "cuda":
        pytest.skip("host synchronisations are those with a GPU, this machine has none")
    shape = next(each for each in SHAPES if each.name == "s1")
    source = Source(shape, device=device)
    transport = transport_of(shape, device=device, impl="triton")
    layer = ours(source.weights(), transport, impl="triton")

    def run() -> None:
        layer.forward()
        layer.backward()

    layer.load(source.draw())
    run()
    layer.load(source.draw())
    found = count_host_syncs(run)
    note = "the profiler saw no call of CUDA"
    if found is None:
        report.note(OURS, what=SYNCS, shape=shape.name, note=note)
    else:
        report.figure(OURS, what=SYNCS, shape=shape.name, value=sum(found.values()), unit="syncs")
        assert not found, f"the host waits: {found}"
