"""Every kernel and its peer do the same work, with padding between segments and without."""

import pytest
import torch

from bench.kernels import KERNELS, Kernel, Stage
from bench.problem import Source
from bench.shapes import TINY
from nmoe import ops
from nmoe.expert_layout import capacity
from nmoe.reference.sort import sort_rows


@pytest.fixture(scope="module", params=[1, 16])
def stage(request) -> Stage:
    """Inputs whose segments start at multiples of the parameter; padding holds garbage."""

    def padded(ids_TK, gates_TK, local, *, impl):
        num_rows = capacity(ids_TK.numel(), len(local), tile=request.param)
        rows = sort_rows(
            ids_TK,
            gates_TK,
            first_expert=0,
            num_experts=len(local),
            tile=request.param,
            num_rows=num_rows,
        )
        garbage = torch.ones(num_rows, dtype=torch.bool)
        garbage[rows.row_NK.flatten().long()] = False
        rows.slot_R[garbage], rows.gate_R[garbage] = 77, torch.nan
        return rows

    source = Source(TINY[1], device="cpu")
    weights = source.weights()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "sort_rows", padded)
        made = Stage(
            shape=TINY[1],
            impl="reference",
            inputs=source.draw(),
            weights=weights,
            dw13=torch.full_like(weights.w13_EDG, torch.nan),
            dw2=torch.full_like(weights.w2_EFD, torch.nan),
        )
        made.sort = lambda: made.rows
    return made


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_kernel_and_peer_are_near_fp64(kernel: Kernel, stage: Stage):
    ours = kernel.errors(stage, kernel.normal(stage, kernel.ours(stage)))
    peer = kernel.errors(stage, kernel.peer(stage))
    assert ours
    assert peer.keys() <= ours.keys()
    assert max(ours.values()) < 0.004
    assert max(peer.values()) < 0.01


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_every_output_is_compared(kernel: Kernel, stage: Stage):
    result = kernel.ours(stage)
    for name, value in result.items():
        wrong = kernel.normal(stage, {**result, name: value + 10})
        assert kernel.errors(stage, wrong)[name] > 0.01


def test_work_of_the_products_is_that_of_the_layer(stage: Stage):
    shape = stage.shape
    work = {kernel.name: kernel.work(shape) for kernel in KERNELS if kernel.unit == "TFLOP/s"}
    assert work["up"] + work["down"] == shape.flops("forward")
    assert sum(work.values()) == shape.flops("forward + backward")
