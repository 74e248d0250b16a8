"""The expert layer as nmoe computes it and as its peers do: from (x, ids, gates) to y, and back.

Every layer gets the same bf16 weights, sorts the choices itself, and returns the gradients of x,
gates and weights. A peer that cannot be had is a name with the reason.

Legend: T tokens, N choices, D model, F expert hidden, G = 2F, E experts, K top-k.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from bench.problem import Inputs, Outputs, Weights, swiglu
from bench.rows import OURS
from bench.shapes import ACTIVATION, Shape
from bench.timing import FAILURES, reason
from nmoe.config import Impl
from nmoe.expert_layout import unpack
from nmoe.moe import ExpertLayer
from nmoe.rdep import Transport, open_transport

REPLAY = f"{OURS}, graph replay"
EAGER, COMPILED = "torch grouped_mm", "torch grouped_mm, compiled"
GATHERED = "torch grouped_mm, gathered, compiled"
SONIC, LIGER = "SonicMoE", "Liger"

Run = Callable[..., Tensor]  # (x, ids, gates, *weights) -> y
Split = Callable[[tuple[Tensor, ...], int], tuple[Tensor, Tensor, Tensor]]


class Layer:
    """A function of (x, ids, gates, *weights) that autograd runs backward.

    split: of the weights' gradients and an expert its dW1 and dW3 [D, F] and dW2 [F, D].
    """

    def __init__(self, run: Run, weights: tuple[Tensor, ...], split: Split) -> None:
        self._run, self._split = run, split
        self._weights = tuple(weight.detach().requires_grad_() for weight in weights)
        self._y: Tensor | None = None
        self._grads: tuple[Tensor, ...] = ()

    def load(self, inputs: Inputs) -> None:
        """Take the inputs of the next run; what the last one left is let go."""
        self._y, self._grads = None, ()
        self._inputs = inputs
        self._leaves = (
            inputs.x_TD.detach().requires_grad_(),
            inputs.gates_TK.detach().requires_grad_(),
            *self._weights,
        )

    def forward(self) -> None:
        x_TD, gates_TK, *weights = self._leaves
        self._y = self._run(x_TD, self._inputs.ids_TK, gates_TK, *weights)

    def backward(self) -> None:
        assert self._y is not None
        self._grads = torch.autograd.grad(self._y, self._leaves, self._inputs.dy_TD)

    def outputs(self) -> Outputs:
        assert self._y is not None
        dx_TD, dgates_TK, *dweights = self._grads
        return Outputs(
            y_TD=self._y.detach(),
            dx_TD=dx_TD,
            dgates_TK=dgates_TK,
            split=lambda expert: self._split(tuple(dweights), expert),
        )


class Replay(Layer):
    """A layer captured once as two CUDA graphs, forward and backward, and replayed."""

    def __init__(self, layer: Layer, inputs: Inputs) -> None:
        self._split = layer._split
        self._static = Inputs(
            x_TD=inputs.x_TD.clone(),
            ids_TK=inputs.ids_TK.clone(),
            gates_TK=inputs.gates_TK.clone(),
            dy_TD=inputs.dy_TD.clone(),
        )
        layer.load(self._static)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                layer.forward()
                layer.backward()
        torch.cuda.current_stream().wait_stream(side)
        layer.load(self._static)
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._forward):
            layer.forward()
        with torch.cuda.graph(self._backward, pool=self._forward.pool()):
            layer.backward()
        assert layer._y is not None
        self._y, self._grads = layer._y.detach(), layer._grads
        layer.load(inputs)

    def load(self, inputs: Inputs) -> None:
        for name in ("x_TD", "ids_TK", "gates_TK", "dy_TD"):
            getattr(self._static, name).copy_(getattr(inputs, name))

    def forward(self) -> None:
        self._forward.replay()

    def backward(self) -> None:
        self._backward.replay()


@dataclass(frozen=True, slots=True)
class _Owner:
    """What `nmoe.moe.ExpertLayer` asks of the module it serves."""

    transport: Transport
    impl: Impl
    activation: str = ACTIVATION
    layer: int = 0


def ours(weights: Weights, transport: Transport, *, impl: Impl) -> Layer:
    """The autograd function of `nmoe.moe` over any transport; weights of the local experts."""
    experts: Any = _Owner(transport, impl)

    def run(x: Tensor, ids: Tensor, gates: Tensor, w13: Tensor, w2: Tensor) -> Tensor:
        return ExpertLayer.apply(x, ids, gates, w13, w2, w13, w2, experts)

    def split(grads: tuple[Tensor, ...], expert: int) -> tuple[Tensor, Tensor, Tensor]:
        dw1, dw3 = unpack(grads[0][expert], activation=ACTIVATION)
        assert dw3 is not None
        return dw1, dw3, grads[1][expert]

    return Layer(run, (weights.w13_EDG, weights.w2_EFD), split)


def transport_of(
    shape: Shape, *, device: str | torch.device, impl: Impl, rank: int = 0, world: int = 1
) -> Transport:
    """What carries one layer of the shape; one rank unless told."""
    return open_transport(
        rank=rank,
        world=world,
        num_experts=shape.num_experts,
        top_k=shape.top_k,
        dim=shape.dim,
        max_tokens=shape.tokens,
        num_layers=1,
        dtype=torch.bfloat16,
        device=device,
        impl=impl,
    )


def grouped(x_TD: Tensor, ids_TK: Tensor, gates_TK: Tensor, w13: Tensor, w2: Tensor) -> Tensor:
    """Plain bf16 torch: sort, gather, two grouped products, gate, index_add; no host wait."""
    ids_N, choice_N = ids_TK.flatten().sort(stable=True)
    experts_E = torch.arange(len(w2), device=x_TD.device)
    ends_E = torch.searchsorted(ids_N, experts_E, right=True, out_int32=True)
    tokens_N = choice_N // ids_TK.shape[1]
    h = torch._grouped_mm(x_TD.index_select(0, tokens_N), w13, offs=ends_E)
    y = torch._grouped_mm(swiglu(h), w2, offs=ends_E)
    gate_N = gates_TK.flatten().index_select(0, choice_N).to(y.dtype)
    return torch.zeros_like(x_TD).index_add(0, tokens_N, y * gate_N[:, None])


def grouped_and_gathered(
    x_TD: Tensor, ids_TK: Tensor, gates_TK: Tensor, w13: Tensor, w2: Tensor
) -> Tensor:
    """The same with a gather and a sum over choices at the end, which compiles to one kernel."""
    ids_N, choice_N = ids_TK.flatten().sort(stable=True)
    experts_E = torch.arange(len(w2), device=x_TD.device)
    ends_E = torch.searchsorted(ids_N, experts_E, right=True, out_int32=True)
    h = torch._grouped_mm(x_TD.index_select(0, choice_N // ids_TK.shape[1]), w13, offs=ends_E)
    y = torch._grouped_mm(swiglu(h), w2, offs=ends_E)
    place_N = torch.empty_like(choice_N).scatter_(
        0, choice_N, torch.arange(len(choice_N), device=x_TD.device)
    )
    y_TKD = y.index_select(0, place_N).view(*ids_TK.shape, -1)
    return (y_TKD * gates_TK.to(y.dtype)[..., None]).sum(dim=1)


def beside_grads(grads: tuple[Tensor, ...], expert: int) -> tuple[Tensor, Tensor, Tensor]:
    dw1, dw3 = grads[0][expert].chunk(2, dim=-1)
    return dw1, dw3, grads[1][expert]


def eager(weights: Weights) -> Layer:
    return Layer(grouped, (weights.beside_EDG, weights.w2_EFD), beside_grads)


def compiled(weights: Weights, function: Run = grouped) -> Layer:
    """A plain function under torch.compile, for this shape alone."""
    torch._dynamo.reset()
    run = torch.compile(function, fullgraph=True, dynamic=False)
    return Layer(run, (weights.beside_EDG, weights.w2_EFD), beside_grads)


def sonic(weights: Weights) -> Layer:
    """SonicMoE by its entry for routings from outside; w1 [2F, D, E] with gate and up in turn."""
    functional = importlib.import_module("sonicmoe.functional")
    swiglu_type = importlib.import_module("sonicmoe.enums").ActivationType.SWIGLU
    turns = torch.stack((weights.w1_EDF.mT, weights.w3_EDF.mT), dim=2).flatten(1, 2)
    down = weights.w2_EFD.mT.contiguous()

    def run(x: Tensor, ids: Tensor, gates: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
        tokens, top_k = ids.shape
        token_N = torch.arange(tokens, dtype=torch.int32, device=x.device)
        return functional.moe_general_routing_inputs(
            x,
            gates.flatten(),
            token_N.repeat_interleave(top_k, output_size=tokens * top_k),
            ids.flatten().int(),
            w1.permute(1, 2, 0),
            None,
            w2.permute(1, 2, 0),
            None,
            len(w1),
            torch.cuda.current_stream().cuda_stream,
            swiglu_type,
        )[0]

    def split(grads: tuple[Tensor, ...], expert: int) -> tuple[Tensor, Tensor, Tensor]:
        return grads[0][expert, 0::2].mT, grads[0][expert, 1::2].mT, grads[1][expert].mT

    return Layer(run, (turns.contiguous(), down), split)


def liger(weights: Weights) -> Layer:
    """Liger's fused MoE; gate beside up [E, 2F, D], down [E, D, F]."""
    function = importlib.import_module("liger_kernel.ops.fused_moe").LigerFusedMoEFunction
    up, down = weights.beside_EDG.mT.contiguous(), weights.w2_EFD.mT.contiguous()

    def run(x: Tensor, ids: Tensor, gates: Tensor, w13: Tensor, w2: Tensor) -> Tensor:
        return function.apply(x, w13, w2, ids.int(), gates)

    def split(grads: tuple[Tensor, ...], expert: int) -> tuple[Tensor, Tensor, Tensor]:
        dw1, dw3 = grads[0][expert].mT.chunk(2, dim=-1)
        return dw1, dw3, grads[1][expert].mT

    return Layer(run, (up, down), split)


