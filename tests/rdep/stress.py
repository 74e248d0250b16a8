"""Many layers back to back on small integers, exact against an fp64 oracle.

Legend: N tokens of all ranks, T of this rank, K top-k, E experts, e local experts, R rows.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nmoe.expert_layout import Rows
from nmoe.rdep import Transport
from tests.rdep.cases import NUM_EXPERTS, grad, open_for_test


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """Small integers for each layer: expert e multiplies by its scalar weight, all is exact."""

    counts: list[int]
    x: Tensor
    ids: list[Tensor]
    gates: list[Tensor]
    kind: str

    def oracle(self, weight_E: Tensor) -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
        """y, dx, d(gates) and d(weight) in fp64 of the sum of y."""
        x, weight = self.x.double().requires_grad_(), weight_E.double().requires_grad_()
        gates = [g.double().requires_grad_() for g in self.gates]
        h = x
        for i, g in zip(self.ids, gates, strict=True):
            h = h + h * (g * weight[i]).sum(dim=1, keepdim=True)
        dx, dweight, *dgates = torch.autograd.grad(h.sum(), [x, weight, *gates])
        return h.detach(), dx, dgates, dweight


def random_pass(rng: random.Random, world: int, *, dim: int, most: int, layers: int) -> Pass:
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    counts = [rng.choice((0, 1, most, rng.randrange(most + 1))) for _ in range(world)]
    num = sum(counts)
    return Pass(
        counts=counts,
        x=torch.randint(-4, 5, (num, dim), generator=generator).float(),
        ids=[
            torch.rand(num, NUM_EXPERTS, generator=generator).argsort(dim=1)[:, :2]
            for _ in range(layers)
        ],
        gates=[torch.randint(1, 3, (num, 2), generator=generator).float() for _ in range(layers)],
        kind=rng.choice(("forward", "training", "accumulated")),
    )


class _Scaled(torch.autograd.Function):
    """Every expert multiplies by its scalar; backward reads x where it arrived, as experts do."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        gates_TK: Tensor,
        scale_e: Tensor,
        ids_TK: Tensor,
        send: tuple[Transport, int, Callable[[], None]],
    ) -> Tensor:
        transport, number, pause = send
        pause()
        arrived = transport.dispatch(x_TD, ids_TK, gates_TK, layer=number)
        pause()
        ctx.arrived, ctx.send = arrived, send
        ctx.save_for_backward(scale_e)
        scale_R = arrived.rows.gate_R * scale_e[expert_of_row(arrived.rows)]
        y_RD = arrived.x_SD[arrived.rows.slot_R] * scale_R[:, None]
        pause()
        return transport.combine(y_RD, arrived)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (scale_e,) = ctx.saved_tensors
        transport, _, pause = ctx.send
        arrived, rows = ctx.arrived, ctx.arrived.rows
        expert_R, gate_R1 = expert_of_row(rows), rows.gate_R[:, None]
        pause()
        dy_SD = transport.dispatch_grads(grads[0].contiguous(), arrived)
        pause()
        dy_RD, x_RD = dy_SD[rows.slot_R], arrived.x_SD[rows.slot_R]
        scale_R1 = scale_e[expert_R, None]
        dscale_e = torch.zeros_like(scale_e)
        dscale_e.index_add_(0, expert_R, (gate_R1 * dy_RD * x_RD).sum(dim=1))
        dgate_1R = (dy_RD * scale_R1 * x_RD).sum(dim=1)[None]
        pause()
        dx, dgates = transport.combine_grads(gate_R1 * scale_R1 * dy_RD, dgate_1R, arrived)
        return dx, dgates, dscale_e, None, None


def expert_of_row(rows: Rows) -> Tensor:
    """The local expert of every row; int64."""
    local_e = torch.arange(len(rows.end_e))
    return local_e.repeat_interleave((rows.end_e - rows.start_e).long())


def stress(rank: int, world: int, num_passes: int, seed: int) -> tuple[int, ...]:
    """Back-to-back passes of three layers against the oracle on each rank; passes of each kind.

    Passes are forward only, training, or training that adds to the gradients of the passes before;
    T is drawn anew for each rank (0 included), and random delays are different on every rank. All
    numbers are small integers, so every sum is exact in fp32.
    """
    dim, most, layers = 8, 12, 3
    transport = open_for_test(rank, world, dim=dim, top_k=2, max_tokens=most, num_layers=layers)
    local = slice(transport.local_experts.start, transport.local_experts.stop)
    same, own = random.Random(seed), random.Random(seed * 97 + rank)
    weight = torch.arange(1.0, NUM_EXPERTS + 1) % 3 + 1
    scale = weight[local].clone().requires_grad_()
    expected_dscale = torch.zeros(NUM_EXPERTS, dtype=torch.float64)
    kinds = {"forward": 0, "training": 0, "accumulated": 0}

    def pause() -> None:
        if own.random() < 0.1:
            time.sleep(own.random() * 2e-3)

    for _ in range(num_passes):
        now = random_pass(same, world, dim=dim, most=most, layers=layers)
        kinds[now.kind] += 1
        y, dx, dgates, dweight = now.oracle(weight)
        x = now.x.split(now.counts)[rank].clone().requires_grad_()
        gates = [g.split(now.counts)[rank].clone().requires_grad_() for g in now.gates]
        h = x
        with torch.set_grad_enabled(now.kind != "forward"):
            for number, (ids_NK, gates_TK) in enumerate(zip(now.ids, gates, strict=True)):
                ids_TK = ids_NK.split(now.counts)[rank]
                h = h + _Scaled.apply(h, gates_TK, scale, ids_TK, (transport, number, pause))
        assert torch.equal(h.detach().double(), y.split(now.counts)[rank])
        if now.kind == "forward":
            continue
        if now.kind == "training":
            scale.grad, expected_dscale = None, torch.zeros_like(expected_dscale)
        h.sum().backward()
        expected_dscale += dweight
        assert torch.equal(grad(x).double(), dx.split(now.counts)[rank])
        for got, want in zip(gates, dgates, strict=True):
            assert torch.equal(grad(got).double(), want.split(now.counts)[rank])
        assert torch.equal(grad(scale).double(), expected_dscale[local])
    transport.close()
    return tuple(kinds.values())
