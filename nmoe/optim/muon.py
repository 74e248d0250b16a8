"""Muon: momentum, then the nearest semi-orthogonal matrix by Newton-Schulz.

Parameters are stacks [..., rows, cols]; every matrix is updated by itself, all of one shape in one
batch. `is_in_first` in a group says that rows are the inputs (expert weights), otherwise columns.
Source: Jordan et al. 2024, with its quintic coefficients and the sqrt(max(1, out / in)) scale.
"""

import torch
from torch import Tensor

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


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, with decoupled weight decay."""

    def __init__(self, params: list[dict[str, object]], *, momentum: float) -> None:
        defaults = {"lr": 0.0, "momentum": momentum, "weight_decay": 0.0, "is_in_first": False}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every parameter from its gradient."""
        wide: dict[torch.Size, list[Tensor]] = {}
        moves: list[tuple[dict[str, float], Tensor, Tensor]] = []
        for group in self.param_groups:
            for parameter in group["params"]:
                update = self._momentum(parameter, momentum=group["momentum"])
                # the shorter side first; a view, so the batched result lands in place
                short = update.mT if update.shape[-2] > update.shape[-1] else update
                wide.setdefault(short.shape[-2:], []).append(short)
                moves.append((group, parameter, update))
        for updates in wide.values():
            _orthogonalize_in_place(updates)
        for group, parameter, update in moves:
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update, alpha=-group["lr"] * _scale(parameter, group))

    def _momentum(self, parameter: Tensor, *, momentum: float) -> Tensor:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(gradient)
        buffer = state["momentum"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(buffer, momentum)


def _orthogonalize_in_place(updates: list[Tensor]) -> None:
    stacks = [update.reshape(-1, *update.shape[-2:]) for update in updates]
    results = orthogonalize(torch.cat(stacks)).split([stack.shape[0] for stack in stacks])
    for update, result in zip(updates, results, strict=True):
        update.copy_(result.view(update.shape))


def _scale(parameter: Tensor, group: dict[str, float]) -> float:
    rows, cols = parameter.shape[-2:]
    ratio = cols / rows if group["is_in_first"] else rows / cols
    return max(1.0, ratio) ** 0.5