_PEERS: dict[str, tuple[str, Callable[[Weights], Layer]]] = {
    SONIC: ("sonicmoe", sonic),
    LIGER: ("liger_kernel", liger),
}


def entrants(
    shape: Shape, weights: Weights, inputs: Inputs, *, device: str
) -> tuple[dict[str, Layer], dict[str, str]]:
    """All layers that can be had here, and why the others cannot."""
    impl: Impl = "triton" if device == "cuda" else "reference"

    def mine() -> Layer:
        return ours(weights, transport_of(shape, device=device, impl=impl), impl=impl)

    found, absent = {OURS: mine(), EAGER: eager(weights)}, {}
    if device != "cuda":
        return found, dict.fromkeys(
            (REPLAY, COMPILED, GATHERED, SONIC, LIGER), "measured on GPUs only"
        )
    makers: dict[str, Callable[[], Layer]] = {
        REPLAY: lambda: Replay(mine(), inputs),
        COMPILED: lambda: compiled(weights),
        GATHERED: lambda: compiled(weights, grouped_and_gathered),
    }
    for name, (package, make) in _PEERS.items():
        if find_spec(package) is None:
            absent[name] = f"{package} is not installed"
        else:
            makers[name] = partial(make, weights)
    for name, maker in makers.items():
        try:
            found[name] = maker()
        except FAILURES as error:
            absent[name] = reason(error)
    return found, absent
