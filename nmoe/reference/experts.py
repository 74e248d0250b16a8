"""The experts of one rank in plain torch, forward and backward, one expert after the other.

    h = x[slot] W13               a = gate * act(h)     y = a W2
    da = gate * dy[slot] W2^T     dh = act'(h) da       dgate = (dy[slot] W2^T) . act(h)
    dW2 = a^T dy[slot]            dW13 = x[slot]^T dh   dx = dh W13^T

    swiglu          act = silu(h1) * h3
    relu_squared    act = relu(h1)^2
    squared_reglu   act = relu(h1)^2 * h3

Products and activations are computed in fp32; h, a, y, dh and dx are rounded to the dtype
of the rows. Padding rows are left undefined. Layout of weights, h and dh: `nmoe.expert_layout`.

Legend: S slots, R rows, D model, F expert hidden, G columns of w13, e local experts.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from nmoe.config import Activation
from nmoe.expert_layout import Rows, pack, parts, unpack


def up(
    x_SD: Tensor, w13_eDG: Tensor, rows: Rows, *, activation: Activation
) -> tuple[Tensor, Tensor]:
    """(h_RG, a_RF): pre-activations and gated activations, both kept for backward."""
    width = w13_eDG.shape[2]
    h_RG = x_SD.new_zeros(len(rows.slot_R), width)
    a_RF = x_SD.new_zeros(len(rows.slot_R), width // parts(activation))
    for expert, segment, slots in _segments(rows):
        h = x_SD[slots].float() @ w13_eDG[expert].float()
        h_RG[segment] = h.to(x_SD.dtype)
        a = rows.gate_R[segment, None] * activate(h, activation=activation)
        a_RF[segment] = a.to(x_SD.dtype)
    return h_RG, a_RF


def down(a_RF: Tensor, w2_eFD: Tensor, rows: Rows) -> Tensor:
    """y_RD = a W2 of each row's expert."""
    y_RD = a_RF.new_zeros(len(rows.slot_R), w2_eFD.shape[2])
    for expert, segment, _ in _segments(rows):
        y_RD[segment] = (a_RF[segment].float() @ w2_eFD[expert].float()).to(a_RF.dtype)
    return y_RD


def down_grad(
    dy_SD: Tensor, w2_eFD: Tensor, h_RG: Tensor, rows: Rows, *, activation: Activation
) -> tuple[Tensor, Tensor]:
    """(dh_RG, dgate_1R)."""
    dh_RG = torch.zeros_like(h_RG)
    dgate_1R = torch.zeros(1, len(h_RG), dtype=torch.float32, device=h_RG.device)
    for expert, segment, slots in _segments(rows):
        h, gate = h_RG[segment].float(), rows.gate_R[segment, None]
        a = activate(h, activation=activation)
        da = dy_SD[slots].float() @ w2_eFD[expert].float().mT
        dgate_1R[0, segment] = (da * a).sum(dim=1)
        dh_RG[segment] = activate_grad(h, gate * da, activation=activation).to(h_RG.dtype)
    return dh_RG, dgate_1R


def up_grad(dh_RG: Tensor, w13_eDG: Tensor, rows: Rows) -> Tensor:
    """dx_RD = dh W13^T of each row's expert; not yet summed over the rows of a slot."""
    dx_RD = dh_RG.new_zeros(len(rows.slot_R), w13_eDG.shape[1])
    for expert, segment, _ in _segments(rows):
        dx_RD[segment] = (dh_RG[segment].float() @ w13_eDG[expert].float().mT).to(dh_RG.dtype)
    return dx_RD


def weight_grad(
    left: Tensor,
    right: Tensor,
    rows: Rows,
    out_eMN: Tensor,
    *,
    gathered: Literal["left", "right"],
    accumulate: Tensor | None = None,
) -> Tensor:
    """out[e] = left^T right over the rows of expert e; experts without rows get zeros.

    gathered: "left" [S, M] or "right" [S, N] is indexed by slots, the other is rows. With
    `accumulate` (int32 [1], nonzero: add) the product is added to what `out` holds, in fp32.
    """
    if accumulate is None or not accumulate:
        out_eMN.zero_()
    for expert, segment, slots in _segments(rows):
        a = left[slots if gathered == "left" else segment].float()
        b = right[slots if gathered == "right" else segment].float()
        out_eMN[expert] = (out_eMN[expert].float() + a.mT @ b).to(out_eMN.dtype)
    return out_eMN


def activate(h: Tensor, *, activation: Activation) -> Tensor:
    """a [..., F] of fp32 pre-activations h [..., G]."""
    h1, h3 = unpack(h, activation=activation)
    inner = functional.silu(h1) if activation == "swiglu" else functional.relu(h1).square()
    return inner if h3 is None else inner * h3


def activate_grad(h: Tensor, da: Tensor, *, activation: Activation) -> Tensor:
    """dh [..., G] of fp32 h [..., G] and da [..., F]."""
    h1, h3 = unpack(h, activation=activation)
    if activation == "swiglu":
        s = torch.sigmoid(h1)
        inner, slope = h1 * s, s + h1 * s * (1 - s)
    else:
        r = functional.relu(h1)
        inner, slope = r.square(), 2 * r
    return da * slope if h3 is None else pack(da * h3 * slope, da * inner)


def _segments(rows: Rows) -> Iterator[tuple[int, slice, Tensor]]:
    """Of every expert with rows: its number, where they are, their slots."""
    bounds = zip(rows.start_e.tolist(), rows.end_e.tolist(), strict=True)
    for expert, (start, end) in enumerate(bounds):
        if start < end:
            yield expert, slice(start, end), rows.slot_R[start:end].long()
