"""What the rank processes run, and the dense oracle that they are compared with.

Legend: N tokens of all ranks, T of this rank, D model, F hidden, K top-k, e local experts.
"""

import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nmoe.rdep import PeerError, Transport, open_transport
from nmoe.reference.experts import experts

DIM, HIDDEN, NUM_EXPERTS, TOP_K, MAX_TOKENS = 32, 48, 8, 3, 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One layer's inputs, the same on every rank; `counts` are the tokens of each rank."""

    counts: tuple[int, ...]
    seed: int = 0
    routing: str = "random"  # or "one": every token to the same experts; "half": to the first half
    dtype: torch.dtype = torch.float32

    def tensors(self) -> dict[str, Tensor]:
        rng = torch.Generator().manual_seed(self.seed)
        num = sum(self.counts)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=rng).to(self.dtype)

        pool = NUM_EXPERTS // 2 if self.routing == "half" else NUM_EXPERTS
        order = torch.rand(num, pool, generator=rng).argsort(dim=1)[:, :TOP_K]
        if self.routing == "one":
            order = torch.arange(TOP_K).expand(num, -1).contiguous()
        gates = torch.rand(num, TOP_K, generator=rng) + 0.1
        return {
            "x": normal(num, DIM),
            "ids": order,
            "gates": gates / gates.sum(dim=1, keepdim=True),
            "w1": normal(NUM_EXPERTS, DIM, HIDDEN) / DIM**0.5,
            "w2": normal(NUM_EXPERTS, HIDDEN, DIM) / HIDDEN**0.5,
            "w3": normal(NUM_EXPERTS, DIM, HIDDEN) / DIM**0.5,
            "dy": normal(num, DIM),
        }


def oracle(problem: Problem) -> dict[str, Tensor]:
    """Dense fp64: every expert on every token, then the gated sum; y and all gradients."""
    t = {name: v.double() if v.is_floating_point() else v for name, v in problem.tensors().items()}
    leaves = [t[name].requires_grad_() for name in ("x", "gates", "w1", "w2", "w3")]
    x, gates, w1, w2, w3 = leaves
    h1, h3 = torch.einsum("nd,edf->nef", x, w1), torch.einsum("nd,edf->nef", x, w3)
    y_NED = torch.einsum("nef,efd->ned", torch.nn.functional.silu(h1) * h3, w2)
    weight_NE = torch.zeros(len(x), NUM_EXPERTS, dtype=torch.float64).scatter(1, t["ids"], gates)
    y = torch.einsum("ne,ned->nd", weight_NE, y_NED)
    grads = torch.autograd.grad(y, leaves, t["dy"])
    names = ("dx", "dgates", "dw1", "dw2", "dw3")
    return {"y": y.detach(), **dict(zip(names, grads, strict=True))}


def open_for_test(rank: int, world: int, **changes: Any) -> Transport:
    settings: dict[str, Any] = {
        "num_experts": NUM_EXPERTS,
        "top_k": TOP_K,
        "dim": DIM,
        "max_tokens": MAX_TOKENS * 4 // world,
        "num_layers": 1,
        "dtype": torch.float32,
        "device": "cpu",
    }
    return open_transport(rank=rank, world=world, **(settings | changes))


def mine(values: Tensor, counts: tuple[int, ...], rank: int) -> Tensor:
    return values.split(counts)[rank].clone()


