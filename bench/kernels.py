"""Every kernel of the layer by itself, beside plain torch that does the same.

The rows of the peers are packed without padding, their columns W1's beside W3's; a `Stage` holds
the same inputs in both forms.

Legend: T tokens, N choices, D model, F expert hidden, G = 2F, E experts, K top-k, R rows.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.problem import Distance, Inputs, Weights, some_experts, swiglu, swiglu_grad
from bench.shapes import ACTIVATION, Shape
from nmoe import ops
from nmoe.config import Impl
from nmoe.expert_layout import Rows, unpack
from nmoe.reference import sort as reference_sort

CHECKED_TOKENS = 4096

Result = dict[str, Tensor]
Wanted = Iterator[tuple[str, Any, Tensor]]  # output, index into it, fp64


@dataclass(kw_only=True)
class Stage:
    """Fresh inputs of every kernel, each made by the kernels before it."""

    shape: Shape
    impl: Impl
    inputs: Inputs
    weights: Weights
    dw13: Tensor  # where weight gradients go
    dw2: Tensor

    def __post_init__(self) -> None:
        inputs, weights, impl = self.inputs, self.weights, self.impl
        rows = self.rows = self.sort()
        self.h, self.a = ops.up(
            inputs.x_TD, weights.w13_EDG, rows, activation=ACTIVATION, impl=impl
        )
        self.y = ops.down(self.a, weights.w2_EFD, rows, impl=impl)
        self.dh, self.dgate = ops.down_grad(
            inputs.dy_TD, weights.w2_EFD, self.h, rows, activation=ACTIVATION, impl=impl
        )
        self.ids_N, self.choice_N = inputs.ids_TK.flatten().sort(stable=True)
        self.token_N = self.choice_N // self.shape.top_k
        self.ends_E = ends(self.ids_N, self.shape.num_experts)
        self.place_N = torch.empty_like(self.choice_N)  # choice -> packed row
        self.place_N[self.choice_N] = torch.arange(len(self.place_N), device=self.place_N.device)
        self.gate_N = inputs.gates_TK.flatten()[self.choice_N]
        self.real_N = rows.row_NK.flatten()[self.choice_N].long()
        self.p_h, self.p_dh = (beside(each[self.real_N]) for each in (self.h, self.dh))
        self.p_a, self.p_y = (each[self.real_N] for each in (self.a, self.y))

    def sort(self) -> Rows:
        ids, gates = self.inputs.ids_TK, self.inputs.gates_TK
        return ops.sort_rows(ids, gates, range(self.shape.num_experts), impl=self.impl)

    def segments(self) -> Iterator[tuple[int, slice]]:
        """Some experts with the places of their packed rows."""
        bounds = [0, *self.ends_E.tolist()]
        for expert in some_experts(self.inputs.ids_TK, self.shape.num_experts):
            yield expert, slice(bounds[expert], bounds[expert + 1])

    def some_tokens(self) -> Tensor:
        last = self.shape.tokens - 1
        spread = torch.linspace(0, last, min(CHECKED_TOKENS, last + 1))
        return spread.long().to(self.token_N.device)


def beside(tensor: Tensor) -> Tensor:
    """W1's columns beside W3's, of columns as nmoe lays them."""
    left, right = unpack(tensor, activation=ACTIVATION)
    return left if right is None else torch.cat((left, right), dim=-1)


def ends(ids_N: Tensor, num_experts: int) -> Tensor:
    """One past the last row of every expert, int32; the host does not wait."""
    experts_E = torch.arange(num_experts, device=ids_N.device)
    return torch.searchsorted(ids_N, experts_E, right=True, out_int32=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """What is timed, the peer that does the same, and how to tell whether either is right.

    work: FLOPs, or the fewest bytes, of a run; ours, peer: one run; normal: our result in the form
    of the peer's; wanted: parts of that in fp64.
    """

    name: str
    unit: str
    work: Callable[[Shape], float]
    ours: Callable[[Stage], Result]
    peer: Callable[[Stage], Result]
    normal: Callable[[Stage, Result], Result]
    wanted: Callable[[Stage], Wanted]
    is_exact: bool = False  # integers and copies: no error is allowed

    def errors(self, stage: Stage, result: Result) -> dict[str, float]:
        """Relative L2 by output."""
        found: dict[str, Distance] = {}
        for name, index, want in self.wanted(stage):
            if name in result:
                found.setdefault(name, Distance()).add(result[name][index], want)
        return {name: each.value for name, each in found.items()}


def _product(matrices: int) -> Callable[[Shape], float]:
    """FLOPs of every row times a [D, F] matrix, so many times."""
    return lambda shape: 2.0 * matrices * shape.choices * shape.dim * shape.hidden


def _packed(stage: Stage, result: Result) -> Result:
    return {name: rows[stage.real_N] for name, rows in result.items()}


def _same(_: Stage, result: Result) -> Result:
    return result


def _sort(stage: Stage) -> Result:
    rows = stage.sort()
    return {
        "slot": rows.slot_R,
        "gate": rows.gate_R,
        "row": rows.row_NK,
        "start": rows.start_e,
        "end": rows.end_e,
        "expert": rows.expert_of_tile,
    }


def _sort_peer(stage: Stage) -> Result:
    ids_N, choice_N = stage.inputs.ids_TK.flatten().sort(stable=True)
    end = ends(ids_N, stage.shape.num_experts)
    place_N = torch.empty_like(choice_N)
    place_N[choice_N] = torch.arange(len(choice_N), device=choice_N.device)
    gate = stage.inputs.gates_TK.flatten()[choice_N]
    return {"slot": choice_N // stage.shape.top_k, "gate": gate, "place": place_N, "ends": end}


def _sort_normal(stage: Stage, result: Result) -> Result:
    rows = {name: result[name][stage.real_N] for name in ("slot", "gate")}
    return {**result, **rows}


def _sort_wanted(stage: Stage) -> Wanted:
    """The specification's rows; anything but 0 is a wrong row."""
    rows = reference_sort.sort_rows(
        stage.inputs.ids_TK,
        stage.inputs.gates_TK,
        first_expert=0,
        num_experts=stage.shape.num_experts,
        tile=stage.rows.tile,
    )
    real_N = rows.row_NK.flatten()[stage.choice_N].long()
    yield "slot", slice(None), rows.slot_R[real_N].double()
    yield "gate", slice(None), rows.gate_R[real_N].double()
    yield "row", slice(None), rows.row_NK.double()
    yield "start", slice(None), rows.start_e.double()
    yield "end", slice(None), rows.end_e.double()
    yield "expert", slice(len(rows.expert_of_tile)), rows.expert_of_tile.double()


