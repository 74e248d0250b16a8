"""Choices to sorted rows in plain torch; see `nmoe.expert_layout` for the order.

Legend: N slots of all sources, K top-k, R rows with padding, e local experts.
"""

import torch
from torch import Tensor

from nmoe.expert_layout import Rows


def sort_rows(
    experts_NK: Tensor,
    gates_NK: Tensor,
    *,
    first_expert: int,
    num_experts: int,
    tile: int = 1,
    num_rows: int | None = None,
    count_P: Tensor | None = None,
    stride: int | None = None,
    overflow: Tensor | None = None,
) -> Rows:
    """Rows of the experts first_expert .. first_expert + num_experts - 1.

    experts_NK: integers; gates_NK: fp32; num_rows: length of the row tables, as many as are used
    when None. With `count_P` (tokens of each source) and `stride` (slots of a source) the slots
    past each count are skipped, whatever they hold. Where rows find no room `overflow` (int32 [1])
    becomes 1, and what is past the room is left out.
    """
    num_slots, top_k = experts_NK.shape
    expert = experts_NK.flatten().long() - first_expert
    local = (expert >= 0) & (expert < num_experts)
    if count_P is not None and stride is not None:
        slot = torch.arange(num_slots, device=experts_NK.device).repeat_interleave(top_k)
        local &= slot % stride < count_P.long()[slot // stride]
    position = local.nonzero().flatten()  # ascending (source, token, choice)
    choice = position[torch.argsort(expert[position], stable=True)]
    total_e = torch.bincount(expert[choice], minlength=num_experts)
    tiles_e = (total_e + tile - 1) // tile
    start_e = (tiles_e.cumsum(0) - tiles_e) * tile
    before_e = total_e.cumsum(0) - total_e
    rank = torch.arange(len(choice), device=choice.device) - before_e[expert[choice]]
    row = start_e[expert[choice]] + rank
    length = int(tiles_e.sum()) * tile if num_rows is None else num_rows
    if overflow is not None and int(tiles_e.sum()) * tile > length:
        overflow.fill_(1)
        choice, row = choice[row < length], row[row < length]
        total_e = (start_e + total_e).clamp(max=length) - start_e.clamp(max=length)
        start_e = start_e.clamp(max=length)
        tiles_e = (total_e + tile - 1) // tile
    slot_R = torch.zeros(length, dtype=torch.int32, device=choice.device)
    gate_R = torch.zeros(length, dtype=torch.float32, device=choice.device)
    row_NK = torch.full((num_slots * top_k,), -1, dtype=torch.int32, device=choice.device)
    slot_R[row] = (choice // top_k).int()
    gate_R[row] = gates_NK.flatten()[choice]
    row_NK[choice] = row.int()
    local_e = torch.arange(num_experts, dtype=torch.int32, device=choice.device)
    return Rows(
        tile=tile,
        slot_R=slot_R,
        gate_R=gate_R,
        row_NK=row_NK.view(num_slots, top_k),
        start_e=start_e.int(),
        end_e=(start_e + total_e).int(),
        expert_of_tile=local_e.repeat_interleave(tiles_e),
        num_tiles=tiles_e.sum().view(1).int(),
    )