def grad(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None
    return leaf.grad


def layer(rank: int, world: int, problem: Problem) -> dict[str, Any]:
    """One layer forward and backward; one rank takes the tokens of all."""
    transport = open_for_test(rank, world, dtype=problem.dtype)
    counts = problem.counts if len(problem.counts) == world else (sum(problem.counts),)
    t = problem.tensors()
    x, gates = (mine(t[name], counts, rank).requires_grad_() for name in ("x", "gates"))
    local = slice(transport.local_experts.start, transport.local_experts.stop)
    w1, w2, w3 = (t[name][local].clone().requires_grad_() for name in ("w1", "w2", "w3"))
    rows, receipt = transport.dispatch(x, mine(t["ids"], counts, rank), gates, layer=0)
    y_RD = experts(rows.x_SD, rows.index_R, rows.ends_e, w1, w2, w3, activation="swiglu")
    x_RD = rows.x_SD.detach()[rows.index_R]
    y = transport.combine(y_RD, rows, receipt)
    y.backward(mine(t["dy"], counts, rank))
    transport.close()
    result = {"y": y.detach(), "dx": grad(x), "dgates": grad(gates)}
    result |= {"dw1": grad(w1), "dw2": grad(w2), "dw3": grad(w3)}
    result |= {"rows_x": x_RD, "rows_y": y_RD.detach(), "ends": rows.ends_e}
    result["gates_R"] = rows.gates_R.detach()
    return result


def layer_without_grad(rank: int, world: int, problem: Problem) -> tuple[Tensor, bool]:
    transport = open_for_test(rank, world, dtype=problem.dtype)
    t = problem.tensors()
    x, ids, gates = (mine(t[name], problem.counts, rank) for name in ("x", "ids", "gates"))
    local = slice(transport.local_experts.start, transport.local_experts.stop)
    w1, w2, w3 = (t[name][local] for name in ("w1", "w2", "w3"))
    with torch.no_grad():
        rows, receipt = transport.dispatch(x, ids, gates, layer=0)
        y_RD = experts(rows.x_SD, rows.index_R, rows.ends_e, w1, w2, w3, activation="swiglu")
        y = transport.combine(y_RD, rows, receipt)
    transport.close()
    return y, y.requires_grad


def traffic(rank: int, world: int, problem: Problem) -> dict[str, Any]:
    """Bytes put into each rank by each phase, and how many poisoned slots of mine changed."""
    transport: Any = open_for_test(rank, world, dtype=problem.dtype)
    t = problem.tensors()
    x, ids, gates = (mine(t[name], problem.counts, rank) for name in ("x", "ids", "gates"))
    x.requires_grad_()
    peers = transport.peers
    slots = {name: peers.local(name) for name in ("recv0", "dy", "home")}
    dgates = peers.local("dgates")
    seen: dict[str, Any] = {}
    total = [0] * world

    def note(phase: str, *names: str) -> None:
        nonlocal total
        seen[phase] = [new - old for new, old in zip(peers.bytes_put, total, strict=True)]
        total = list(peers.bytes_put)
        for name in names:
            seen[f"{phase} {name}"] = (~slots[name].isnan().all(dim=2)).sum(dim=1).tolist()

    def poison() -> None:
        for tensor in (*slots.values(), dgates):
            tensor.fill_(torch.nan)
        dist.barrier()

    poison()
    rows, receipt = transport.dispatch(x, ids, gates, layer=0)
    note("FD", "recv0", "dy", "home")
    y_RD = rows.x_SD[rows.index_R] * 2
    y = transport.combine(y_RD, rows, receipt)
    dist.barrier()  # so that a peer's next phase does not show here
    note("FR", "recv0", "dy", "home")
    poison()
    y.backward(mine(t["dy"], problem.counts, rank))
    dist.barrier()
    note("B", "recv0", "dy", "home")
    seen["dgates"] = int((~dgates.isnan()).sum())
    transport.close()
    return seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """Small integers for each layer: expert e multiplies by its scalar weight, all is exact."""

    counts: list[int]
    x: Tensor
    ids: list[Tensor]
    gates: list[Tensor]
    is_training: bool

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
        is_training=rng.random() < 0.7,
    )


def stress(rank: int, world: int, num_passes: int, seed: int) -> int:
    """Back-to-back passes of three layers against the oracle on each rank; the layers done.

    Passes are training, accumulated training or forward only, with T anew on each rank (0 included)
    and random delays that are different on every rank.
    """
    dim, most, layers = 8, 12, 3
    transport = open_for_test(rank, world, dim=dim, top_k=2, max_tokens=most, num_layers=layers)
    local = slice(transport.local_experts.start, transport.local_experts.stop)
    same, own = random.Random(seed), random.Random(seed * 97 + rank)
    weight = torch.arange(1.0, NUM_EXPERTS + 1) % 3 + 1
    scale = weight[local].clone().requires_grad_()
    expected_dscale = torch.zeros(NUM_EXPERTS, dtype=torch.float64)

    def pause() -> None:
        if own.random() < 0.1:
            time.sleep(own.random() * 2e-3)

    for _ in range(num_passes):
        now = random_pass(same, world, dim=dim, most=most, layers=layers)
        y, dx, dgates, dweight = now.oracle(weight)
        x = now.x.split(now.counts)[rank].clone().requires_grad_()
        gates = [g.split(now.counts)[rank].clone().requires_grad_() for g in now.gates]
        h = x
        with torch.set_grad_enabled(now.is_training):
            for number, (ids_NK, gates_TK) in enumerate(zip(now.ids, gates, strict=True)):
                pause()
                ids_TK = ids_NK.split(now.counts)[rank]
                rows, receipt = transport.dispatch(h, ids_TK, gates_TK, layer=number)
                pause()
                lengths = rows.ends_e.diff(prepend=torch.zeros(1, dtype=torch.int64))
                y_RD = rows.x_SD[rows.index_R] * scale.repeat_interleave(lengths)[:, None]
                pause()
                h = h + transport.combine(y_RD, rows, receipt)
        assert torch.equal(h.detach().double(), y.split(now.counts)[rank])
        if now.is_training:
            pause()
            h.sum().backward()
            assert torch.equal(grad(x).double(), dx.split(now.counts)[rank])
            for got, want in zip(gates, dgates, strict=True):
                torch.testing.assert_close(
                    grad(got).double(), want.split(now.counts)[rank], rtol=1e-5, atol=1e-2
                )
            expected_dscale += dweight
    torch.testing.assert_close(grad(scale).double(), expected_dscale[local], rtol=1e-4, atol=1.0)
    transport.close()
    return num_passes * layers