# ---------------------------------------------------------------------- products of rows


def _up(stage: Stage) -> Result:
    x, w13 = stage.inputs.x_TD, stage.weights.w13_EDG
    h, a = ops.up(x, w13, stage.rows, activation=ACTIVATION, impl=stage.impl)
    return {"h": h, "a": a}


def _up_peer(stage: Stage) -> Result:
    x = stage.inputs.x_TD.index_select(0, stage.token_N)
    h = torch._grouped_mm(x, stage.weights.beside_EDG, offs=stage.ends_E)
    return {"h": h, "a": stage.gate_N.to(h.dtype)[:, None] * swiglu(h)}


def _up_normal(stage: Stage, result: Result) -> Result:
    packed = _packed(stage, result)
    return {**packed, "h": beside(packed["h"])}


def _up_wanted(stage: Stage) -> Wanted:
    for expert, at in stage.segments():
        x = stage.inputs.x_TD[stage.token_N[at]].double()
        h = x @ stage.weights.beside_EDG[expert].double()
        yield "h", at, h
        yield "a", at, stage.gate_N[at, None].double() * swiglu(h)


def _down(stage: Stage) -> Result:
    return {"y": ops.down(stage.a, stage.weights.w2_EFD, stage.rows, impl=stage.impl)}


def _down_peer(stage: Stage) -> Result:
    return {"y": torch._grouped_mm(stage.p_a, stage.weights.w2_EFD, offs=stage.ends_E)}


