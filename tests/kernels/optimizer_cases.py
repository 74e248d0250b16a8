"""What rank processes do with the optimizer on interpreted kernels: importable by them."""

from typing import Any

import torch
from torch import Tensor, nn

from nmoe.config import Optim
from nmoe.model import Group
from nmoe.optim import Optimizer
from nmoe.optim.part import Flat
from tests.kernels import interpreter


def make_groups(device: torch.device, *, twins: int = 1) -> list[Group]:
    """A small model's parameters: sizes that are no multiples of anything, packed experts.

    Experts come `twins` times, all alike.
    """
    generator = torch.Generator().manual_seed(0)

    def parameters(*shapes: tuple[int, ...], times: int = 1) -> dict[str, Any]:
        drawn = [torch.randn(shape, generator=generator).to(device) for shape in shapes]
        own = tuple(nn.Parameter(each.clone()) for _ in range(times) for each in drawn)
        return {
            "parameters": own,
            "copies": tuple(torch.empty_like(each, dtype=torch.bfloat16) for each in own),
        }

    return [
        Group(name="dense", kind="table", **parameters((12, 8), (257, 3))),
        Group(name="dense", kind="matrix", **parameters((32, 16), (16, 32), (24, 24))),
        Group(name="dense", kind="vector", **parameters((8,), (1,))),
        Group(name="router", kind="matrix", **parameters((4, 8))),
        Group(
            name="expert",
            kind="matrix",
            packed=(True, False) * twins,
            **parameters((3, 16, 64), (3, 32, 16), times=twins),
        ),
    ]


def draw_gradients(groups: list[Group], *, seed: int) -> list[list[Tensor]]:
    """By group; of every rank and step its own."""
    generator = torch.Generator().manual_seed(seed)
    return [
        [torch.randn(p.shape, generator=generator).to(p.device) for p in group.parameters]
        for group in groups
    ]


def set_gradients(groups: list[Group], gradients: list[list[Tensor]]) -> None:
    for group, own in zip(groups, gradients, strict=True):
        for parameter, gradient in zip(group.parameters, own, strict=True):
            parameter.grad = gradient


def weights(groups: list[Group]) -> list[Tensor]:
    return [parameter.detach().clone() for group in groups for parameter in group.parameters]


def train_as_rank(rank: int, world: int, config: Optim, steps: int, total: int) -> dict:
    """Train on this rank's gradients, or on those of `total` ranks, and all their experts.

    All ranks' experts are alike. Halfway another optimizer goes on from the state.
    """
    interpreter.install()
    groups = make_groups(torch.device("cpu"), twins=total if world == 1 else 1)
    optimizer = Optimizer(config, groups, impl="triton")
    norms: list[float] = []
    for step in range(1, steps + 1):
        ranks = range(total) if world == 1 else [rank]
        drawn = [draw_gradients(groups, seed=100 * step + each) for each in ranks]
        gradients = [
            [sum(each[1:], start=each[0]) for each in zip(*own, strict=True)]
            for own in zip(*drawn, strict=True)
        ]
        pair = draw_gradients(groups, seed=step)[-1][:2]
        expert = [pair[index % 2].clone() for index in range(len(groups[-1].parameters))]
        set_gradients(groups, [*gradients[:-1], expert])
        norm = optimizer.reduce_gradients()
        optimizer.step(scale=1 / step, norm=norm)
        norms.append(norm.item())
        if step == steps // 2:
            states = {each: optimizer.state(is_expert=each) for each in (False, True)}
            optimizer = Optimizer(config, groups, impl="triton")
            for is_expert, state in states.items():
                optimizer.load_state(state, is_expert=is_expert)
    return {
        "norms": norms,
        "weights": weights(groups),
        "copies": [copy for group in groups for copy in group.copies],
        "state": optimizer.state(is_expert=False),
        "share": Flat(groups[0], is_sharded=True).values[0].numel(),
    }
