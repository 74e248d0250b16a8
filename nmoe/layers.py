"""Building blocks of the model: linear maps, RMS norm, rotary positions, gated feed-forward.

Shapes: B batch, S sequence, H heads, N head size, D model, F hidden.
Parameters are fp32 masters; a layer computes in the dtype of its input.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nmoe import ops
from nmoe.config import Impl


class Linear(nn.Module):
    """y = x W^T without bias; `weight` is [out, in], or [parts, out / parts, in] when fused."""

    def __init__(self, dim_in: int, dim_out: int, *, parts: int = 1) -> None:
        super().__init__()
        shape = (dim_out, dim_in) if parts == 1 else (parts, dim_out // parts, dim_in)
        self.weight = nn.Parameter(torch.empty(shape))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.flatten(0, -2).to(x.dtype))


class RMSNorm(nn.Module):
    """Adds to the residual stream and takes its norm, x / rms(x) * weight; `weight` is [dim]."""

    def __init__(self, dim: int, *, eps: float, impl: Impl) -> None:
        super().__init__()
        self.eps = eps
        self.impl: Impl = impl
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor, delta: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(x + delta, or x without one; its norm)."""
        return ops.add_rms_norm(x, delta, self.weight, eps=self.eps, impl=self.impl)


class Rotary(nn.Module):
    """Rotary position table for one head size, computed once in fp32 for `max_len` positions."""

    cos: Tensor
    sin: Tensor

    def __init__(self, head_size: int, *, theta: float, max_len: int) -> None:
        super().__init__()
        frequency = theta ** (-torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
        angle = torch.arange(max_len, dtype=torch.float64)[:, None] * frequency
        self.register_buffer("cos", angle.cos().float(), persistent=False)
        self.register_buffer("sin", angle.sin().float(), persistent=False)

    def forward(self, length: int) -> tuple[Tensor, Tensor]:
        """(cos, sin) of the first positions, [length, head size / 2]."""
        return self.cos[:length], self.sin[:length]


class SwiGLU(nn.Module):
    """W2 (silu(x W1) * x W3): the feed-forward of dense layers and of shared experts."""

    def __init__(self, dim: int, hidden: int, *, impl: Impl) -> None:
        super().__init__()
        self.impl: Impl = impl
        self.up = Linear(dim, 2 * hidden, parts=2)
        self.down = Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(ops.swiglu(self.up(x), impl=self.impl))
