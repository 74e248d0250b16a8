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
        self.q_norm = RMSNorm(size, eps=config.model.norm_eps) if has_norm else nn.Identity()
        self.k_norm = RMSNorm(size, eps=config.model.norm_eps) if has_norm else nn.Identity()

    def forward(self, x_BSD: Tensor) -> Tensor:
        batch, seq, dim = x_BSD.shape
        qkv = self.qkv(x_BSD).view(batch, seq, 3, self.num_heads, dim // self.num_heads)
        q_BHSN, k_BHSN, v_BHSN = qkv.permute(2, 0, 3, 1, 4)
        q_BHSN = self.rotary(self.q_norm(q_BHSN))
        k_BHSN = self.rotary(self.k_norm(k_BHSN))
        y_BHSN = F.scaled_dot_product_attention(q_BHSN, k_BHSN, v_BHSN, is_causal=True)
        return self.out(y_BHSN.transpose(1, 2).reshape(batch, seq, dim))
