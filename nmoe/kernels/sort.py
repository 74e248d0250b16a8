"""Counting sort of (token, choice) pairs into the rows of the local experts, on the device.

The order is that of `nmoe.expert_layout`: the same ids give the same rows, bit for bit, and no host
ever reads a count.

Four launches: count each block of choices, sum the blocks before each block, lay out the segments,
place the choices. The rank of a choice inside its block comes from a sort of (expert, position).

Legend: N slots of all sources, K top-k, E local experts, B blocks, R rows with padding.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from nmoe.expert_layout import Rows
from nmoe.kernels.check import ANY, check

BLOCK = 1024  # choices a program sorts
_SCAN_BLOCKS, _SCAN_EXPERTS = 64, 16


def sort_rows(
    experts_NK: Tensor,
    gates_NK: Tensor,
    *,
    first_expert: int,
    num_experts: int,
    tile: int,
    num_rows: int,
    count_P: Tensor | None = None,
    stride: int | None = None,
    overflow: Tensor | None = None,
) -> Rows:
    """Rows of the experts first_expert .. first_expert + num_experts - 1.

    experts_NK: int32 or int64; gates_NK: fp32; num_rows: room, see `expert_layout.capacity`. With
    `count_P` (int32, tokens of each source) and `stride` (slots of a source) the slots past each
    count are skipped, whatever they hold. Rows must find room, unless there is `overflow` (int32
    [1]): it becomes 1 where they do not, and what is past the room is left out.
    """
    num_choices, (num_slots, top_k) = experts_NK.numel(), experts_NK.shape
    device = experts_NK.device
    check(
        "sort_rows",
        device,
        ("experts", experts_NK, (ANY, ANY), (torch.int32, torch.int64)),
        ("gates", gates_NK, (num_slots, top_k), torch.float32),
    )
    if count_P is not None:
        check("sort_rows", device, ("counts", count_P, (ANY,), torch.int32))
    if overflow is not None:
        check("sort_rows", device, ("overflow", overflow, (1,), torch.int32))
    if (count_P is None) != (stride is None) or (
        count_P is not None and num_slots != len(count_P) * stride
    ):
        raise ValueError(
            f"sort_rows: got {num_slots} slots, stride {stride}, and counts of "
            f"{'no' if count_P is None else len(count_P)} sources, expected a stride for each "
            "source or neither."
        )
    if num_rows % tile or tile & (tile - 1):
        raise ValueError(
            f"sort_rows: got {num_rows} rows in tiles of {tile}, expected whole tiles of a power "
            "of two."
        )
    blocks = max(1, triton.cdiv(num_choices, BLOCK))
    bins = triton.next_power_of_2(num_experts)

    def ints(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int32, device=device)

    count_BE, base_BE, total_E = (
        ints(blocks, num_experts),
        ints(blocks, num_experts),
        ints(max(bins, _SCAN_EXPERTS)),
    )
    rows = Rows(
        tile=tile,
        slot_R=ints(num_rows),
        gate_R=torch.empty(num_rows, dtype=torch.float32, device=device),
        row_NK=ints(*experts_NK.shape),
        start_e=ints(num_experts),
        end_e=ints(num_experts),
        expert_of_tile=ints(num_rows // tile),
        num_tiles=ints(1),
    )
    stride = stride or max(1, num_slots)
    _count_blocks[(blocks,)](
        experts_NK, count_P, count_BE, base_BE, num_choices, stride, first_expert,
        top_k, num_experts, bins, BLOCK, num_warps=4,
    )  # fmt: skip
    _sum_blocks[(triton.cdiv(bins, _SCAN_EXPERTS),)](
        count_BE, base_BE, total_E, blocks, num_experts, _SCAN_BLOCKS, _SCAN_EXPERTS, num_warps=4
    )
    _lay_out[(num_experts,)](
        total_E, rows.start_e, rows.end_e, rows.expert_of_tile, rows.num_tiles, overflow,
        num_rows // tile, num_experts, bins, tile, num_warps=4,
    )  # fmt: skip
    _place[(blocks,)](
        experts_NK, gates_NK, count_P, base_BE, rows.start_e,
        rows.slot_R, rows.gate_R, rows.row_NK, overflow, num_rows, num_choices, stride,
        first_expert, top_k, num_experts, bins, BLOCK, num_warps=4,
    )  # fmt: skip
    return rows


@triton.jit
def _local_expert(experts, count_P, choice, num_choices, stride, first_expert, K, E, HAS_COUNTS):
    """Local expert of each choice, E when another rank owns it or the slot is unused."""
    live = choice < num_choices
    expert = tl.load(experts + choice, mask=live, other=-1).to(tl.int32) - first_expert
    if HAS_COUNTS:
        slot = choice // K
        count = tl.load(count_P + slot // stride, mask=live, other=0)
        live = live & (slot % stride < count)
    return tl.where(live & (expert >= 0) & (expert < E), expert, E)


@triton.jit(do_not_specialize=["num_choices", "stride", "first_expert"])
def _count_blocks(
    experts, count_P, count_BE, base_BE, num_choices, stride, first_expert,
    K: tl.constexpr, E: tl.constexpr, BINS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """count_BE: choices of each expert in this block; base_BE: minus those of the experts below."""
    block = tl.program_id(0)
    choice = block * BLOCK + tl.arange(0, BLOCK)
    expert = _local_expert(
        experts, count_P, choice, num_choices, stride, first_expert, K, E, count_P is not None
    )
    count = tl.histogram(expert, BINS, mask=expert < E)
    below = tl.cumsum(count, 0) - count
    bins = tl.arange(0, BINS)
    tl.store(count_BE + block * E + bins, count, mask=bins < E)
    tl.store(base_BE + block * E + bins, -below, mask=bins < E)


@triton.jit(do_not_specialize=["num_blocks"])
def _sum_blocks(
    count_BE, base_BE, total_E, num_blocks,
    E: tl.constexpr, BLOCKS: tl.constexpr, EXPERTS: tl.constexpr,
):  # fmt: skip
    """base_BE += choices of the expert in all blocks before; total_E, zero past E."""
    expert = tl.program_id(0) * EXPERTS + tl.arange(0, EXPERTS)
    carry = tl.zeros((EXPERTS,), tl.int32)
    for first in range(0, num_blocks, BLOCKS):
        block = first + tl.arange(0, BLOCKS)
        at = block[:, None] * E + expert[None, :]
        live = (block[:, None] < num_blocks) & (expert[None, :] < E)
        count = tl.load(count_BE + at, mask=live, other=0)
        before = tl.cumsum(count, 0) - count + carry[None, :]
        tl.store(base_BE + at, tl.load(base_BE + at, mask=live, other=0) + before, mask=live)
        carry += tl.sum(count, 0)
    tl.store(total_E + expert, carry)


@triton.jit(do_not_specialize=["room"])
def _lay_out(
    total_E, start_e, end_e, expert_of_tile, num_tiles, overflow, room,
    E: tl.constexpr, BINS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The segment of one expert and its entries in the tile table, of `room` tiles at most."""
    expert = tl.program_id(0)
    bins = tl.arange(0, BINS)
    total = tl.load(total_E + bins, mask=bins < E, other=0)
    tiles = (total + TILE - 1) // TILE
    first = tl.sum(tl.where(bins < expert, tiles, 0), 0)
    mine = tl.sum(tl.where(bins == expert, tiles, 0), 0)
    start = first * TILE
    end = start + tl.sum(tl.where(bins == expert, total, 0), 0)
    if overflow is not None:
        if (expert == E - 1) & (first + mine > room):
            tl.store(overflow, 1)
        start, end = tl.minimum(start, room * TILE), tl.minimum(end, room * TILE)
        mine = tl.maximum(0, tl.minimum(mine, room - first))
        first = tl.minimum(first, room)
    tl.store(start_e + expert, start)
    tl.store(end_e + expert, end)
    if expert == E - 1:
        tl.store(num_tiles, first + mine)
    for t in range(0, mine, 128):
        tile = t + tl.arange(0, 128)
        tl.store(expert_of_tile + first + tile, tl.zeros_like(tile) + expert, mask=tile < mine)


