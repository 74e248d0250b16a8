"""Causal multi-head attention with rotary positions and QK-norm, through torch's SDPA.

Shapes: B batch, S sequence, D model, H heads, N head size.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from nmoe import ops
from nmoe.config import Config, Impl
from nmoe.layers import Linear, RMSNorm, Rotary


class SdpaAttention(nn.Module):
    """softmax(q k^T / sqrt(N)) v over all earlier positions."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        dim, heads, eps = config.model.dim, config.model.num_heads, config.model.norm_eps
        self.num_heads, self.eps = heads, eps
        self.impl: Impl = config.model.impl
        self.qkv = Linear(dim, 3 * dim, parts=3)
        self.out = Linear(dim, dim)
        size = dim // heads
        self.rotary = Rotary(size, theta=config.attention.rope_theta, max_len=config.train.seq_len)
        has_norm = config.attention.qk_norm
        self.q_norm = RMSNorm(size, eps=eps, impl=self.impl) if has_norm else None
        self.k_norm = RMSNorm(size, eps=eps, impl=self.impl) if has_norm else None

    def forward(self, x_BSD: Tensor) -> Tensor:
        batch, seq, dim = x_BSD.shape
        # one pass for norms and rotation, so the norms only lend their weights
        q_BHSN, k_BHSN, v_BHSN = ops.rotary_norm(
            self.qkv(x_BSD).view(batch, seq, 3, self.num_heads, dim // self.num_heads),
            None if self.q_norm is None else self.q_norm.weight,
            None if self.k_norm is None else self.k_norm.weight,
            *self.rotary(seq),
            eps=self.eps,
            impl=self.impl,
        )
        with backends(q_BHSN, impl=self.impl):
            y_BHSN = F.scaled_dot_product_attention(q_BHSN, k_BHSN, v_BHSN, is_causal=True)
        return self.out(y_BHSN.transpose(1, 2).reshape(batch, seq, dim))


def backends(q_BHSN: Tensor, *, impl: Impl) -> AbstractContextManager[object]:
    """Which of torch's attentions may run: any on the reference path, on GPUs cuDNN's, then flash.

    Flash alone in deterministic mode, because cuDNN's backward does not repeat its bits, and
    without gradients, because cuDNN plans every new length of sequence anew. Where neither can
    run, torch raises RuntimeError.
    """
    if impl == "reference":
        return nullcontext()
    allowed = [SDPBackend.FLASH_ATTENTION]
    if q_BHSN.requires_grad and not torch.are_deterministic_algorithms_enabled():
        allowed.insert(0, SDPBackend.CUDNN_ATTENTION)
    return sdpa_kernel(allowed, set_priority=True)
