"""Price of the reference operations at the shapes of the pocket preset, forward only."""

import pytest
import torch

from nmoe import ops

TOKENS, DIM, HIDDEN, EXPERTS, TOP_K = 1024, 64, 64, 8, 2


@pytest.fixture(autouse=True)
def _repeatable():
    torch.manual_seed(0)
    torch.set_num_threads(1)


def test_route(benchmark):
    logits_TE, bias_E = torch.randn(TOKENS, EXPERTS), torch.zeros(EXPERTS)
    benchmark(ops.route, logits_TE, bias_E, top_k=TOP_K, impl="reference")


def test_experts(benchmark):
    num_rows = TOKENS * TOP_K
    x_RD = torch.randn(num_rows, DIM)
    ends_e = torch.arange(1, EXPERTS + 1) * (num_rows // EXPERTS)
    w1_eDF, w3_eDF = torch.randn(2, EXPERTS, DIM, HIDDEN) / DIM**0.5
    w2_eFD = torch.randn(EXPERTS, HIDDEN, DIM) / HIDDEN**0.5
    benchmark(
        ops.experts,
        x_RD,
        torch.arange(num_rows),
        ends_e,
        (w1_eDF, w2_eFD, w3_eDF),
        activation="swiglu",
        impl="reference",
    )
