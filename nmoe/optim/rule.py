"""How parameters move: AdamW of a group, Muon of all matrices; each with its state.

`now` is on the device, fp64: the schedule's factor on learning rates, the number of the update
from 1, the factor on gradients.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from nmoe import ops
from nmoe.config import Impl, Optim
from nmoe.optim.part import Part

State = dict[str, Tensor]


class Rule(Protocol):
    """Some groups and what moves them."""

    parts: Sequence[Part]

    def step(self, now: Tensor, *, is_rehearsal: bool = False) -> None:
        """Update every parameter; a rehearsal takes its state, which is zero, for gradients."""
        ...

    def state(self, part: Part) -> list[State]:
        """State by name of each parameter of a part, collected from all ranks."""
        ...

    def load(self, part: Part, states: Sequence[State]) -> None:
        """Take over what `state` returned."""
        ...


class AdamW:
    """AdamW with decoupled weight decay, which vectors are spared; `lr` is the peak rate."""

    def __init__(self, config: Optim, part: Part, *, lr: float, impl: Impl) -> None:
        name = part.group.name
        decay = config.weight_decay_router if name == "router" else config.weight_decay
        self.parts: Sequence[Part] = (part,)
        self._lr, self._eps = lr, config.eps
        self._weight_decay = 0.0 if part.group.kind == "vector" else decay
        self._betas = config.beta1, config.beta2_expert if name == "expert" else config.beta2
        self._exp_avgs, self._exp_avg_sqs = _zeros(part), _zeros(part)
        self._impl: Impl = impl

    def step(self, now: Tensor, *, is_rehearsal: bool = False) -> None:
        (part,) = self.parts
        ops.adamw(
            part.values,
            self._exp_avgs if is_rehearsal else part.gradients(),
            self._exp_avgs,
            self._exp_avg_sqs,
            part.copies[: len(part.values)],  # a flat part has none
            now=now,
            lr=self._lr,
            betas=self._betas,
            eps=self._eps,
            weight_decay=self._weight_decay,
            impl=self._impl,
        )

    def state(self, part: Part) -> list[State]:
        moments = zip(part.collect(self._exp_avgs), part.collect(self._exp_avg_sqs), strict=True)
        return [{"exp_avg": first, "exp_avg_sq": second} for first, second in moments]

    def load(self, part: Part, states: Sequence[State]) -> None:
        part.restore(self._exp_avgs, [state["exp_avg"] for state in states])
        part.restore(self._exp_avg_sqs, [state["exp_avg_sq"] for state in states])


class Muon:
    """Nesterov momentum, orthogonalised, with decoupled weight decay; of matrices only."""

    def __init__(self, config: Optim, parts: Sequence[Part], *, impl: Impl) -> None:
        self.parts, self._config = parts, config
        self._momenta = [_zeros(part) for part in parts]
        self._impl: Impl = impl

    def step(self, now: Tensor, *, is_rehearsal: bool = False) -> None:
        momenta = self._views(self._momenta)
        groups = [part.group for part in self.parts]
        ops.muon(
            self._views([part.values for part in self.parts]),
            momenta if is_rehearsal else self._views([part.gradients() for part in self.parts]),
            momenta,
            [copy for part in self.parts for copy in part.copies],
            now=now,
            lr=self._config.lr_muon,
            momentum=self._config.momentum,
            weight_decay=self._config.weight_decay,
            is_in_first=[each.name == "expert" for each in groups for _ in each.parameters],
            packed=[
                two for each in groups for two in each.packed or [False] * len(each.parameters)
            ],
            impl=self._impl,
        )

    def state(self, part: Part) -> list[State]:
        return [{"momentum": each} for each in part.collect(self._momenta[self._index(part)])]

    def load(self, part: Part, states: Sequence[State]) -> None:
        part.restore(self._momenta[self._index(part)], [state["momentum"] for state in states])

    def _index(self, part: Part) -> int:
        return next(index for index, each in enumerate(self.parts) if each is part)

    def _views(self, tensors: Sequence[list[Tensor]]) -> list[Tensor]:
        """Tensors of all parts as one list, one a parameter."""
        pairs = zip(self.parts, tensors, strict=True)
        return [view for part, own in pairs for view in part.views(own)]


def _zeros(part: Part) -> list[Tensor]:
    return [torch.zeros_like(value) for value in part.values]
