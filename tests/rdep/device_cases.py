"""Layers over the device wire: interpreted on CPU ranks, on GPUs where there are any.

Ranks of one GPU share its memory over CUDA IPC, as ranks of several do over symmetric memory.

Legend: T tokens of a rank, D model, F hidden, K top-k, E experts, e local experts.
"""

import os
import random
import signal
import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import triton
from torch import Tensor

from nmoe.expert_layout import pack
from nmoe.kernels import peers as kernels
from nmoe.moe import Experts
from nmoe.rdep import PeerTimeout, Transport, open_transport
from nmoe.rdep.device import DeviceWire, flag_region
from nmoe.rdep.ipc import Ipc, regions
from nmoe.rdep.layout import share
from nmoe.rdep.peers import Region
from tests.kernels import interpreter

DIM, HIDDEN, NUM_EXPERTS, TOP_K, MAX_TOKENS, NUM_LAYERS = 128, 64, 8, 3, 64, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """What one layer gets: tokens of each rank, whom they choose, where."""

    counts: tuple[int, ...]
    routing: str = "random"  # or "one": every token to the same experts
    layer: int = 0
    seed: int = 0

    def tensors(self) -> dict[str, Tensor]:
        rng = torch.Generator().manual_seed(self.seed)
        num = sum(self.counts)
        ids = torch.rand(num, NUM_EXPERTS, generator=rng).argsort(dim=1)[:, :TOP_K]
        if self.routing == "one":
            ids = torch.arange(TOP_K).expand(num, -1)
        return {
            "x": torch.randn(num, DIM, generator=rng).bfloat16(),
            "ids": ids.contiguous(),
            "gates": torch.rand(num, TOP_K, generator=rng),
            "dy": torch.randn(num, DIM, generator=rng).bfloat16(),
            "w1": torch.randn(NUM_EXPERTS, DIM, HIDDEN, generator=rng) * DIM**-0.5,
            "w2": torch.randn(NUM_EXPERTS, HIDDEN, DIM, generator=rng) * HIDDEN**-0.5,
            "w3": torch.randn(NUM_EXPERTS, DIM, HIDDEN, generator=rng) * DIM**-0.5,
        }


class SharedGpu:
    """Memory of ranks on one GPU that all of them map: see `nmoe.rdep.device.Memory`."""

    def __init__(self, *, rank: int, world: int, needed: dict[str, Region]) -> None:
        self.rank, self.world = rank, world
        self._local = {
            name: torch.zeros(region.shape, dtype=region.dtype, device="cuda")
            for name, region in needed.items()
        }
        torch.cuda.synchronize()
        handles: list[Any] = [None] * world
        mine = {
            name: (tensor.untyped_storage()._share_cuda_(), tensor.storage_offset())
            for name, tensor in self._local.items()
        }
        dist.all_gather_object(handles, mine)
        self._mapped: list[torch.UntypedStorage] = []  # as long as the pointers are used
        self._pointers = {
            name: torch.tensor([self._address(name, p, handles[p][name]) for p in range(world)])
            .long()
            .cuda()
            for name in needed
        }
        dist.barrier()

    def local(self, name: str) -> Tensor:
        return self._local[name]

    def pointers(self, name: str) -> Tensor:
        return self._pointers[name]

    def close(self) -> None:
        dist.barrier()  # nobody unmaps what a peer still writes

    def _address(self, name: str, peer: int, handle: tuple[Any, int]) -> int:
        if peer == self.rank:
            return self._local[name].data_ptr()
        shared, offset = handle
        self._mapped.append(torch.UntypedStorage._new_shared_cuda(*shared))
        return self._mapped[-1].data_ptr() + offset * self._local[name].element_size()


def open_for_test(
    rank: int, world: int, *, timeout_s: float = 60.0, room: int | None = None
) -> Transport:
    """Interpreted over host memory; on GPUs one a rank, or all ranks on the only one."""
    if triton.knobs.runtime.interpret:
        interpreter.install()
    settings: dict[str, Any] = {
        "top_k": TOP_K,
        "dim": DIM,
        "num_layers": NUM_LAYERS,
        "dtype": torch.bfloat16,
    }
    if torch.cuda.device_count() == 1 and world > 1:
        needed = regions(world=world, stride=MAX_TOKENS, **settings) | flag_region(world)
        memory = SharedGpu(rank=rank, world=world, needed=needed)
        each = NUM_EXPERTS // world
        wire = DeviceWire(memory, stride=MAX_TOKENS, experts_per_rank=each, timeout_s=timeout_s)
        local = share(NUM_EXPERTS, rank=rank, world=world)
        return Ipc(
            wire,
            rank=rank,
            world=world,
            local_experts=local,
            max_tokens=MAX_TOKENS,
            room=room,
            **settings,
        )
    return open_transport(
        rank=rank,
        world=world,
        num_experts=NUM_EXPERTS,
        max_tokens=MAX_TOKENS,
        device=device_of(rank),
        impl="triton",
        timeout_s=timeout_s,
        room=room,
        **settings,
    )


