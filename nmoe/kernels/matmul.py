"""Product of bf16 matrices in fp32, by cuBLAS; torch's `@` would round the sums to bf16."""

import torch
from torch import Tensor

FP32 = torch.float32


def matmul(left: Tensor, right: Tensor, *, out: Tensor | None = None, add: bool = False) -> Tensor:
    """left [M, K] right [K, N] in fp32; into `out`, or added to what it holds."""
    if out is None:
        out = left.new_empty(left.shape[0], right.shape[1], dtype=FP32)
    if left.is_cuda:
        return torch.addmm(out, left, right, out_dtype=FP32, beta=int(add), out=out)
    # torch has no such product of bf16 here
    return out.addmm_(left.float(), right.float(), beta=int(add))
