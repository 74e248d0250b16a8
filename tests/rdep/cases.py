"""What the rank processes run, and the dense oracle that they are compared with.

Legend: N tokens of all ranks, T of this rank, D model, F hidden, K top-k, e local experts, R rows.
"""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nmoe.expert_layout import pack, unpack
from nmoe.moe import Experts
from nmoe.rdep import Arrived, PeerError, Transport, open_transport
from nmoe.reference.experts import down, down_grad, up, up_grad, weight_grad

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
        "impl": "reference",
    }
    return open_transport(rank=rank, world=world, **(settings | changes))


def mine(values: Tensor, counts: tuple[int, ...], rank: int) -> Tensor:
    return values.split(counts)[rank].clone()


def grad(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None
    return leaf.grad


def mine_of(problem: Problem, rank: int, world: int) -> dict[str, Tensor]:
    """The tokens of this rank and the weights of its experts; one rank takes the tokens of all."""
    counts = problem.counts if len(problem.counts) == world else (sum(problem.counts),)
    each = NUM_EXPERTS // world
    local = slice(rank * each, (rank + 1) * each)
    return {
        name: values[local].clone() if name in ("w1", "w2", "w3") else mine(values, counts, rank)
        for name, values in problem.tensors().items()
    }


def layer(rank: int, world: int, problem: Problem) -> dict[str, Tensor]:
    """One layer forward and backward, phase by phase."""
    transport = open_for_test(rank, world, dtype=problem.dtype)
    t = mine_of(problem, rank, world)
    w13, w2 = pack(t["w1"], t["w3"]), t["w2"]
    arrived = transport.dispatch(t["x"], t["ids"], t["gates"], layer=0)
    rows = arrived.rows
    rows_x = arrived.x_SD[rows.slot_R]
    h_RG, a_RF = up(arrived.x_SD, w13, rows, activation="swiglu")
    y_RD = down(a_RF, w2, rows)
    y = transport.combine(y_RD, arrived)
    dy_SD = transport.dispatch_grads(t["dy"], arrived)
    dh_RG, dgate_BR = down_grad(dy_SD, w2, h_RG, rows, activation="swiglu")
    dw2 = weight_grad(a_RF, dy_SD, rows, torch.empty_like(w2), gathered="right")
    dw13 = weight_grad(arrived.x_SD, dh_RG, rows, torch.empty_like(w13), gathered="left")
    dx_RD = up_grad(dh_RG, w13, rows)
    dx, dgates = transport.combine_grads(dx_RD, dgate_BR, arrived)
    transport.close()
    dw1, dw3 = unpack(dw13, activation="swiglu")
    assert dw3 is not None
    result = {"y": y, "dx": dx, "dgates": dgates, "dw1": dw1, "dw2": dw2, "dw3": dw3}
    result |= {"rows_x": rows_x, "rows_y": y_RD, "gate_R": rows.gate_R.clone()}
    return result | {"load_e": rows.end_e - rows.start_e}


def layer_of_model(rank: int, world: int, problem: Problem) -> dict[str, Tensor]:
    """The same by the model's layer and autograd, and y once more without gradients."""
    transport = open_for_test(rank, world, dtype=problem.dtype)
    t = mine_of(problem, rank, world)
    config: Any = SimpleNamespace(
        model=SimpleNamespace(dim=DIM, impl="reference"),
        experts=SimpleNamespace(hidden=HIDDEN, activation="swiglu"),
    )
    module = Experts(config, transport, layer=0, dtype=torch.float32).to(problem.dtype)
    module.load_state_dict({"w13_eDG": pack(t["w1"], t["w3"]), "w2_eFD": t["w2"]})
    with torch.no_grad():
        y_without_grad = module(t["x"], t["ids"], t["gates"])
    x, gates = t["x"].requires_grad_(), t["gates"].requires_grad_()
    y = module(x, t["ids"], gates)
    y.backward(t["dy"])
    transport.close()
    dw1, dw3 = unpack(grad(module.w13_eDG), activation="swiglu")
    assert dw3 is not None
    result = {"y": y.detach(), "dx": grad(x), "dgates": grad(gates)}
    result |= {"dw1": dw1, "dw2": grad(module.w2_eFD), "dw3": dw3}
    return result | {"y_without_grad": y_without_grad}


def traffic(rank: int, world: int, problem: Problem) -> dict[str, Any]:
    """Bytes put into each rank by each phase, how many poisoned slots of mine changed, results."""
    transport: Any = open_for_test(rank, world, dtype=problem.dtype)
    t = mine_of(problem, rank, world)
    peers = transport.wire.peers
    slots = {name: peers.local(name) for name in ("recv0", "dy", "home")}
    dgates = peers.local("dgates")
    seen: dict[str, Any] = {}
    total = [0] * world

    def note(phase: str) -> None:
        nonlocal total
        seen[phase] = [new - old for new, old in zip(peers.bytes_put, total, strict=True)]
        total = list(peers.bytes_put)
        for name, slot in slots.items():
            seen[f"{phase} {name}"] = (~slot.isnan().all(dim=2)).sum(dim=1).tolist()
        dist.barrier()  # so that a peer's next phase does not show here

    def poison() -> None:
        for tensor in (*slots.values(), dgates):
            tensor.fill_(torch.nan)
        # slots that hold no token name an expert of this rank, and a gate that would show
        peers.local("experts").fill_(transport.local_experts.start)
        peers.local("gates").fill_(torch.nan)
        dist.barrier()

    poison()
    arrived = transport.dispatch(t["x"], t["ids"], t["gates"], layer=0)
    note("FD")
    y_RD = 2 * arrived.rows.gate_R[:, None] * arrived.x_SD[arrived.rows.slot_R]
    seen["y"] = transport.combine(y_RD.to(problem.dtype), arrived)
    note("FR")
    poison()
    dy_SD = transport.dispatch_grads(t["dy"], arrived)
    note("BD")
    dy_RD = dy_SD[arrived.rows.slot_R]
    dgate_1R = dy_RD.float().sum(dim=1)[None]
    seen["dx"], seen["dgates"] = transport.combine_grads(dy_RD * 2, dgate_1R, arrived)
    note("BR")
    seen["dgates put"] = int((~dgates.isnan()).sum())
    transport.close()
    return seen


def die_in_step(rank: int, world: int, victim: int) -> tuple[str, str, float, int]:
    """`victim` kills itself between dispatch and combine; the others report how they noticed."""
    transport = open_for_test(rank, world)
    t = mine_of(Problem(counts=(5,) * world), rank, world)
    arrived = transport.dispatch(t["x"], t["ids"], t["gates"], layer=0)
    if rank == victim:
        os.kill(os.getpid(), signal.SIGKILL)
    start = time.monotonic()
    try:
        transport.combine(arrived.x_SD[arrived.rows.slot_R], arrived)
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
        t = mine_of(Problem(counts=(5,) * world), rank, world)
        try:
            transport.dispatch(t["x"], t["ids"], t["gates"], layer=0)
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

    def dispatch(count: int = 5, *, layer: int = 0) -> Arrived:
        return transport.dispatch(t["x"][:count], t["ids"][:count], t["gates"][:count], layer=layer)

    def combine(arrived: Arrived, *, num_rows: int | None = None) -> Arrived:
        transport.combine(arrived.x_SD[arrived.rows.slot_R][:num_rows], arrived)
        return arrived

    def forward() -> Arrived:
        return combine(dispatch())

    def dispatch_grads(arrived: Arrived) -> None:
        transport.dispatch_grads(t["dy"][:5], arrived)

    steps: dict[str, Callable[[], Any]] = {
        "dispatch twice": lambda: (dispatch(), dispatch()),
        "combine twice": lambda: combine(forward()),
        "other gradients": lambda: transport.dispatch_grads(t["dy"][:5].double(), forward()),
        "too few rows": lambda: combine(dispatch(), num_rows=1),
        "backward inside a layer": lambda: dispatch_grads(dispatch()),
        "stale backward": lambda: dispatch_grads((forward(), forward())[0]),
        "half a backward": lambda: (dispatch_grads(forward()), dispatch()),
        "too many tokens": lambda: dispatch(6),
        "no such layer": lambda: dispatch(layer=1),
        "closed": lambda: (transport.close(), dispatch()),
    }
    try:
        steps[how]()
    except (PeerError, RuntimeError, ValueError) as error:
        dist.barrier()
        transport.close()
        return str(error)
    return ""