def device_of(rank: int) -> torch.device:
    """The GPU of a rank, or the CPU without one."""
    gpus = torch.cuda.device_count()
    if not gpus:
        return torch.device("cpu")
    torch.cuda.set_device(rank % gpus)
    return torch.device("cuda", rank % gpus)


def layers(rank: int, world: int, passes: list[Pass]) -> list[dict[str, Tensor]]:
    """Every pass forward and backward, back to back; one rank takes the tokens of all."""
    device = device_of(rank)
    transport = open_for_test(rank, world)
    local = slice(transport.local_experts.start, transport.local_experts.stop)
    answers = []
    for each in passes:
        counts = each.counts if world > 1 else (sum(each.counts),)
        t = each.tensors()
        x, ids, gates, dy = (
            t[name].split(counts)[rank].to(device) for name in ("x", "ids", "gates", "dy")
        )
        w1, w2, w3 = (t[name][local].to(device) for name in ("w1", "w2", "w3"))
        module = experts(transport, layer=each.layer).to(device)
        module.load_state_dict({"w13_eDG": pack(w1, w3), "w2_eFD": w2})
        x, gates = x.requires_grad_(), gates.requires_grad_()
        y = module(x, ids, gates)
        leaves = (x, gates, module.w13_eDG, module.w2_eFD)
        dx, dgates, dw13, dw2 = torch.autograd.grad(y, leaves, dy)
        found = {"y": y.detach(), "dx": dx, "dgates": dgates, "dw2": dw2, "dw13": dw13}
        answers.append({name: value.cpu() for name, value in found.items()})
    transport.check()
    transport.close()
    return answers


def grown(rank: int, world: int, each: Pass, room: int) -> tuple[list[bool], Tensor]:
    """Whether one layer's rows fitted, asked at every attempt until they do, and its y then."""
    device = device_of(rank)
    transport = open_for_test(rank, world, room=room)
    t = each.tensors()
    x, ids, gates = (t[name].split(each.counts)[rank].to(device) for name in ("x", "ids", "gates"))
    local = slice(transport.local_experts.start, transport.local_experts.stop)
    w1, w2, w3 = (t[name][local].to(device) for name in ("w1", "w2", "w3"))
    module = experts(transport, layer=each.layer).to(device)
    module.load_state_dict({"w13_eDG": pack(w1, w3), "w2_eFD": w2})
    answers = []
    while True:
        with torch.no_grad():
            y = module(x, ids, gates)
        answers.append(transport.fits()())
        if answers[-1]:
            break
        transport.grow()
    transport.check()
    transport.close()
    return answers, y.cpu()


def random_passes(number: int, *, seed: int) -> list[Pass]:
    """Passes of two ranks that take turns in their layers, ranks without tokens among them."""
    draw = random.Random(seed)
    return [
        Pass(
            counts=(draw.choice((0, 1, MAX_TOKENS, draw.randint(2, 60))), draw.randint(0, 64)),
            routing=draw.choice(("random", "random", "one")),
            layer=i % NUM_LAYERS,
            seed=i,
        )
        for i in range(number)
    ]


def experts(transport: Transport, *, layer: int) -> Experts:
    config: Any = SimpleNamespace(
        model=SimpleNamespace(dim=DIM, impl="triton"),
        experts=SimpleNamespace(hidden=HIDDEN, activation="swiglu"),
    )
    return Experts(config, transport, layer=layer, dtype=torch.bfloat16)


def absent(rank: int, world: int) -> str:
    """Rank 1 never dispatches; what `check` tells the others, and that nothing waits again."""
    transport = open_for_test(rank, world, timeout_s=0.5)
    kernels.INTERPRETED_LOOKS = 50
    message = ""
    if rank != 1:
        t = Pass(counts=(5,) * world).tensors()
        device = device_of(rank)
        x, ids, gates = (t[name][:5].to(device) for name in ("x", "ids", "gates"))
        module = experts(transport, layer=0).to(device)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.zero_()
            module(x, ids, gates)
        try:
            transport.check()
        except PeerTimeout as error:
            message = str(error)
    dist.barrier()
    transport.close()
    return message


def die_in_step(rank: int, world: int, victim: int) -> tuple[str, float]:
    """`victim` kills itself between dispatch and combine; what the others are told, and when."""
    transport = open_for_test(rank, world, timeout_s=1.0)
    device = device_of(rank)
    t = Pass(counts=(5,) * world).tensors()
    x, ids, gates = (t[name][:5].to(device) for name in ("x", "ids", "gates"))
    arrived = transport.dispatch(x, ids, gates, layer=0)
    transport.check()
    if rank == victim:
        os.kill(os.getpid(), signal.SIGKILL)
    kernels.INTERPRETED_LOOKS = 50
    start = time.monotonic()
    num_rows = len(arrived.rows.slot_R)
    transport.combine(torch.zeros(num_rows, DIM, dtype=torch.bfloat16, device=device), arrived)
    try:
        transport.check()
    except PeerTimeout as error:
        return str(error), time.monotonic() - start
    return "", time.monotonic() - start
