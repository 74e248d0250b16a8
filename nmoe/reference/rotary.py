"""Queries, keys and values of the fused projection in plain torch: QK-norm and rotary positions.

Legend: B batch, S sequence, P = 3 parts, H heads, N head size, M = N / 2.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def rotary_norm(
    qkv_BSPHN: Tensor,
    q_weight_N: Tensor | None,
    k_weight_N: Tensor | None,
    cos_SM: Tensor,
    sin_SM: Tensor,
    *,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """(q, k, v) BHSN: q and k over their RMS, times weights, then rotated; v as it is.

    The halves of each head are rotated against each other; without a weight there is no norm.
    """
    q_BHSN, k_BHSN, v_BHSN = qkv_BSPHN.permute(2, 0, 3, 1, 4)
    q_BHSN = _rotate(_norm(q_BHSN, q_weight_N, eps), cos_SM, sin_SM)
    k_BHSN = _rotate(_norm(k_BHSN, k_weight_N, eps), cos_SM, sin_SM)
    return q_BHSN, k_BHSN, v_BHSN


def _norm(x_BHSN: Tensor, weight_N: Tensor | None, eps: float) -> Tensor:
    if weight_N is None:
        return x_BHSN
    return F.rms_norm(x_BHSN, (x_BHSN.shape[-1],), weight_N.to(x_BHSN.dtype), eps)


def _rotate(x_BHSN: Tensor, cos_SM: Tensor, sin_SM: Tensor) -> Tensor:
    cos, sin = cos_SM.to(x_BHSN.dtype), sin_SM.to(x_BHSN.dtype)
    left, right = x_BHSN.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)
