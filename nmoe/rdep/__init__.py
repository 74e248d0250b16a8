"""RDEP, expert transport: tokens go straight to the owner of the expert, results straight back.

Legend: T tokens of this rank, D model, K top-k, R rows received here, S slots, B parts of d(gate).
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from nmoe.config import WORST_CASE_RANKS, Impl
from nmoe.memory import ROOM
from nmoe.rdep.device import DeviceWire, flag_region
from nmoe.rdep.host import HostWire
from nmoe.rdep.ipc import PHASES, Ipc, Wire, regions
from nmoe.rdep.layout import Arrived, share
from nmoe.rdep.peers import PeerError, PeerLost, Peers, PeerTimeout, Region
from nmoe.rdep.single import Single
from nmoe.rdep.symmetric import SymmetricMemory

__all__ = [
    "Arrived",
    "PeerError",
    "PeerLost",
    "PeerTimeout",
    "Transport",
    "open_transport",
    "share",
]


class Transport(Protocol):
    """Carries rows to their experts and back; all ranks make the same calls in the same order.

    One layer is `dispatch`, the experts, `combine`; then the next layer. A backward pass is
    `dispatch_grads`, the gradients of the experts, `combine_grads`, layer by layer; it runs on
    every rank or on none, and through all layers before the next forward pass. A rank without
    tokens takes part with T = 0. Autograd is the caller's: `nmoe.moe`.
    """

    rank: int
    world: int
    local_experts: range

    def dispatch(
        self, x_TD: Tensor, experts_TK: Tensor, gates_TK: Tensor, *, layer: int
    ) -> Arrived:
        """Send each token once to each distinct owner of its experts; ids int64, gates fp32."""
        ...

    def combine(self, y_RD: Tensor, arrived: Arrived) -> Tensor:
        """y_TD, the sum of y over each token's rows, in fp32, sent home one row an owner."""
        ...

    def dispatch_grads(self, dy_TD: Tensor, arrived: Arrived) -> Tensor:
        """dy_SD: the gradient of y_TD in the slots that x had; valid until `combine_grads`."""
        ...

    def combine_grads(
        self, dx_RD: Tensor, dgate_BR: Tensor, arrived: Arrived
    ) -> tuple[Tensor, Tensor]:
        """(dx_TD, dgates_TK): sums over each token's rows; x_SD and dy_SD are no longer read."""
        ...

    def fits(self) -> Callable[[], bool]:
        """Ask whether the rows of every rank have found room since the last `grow`.

        The answer is the same on all ranks; only who calls for it waits for the device. Without
        room the layers since then, and all that was computed from them, are of no use.
        """
        ...

    def grow(self) -> None:
        """Make room for twice as many rows, up to all that can come; on all ranks together."""
        ...

    def check(self) -> None:
        """Raise PeerTimeout when a wait on the device has given up; waits for the device."""
        ...

    def close(self) -> None:
        """Leave; peers that still wait for this rank raise PeerLost."""
        ...


SLOTS = 64  # of a source: kernels read and write whole blocks of them


def open_transport(
    *,
    rank: int,
    world: int,
    num_experts: int,
    top_k: int,
    dim: int,
    max_tokens: int,
    num_layers: int,
    dtype: torch.dtype,
    device: torch.device | str,
    impl: Impl,
    timeout_s: float = 60.0,
    room: int | None = None,
) -> Transport:
    """The transport of `rank`: `Single` for a world of one, else `Ipc`, opened by all together.

    max_tokens: the largest T of any rank in any call; num_layers: layers that dispatch, numbered
    from 0; dtype: of x, y and the rows on the wire; timeout_s: how long to wait for a living peer;
    room: choices for which a rank of several has rows at first, chosen here when None.
    ValueError for what cannot be carried, PeerError when the ranks cannot meet.
    """
    local_experts = share(num_experts, rank=rank, world=world)
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"expert rows: got {dtype}, expected torch.float32 or torch.bfloat16.")
    if torch.device(device).type == "cuda" and impl == "reference" and world > 1:
        raise ValueError(
            f'expert transport on {world} ranks: got impl "reference" on {device}, expected '
            '"triton". Run the reference on one rank or on CPU ranks.'
        )
    if world == 1:
        return Single(num_experts=num_experts, dtype=dtype, impl=impl)
    stride = max_tokens if impl == "reference" else -(-max_tokens // SLOTS) * SLOTS
    needed = regions(
        world=world, stride=stride, top_k=top_k, dim=dim, num_layers=num_layers, dtype=dtype
    )
    wire = _open_wire(
        needed,
        rank=rank,
        world=world,
        stride=stride,
        num_experts=num_experts,
        device=torch.device(device),
        impl=impl,
        timeout_s=timeout_s,
    )
    return Ipc(
        wire,
        rank=rank,
        world=world,
        local_experts=local_experts,
        top_k=top_k,
        dim=dim,
        max_tokens=max_tokens,
        num_layers=num_layers,
        dtype=dtype,
        room=first_room(max_tokens * top_k, world=world, impl=impl) if room is None else room,
    )


def first_room(choices: int, *, world: int, impl: Impl) -> int | None:
    """Choices for which a rank has rows at first, given those that a rank sends; None: for all."""
    if impl == "reference" or world <= WORST_CASE_RANKS:
        return None
    return int(choices * ROOM)  # as many arrive as are sent, on average


def _open_wire(
    needed: dict[str, Region],
    *,
    rank: int,
    world: int,
    stride: int,
    num_experts: int,
    device: torch.device,
    impl: Impl,
    timeout_s: float,
) -> Wire:
    if impl == "triton":
        needed |= flag_region(world)
    memory: Peers | SymmetricMemory
    if device.type == "cuda":
        memory = SymmetricMemory(rank=rank, world=world, regions=needed, device=device)
    else:
        memory = Peers(rank=rank, world=world, regions=needed, phases=PHASES, timeout_s=timeout_s)
    if isinstance(memory, Peers) and impl == "reference":
        return HostWire(memory, stride=stride, num_experts=num_experts)
    each = num_experts // world
    return DeviceWire(memory, stride=stride, experts_per_rank=each, timeout_s=timeout_s)