def _down_wanted(stage: Stage) -> Wanted:
    for expert, at in stage.segments():
        yield "y", at, stage.p_a[at].double() @ stage.weights.w2_EFD[expert].double()


def _down_grad(stage: Stage) -> Result:
    dh, dgate = ops.down_grad(
        stage.inputs.dy_TD,
        stage.weights.w2_EFD,
        stage.h,
        stage.rows,
        activation=ACTIVATION,
        impl=stage.impl,
    )
    return {"dh": dh, "dgate": dgate}


def _down_grad_peer(stage: Stage) -> Result:
    dy = stage.inputs.dy_TD.index_select(0, stage.token_N)
    da = torch._grouped_mm(dy, stage.weights.w2_EFD.mT, offs=stage.ends_E)
    a, gate = swiglu(stage.p_h), stage.gate_N.to(da.dtype)[:, None]
    dh = swiglu_grad(stage.p_h, gate * da)
    return {"dh": dh, "dgate": (da * a).sum(dim=1)}


def _down_grad_normal(stage: Stage, result: Result) -> Result:
    dgate_R = result["dgate"].sum(dim=0)
    return {"dh": beside(result["dh"][stage.real_N]), "dgate": dgate_R[stage.real_N]}


def _down_grad_wanted(stage: Stage) -> Wanted:
    for expert, at in stage.segments():
        dy = stage.inputs.dy_TD[stage.token_N[at]].double()
        da, h = dy @ stage.weights.w2_EFD[expert].double().mT, stage.p_h[at].double()
        a, gate = swiglu(h), stage.gate_N[at, None].double()
        yield "dh", at, swiglu_grad(h, gate * da)
        yield "dgate", at, (da * a).sum(dim=1)


def _up_grad(stage: Stage) -> Result:
    return {"dx": ops.up_grad(stage.dh, stage.weights.w13_EDG, stage.rows, impl=stage.impl)}


def _up_grad_peer(stage: Stage) -> Result:
    w13 = stage.weights.beside_EDG.mT
    return {"dx": torch._grouped_mm(stage.p_dh, w13, offs=stage.ends_E)}


def _up_grad_wanted(stage: Stage) -> Wanted:
    for expert, at in stage.segments():
        yield "dx", at, stage.p_dh[at].double() @ stage.weights.beside_EDG[expert].double().mT


# ------------------------------------------------------------------- gradients of weights


def _dw2(stage: Stage) -> Result:
    dy, rows = stage.inputs.dy_TD, stage.rows
    ops.weight_grad(stage.a, dy, rows, stage.dw2, gathered="right", impl=stage.impl)
    return {"dw2": stage.dw2}


def _dw2_peer(stage: Stage) -> Result:
    dy = stage.inputs.dy_TD.index_select(0, stage.token_N)
    return {"dw2": torch._grouped_mm(stage.p_a.mT, dy, offs=stage.ends_E)}


def _dw2_wanted(stage: Stage) -> Wanted:
    for expert, at in stage.segments():
        dy = stage.inputs.dy_TD[stage.token_N[at]].double()
        yield "dw2", expert, stage.p_a[at].double().mT @ dy


def _dw13(stage: Stage) -> Result:
    x, rows = stage.inputs.x_TD, stage.rows
    ops.weight_grad(x, stage.dh, rows, stage.dw13, gathered="left", impl=stage.impl)
    return {"dw13": stage.dw13}


def _dw13_peer(stage: Stage) -> Result:
    x = stage.inputs.x_TD.index_select(0, stage.token_N)
    return {"dw13": torch._grouped_mm(x.mT, stage.p_dh, offs=stage.ends_E)}


