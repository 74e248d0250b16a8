"""A parameter group as it is updated: in which tensors, with which gradients and bf16 copies."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from nmoe import dist
from nmoe.model import Group

ALIGN = 128  # elements: every parameter starts at 512 bytes, as if it were allocated by itself


class Part(Protocol):
    """The tensors of a group. What goes with them, such as moments, is laid out like `values`."""

    group: Group
    values: list[Tensor]
    copies: list[Tensor | None]  # of each parameter: to be rounded while it is updated
    is_own: bool  # whether this rank's values are no other rank's

    def take_gradients(self) -> None:
        """Own the gradients of the last backward; a parameter without one has zeros."""
        ...

    def gradients(self) -> list[Tensor]:
        """Those of `values`."""
        ...

    def views(self, tensors: list[Tensor]) -> list[Tensor]:
        """Each parameter's part of tensors that are laid out like `values`, if these are whole."""
        ...

    def collect(self, tensors: list[Tensor]) -> list[Tensor]:
        """Each parameter's part of tensors that are laid out like `values`, from all ranks."""
        ...

    def restore(self, tensors: list[Tensor], collected: Sequence[Tensor]) -> None:
        """Write into tensors what `collect` returned."""
        ...

    def finish(self) -> None:
        """After the update: let go of gradients, make parameters and their copies whole."""
        ...


class Separate:
    """Every parameter by itself; its gradients are summed over ranks elsewhere."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.values: list[Tensor] = list(group.parameters)
        self.copies: list[Tensor | None] = list(group.copies) or [None] * len(self.values)
        self.is_own = group.name == "expert"

    def take_gradients(self) -> None:
        for parameter in self.group.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def gradients(self) -> list[Tensor]:
        return [each.grad for each in self.group.parameters if each.grad is not None]

    def views(self, tensors: list[Tensor]) -> list[Tensor]:
        return tensors

    def collect(self, tensors: list[Tensor]) -> list[Tensor]:
        return tensors

    def restore(self, tensors: list[Tensor], collected: Sequence[Tensor]) -> None:
        for tensor, source in zip(tensors, collected, strict=True):
            tensor.copy_(source)

    def finish(self) -> None:
        for parameter in self.group.parameters:
            parameter.grad = None


class Flat:
    """All parameters end to end in one buffer, of which they become views; so are gradients.

    One launch reaches many small parameters, one reduction sums their gradients over ranks. With
    `is_sharded` every rank updates its share of the buffer and has state for no more; the others
    give it theirs. What lies between two parameters is zero and stays so.
    """

    def __init__(self, group: Group, *, is_sharded: bool) -> None:
        self.group = group
        self.is_own = is_sharded
        self._starts, total = [], 0
        for parameter in group.parameters:
            self._starts.append(total)
            total += _round_up(parameter.numel(), ALIGN)
        length = _round_up(total, ALIGN * dist.num_ranks())
        self._whole = torch.zeros(length, device=group.parameters[0].device)
        self._gradients = torch.zeros_like(self._whole)
        self.values: list[Tensor] = [self._share(self._whole)]
        self.copies: list[Tensor | None] = [None] * len(group.parameters)
        self._summed = self._share(self._gradients)
        for parameter, view in zip(group.parameters, self.views([self._whole]), strict=True):
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
        reduce = dist.reduce_scatter if self.is_own else dist.all_reduce
        self._summed = reduce(self._gradients)

    def gradients(self) -> list[Tensor]:
        return [self._summed]

    def views(self, tensors: list[Tensor]) -> list[Tensor]:
        (flat,) = tensors
        return [
            flat[start : start + parameter.numel()].view(parameter.shape)
            for start, parameter in zip(self._starts, self.group.parameters, strict=True)
        ]

    def collect(self, tensors: list[Tensor]) -> list[Tensor]:
        (share,) = tensors
        if not self.is_own or len(share) == len(self._whole):
            return self.views(tensors)
        whole = torch.empty_like(self._whole)
        self._share(whole).copy_(share)
        return self.views([dist.all_gather(whole)])

    def restore(self, tensors: list[Tensor], collected: Sequence[Tensor]) -> None:
        (share,) = tensors
        whole = torch.zeros_like(self._whole)
        for view, source in zip(self.views([whole]), collected, strict=True):
            view.copy_(source)
        share.copy_(self._share(whole))

    def finish(self) -> None:
        if self.is_own:
            dist.all_gather(self._whole)
        if self.group.copies:
            pairs = zip(self.group.copies, self.views([self._whole]), strict=True)
            _copy_all([(copy, value) for copy, value in pairs if copy is not None])

    def _share(self, whole: Tensor) -> Tensor:
        """What this rank updates of a tensor that is laid out like the buffer."""
        return dist.own_share(whole) if self.is_own else whole


def _round_up(count: int, unit: int) -> int:
    return -(-count // unit) * unit


def _copy_all(pairs: list[tuple[Tensor, Tensor]]) -> None:
    """Each first from its second, in few launches."""
    if pairs:
        torch._foreach_copy_(  # pyright: ignore[reportPrivateImportUsage]
            [to for to, _ in pairs], [source for _, source in pairs]
        )
