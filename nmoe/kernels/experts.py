"""The experts' matrix products over sorted rows: up, down, dH, dW, dX; bf16 in, fp32 sums.

    h = x[slot] W13             a = gate * act(h)         y = a W2
    da = gate * dy[slot] W2^T     dh = act'(h) da           dgate = (dy[slot] W2^T) . act(h)
    dW2 = a^T dy[slot]            dW13 = x[slot]^T dh       dx = dh W13^T

Weights, h and dh lie as `nmoe.expert_layout` says. x and dy are read through `slot_R`, so no packed
copy is made. Padding rows repeat the last real row of their segment with gate 0, so that no mask is
needed and nothing undefined is read. Programs are persistent, and row counts stay on the device.

Legend: R rows with padding, S slots, D model, F expert hidden, e local experts, BM BN BK tile.
"""

import threading
from typing import Literal, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import driver
from triton.tools.tensor_descriptor import TensorDescriptor

from nmoe.config import Activation
from nmoe.expert_layout import GROUP, Rows, parts
from nmoe.kernels.check import ANY, check, check_widths

BF16, FP32 = torch.bfloat16, torch.float32

# Autograd's threads start without a CUDA context; a launch by torch gives them one, and the maps of
# `TensorDescriptor` need it.
_context = threading.local()


class Tile(NamedTuple):
    """How one product is cut: columns and depth of a tile, warps, stages, programs a processor."""

    n: int
    k: int
    warps: int
    stages: int
    per_sm: int = 1
    registers: int | None = None  # of a thread, at most, on Hopper
    m: int = 128  # rows of a dW tile; elsewhere the tile of `Rows` decides


STORE = 64  # columns that an epilogue writes at once: whole lines of 128 bytes

UP = Tile(n=128, k=64, warps=8, stages=3, per_sm=2)
DOWN = Tile(n=256, k=64, warps=8, stages=3)
DH = Tile(n=128, k=64, warps=8, stages=3, per_sm=2, registers=128)
DX = Tile(n=256, k=64, warps=8, stages=3)
DW = Tile(m=128, n=128, k=32, warps=4, stages=5)


def up(
    x_SD: Tensor, w13_eDG: Tensor, rows: Rows, *, activation: Activation, cut: Tile = UP
) -> tuple[Tensor, Tensor]:
    """(h_RG, a_RF): pre-activations and gated activations, both kept for backward."""
    _, dim, width = w13_eDG.shape
    hidden, num_rows = width // parts(activation), len(rows.slot_R)
    check(
        "up",
        rows.slot_R.device,
        ("x", x_SD, (ANY, dim), BF16),
        ("w13", w13_eDG, (len(rows.start_e), dim, hidden * parts(activation)), BF16),
    )
    check_widths("up", D=dim, F=hidden)
    h_RG, a_RF = x_SD.new_empty(num_rows, width), x_SD.new_empty(num_rows, hidden)
    bn, bk = block(width, cut.n), block(dim, cut.k)
    _up[programs(x_SD, cut)](
        x_SD,
        matrix(w13_eDG, bk, bn),
        matrix(h_RG, rows.tile, STORE),
        matrix(a_RF, rows.tile, STORE),
        rows.slot_R, rows.gate_R, rows.end_e, rows.expert_of_tile, rows.num_tiles,
        dim, width, activation, STORE, rows.tile, bn, bk, is_wide(x_SD),
        num_warps=cut.warps, num_stages=cut.stages,
    )  # fmt: skip
    return h_RG, a_RF


def down(a_RF: Tensor, w2_eFD: Tensor, rows: Rows, *, cut: Tile = DOWN) -> Tensor:
    """y_RD = a W2 of each row's expert."""
    _, hidden, dim = w2_eFD.shape
    check(
        "down",
        rows.slot_R.device,
        ("a", a_RF, (len(rows.slot_R), hidden), BF16),
        ("w2", w2_eFD, (len(rows.start_e), hidden, dim), BF16),
    )
    check_widths("down", D=dim, F=hidden)
    return product(a_RF, w2_eFD, rows, width=dim, transposed=False, cut=cut)