@triton.jit(do_not_specialize=["num_rows", "num_choices", "stride", "first_expert"])
def _place(
    experts, gates, count_P, base_BE, start_e, slot_R, gate_R, row_NK, overflow, num_rows,
    num_choices, stride, first_expert,
    K: tl.constexpr, E: tl.constexpr, BINS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sort the block's choices by expert, stably; each learns its row and the row its choice."""
    block = tl.program_id(0)
    offset = tl.arange(0, BLOCK)
    expert = _local_expert(
        experts, count_P, block * BLOCK + offset, num_choices, stride, first_expert,
        K, E, count_P is not None,
    )  # fmt: skip
    key = tl.sort(expert * BLOCK + offset)
    expert = key // BLOCK
    choice = block * BLOCK + key % BLOCK
    live = expert < E
    # position in the sorted block - choices of lower experts in it + this expert's in blocks before
    row = offset + tl.load(base_BE + block * E + expert, mask=live, other=0)
    row += tl.load(start_e + expert, mask=live, other=0)
    if overflow is not None:
        live = live & (row < num_rows)
    tl.store(slot_R + row, choice // K, mask=live)
    tl.store(gate_R + row, tl.load(gates + choice, mask=live, other=0.0), mask=live)
    tl.store(row_NK + choice, tl.where(live, row, -1), mask=choice < num_choices)
