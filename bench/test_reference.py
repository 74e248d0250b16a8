"""Price of the reference operations at the shapes of the pocket preset, one thread."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from nmoe import ops
from nmoe.expert_layout import Rows, pack

TOKENS, DIM, HIDDEN, EXPERTS, TOP_K = 1024, 64, 64, 8, 2
LAYER: dict[str, Any] = {"activation": "swiglu", "impl": "reference"}


class Layer(NamedTuple):
    """What the operations of one layer take, fp32."""

    ids_TK: Tensor
    gates_TK: Tensor
    x_TD: Tensor
    dy_TD: Tensor
    w13_eDG: Tensor
    w2_eFD: Tensor
    rows: Rows


@pytest.fixture(autouse=True)
def _repeatable():
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture
def layer() -> Layer:
    ids_TK = torch.rand(TOKENS, EXPERTS).argsort(dim=1)[:, :TOP_K]
    gates_TK = torch.rand(TOKENS, TOP_K)
    w1_eDF, w3_eDF = torch.randn(2, EXPERTS, DIM, HIDDEN) / DIM**0.5
    return Layer(
        ids_TK=ids_TK,
        gates_TK=gates_TK,
        x_TD=torch.randn(TOKENS, DIM),
        dy_TD=torch.randn(TOKENS, DIM),
        w13_eDG=pack(w1_eDF, w3_eDF),
        w2_eFD=torch.randn(EXPERTS, HIDDEN, DIM) / HIDDEN**0.5,
        rows=ops.sort_rows(ids_TK, gates_TK, range(EXPERTS), impl="reference"),
    )


def test_route(benchmark):
    logits_TE, bias_E = torch.randn(TOKENS, EXPERTS), torch.zeros(EXPERTS)
    benchmark(ops.route, logits_TE, bias_E, top_k=TOP_K, impl="reference")


def test_sort_rows(benchmark, layer):
    local = range(EXPERTS)
    rows = benchmark(ops.sort_rows, layer.ids_TK, layer.gates_TK, local, impl="reference")
    assert len(rows.slot_R) == TOKENS * TOP_K


def test_up(benchmark, layer):
    benchmark(ops.up, layer.x_TD, layer.w13_eDG, layer.rows, **LAYER)


def test_down(benchmark, layer):
    _, a_RF = ops.up(layer.x_TD, layer.w13_eDG, layer.rows, **LAYER)
    benchmark(ops.down, a_RF, layer.w2_eFD, layer.rows, impl="reference")


def test_down_grad(benchmark, layer):
    h_RG, _ = ops.up(layer.x_TD, layer.w13_eDG, layer.rows, **LAYER)
    benchmark(ops.down_grad, layer.dy_TD, layer.w2_eFD, h_RG, layer.rows, **LAYER)


@pytest.mark.parametrize("weight", ["w13", "w2"])
def test_weight_grad(benchmark, layer, weight):
    h_RG, a_RF = ops.up(layer.x_TD, layer.w13_eDG, layer.rows, **LAYER)
    operands, out, gathered = {
        "w13": ((layer.x_TD, h_RG), torch.empty_like(layer.w13_eDG), "left"),
        "w2": ((a_RF, layer.dy_TD), torch.empty_like(layer.w2_eFD), "right"),
    }[weight]
    benchmark(ops.weight_grad, *operands, layer.rows, out, gathered=gathered, impl="reference")


def test_up_grad(benchmark, layer):
    h_RG, _ = ops.up(layer.x_TD, layer.w13_eDG, layer.rows, **LAYER)
    benchmark(ops.up_grad, h_RG, layer.w13_eDG, layer.rows, impl="reference")


def test_combine(benchmark, layer):
    y_RD = torch.randn(TOKENS * TOP_K, DIM)
    benchmark(ops.combine, y_RD, layer.rows.row_NK, impl="reference")


def test_gate_grads(benchmark, layer):
    dgate_1R = torch.randn(1, TOKENS * TOP_K)
    benchmark(ops.gate_grads, dgate_1R, layer.rows.row_NK, impl="reference")
