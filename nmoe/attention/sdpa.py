"""Causal multi-head attention with rotary positions and QK-norm, through torch's SDPA.

Shapes: B batch, S sequence, D model, H heads, N head size.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from nmoe.config import Config
from nmoe.layers import Linear, RMSNorm, Rotary


class SdpaAttention(nn.Module):
    """softmax(q k^T / sqrt(N)) v over all earlier positions."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        dim, heads = config.model.dim, config.model.num_heads
        self.num_heads = heads
        self.qkv = Linear(dim, 3 * dim, parts=3)
        self.out = Linear(dim, dim)
        size = dim // heads
        self.rotary = Rotary(size, theta=config.attention.rope_theta, max_len=config.train.seq_len)
        has_norm = config.attention.qk_norm
        eps = config.model.norm_eps
        self.q_norm = RMSNorm(size, eps=eps, impl="reference") if has_norm else None
        self.k_norm = RMSNorm(size, eps=eps, impl="reference") if has_norm else None

    def forward(self, x_BSD: Tensor) -> Tensor:
        batch, seq, dim = x_BSD.shape
        qkv = self.qkv(x_BSD).view(batch, seq, 3, self.num_heads, dim // self.num_heads)
        q_BHSN, k_BHSN, v_BHSN = qkv.permute(2, 0, 3, 1, 4)
        if self.q_norm is not None and self.k_norm is not None:
            (_, q_BHSN), (_, k_BHSN) = self.q_norm(q_BHSN), self.k_norm(k_BHSN)
        q_BHSN, k_BHSN = self.rotary(q_BHSN), self.rotary(k_BHSN)
        y_BHSN = F.scaled_dot_product_attention(q_BHSN, k_BHSN, v_BHSN, is_causal=True)
        return self.out(y_BHSN.transpose(1, 2).reshape(batch, seq, dim))
