"""Inputs of a layer, drawn anew for every timing, and how far its outputs are from fp64.

Legend: T tokens, N choices (T * K), D model, F expert hidden, G = 2F, E experts, K top-k.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from bench.shapes import Shape
from nmoe.expert_layout import pack

Split = Callable[[int], tuple[Tensor, Tensor, Tensor]]  # expert -> its dW1, dW3, dW2


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a layer is given, and the gradient of what it returns."""

    x_TD: Tensor
    ids_TK: Tensor
    gates_TK: Tensor
    dy_TD: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """The same bf16 weights as nmoe lays them and as others do: W1 beside W3."""

    w1_EDF: Tensor
    w3_EDF: Tensor
    w2_EFD: Tensor
    w13_EDG: Tensor  # nmoe.expert_layout
    beside_EDG: Tensor


class Source:
    """Random inputs of a shape: new tokens, ids and gates at every `draw`."""

    def __init__(self, shape: Shape, *, device: str, seed: int = 0) -> None:
        self.shape, self._device = shape, device
        self._generator = torch.Generator(device).manual_seed(seed)
        rank_E = torch.arange(1, shape.num_experts + 1, device=device)
        self._log_popularity_E = -shape.zipf * rank_E.log()

    def draw(self) -> Inputs:
        shape = self.shape
        gates_TK = self._uniform(shape.tokens, shape.top_k) + 0.1
        return Inputs(
            x_TD=self._normal(shape.tokens, shape.dim),
            ids_TK=self._ids(),
            gates_TK=gates_TK / gates_TK.sum(1, keepdim=True),
            dy_TD=self._normal(shape.tokens, shape.dim),
        )

    def weights(self) -> Weights:
        shape = self.shape
        up, down = (shape.dim, shape.hidden), (shape.hidden, shape.dim)
        w1, w3, w2 = (
            self._normal(shape.num_experts, *size).mul_(size[0] ** -0.5) for size in (up, up, down)
        )
        beside = torch.cat((w1, w3), dim=-1)
        return Weights(w1_EDF=w1, w3_EDF=w3, w2_EFD=w2, w13_EDG=pack(w1, w3), beside_EDG=beside)

    def _ids(self) -> Tensor:
        """K distinct experts a token: the largest of log popularity + Gumbel noise, int64."""
        shape = self.shape
        parts = []
        for tokens in torch.arange(shape.tokens).split(16_384):
            noise = self._uniform(len(tokens), shape.num_experts).clamp_(1e-20)
            scores = self._log_popularity_E - noise.log_().neg_().clamp_(1e-20).log_()
            parts.append(scores.topk(shape.top_k).indices)
        return torch.cat(parts)

    def _uniform(self, *size: int) -> Tensor:
        return torch.rand(*size, device=self._device, generator=self._generator)

    def _normal(self, *size: int) -> Tensor:
        numbers = torch.empty(size, dtype=torch.bfloat16, device=self._device)
        return numbers.normal_(generator=self._generator)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """What a layer computed; the gradients of the weights expert by expert."""

    y_TD: Tensor
    dx_TD: Tensor
    dgates_TK: Tensor
    split: Split


@dataclass
class Distance:
    """Relative L2 of something compared in parts."""

    difference: Tensor | float = 0.0  # sums of squares, on the device until they are asked for
    norm: Tensor | float = 0.0

    def add(self, got: Tensor, want: Tensor) -> None:
        self.difference += (got.double() - want).square().sum()
        self.norm += want.square().sum()

    @property
    def value(self) -> float:
        difference, norm = float(self.difference), float(self.norm)
        return (difference / norm if norm else difference) ** 0.5


@dataclass
class _Errors:
    by_output: dict[str, Distance] = field(default_factory=dict)

    def add(self, name: str, got: Tensor, want: Tensor) -> None:
        self.by_output.setdefault(name, Distance()).add(got, want)


def layer_errors(
    inputs: Inputs, weights: Weights, outputs: dict[str, Outputs]
) -> dict[str, dict[str, float]]:
    """Relative L2 of everything each layer computed, against fp64 of the same bf16 inputs."""
    errors = {name: _Errors() for name in outputs}
    x_TD, dy_TD, gates_N = inputs.x_TD, inputs.dy_TD, inputs.gates_TK.flatten()
    y_TD, dx_TD = (torch.zeros_like(x_TD, dtype=torch.float64) for _ in range(2))
    dgates_N = torch.zeros_like(gates_N, dtype=torch.float64)
    top_k = inputs.ids_TK.shape[1]
    for expert, choices in segments(inputs.ids_TK, len(weights.w2_EFD)):
        tokens, gate = choices // top_k, gates_N[choices, None].double()
        x, dy = x_TD[tokens].double(), dy_TD[tokens].double()
        w1, w3, w2 = (w[expert].double() for w in (weights.w1_EDF, weights.w3_EDF, weights.w2_EFD))
        h = torch.cat((x @ w1, x @ w3), dim=-1)
        a, da = swiglu(h), dy @ w2.mT
        y_TD.index_add_(0, tokens, gate * (a @ w2))
        dh1, dh3 = swiglu_grad(h, gate * da).chunk(2, dim=-1)
        dx_TD.index_add_(0, tokens, dh1 @ w1.mT + dh3 @ w3.mT)
        dgates_N[choices] = (da * a).sum(dim=-1)
        wanted = (x.mT @ dh1, x.mT @ dh3, (gate * a).mT @ dy)
        for name, output in outputs.items():
            for what, got, want in zip(
                ("dw1", "dw3", "dw2"), output.split(expert), wanted, strict=True
            ):
                errors[name].add(what, got, want)
    for name, output in outputs.items():
        errors[name].add("y", output.y_TD, y_TD)
        errors[name].add("dx", output.dx_TD, dx_TD)
        errors[name].add("dgates", output.dgates_TK.flatten(), dgates_N)
    return {
        name: {what: each.value for what, each in found.by_output.items()}
        for name, found in errors.items()
    }


def segments(ids_TK: Tensor, num_experts: int) -> Iterator[tuple[int, Tensor]]:
    """Of every expert its choices, ascending, empty ones included."""
    ids_N, choice_N = ids_TK.flatten().sort(stable=True)
    counts = torch.bincount(ids_N, minlength=num_experts).tolist()
    yield from enumerate(choice_N.split(counts))


def swiglu(h: Tensor) -> Tensor:
    """silu(h1) * h3 of h1 beside h3."""
    h1, h3 = h.chunk(2, dim=-1)
    return functional.silu(h1) * h3


def swiglu_grad(h: Tensor, da: Tensor) -> Tensor:
    """dh1 beside dh3."""
    h1, h3 = h.chunk(2, dim=-1)
    s = torch.sigmoid(h1)
    return torch.cat((da * h3 * (s + h1 * s * (1 - s)), da * h1 * s), dim=-1)


def some_experts(ids_TK: Tensor, num_experts: int, *, count: int = 8) -> Sequence[int]:
    """Experts spread over all, the busiest and the idlest among them."""
    loads_E = torch.bincount(ids_TK.flatten(), minlength=num_experts)
    spread = torch.linspace(0, num_experts - 1, min(count, num_experts)).long().tolist()
    return sorted({*spread, int(loads_E.argmax()), int(loads_E.argmin())})
