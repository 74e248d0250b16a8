"""The experts of one rank in plain torch: gather the rows, then each expert's matrix products.

swiglu          y = (silu(x W1) * (x W3)) W2
relu_squared    y = relu(x W1)^2 W2                (no W3)
squared_reglu   y = (relu(x W1)^2 * (x W3)) W2

Products are in the dtype of the rows, activations are computed in fp32 and rounded to it; the
gradient of a slot is the sum over its rows in fp32, rounded once.

Legend: S slots, R rows, D model, F expert hidden, e local experts.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from nmoe.config import Activation


def experts(
    x_SD: Tensor,
    index_R: Tensor,
    ends_e: Tensor,
    w1_eDF: Tensor,
    w2_eFD: Tensor,
    w3_eDF: Tensor | None,
    *,
    activation: Activation,
) -> Tensor:
    """y_RD of rows x_SD[index_R]; row r is of the first expert whose end exceeds r; no gates.

    fp32 or bf16; ends_e int64, cumulative. Experts without rows get zero gradients.
    """
    _check(w1_eDF, w3_eDF, activation=activation)
    x_RD = _Gather.apply(x_SD, index_R)
    ends = ends_e.tolist()
    segments = x_RD.split([end - start for start, end in zip([0, *ends], ends, strict=False)])
    # unbind: one stacked gradient for all experts, not one full-size gradient an expert
    w3_e = w3_eDF.unbind(0) if w3_eDF is not None else [None] * len(segments)
    outputs = []
    for x, w1, w2, w3 in zip(segments, w1_eDF.unbind(0), w2_eFD.unbind(0), w3_e, strict=True):
        h3 = x @ w3 if w3 is not None else None
        outputs.append(activate(x @ w1, h3, activation=activation) @ w2)
    return torch.cat(outputs)


def activate(h1: Tensor, h3: Tensor | None, *, activation: Activation) -> Tensor:
    """Of pre-activations h1 = x W1 and h3 = x W3 (None for relu_squared); in the dtype of h1."""
    h1_fp32 = h1.float()
    inner = (
        functional.silu(h1_fp32) if activation == "swiglu" else functional.relu(h1_fp32).square()
    )
    if h3 is not None:
        inner = inner * h3.float()
    return inner.to(h1.dtype)


class _Gather(torch.autograd.Function):
    """x_SD[index_R]; the rows of a slot add up in fp32 on the way back."""

    @staticmethod
    def forward(ctx: Any, x_SD: Tensor, index_R: Tensor) -> Tensor:
        ctx.save_for_backward(index_R)
        ctx.num_slots = len(x_SD)
        return x_SD.index_select(0, index_R)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (dx_RD,) = grads
        (index_R,) = ctx.saved_tensors
        dx_SD = dx_RD.new_zeros(ctx.num_slots, dx_RD.shape[1], dtype=torch.float32)
        return dx_SD.index_add_(0, index_R, dx_RD.float()).to(dx_RD.dtype), None


def _check(w1_eDF: Tensor, w3_eDF: Tensor | None, *, activation: Activation) -> None:
    if activation not in ("swiglu", "relu_squared", "squared_reglu"):
        raise ValueError(
            f"experts: got activation {activation!r}, expected swiglu, relu_squared or "
            "squared_reglu."
        )
    if (w3_eDF is None) != (activation == "relu_squared"):
        has = "no w3" if w3_eDF is None else "a w3"
        raise ValueError(f"experts: got {has} for {activation}. Only relu_squared is without w3.")
    if w3_eDF is not None and w3_eDF.shape != w1_eDF.shape:
        got = f"{tuple(w3_eDF.shape)}"
        raise ValueError(f"experts: got w3 {got}, expected the shape of w1 {tuple(w1_eDF.shape)}.")
