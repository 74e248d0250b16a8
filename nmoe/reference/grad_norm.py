"""The sum of squares of many tensors, in fp64."""

from collections.abc import Sequence

import torch
from torch import Tensor


def sum_squares(tensors: Sequence[Tensor]) -> Tensor:
    """fp64 scalar: the squares of all elements added up; 0 on the CPU when there is no tensor."""
    if not tensors:
        return torch.zeros((), dtype=torch.float64)
    return torch.stack([tensor.norm(dtype=torch.float64) for tensor in tensors]).square().sum()
