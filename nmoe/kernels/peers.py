"""Rows, choices and sums written straight into the ranks they are for, and the flags that say when.

A table holds the address of one region in every rank, int64. Slots: token t of rank p is slot
p * stride + t in every region; stride is a multiple of 64. Peer stores are 16 bytes wide.

A flag is an int32 epoch in the waiter's memory, one for each (phase, source), written by its source
only. Epochs live in device memory and grow by one with every call, so a captured graph can be
replayed; they are compared as a difference, so they may wrap.

Legend: T tokens of this rank, P ranks, K top-k, D model, S = P * stride slots, R rows, B parts of
d(gate).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from nmoe.kernels.check import ANY, Check, check, check_widths
from nmoe.kernels.combine import sum_parts, sum_rows
from nmoe.kernels.experts import block

TOKENS = 8  # a program
CHOICES = 1024  # a program
INTERPRETED_LOOKS = 2_000_000  # of a wait, before it gives up without a clock


def push_choices(
    experts_TK: Tensor,
    gates_TK: Tensor,
    *,
    experts_P: Tensor,
    gates_P: Tensor,
    counts_P: Tensor,
    rank: int,
    stride: int,
) -> None:
    """Ids (as int32), gates and the number of tokens into the tables of all ranks."""
    world, num_choices = len(experts_P), experts_TK.numel()
    check(
        "push_choices",
        experts_P.device,
        ("experts", experts_TK, (ANY, ANY), torch.int64),
        ("gates", gates_TK, tuple(experts_TK.shape), torch.float32),
        *_tables(world, experts=experts_P, gates=gates_P, counts=counts_P),
    )
    _push_choices[(max(1, triton.cdiv(num_choices, CHOICES)),)](
        experts_TK, gates_TK, experts_P, gates_P, counts_P,
        len(experts_TK), num_choices, rank, rank * stride * experts_TK.shape[1],
        world, CHOICES, num_warps=4,
    )  # fmt: skip


def push_rows(
    x_TD: Tensor,
    experts_TK: Tensor,
    *,
    rows_P: Tensor,
    rank: int,
    stride: int,
    experts_per_rank: int,
) -> None:
    """Each row once to every rank that owns an expert of its token, into the token's slot there."""
    num_tokens, dim = x_TD.shape
    check(
        "push_rows",
        rows_P.device,
        ("x", x_TD, (ANY, dim), torch.bfloat16),
        ("experts", experts_TK, (num_tokens, ANY), torch.int64),
        *_tables(len(rows_P), rows=rows_P),
    )
    check_widths("push_rows", D=dim)
    columns = block(dim, 256)
    if num_tokens:
        _push_rows[(triton.cdiv(num_tokens, TOKENS), dim // columns)](
            x_TD, experts_TK, rows_P, num_tokens, rank * stride,
            experts_per_rank, dim, experts_TK.shape[1], len(rows_P), TOKENS, columns, num_warps=8,
        )  # fmt: skip


def push_sums(
    y_RD: Tensor,
    row_SK: Tensor,
    *,
    home_P: Tensor,
    rank: int,
    stride: int,
) -> None:
    """Sum of y over the rows of each slot, in fp32, to its source.

    All sources get theirs at the same time, and no two ranks begin with the same one: no link is
    idle while sums stay here, and none carries those of all ranks at once.
    """
    num_slots, top_k = row_SK.shape
    dim = y_RD.shape[1]
    check(
        "push_sums",
        home_P.device,
        ("y", y_RD, (ANY, dim), torch.bfloat16),
        ("row", row_SK, (len(home_P) * stride, top_k), torch.int32),
        *_tables(len(home_P), home=home_P),
    )
    check_widths("push_sums", D=dim)
    columns = block(dim, 256)
    _push_sums[(num_slots // TOKENS, dim // columns)](
        y_RD, row_SK, home_P, num_slots, rank, stride,
        dim, top_k, len(home_P), TOKENS, columns, num_warps=8,
    )  # fmt: skip


def push_gate_grads(dgate_BR: Tensor, row_SK: Tensor, *, dgates_P: Tensor, stride: int) -> None:
    """d(gate) of every choice with a row here, its parts added up, to the source of its token."""
    parts, num_rows = dgate_BR.shape
    num_choices, top_k = row_SK.numel(), row_SK.shape[1]
    check(
        "push_gate_grads",
        dgates_P.device,
        ("dgate", dgate_BR, (parts, num_rows), torch.float32),
        ("row", row_SK, (len(dgates_P) * stride, top_k), torch.int32),
        *_tables(len(dgates_P), dgates=dgates_P),
    )
    _push_gate_grads[(triton.cdiv(num_choices, CHOICES),)](
        dgate_BR, row_SK, dgates_P, num_choices, stride * top_k, num_rows,
        parts, CHOICES, num_warps=4,
    )  # fmt: skip


def sum_home(
    home_SD: Tensor, experts_TK: Tensor, *, world: int, stride: int, experts_per_rank: int
) -> Tensor:
    """y_TD: the sums that the owners of each token's experts left here, in rank order, in fp32."""
    num_tokens, top_k = experts_TK.shape
    dim = home_SD.shape[1]
    check(
        "sum_home",
        home_SD.device,
        ("home", home_SD, (world * stride, dim), torch.bfloat16),
        ("experts", experts_TK, (ANY, top_k), torch.int64),
    )
    check_widths("sum_home", D=dim)
    columns = block(dim, 256)
    y_TD = torch.empty(num_tokens, dim, dtype=home_SD.dtype, device=home_SD.device)
    if num_tokens:
        _sum_home[(triton.cdiv(num_tokens, TOKENS), dim // columns)](
            home_SD, experts_TK, y_TD, num_tokens, stride,
            experts_per_rank, dim, top_k, world, TOKENS, columns, num_warps=8,
        )  # fmt: skip
    return y_TD


def signal_and_wait(
    flags_P: Tensor,
    own_flags: Tensor,
    epochs: Tensor,
    status: Tensor,
    *,
    phase: int,
    rank: int,
    timeout_ns: int,
    has_clock: bool,
) -> None:
    """All that this stream wrote before is seen by every rank that returns from the same call.

    flags_P: int64, where each rank has its flags int32 [phases, P]; own_flags: mine; epochs: int32
    [phases]; status: int32 [1], set to 1 + the first rank that was late: then nothing waits again.
    has_clock: false for the interpreter, which counts its looks instead.
    """
    world = len(flags_P)
    check(
        "signal_and_wait",
        own_flags.device,
        ("own flags", own_flags, (ANY, world), torch.int32),
        ("epochs", epochs, (len(own_flags),), torch.int32),
        ("status", status, (1,), torch.int32),
        *_tables(world, flags=flags_P),
    )
    _signal_and_wait[(1,)](
        flags_P, own_flags, epochs, status, rank, timeout_ns if has_clock else INTERPRETED_LOOKS,
        phase, world, triton.next_power_of_2(world), has_clock, num_warps=1,
    )  # fmt: skip


def _tables(world: int, **tables: Tensor) -> list[Check]:
    """Each holds an address for every rank."""
    return [(name, table, (world,), torch.int64) for name, table in tables.items()]


@triton.jit
def _owners(experts, token, num_tokens, E: tl.constexpr, K: tl.constexpr):
    """Bits of the ranks that own an expert of each token."""
    bits = tl.zeros_like(token)
    for k in tl.static_range(K):
        expert = tl.load(experts + token * K + k, mask=token < num_tokens, other=0).to(tl.int32)
        bits |= tl.full(token.shape, 1, tl.int32) << (expert // E)
    return tl.where(token < num_tokens, bits, 0)


@triton.jit(do_not_specialize=["num_tokens", "num_choices", "rank"])
def _push_choices(
    experts, gates, experts_P, gates_P, counts_P, num_tokens, num_choices, rank, at,
    WORLD: tl.constexpr, CHOICES: tl.constexpr,
):  # fmt: skip
    choice = tl.program_id(0) * CHOICES + tl.arange(0, CHOICES)
    expert = tl.load(experts + choice, mask=choice < num_choices, other=0).to(tl.int32)
    gate = tl.load(gates + choice, mask=choice < num_choices, other=0.0)
    # up to 15 unused choices more, so that no store is cut below 16 bytes
    live = choice // 16 * 16 < num_choices
    for peer in tl.static_range(WORLD):
        to = tl.multiple_of(tl.load(experts_P + peer).to(tl.pointer_type(tl.int32)), 16)
        tl.store(to + at + choice, expert, mask=live)
        to = tl.multiple_of(tl.load(gates_P + peer).to(tl.pointer_type(tl.float32)), 16)
        tl.store(to + at + choice, gate, mask=live)
        if tl.program_id(0) == 0:
            tl.store(tl.load(counts_P + peer).to(tl.pointer_type(tl.int32)) + rank, num_tokens)


@triton.jit(do_not_specialize=["num_tokens", "first_slot"])
def _push_rows(
    x, experts, rows_P, num_tokens, first_slot,
    E: tl.constexpr, D: tl.constexpr, K: tl.constexpr, WORLD: tl.constexpr,
    TOKENS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    at = token.to(tl.int64)[:, None] * D + column[None, :]
    values = tl.load(x + at, mask=(token < num_tokens)[:, None])
    owners = _owners(experts, token, num_tokens, E, K)
    at = (first_slot + token).to(tl.int64)[:, None] * D + column[None, :]
    for peer in tl.static_range(WORLD):
        to = tl.load(rows_P + peer).to(tl.pointer_type(x.dtype.element_ty))
        tl.store(tl.multiple_of(to, 16) + at, values, mask=((owners >> peer) & 1 == 1)[:, None])


@triton.jit(do_not_specialize=["num_slots", "rank", "stride"])
def _push_sums(
    y, row_SK, home_P, num_slots, rank, stride,
    D: tl.constexpr, K: tl.constexpr, WORLD: tl.constexpr,
    TOKENS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    source = (tl.program_id(0) + rank + 1) % WORLD
    token = tl.program_id(0) // WORLD * TOKENS + tl.arange(0, TOKENS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    slot = source * stride + token
    total, has_row = sum_rows(y, row_SK, slot, column, num_slots, D, K)
    to = tl.load(home_P + source).to(tl.pointer_type(y.dtype.element_ty))
    at = (rank * stride + token).to(tl.int64)[:, None] * D + column[None, :]
    tl.store(tl.multiple_of(to, 16) + at, total.to(y.dtype.element_ty), mask=has_row[:, None])


@triton.jit(do_not_specialize=["num_choices", "choices_per_source", "num_rows"])
def _push_gate_grads(
    dgate_BR, row_SK, dgates_P, num_choices, choices_per_source, num_rows,
    PARTS: tl.constexpr, CHOICES: tl.constexpr,
):  # fmt: skip
    choice = tl.program_id(0) * CHOICES + tl.arange(0, CHOICES)
    row = tl.load(row_SK + choice, mask=choice < num_choices, other=-1).to(tl.int64)
    total = sum_parts(dgate_BR, row, num_rows, PARTS)
    source = choice // choices_per_source
    to = tl.load(dgates_P + source, mask=row >= 0, other=0).to(tl.pointer_type(tl.float32))
    tl.store(to + choice % choices_per_source, total, mask=row >= 0)


@triton.jit(do_not_specialize=["num_tokens", "stride"])
def _sum_home(
    home, experts, y, num_tokens, stride,
    E: tl.constexpr, D: tl.constexpr, K: tl.constexpr, WORLD: tl.constexpr,
    TOKENS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    owners = _owners(experts, token, num_tokens, E, K)
    total = tl.zeros((TOKENS, COLUMNS), tl.float32)
    for peer in tl.static_range(WORLD):
        at = (peer * stride + token).to(tl.int64)[:, None] * D + column[None, :]
        mask = ((owners >> peer) & 1 == 1)[:, None]
        total += tl.load(home + at, mask=mask, other=0.0).to(tl.float32)
    at = token.to(tl.int64)[:, None] * D + column[None, :]
    tl.store(y + at, total.to(y.dtype.element_ty), mask=(token < num_tokens)[:, None])


@triton.jit(do_not_specialize=["rank", "limit"])
def _signal_and_wait(
    flags_P, own_flags, epochs, status, rank, limit,
    PHASE: tl.constexpr, WORLD: tl.constexpr, PEERS: tl.constexpr, HAS_CLOCK: tl.constexpr,
):  # fmt: skip
    epoch = tl.load(epochs + PHASE) + 1
    tl.store(epochs + PHASE, epoch)
    peer = tl.arange(0, PEERS)
    to = tl.load(flags_P + peer, mask=peer < WORLD, other=0).to(tl.pointer_type(tl.int32))
    # nothing else orders the stores of this program before the release
    tl.debug_barrier()
    tl.atomic_xchg(
        to + PHASE * WORLD + rank, tl.zeros_like(peer) + epoch,
        mask=peer < WORLD, sem="release", scope="sys",
    )  # fmt: skip
    start = _clock(HAS_CLOCK)
    spent = start - start
    late = _first_late(own_flags, epoch, peer, PHASE, WORLD)
    while (late < WORLD) & (spent < limit) & (tl.load(status, volatile=True) == 0):
        late = _first_late(own_flags, epoch, peer, PHASE, WORLD)
        spent = _clock(HAS_CLOCK) - start if HAS_CLOCK else spent + 1
    if late < WORLD:
        tl.atomic_cas(status, 0, late + 1, sem="relaxed", scope="gpu")


@triton.jit
def _first_late(own_flags, epoch, peer, PHASE: tl.constexpr, WORLD: tl.constexpr):
    """The lowest rank whose flag is behind the epoch; WORLD when none is."""
    flag = tl.atomic_add(
        own_flags + PHASE * WORLD + peer, tl.zeros_like(peer),
        mask=peer < WORLD, sem="acquire", scope="sys",
    )  # fmt: skip
    return tl.min(tl.where((peer < WORLD) & (flag - epoch < 0), peer, WORLD), 0)


@triton.jit
def _clock(HAS_CLOCK: tl.constexpr):
    """Nanoseconds of the device, or 0 where there is no clock."""
    if HAS_CLOCK:
        return tl.extra.cuda.globaltimer().to(tl.int64)
    return tl.full((), 0, tl.int64)