def down_grad(
    dy_SD: Tensor,
    w2_eFD: Tensor,
    h_RG: Tensor,
    rows: Rows,
    *,
    activation: Activation,
    cut: Tile = DH,
) -> tuple[Tensor, Tensor]:
    """(dh_RG, dgate_BR): dgate is the sum over dim 0."""
    _, hidden, dim = w2_eFD.shape
    num_rows = len(rows.slot_R)
    check(
        "down_grad",
        rows.slot_R.device,
        ("dy", dy_SD, (ANY, dim), BF16),
        ("w2", w2_eFD, (len(rows.start_e), hidden, dim), BF16),
        ("h", h_RG, (num_rows, hidden * parts(activation)), BF16),
    )
    check_widths("down_grad", D=dim, F=hidden)
    dh_RG = torch.empty_like(h_RG)
    bn, bk = block(hidden, cut.n), block(dim, cut.k)
    dgate_BR = torch.empty(hidden // bn, num_rows, dtype=torch.float32, device=dy_SD.device)
    _down_grad[programs(dy_SD, cut)](
        dy_SD,
        matrix(w2_eFD, bn, bk),
        matrix(h_RG, rows.tile, GROUP * parts(activation)),
        matrix(dh_RG, rows.tile, GROUP * parts(activation)),
        dgate_BR,
        rows.slot_R, rows.gate_R, rows.end_e, rows.expert_of_tile, rows.num_tiles,
        num_rows, dim, hidden, activation, GROUP, rows.tile, bn, bk, is_wide(dy_SD),
        num_warps=cut.warps, num_stages=cut.stages, maxnreg=registers(cut),
    )  # fmt: skip
    return dh_RG, dgate_BR


def up_grad(dh_RG: Tensor, w13_eDG: Tensor, rows: Rows, *, cut: Tile = DX) -> Tensor:
    """dx_RD = dh W13^T of each row's expert; not yet summed over the rows of a slot."""
    _, dim, width = w13_eDG.shape
    check(
        "up_grad",
        rows.slot_R.device,
        ("dh", dh_RG, (len(rows.slot_R), width), BF16),
        ("w13", w13_eDG, (len(rows.start_e), dim, width), BF16),
    )
    check_widths("up_grad", D=dim, G=width)
    return product(dh_RG, w13_eDG, rows, width=dim, transposed=True, cut=cut)


def product(
    left_RK: Tensor, weights: Tensor, rows: Rows, *, width: int, transposed: bool, cut: Tile
) -> Tensor:
    """Packed rows times their expert's [K, width] matrix; transposed: one of [width, K]."""
    depth = left_RK.shape[1]
    out_RN = left_RK.new_empty(len(left_RK), width)
    bn, bk = block(width, cut.n), block(depth, cut.k)
    _product[programs(left_RK, cut)](
        matrix(left_RK, rows.tile, bk),
        matrix(weights, bn, bk) if transposed else matrix(weights, bk, bn),
        matrix(out_RN, rows.tile, bn),
        rows.expert_of_tile, rows.num_tiles,
        depth, width, transposed, rows.tile, bn, bk,
        num_warps=cut.warps, num_stages=cut.stages,
    )  # fmt: skip
    return out_RN


def weight_grad(
    left: Tensor,
    right: Tensor,
    rows: Rows,
    out_eMN: Tensor,
    *,
    gathered: Literal["left", "right"],
    accumulate: Tensor | None = None,
    cut: Tile = DW,
) -> Tensor:
    """out[e] = left^T right over the rows of expert e; experts without rows get zeros.

    gathered: "left" [S, M] or "right" [S, N] is read through `slot_R`, the other is packed rows.
    out: bf16 or fp32. With `accumulate` (int32 [1] on the device, nonzero: add) it is added to.
    """
    num_experts, m, n = out_eMN.shape
    is_left, num_rows = gathered == "left", len(rows.slot_R)
    check(
        "weight_grad",
        rows.slot_R.device,
        ("left", left, (ANY if is_left else num_rows, m), BF16),
        ("right", right, (num_rows if is_left else ANY, n), BF16),
        ("out", out_eMN, (len(rows.start_e), m, n), (BF16, FP32)),
    )
    if accumulate is not None:
        check("weight_grad", rows.slot_R.device, ("accumulate", accumulate, (1,), torch.int32))
    check_widths("weight_grad", M=m, N=n)
    bm, bn, bk = block(m, cut.m), block(n, cut.n), cut.k
    _weight_grad[(num_experts * (m // bm) * (n // bn),)](
        left if is_left else matrix(left, bk, bm),
        matrix(right, bk, bn) if is_left else right,
        matrix(out_eMN, bm, min(bn, STORE)),
        rows.slot_R, rows.start_e, rows.end_e, accumulate,
        m, n, is_left, STORE, bm, bn, bk, is_wide(left if is_left else right),
        num_warps=cut.warps, num_stages=cut.stages,
    )  # fmt: skip
    return out_eMN


def block(size: int, limit: int) -> int:
    """The largest power of two up to `limit` that divides `size`."""
    return min(size & -size, limit)


def matrix(tensor: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """A stack of matrices as one, read and written in blocks."""
    if tensor.is_cuda and not hasattr(_context, "is_current"):
        torch.zeros(1, device=tensor.device)
        _context.is_current = True
    flat = tensor.view(-1, tensor.shape[-1])
    return TensorDescriptor.from_tensor(flat, [rows, columns])


def is_wide(tensor: Tensor) -> bool:
    """Do offsets of its elements need 64 bits?"""
    return tensor.numel() >= 2**31


def programs(tensor: Tensor, cut: Tile) -> tuple[int]:
    """Persistent grid: as many programs as run at once."""
    if not tensor.is_cuda:
        return (2,)  # the interpreter runs them one after the other
    processors = torch.cuda.get_device_properties(tensor.device).multi_processor_count
    return (processors * cut.per_sm,)


def registers(cut: Tile) -> int | None:
    """The limit on Hopper, so that `per_sm` programs fit; Blackwell keeps its sums elsewhere."""
    if cut.registers is None or triton.knobs.runtime.interpret:
        return None
    return cut.registers if driver.active.get_current_target().arch == 90 else None


@triton.jit
def _starts(slot_R, row, width, WIDE: tl.constexpr):
    """Where the slots of `row` start in x [S, width]; 64 bits only when there is need."""
    slot = tl.load(slot_R + row)
    return slot.to(tl.int64) * width if WIDE else slot * width


@triton.jit
def _activate(h1, h3, ACTIVATION: tl.constexpr):
    if ACTIVATION == "swiglu":
        return h1 * tl.sigmoid(h1) * h3
    r = tl.maximum(h1, 0.0)
    if ACTIVATION == "squared_reglu":
        return r * r * h3
    return r * r


@triton.jit
def _activate_grad(h1, h3, da, ACTIVATION: tl.constexpr):
    """(dh1, dh3); dh3 means nothing for relu_squared."""
    if ACTIVATION == "swiglu":
        s = tl.sigmoid(h1)
        silu = h1 * s
        return da * h3 * (s + silu * (1.0 - s)), da * silu
    r = tl.maximum(h1, 0.0)
    if ACTIVATION == "squared_reglu":
        return da * h3 * 2.0 * r, da * r * r
    return da * 2.0 * r, da


@triton.jit
def _split(tile):
    """The left and the right half of the columns."""
    shape: tl.constexpr = (tile.shape[0], 2, tile.shape[1] // 2)
    return tl.split(tl.permute(tl.reshape(tile, shape), (0, 2, 1)))


@triton.jit
def _beside(left, right):
    """One tile of two: the inverse of `_split`."""
    shape: tl.constexpr = (left.shape[0], 2 * left.shape[1])
    return tl.reshape(tl.permute(tl.join(left, right), (0, 2, 1)), shape)


@triton.jit
def _up(
    x, w13, h, a, slot_R, gate_R, end_e, expert_of_tile, num_tiles,
    D: tl.constexpr, G: tl.constexpr, ACTIVATION: tl.constexpr, STORE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    COLUMNS: tl.constexpr = G // BN
    for t in tl.range(tl.program_id(0), tl.load(num_tiles) * COLUMNS, tl.num_programs(0)):
        first, n = (t // COLUMNS) * BM, (t % COLUMNS) * BN
        expert = tl.load(expert_of_tile + t // COLUMNS)
        row = first + tl.arange(0, BM)
        end = tl.load(end_e + expert)
        start = _starts(slot_R, tl.minimum(row, end - 1), D, WIDE)
        at = x + start[:, None] + tl.arange(0, BK)[None, :]
        total = tl.zeros((BM, BN), tl.float32)
        for k in range(0, D, BK):
            total = tl.dot(tl.load(at + k), w13.load([expert * D + k, n]), total)
        gate = tl.load(gate_R + row, mask=row < end, other=0.0)
        _store_up(total, h, a, gate, first, n, ACTIVATION, STORE)


@triton.jit
def _store_up(total, h, a, gate, first, n, ACTIVATION: tl.constexpr, STORE: tl.constexpr):
    """Write columns n.. of h and the gated activations they hold, STORE columns at a time."""
    WIDTH: tl.constexpr = total.shape[1]
    if ACTIVATION == "relu_squared" and WIDTH == STORE:
        h.store([first, n], total.to(tl.bfloat16))
        act = _activate(total, total, ACTIVATION)
        a.store([first, n], (act * gate[:, None]).to(tl.bfloat16))
    else:
        low, high = _split(total)
        if ACTIVATION != "relu_squared" and WIDTH == 2 * STORE:
            h.store([first, n], low.to(tl.bfloat16))
            h.store([first, n + STORE], high.to(tl.bfloat16))
            h1, h3 = _split(low)
            left = (_activate(h1, h3, ACTIVATION) * gate[:, None]).to(tl.bfloat16)
            h1, h3 = _split(high)
            right = (_activate(h1, h3, ACTIVATION) * gate[:, None]).to(tl.bfloat16)
            a.store([first, n // 2], _beside(left, right))
        else:
            _store_up(low, h, a, gate, first, n, ACTIVATION, STORE)
            _store_up(high, h, a, gate, first, n + WIDTH // 2, ACTIVATION, STORE)


@triton.jit
def _product(
    left, w, out, expert_of_tile, num_tiles,
    K: tl.constexpr, N: tl.constexpr, TRANSPOSED: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """out = left w[e], w [e, K, N]; TRANSPOSED: left w[e]^T, w [e, N, K]."""
    COLUMNS: tl.constexpr = N // BN
    end = tl.load(num_tiles) * COLUMNS
    for t in tl.range(tl.program_id(0), end, tl.num_programs(0), flatten=True):
        first, n = (t // COLUMNS) * BM, (t % COLUMNS) * BN
        expert = tl.load(expert_of_tile + t // COLUMNS)
        total = tl.zeros((BM, BN), tl.float32)
        for k in range(0, K, BK):
            if TRANSPOSED:
                total = tl.dot(left.load([first, k]), w.load([expert * N + n, k]).T, total)
            else:
                total = tl.dot(left.load([first, k]), w.load([expert * K + k, n]), total)
        out.store([first, n], total.to(tl.bfloat16))


@triton.jit(do_not_specialize=["num_rows"])
def _down_grad(
    dy, w2, h, dh, dgate_BR, slot_R, gate_R, end_e, expert_of_tile, num_tiles, num_rows,
    D: tl.constexpr, F: tl.constexpr, ACTIVATION: tl.constexpr, GROUP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    COLUMNS: tl.constexpr = F // BN
    for t in tl.range(tl.program_id(0), tl.load(num_tiles) * COLUMNS, tl.num_programs(0)):
        first, n = (t // COLUMNS) * BM, (t % COLUMNS) * BN
        expert = tl.load(expert_of_tile + t // COLUMNS)
        end = tl.load(end_e + expert)
        row = first + tl.arange(0, BM)
        start = _starts(slot_R, tl.minimum(row, end - 1), D, WIDE)
        at = dy + start[:, None] + tl.arange(0, BK)[None, :]
        da = tl.zeros((BM, BN), tl.float32)
        for k in range(0, D, BK):
            da = tl.dot(tl.load(at + k), w2.load([expert * F + n, k]).T, da)
        gate = tl.load(gate_R + row, mask=row < end, other=0.0)
        dgate = _store_down_grad(da, h, dh, gate, first, n, ACTIVATION, GROUP)
        tl.store(dgate_BR + (t % COLUMNS) * num_rows + row, dgate)


@triton.jit
def _store_down_grad(da, h, dh, gate, first, n, ACTIVATION: tl.constexpr, GROUP: tl.constexpr):
    """Write the dh of columns n.., a group at a time; returns their part of d(gate)."""
    WIDTH: tl.constexpr = da.shape[1]
    if WIDTH > GROUP:
        low, high = _split(da)
        dgate = _store_down_grad(low, h, dh, gate, first, n, ACTIVATION, GROUP)
        n += WIDTH // 2
        dgate += _store_down_grad(high, h, dh, gate, first, n, ACTIVATION, GROUP)
    else:
        if ACTIVATION == "relu_squared":
            h1 = h.load([first, n]).to(tl.float32)
            h3 = h1
        else:
            h1, h3 = _split(h.load([first, 2 * n]).to(tl.float32))
        dgate = tl.sum(da * _activate(h1, h3, ACTIVATION), 1)
        dh1, dh3 = _activate_grad(h1, h3, da * gate[:, None], ACTIVATION)
        if ACTIVATION == "relu_squared":
            dh.store([first, n], dh1.to(tl.bfloat16))
        else:
            dh.store([first, 2 * n], _beside(dh1.to(tl.bfloat16), dh3.to(tl.bfloat16)))
    return dgate


@triton.jit
def _weight_grad(
    left, right, out, slot_R, start_e, end_e, accumulate,
    M: tl.constexpr, N: tl.constexpr, GATHER_LEFT: tl.constexpr, STORE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    TILES: tl.constexpr = (M // BM) * (N // BN)
    expert = tl.program_id(0) // TILES
    tile = tl.program_id(0) % TILES
    m, n = (tile // (N // BN)) * BM, (tile % (N // BN)) * BN
    end = tl.load(end_e + expert)
    total = tl.zeros((BM, BN), tl.float32)
    for r in range(tl.load(start_e + expert), end, BK):
        row = tl.minimum(r + tl.arange(0, BK), end - 1)
        start = _starts(slot_R, row, M if GATHER_LEFT else N, WIDE)
        if GATHER_LEFT:
            a = tl.load(left + start[:, None] + (m + tl.arange(0, BM))[None, :])
            b = right.load([r, n])
        else:
            a = left.load([r, m])
            b = tl.load(right + start[:, None] + (n + tl.arange(0, BN))[None, :])
        total = tl.dot(a.T, b, total)
    _store_weight_grad(total, out, expert * M + m, n, accumulate, STORE)


@triton.jit
def _store_weight_grad(total, out, row, n, accumulate, STORE: tl.constexpr):
    """Write columns n.. or add to them, STORE at a time: two programs fit a processor."""
    WIDTH: tl.constexpr = total.shape[1]
    if WIDTH > STORE:
        low, high = _split(total)
        _store_weight_grad(low, out, row, n, accumulate, STORE)
        _store_weight_grad(high, out, row, n + WIDTH // 2, accumulate, STORE)
    else:
        if accumulate is not None:  # noqa: SIM102 - decided when compiling
            if tl.load(accumulate) != 0:
                total += out.load([row, n]).to(tl.float32)
        out.store([row, n], total.to(out.dtype))
