"""A parameter group as it is updated: in which tensors, with which gradients and bf16 copies."""

from typing import Protocol

import torch
from torch import Tensor

from nmoe.model import Group

ALIGN = 128  # elements: every parameter starts at 512 bytes, as if it were allocated by itself


class Part(Protocol):
    """The tensors of a group. What goes with them, such as moments, is laid out like `values`."""

    group: Group
    values: list[Tensor]
    copies: list[Tensor | None]  # of each parameter: to be rounded while it is updated

    def take_gradients(self) -> None:
        """Own the gradients of the last backward; a parameter without one has zeros."""
        ...

    def gradients(self) -> list[Tensor]:
        """Those of `values`."""
        ...

    def views(self, tensors: list[Tensor]) -> list[Tensor]:
        """Each parameter's part of tensors that are laid out like `values`."""
        ...

    def finish(self) -> None:
        """After the update: let go of gradients, round the copies that are not in `copies`."""
        ...


class Separate:
    """Every parameter by itself."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.values: list[Tensor] = list(group.parameters)
        self.copies: list[Tensor | None] = list(group.copies) or [None] * len(self.values)

    def take_gradients(self) -> None:
        for parameter in self.group.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def gradients(self) -> list[Tensor]:
        return [each.grad for each in self.group.parameters if each.grad is not None]

    def views(self, tensors: list[Tensor]) -> list[Tensor]:
        return tensors

    def finish(self) -> None:
        for parameter in self.group.parameters:
            parameter.grad = None


class Flat:
    """All parameters end to end in one buffer, of which they become views; so are gradients.

    One launch reaches many small parameters, one reduction sums their gradients over ranks. What
    lies between two parameters is zero and stays so.
    """

    def __init__(self, group: Group) -> None:
        self.group = group
        self._starts, total = [], 0
        for parameter in group.parameters:
            self._starts.append(total)
            total += -(-parameter.numel() // ALIGN) * ALIGN
        values = torch.zeros(total, device=group.parameters[0].device)
        self._gradients = torch.zeros_like(values)
        self.values: list[Tensor] = [values]
        self.copies: list[Tensor | None] = [None] * len(group.parameters)
        for parameter, view in zip(group.parameters, self.views(self.values), strict=True):
            parameter.data = view.copy_(parameter.detach())

    def take_gradients(self) -> None:
        views = self.views([self._gradients])
        gradients = [parameter.grad for parameter in self.group.parameters]
        pairs = [(v, g) for v, g in zip(views, gradients, strict=True) if g is not None]
        if len(pairs) < len(views):
            self._gradients.zero_()
        _copy_all(pairs)
        for parameter in self.group.parameters:
            parameter.grad = None

    def gradients(self) -> list[Tensor]:
        return [self._gradients]

    def views(self, tensors: list[Tensor]) -> list[Tensor]:
        (flat,) = tensors
        return [
            flat[start : start + parameter.numel()].view(parameter.shape)
            for start, parameter in zip(self._starts, self.group.parameters, strict=True)
        ]

    def finish(self) -> None:
        if self.group.copies:
            pairs = zip(self.group.copies, self.views(self.values), strict=True)
            _copy_all([(copy, value) for copy, value in pairs if copy is not None])


def _copy_all(pairs: list[tuple[Tensor, Tensor]]) -> None:
    """Each first from its second, in few launches."""
    if pairs:
        torch._foreach_copy_(  # pyright: ignore[reportPrivateImportUsage]
            [to for to, _ in pairs], [source for _, source in pairs]
        )