def _dw13_wanted(stage: Stage) -> Wanted:
    for expert, at in stage.segments():
        x = stage.inputs.x_TD[stage.token_N[at]].double()
        yield "dw13", expert, x.mT @ stage.p_dh[at].double()


# ------------------------------------------------------------------------- sums of tokens


def _combine(stage: Stage) -> Result:
    return {"y": ops.combine(stage.y, stage.rows.row_NK, impl=stage.impl)}


def _combine_peer(stage: Stage) -> Result:
    return {"y": torch.zeros_like(stage.inputs.x_TD).index_add(0, stage.token_N, stage.p_y)}


def _combine_wanted(stage: Stage) -> Wanted:
    tokens = stage.some_tokens()
    rows_tK = stage.place_N.view(stage.shape.tokens, -1)[tokens]
    yield "y", tokens, stage.p_y[rows_tK].double().sum(dim=1)


def _gate_grads(stage: Stage) -> Result:
    return {"dgates": ops.gate_grads(stage.dgate, stage.rows.row_NK, impl=stage.impl)}


def _gate_grads_peer(stage: Stage) -> Result:
    return {"dgates": stage.dgate.sum(dim=0)[stage.rows.row_NK]}


def _gate_grads_wanted(stage: Stage) -> Wanted:
    tokens = stage.some_tokens()
    rows = stage.rows.row_NK[tokens].long()
    yield "dgates", tokens, stage.dgate[:, rows].double().sum(dim=0)


def _combine_bytes(shape: Shape) -> float:
    """A bf16 row and its index a choice read, a bf16 row a token written."""
    return 2.0 * shape.dim * (shape.choices + shape.tokens) + 4.0 * shape.choices


FLOPS, BYTES = "TFLOP/s", "GB/s"
KERNELS = (
    # int64 id and fp32 gate in; slot, gate and row out
    Kernel(
        name="sort", unit=BYTES, work=lambda shape: 24.0 * shape.choices,
        ours=_sort, peer=_sort_peer, normal=_sort_normal, wanted=_sort_wanted,
        is_exact=True,
    ),
    Kernel(
        name="up", unit=FLOPS, work=_product(2),
        ours=_up, peer=_up_peer, normal=_up_normal, wanted=_up_wanted,
    ),
    Kernel(
        name="down", unit=FLOPS, work=_product(1),
        ours=_down, peer=_down_peer, normal=_packed, wanted=_down_wanted,
    ),
    Kernel(
        name="combine", unit=BYTES, work=_combine_bytes,
        ours=_combine, peer=_combine_peer, normal=_same, wanted=_combine_wanted,
    ),
    Kernel(
        name="down_grad", unit=FLOPS, work=_product(1),
        ours=_down_grad, peer=_down_grad_peer, normal=_down_grad_normal, wanted=_down_grad_wanted,
    ),
    Kernel(
        name="weight_grad dw2", unit=FLOPS, work=_product(1), ours=_dw2, peer=_dw2_peer,
        normal=_same, wanted=_dw2_wanted,
    ),
    Kernel(
        name="weight_grad dw13", unit=FLOPS, work=_product(2), ours=_dw13, peer=_dw13_peer,
        normal=lambda _, result: {"dw13": beside(result["dw13"])}, wanted=_dw13_wanted,
    ),
    Kernel(
        name="up_grad", unit=FLOPS, work=_product(2),
        ours=_up_grad, peer=_up_grad_peer, normal=_packed, wanted=_up_grad_wanted,
    ),
    # at least one fp32 part and its row in, one gradient out
    Kernel(
        name="gate_grads", unit=BYTES, work=lambda shape: 12.0 * shape.choices,
        ours=_gate_grads, peer=_gate_grads_peer, normal=_same, wanted=_gate_grads_wanted,
    ),
)  # fmt: skip
