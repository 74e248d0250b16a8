"""Parameter groups to optimizers: one step, the global gradient norm, optional clipping.

The host waits for nothing here: the schedule's factor, the number of the update and the clipping
factor are on the device, and so is the norm.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nmoe import dist, ops
from nmoe.config import Impl, Optim
from nmoe.model import Group
from nmoe.optim.part import Flat, Part, Separate
from nmoe.optim.rule import AdamW, Muon, Rule, State


class Optimizer:
    """AdamW, and Muon for matrices when asked, for the weights that this rank has.

    `reference` is torch's AdamW, parameter by parameter. `triton` moves the parameters of dense and
    router groups into one buffer a group, of which each rank updates a share, or all where Muon
    needs whole matrices; it compiles its kernels by an update that moves nothing.
    """

    def __init__(self, config: Optim, groups: Sequence[Group], *, impl: Impl) -> None:
        self._clip = config.clip
        self._impl: Impl = impl
        is_flat = impl == "triton"
        self._parts: Sequence[Part] = [
            Flat(group, is_sharded=not uses_muon(config, group))
            if is_flat and group.name != "expert"
            else Separate(group)
            for group in groups
        ]
        self._rules = _rules(config, self._parts, impl=impl)
        device = groups[0].parameters[0].device
        self._now = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64, device=device)
        if impl == "triton":
            self._rehearse()

    @torch.no_grad()
    def reduce_gradients(self) -> Tensor:
        """Sum dense gradients over ranks and return the global gradient norm, an fp64 scalar.

        Expert gradients are whole already: their owner received every rank's rows.
        """
        for part in self._parts:
            part.take_gradients()
        if self._impl == "reference":
            dense = [part.group for part in self._parts if part.group.name != "expert"]
            _all_reduce_together([p for group in dense for p in group.parameters])
        same, own = ([p for p in self._parts if p.is_own == is_own] for is_own in (False, True))
        squares = [self._sum_squares(same)] if same else []
        if own:
            squares.append(dist.all_reduce(self._sum_squares(own)))
        return torch.stack(squares).sum().sqrt()

    def step(self, *, scale: float, norm: Tensor) -> None:
        """Clip if asked, set the learning rates to `scale` times their peaks, update, clear.

        Gradients are those of the last `reduce_gradients`, which returned `norm`.
        """
        self.set_scale(scale)
        self.update(norm)

    def set_scale(self, scale: float) -> None:
        """The schedule's factor on the peak rates, for the updates that follow."""
        self._now[0].fill_(scale)

    @torch.no_grad()
    def update(self, norm: Tensor) -> None:
        """`step` at the scale that is set: all it takes is on the device, a graph may replay it."""
        self._now[1].add_(1)
        if self._clip > 0:
            self._now[2].copy_(torch.clamp(self._clip / (norm + 1e-6), max=1.0).float())
        for rule in self._rules:
            rule.step(self._now)
        for part in self._parts:
            part.finish()

    def state(self, *, is_expert: bool) -> list[State]:
        """State of the expert parameters, or of all the others, in the order of the groups.

        All ranks call it together: of the others each may hold a share.
        """
        count = self._now[1].float()
        states = [s for rule, part in self._owned(is_expert=is_expert) for s in rule.state(part)]
        return [({"step": count} if "exp_avg" in state else {}) | state for state in states]

    @torch.no_grad()
    def load_state(self, states: Sequence[State], *, is_expert: bool) -> None:
        """Restore what `state` returned."""
        rest = iter(states)
        for rule, part in self._owned(is_expert=is_expert):
            loaded = [next(rest) for _ in part.group.parameters]
            rule.load(part, loaded)
            for state in loaded:
                if "step" in state:
                    self._now[1].copy_(state["step"])

    def _owned(self, *, is_expert: bool) -> list[tuple[Rule, Part]]:
        return [
            (rule, part)
            for part in self._parts
            if (part.group.name == "expert") == is_expert
            for rule in self._rules
            if any(each is part for each in rule.parts)
        ]

    def _sum_squares(self, parts: Sequence[Part]) -> Tensor:
        gradients = [gradient for part in parts for gradient in part.gradients()]
        return ops.sum_squares(gradients, impl=self._impl)

    @torch.no_grad()
    def _rehearse(self) -> None:
        """Compile all kernels: state and scale are zero, so nothing moves."""
        for part in self._parts:
            ops.sum_squares(part.values, impl=self._impl)
        self._now[1].fill_(1)
        for rule in self._rules:
            rule.step(self._now, is_rehearsal=True)
        self._now[1].zero_()


def uses_muon(config: Optim, group: Group) -> bool:
    """Whether Muon updates this group: matrices of dense layers and experts, if configured."""
    return config.matrices == "muon" and group.kind == "matrix" and group.name != "router"


def peak_rates(config: Optim) -> dict[str, float]:
    """Peak learning rates by name: those of AdamW's groups, and Muon's when it is used."""
    rates = {"dense": config.lr_dense, "router": config.lr_router, "expert": config.lr_expert}
    return rates if config.matrices == "adamw" else rates | {"muon": config.lr_muon}


def _rules(config: Optim, parts: Sequence[Part], *, impl: Impl) -> list[Rule]:
    """AdamW's groups, those of experts first: many small launches wait behind long ones."""
    rates = peak_rates(config)
    rules: list[Rule] = [
        AdamW(config, part, lr=rates[part.group.name], impl=impl)
        for part in sorted(parts, key=lambda part: part.group.name != "expert")
        if not uses_muon(config, part.group)
    ]
    matrices = [part for part in parts if uses_muon(config, part.group)]
    return [*rules, Muon(config, matrices, impl=impl)] if matrices else rules


def _all_reduce_together(parameters: Sequence[nn.Parameter]) -> None:
    """Sum gradients over ranks in one message."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = dist.all_reduce(torch.cat([gradient.flatten() for gradient in gradients]))
    parts = flat.split([gradient.numel() for gradient in gradients])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter)
