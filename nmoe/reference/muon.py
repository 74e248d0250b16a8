"""Muon: momentum, then the nearest semi-orthogonal matrix by Newton-Schulz.

Parameters are stacks [..., rows, cols]; every matrix is updated by itself. Where rows are the
inputs (expert weights) the scale is sqrt(max(1, cols / rows)), otherwise its inverse ratio. Packed
columns (`nmoe.expert_layout`) are two matrices.
Source: Jordan et al. 2024, with its quintic coefficients and the sqrt(max(1, out / in)) scale.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from nmoe.expert_layout import pack, unpack

QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


def orthogonalize(matrices: Tensor) -> Tensor:
    """Push the singular values of each [..., rows, cols] matrix, rows <= cols, to 0.7..1.2."""
    a, b, c = QUINTIC
    x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def muon(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    momenta: Sequence[Tensor],
    copies: Sequence[Tensor | None],
    *,
    now: Tensor,
    lr: float,
    momentum: float,
    weight_decay: float,
    is_in_first: Sequence[bool],
    packed: Sequence[bool],
) -> None:
    """Update parameters and momenta in place, and round the parameters into their copies.

    m += (1 - momentum) (g - m); u = orthogonal g + momentum (m - g); p = p (1 - lr decay) -
    lr scale u. now: fp64 [3] = (scale of lr, unused, factor on gradients).
    """
    scale, _, factor = now.tolist()
    updates = []
    for gradient, buffer in zip(gradients, momenta, strict=True):
        if factor != 1:
            gradient.mul_(factor)
        updates.append(gradient.lerp(buffer.lerp_(gradient, 1 - momentum), momentum))
    matrices = [_matrices(u, packed=two) for u, two in zip(updates, packed, strict=True)]
    _orthogonalize_in_place([each for both in matrices for each in both])
    places = zip(parameters, matrices, copies, is_in_first, strict=True)
    for parameter, both, copy, first in places:
        update = pack(*both) if len(both) == 2 else both[0]
        rate = scale * lr
        parameter.mul_(1 - rate * weight_decay)
        parameter.add_(update, alpha=-rate * shape_scale(*both[0].shape[-2:], is_in_first=first))
        if copy is not None:
            copy.copy_(parameter)


def shape_scale(rows: int, cols: int, *, is_in_first: bool) -> float:
    """sqrt(max(1, outputs / inputs)) of a matrix."""
    ratio = cols / rows if is_in_first else rows / cols
    return max(1.0, ratio) ** 0.5


def _matrices(stack: Tensor, *, packed: bool) -> list[Tensor]:
    """Contiguous stacks of matrices: the stack itself, or the two in its columns."""
    if not packed:
        return [stack]
    return [each for each in unpack(stack, activation="swiglu") if each is not None]


def _orthogonalize_in_place(updates: list[Tensor]) -> None:
    """All matrices of one shape in one batch."""
    wide: dict[torch.Size, list[Tensor]] = {}
    for update in updates:
        # the shorter side first; a view, so the batched result lands in place
        short = update.mT if update.shape[-2] > update.shape[-1] else update
        wide.setdefault(short.shape[-2:], []).append(short)
    for shorts in wide.values():
        stacks = [short.reshape(-1, *short.shape[-2:]) for short in shorts]
        results = orthogonalize(torch.cat(stacks)).split([stack.shape[0] for stack in stacks])
        for short, result in zip(shorts, results, strict=True):
            short.copy_(result.view(short.shape))
