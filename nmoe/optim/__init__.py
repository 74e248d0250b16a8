"""Parameter groups to optimizers: one step, the global gradient norm, optional clipping."""

import torch
from torch import Tensor, nn

from nmoe import dist
from nmoe.config import Optim
from nmoe.model import Group
from nmoe.optim.muon import Muon


class Optimizer:
    """AdamW, and Muon for matrices when asked; dense state is replicated, expert state is local."""

    def __init__(self, config: Optim, groups: list[Group]) -> None:
        self.config = config
        self.groups = groups
        muon = [_settings(config, group) for group in groups if uses_muon(config, group)]
        adamw = [_settings(config, group) for group in groups if not uses_muon(config, group)]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(adamw, eps=config.eps, fused=True)
        ]
        if muon:
            self.optimizers.append(Muon(muon, momentum=config.momentum))

    @torch.no_grad()
    def reduce_gradients(self) -> Tensor:
        """Sum dense gradients over ranks and return the global gradient norm, an fp64 scalar.

        Expert gradients are whole already: their owner received every rank's rows.
        """
        dense = [p for group in self.groups if group.name != "expert" for p in group.parameters]
        expert = [p for group in self.groups if group.name == "expert" for p in group.parameters]
        flat = dist.all_reduce(torch.cat([_gradient(parameter).flatten() for parameter in dense]))
        for parameter, part in zip(dense, flat.split([p.numel() for p in dense]), strict=True):
            parameter.grad = part.view_as(parameter)
        return (_sum_squares(dense) + dist.all_reduce(_sum_squares(expert))).sqrt()

    @torch.no_grad()
    def step(self, *, scale: float, norm: Tensor) -> None:
        """Clip if asked, set the learning rates to `scale` times their peaks, update, clear."""
        if self.config.clip > 0:
            factor = torch.clamp(self.config.clip / (norm + 1e-6), max=1.0).float()
            for group in self.groups:
                for parameter in group.parameters:
                    _gradient(parameter).mul_(factor)
        for optimizer in self.optimizers:
            for settings in optimizer.param_groups:
                settings["lr"] = scale * settings["peak_lr"]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state(self, *, is_expert: bool) -> list[dict[str, Tensor]]:
        """State of the expert parameters, or of all the others, in the order of the groups."""
        return [
            dict(optimizer.state[parameter])
            for optimizer, parameter in self._owned(is_expert=is_expert)
        ]

    def load_state(self, states: list[dict[str, Tensor]], *, is_expert: bool) -> None:
        """Restore what `state` returned."""
        owned = self._owned(is_expert=is_expert)
        for (optimizer, parameter), state in zip(owned, states, strict=True):
            optimizer.state[parameter] = dict(state)

    def _owned(self, *, is_expert: bool) -> list[tuple[torch.optim.Optimizer, nn.Parameter]]:
        owners = {
            parameter: optimizer
            for optimizer in self.optimizers
            for settings in optimizer.param_groups
            for parameter in settings["params"]
        }
        return [
            (owners[parameter], parameter)
            for group in self.groups
            if (group.name == "expert") == is_expert
            for parameter in group.parameters
        ]


def uses_muon(config: Optim, group: Group) -> bool:
    """Whether Muon updates this group: matrices of dense layers and experts, if configured."""
    return config.matrices == "muon" and group.kind == "matrix" and group.name != "router"


def peak_rates(config: Optim) -> dict[str, float]:
    """Peak learning rates by name: those of AdamW's groups, and Muon's when it is used."""
    rates = {"dense": config.lr_dense, "router": config.lr_router, "expert": config.lr_expert}
    return rates if config.matrices == "adamw" else rates | {"muon": config.lr_muon}


def _settings(config: Optim, group: Group) -> dict[str, object]:
    decay = config.weight_decay_router if group.name == "router" else config.weight_decay
    settings: dict[str, object] = {
        "params": list(group.parameters),
        "peak_lr": peak_rates(config)["muon" if uses_muon(config, group) else group.name],
        "weight_decay": 0.0 if group.kind == "vector" else decay,
    }
    if uses_muon(config, group):
        settings["is_in_first"] = group.name == "expert"
    else:
        beta2 = config.beta2_expert if group.name == "expert" else config.beta2
        settings["betas"] = (config.beta1, beta2)
    return settings


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _sum_squares(parameters: list[nn.Parameter]) -> Tensor:
    if not parameters:  # a model without experts
        return torch.zeros((), dtype=torch.float64)
    norms = torch.stack(
        [_gradient(parameter).norm(dtype=torch.float64) for parameter in parameters]
    )
    return norms.square().sum()