def die_in_step(rank: int, world: int, victim: int) -> tuple[str, str, float, int]:
    """`victim` kills itself between dispatch and combine; the others report how they noticed."""
    transport = open_for_test(rank, world)
    problem = Problem(counts=(5,) * world)
    t = problem.tensors()
    x, ids, gates = (mine(t[name], problem.counts, rank) for name in ("x", "ids", "gates"))
    rows, receipt = transport.dispatch(x, ids, gates, layer=0)
    if rank == victim:
        os.kill(os.getpid(), signal.SIGKILL)
    start = time.monotonic()
    try:
        transport.combine(rows.x_SD[rows.index_R], rows, receipt)
    except PeerError as error:
        return type(error).__name__, str(error), time.monotonic() - start, os.getpid()
    return "nothing", "", time.monotonic() - start, os.getpid()


def absent(rank: int, world: int, does: str) -> str:
    """Rank 1 never dispatches: it stays away or closes; what the others get."""
    transport = open_for_test(rank, world, timeout_s=0.5 if does == "stay" else 30.0)
    message = ""
    if rank == 1 and does == "close":
        transport.close()
    if rank != 1:
        t = Problem(counts=(5,) * world).tensors()
        try:
            transport.dispatch(t["x"][:5], t["ids"][:5], t["gates"][:5], layer=0)
        except PeerError as error:
            message = f"{type(error).__name__}: {error}"
    dist.barrier()
    return message


def names_in_shm(rank: int, world: int) -> list[str]:
    """Files of ours that exist while a transport is open."""
    transport = open_for_test(rank, world)
    dist.barrier()
    names = [path.name for path in Path("/dev/shm").glob("nmoe-*")]
    transport.close()
    return names


def open_huge(rank: int, world: int) -> str:
    try:
        open_for_test(rank, world, max_tokens=2**36)
    except PeerError as error:
        return str(error)
    return ""


def misuse(rank: int, world: int, how: str) -> str:
    """The message of the error that wrong use gives, on every rank alike."""
    transport = open_for_test(rank, world, max_tokens=5)
    t = Problem(counts=(6,) * world).tensors()
    x, ids, gates = t["x"][:5].requires_grad_(), t["ids"][:5], t["gates"][:5]

    def forward() -> Tensor:
        rows, receipt = transport.dispatch(x, ids, gates, layer=0)
        return transport.combine(rows.x_SD[rows.index_R] * 2, rows, receipt)

    try:
        match how:
            case "dispatch twice":
                transport.dispatch(x, ids, gates, layer=0)
                transport.dispatch(x, ids, gates, layer=0)
            case "stale backward":
                stale = forward()
                forward()
                stale.sum().backward()
            case "too many tokens":
                transport.dispatch(t["x"][:6], t["ids"][:6], t["gates"][:6], layer=0)
            case "no such layer":
                transport.dispatch(x, ids, gates, layer=1)
            case "half a backward":
                w = torch.ones((), requires_grad=True)
                rows, receipt = transport.dispatch(x, ids, gates, layer=0)
                y = transport.combine(rows.x_SD[rows.index_R] * w, rows, receipt)
                torch.autograd.grad(y.sum(), [w])
                forward()
            case _:
                raise AssertionError(how)
    except (PeerError, RuntimeError, ValueError) as error:
        dist.barrier()
        transport.close()
        return str(error)
    return ""
