"""What every rank of the transport's benchmark runs; rank 0 writes what all of them measured.

A timing starts on all ranks together and counts as long as on the slowest.

Legend: T tokens of a rank, K top-k, D model, R rows, P ranks.
"""

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from bench.all_to_all import AllToAll
from bench.layers import Layer, beside_grads, ours, transport_of
from bench.problem import Inputs, Outputs, Source, Weights, layer_errors
from bench.rows import BOTH, DISPATCH, FORWARD, OURS
from bench.shapes import Shape
from bench.timing import FAILURES, Contest, reason
from nmoe import ops
from nmoe.config import Impl
from nmoe.probe import TIMINGS, WARMUPS, Stopwatch
from nmoe.rdep import Transport, share

COLLECTIVE = "all_to_all_single"
RETURN, WITH_SORT = "return", "dispatch + sort"
DISPATCH_GRADS, RETURN_GRADS = "dispatch grads", "return grads"
PASSES = (DISPATCH, WITH_SORT, RETURN, DISPATCH_GRADS, RETURN_GRADS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Where and what to measure; one warm-up less timing when `rounds` is 1."""

    shape: Shape  # of one rank; its experts are those of all
    device: str
    world: int
    folder: Path
    rounds: int = TIMINGS
    warmups: int = WARMUPS


@dataclass(kw_only=True)
class Measured:
    """Slowest rank of every round, us; bytes are the mean of ranks and rounds."""

    times: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    errors: dict[str, dict[str, float]] = field(default_factory=dict)
    useful_bytes: float = 0.0


def run(rank: int, job: Job) -> None:
    """One rank from start to end."""
    on_gpu = job.device == "cuda"
    if on_gpu:
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        init_method=f"file://{job.folder / 'store'}",
        rank=rank,
        world_size=job.world,
        timeout=timedelta(seconds=120),
    )
    try:
        measured = _Rank(rank, job).measure()
        if rank == 0:
            (job.folder / "measured").write_bytes(pickle.dumps(measured))
    finally:
        dist.destroy_process_group()


class _Rank:
    def __init__(self, rank: int, job: Job) -> None:
        self._rank, self._job = rank, job
        shape, world = job.shape, job.world
        self._impl: Impl = "triton" if job.device == "cuda" else "reference"
        self._local = share(shape.num_experts, rank=rank, world=world)
        self._watch = Stopwatch(job.device)
        # all ranks draw the tokens of all, and each takes its own
        self._source = Source(replace(shape, tokens=shape.tokens * world), device=job.device)
        self._weights = self._source.weights()
        self._align = torch.zeros(1, device=job.device)
        counts = [shape.tokens] * world
        self._counts_P = torch.tensor(counts, dtype=torch.int32, device=job.device)
        self._useful: list[float] = []

    def measure(self) -> Measured:
        measured = Measured()
        layers: dict[str, Layer] = {}
        entrants: dict[str, Callable[[], dict[str, float]]] = {}
        mine = _slice(self._weights, self._local)
        try:
            transport = transport_of(
                self._job.shape,
                device=self._align.device,
                impl=self._impl,
                rank=self._rank,
                world=self._job.world,
            )
        except FAILURES as error:
            measured.failures[OURS] = reason(error)
        else:
            layers[OURS] = ours(mine, transport, impl=self._impl)
            entrants[OURS] = lambda: {
                **self._passes(transport),
                **self._whole(layers[OURS]),
            }
        shape = self._job.shape
        collective = AllToAll(rank=self._rank, world=self._job.world, num_experts=shape.num_experts)
        layers[COLLECTIVE] = Layer(collective.layer, (mine.beside_EDG, mine.w2_EFD), beside_grads)
        entrants[COLLECTIVE] = lambda: {
            **self._collective_passes(collective),
            **self._whole(layers[COLLECTIVE]),
        }
        contest = Contest(prepare=self._draw, entrants=entrants)
        for _ in range(self._job.warmups + self._job.rounds):
            contest.round()
        measured.failures |= contest.failures
        for key, times in contest.times.items():
            slowest = torch.tensor(times[-self._job.rounds :])
            dist.all_reduce(slowest, dist.ReduceOp.MAX)
            measured.times[key] = slowest.tolist()
        useful = torch.tensor([sum(self._useful) / len(self._useful)])
        dist.all_reduce(useful)
        measured.useful_bytes = useful.item() / self._job.world
        outputs = {name: self._gathered(layers[name].outputs()) for name in entrants}
        measured.errors = layer_errors(self._all, self._weights, outputs)
        if OURS in layers:
            transport.check()
            transport.close()
        return measured

    def _draw(self) -> None:
        shape = self._job.shape
        self._all = self._source.draw()
        self._ids_on_wire = self._all.ids_TK.int()
        at = slice(self._rank * shape.tokens, (self._rank + 1) * shape.tokens)
        self._inputs = Inputs(
            x_TD=self._all.x_TD[at],
            ids_TK=self._all.ids_TK[at],
            gates_TK=self._all.gates_TK[at],
            dy_TD=self._all.dy_TD[at],
        )
        owner_TK = self._inputs.ids_TK // len(self._local)
        remote = [(owner_TK == p).any(1).sum() for p in range(self._job.world) if p != self._rank]
        self._useful.append(2.0 * shape.dim * int(torch.stack(remote).sum()))

    def _time(self, *pieces: Callable[[], object]) -> tuple[float, ...]:
        """From a moment that all ranks share."""
        dist.barrier()
        return self._watch.time(*pieces, ready=lambda: dist.all_reduce(self._align))

    def _whole(self, layer: Layer) -> dict[str, float]:
        layer.load(self._inputs)
        forward_us, both_us = self._time(layer.forward, layer.backward)
        return {FORWARD: forward_us, BOTH: both_us}

    def _passes(self, transport: Transport) -> dict[str, float]:
        """The four passes; the sort, which a dispatch includes, is timed alone and taken off."""
        given, answers = self._inputs, []

        def dispatch() -> None:
            answers.append(transport.dispatch(given.x_TD, given.ids_TK, given.gates_TK, layer=0))

        (dispatch_us,) = self._time(dispatch)
        arrived = answers[0]
        (sort_us,) = self._time(self._sort)
        rows_RD = self._rows(len(arrived.rows.slot_R))
        (return_us,) = self._time(lambda: transport.combine(rows_RD, arrived))
        (grads_us,) = self._time(lambda: transport.dispatch_grads(given.dy_TD, arrived))
        dgate_1R = torch.zeros(1, len(rows_RD), device=rows_RD.device)
        (home_us,) = self._time(lambda: transport.combine_grads(rows_RD, dgate_1R, arrived))
        return {
            DISPATCH: max(dispatch_us - sort_us, 0.0),
            WITH_SORT: dispatch_us,
            RETURN: return_us,
            DISPATCH_GRADS: grads_us,
            RETURN_GRADS: home_us,
        }

    def _sort(self) -> None:
        """What a dispatch sorts: the choices of all ranks, for the experts here."""
        ops.sort_rows(
            self._ids_on_wire,
            self._all.gates_TK,
            self._local,
            count_P=self._counts_P,
            stride=self._job.shape.tokens,
            impl=self._impl,
        )

    def _collective_passes(self, collective: AllToAll) -> dict[str, float]:
        given, answers = self._inputs, []

        def dispatch() -> None:
            answers.append(collective.dispatch(given.x_TD, given.ids_TK, given.gates_TK))

        (dispatch_us,) = self._time(dispatch)
        rows_MD = self._rows(len(answers[0].x_MD))
        (return_us,) = self._time(
            lambda: collective.give_back(rows_MD, answers[0], len(given.x_TD))
        )
        return {DISPATCH: dispatch_us, RETURN: return_us}

    def _rows(self, count: int) -> Tensor:
        size = (count, self._job.shape.dim)
        return torch.randn(size, device=self._align.device, dtype=torch.bfloat16)

    def _gathered(self, outputs: Outputs) -> Outputs:
        """What all ranks computed, in the order of tokens and experts."""
        experts = [outputs.split(expert) for expert in range(len(self._local))]
        stacked = [self._gather(torch.stack(each)) for each in zip(*experts, strict=True)]
        return Outputs(
            y_TD=self._gather(outputs.y_TD),
            dx_TD=self._gather(outputs.dx_TD),
            dgates_TK=self._gather(outputs.dgates_TK),
            split=lambda expert: (stacked[0][expert], stacked[1][expert], stacked[2][expert]),
        )

    def _gather(self, mine: Tensor) -> Tensor:
        mine = mine.contiguous()
        parts = [torch.empty_like(mine) for _ in range(self._job.world)]
        dist.all_gather(parts, mine)
        return torch.cat(parts)


def _slice(weights: Weights, local: range) -> Weights:
    """The weights of the local experts."""
    at = slice(local.start, local.stop)
    return Weights(
        w1_EDF=weights.w1_EDF[at],
        w3_EDF=weights.w3_EDF[at],
        w2_EFD=weights.w2_EFD[at],
        w13_EDG=weights.w13_EDG[at],
        beside_EDG=weights.beside_EDG[at],
    )
