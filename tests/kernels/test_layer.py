"""The experts' layer on kernels, forward and backward: error, repeats, graphs, no host waits."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nmoe.config import read_config
from nmoe.expert_layout import pack
from nmoe.moe import Experts
from nmoe.rdep.single import Single
from tests import tiny
from tests.kernels.cases import (
    ACTIVATIONS,
    SKEWS,
    Problem,
    assert_no_worse,
    make_problem,
    plain_layer,
    poisoned,
)

SEEDS = range(24)  # every activation with every skew twice


def make_layer(problem: Problem, folder: Path) -> Experts:
    """The layer as the trainer builds it: fp32 weights, bf16 rows, one rank."""
    config = read_config(tiny.write_config(folder))
    num_experts, dim, hidden = problem.w1_EDF.shape
    config = replace(
        config,
        model=replace(config.model, dim=dim, impl="triton"),
        experts=replace(
            config.experts,
            num_experts=num_experts,
            hidden=hidden,
            top_k=problem.experts_TK.shape[1],
            activation=problem.activation,
        ),
    )
    transport = Single(num_experts=num_experts, dtype=torch.bfloat16, impl="triton")
    layer = Experts(config, transport, layer=0, dtype=torch.bfloat16).to(problem.x_TD.device)
    with torch.no_grad():
        layer.w13_eDG.copy_(pack(problem.w1_EDF, problem.w3_EDF))
        layer.w2_eFD.copy_(problem.w2_EFD)
    layer.refresh()
    return layer


def run(layer: Experts, problem: Problem) -> tuple[Tensor, ...]:
    """(y, dx, dgates, dw13, dw2), as `plain_layer` gives them."""
    x_TD, gates_TK = (each.detach().requires_grad_() for each in (problem.x_TD, problem.gates_TK))
    y_TD = layer(x_TD, problem.experts_TK, gates_TK)
    leaves = (x_TD, gates_TK, layer.w13_eDG, layer.w2_eFD)
    return y_TD.detach(), *torch.autograd.grad(y_TD, leaves, problem.dy_TD)


def assert_all_no_worse(got: Sequence[Tensor], problem: Problem) -> None:
    plain, exact = plain_layer(problem, torch.bfloat16), plain_layer(problem, torch.float64)
    for each in zip(got, plain, exact, strict=True):
        assert_no_worse(*each)


def assert_same_bits(got: Sequence[Tensor], want: Sequence[Tensor]) -> None:
    for one, other in zip(got, want, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("seed", SEEDS)
def test_layer_is_no_worse_than_plain_bf16_when_routings_are_drawn_at_random(
    seed: int, device: torch.device, tmp_path: Path
) -> None:
    draw = random.Random(seed)
    num_experts = draw.randint(1, 12)
    problem = make_problem(
        draw.randint(1, 130),
        draw.choice([64, 128, 192]),
        draw.choice([64, 128, 192]),
        num_experts,
        draw.randint(1, min(4, num_experts)),
        activation=ACTIVATIONS[seed % len(ACTIVATIONS)],
        skew=SKEWS[seed // len(ACTIVATIONS) % len(SKEWS)],
        device=device,
        seed=seed,
    )
    layer = make_layer(problem, tmp_path)
    with poisoned():
        got = run(layer, problem)
    assert_all_no_worse(got, problem)


@pytest.fixture
def at_speed(device: torch.device, request: pytest.FixtureRequest) -> Problem:
    """A problem of a preset's width; parametrized by (dim, hidden, experts, top-k, skew)."""
    dim, hidden, num_experts, top_k, skew = request.param
    return make_problem(
        2049, dim, hidden, num_experts, top_k, activation="swiglu", skew=skew, device=device
    )


SUPER = (768, 384, 256, 7, "zipf")


@pytest.mark.gpu
@pytest.mark.parametrize(
    "at_speed",
    [SUPER, (768, 384, 256, 7, "same"), (768, 256, 128, 8, "even"), (2048, 768, 128, 8, "zipf")],
    indirect=True,
)
def test_layer_is_no_worse_than_plain_bf16_at_the_widths_of_presets(
    at_speed: Problem, tmp_path: Path
) -> None:
    layer = make_layer(at_speed, tmp_path)
    with poisoned():
        got = run(layer, at_speed)
    assert_all_no_worse(got, at_speed)


@pytest.mark.gpu
@pytest.mark.parametrize("at_speed", [SUPER], indirect=True)
def test_layer_gives_the_same_bits_when_it_runs_again(at_speed: Problem, tmp_path: Path) -> None:
    layer = make_layer(at_speed, tmp_path)
    first = run(layer, at_speed)
    for _ in range(5):
        assert_same_bits(run(layer, at_speed), first)


@pytest.mark.gpu
@pytest.mark.parametrize("at_speed", [SUPER], indirect=True)
def test_layer_never_makes_the_host_wait(at_speed: Problem, tmp_path: Path) -> None:
    layer = make_layer(at_speed, tmp_path)
    want = run(layer, at_speed)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchroniz"):
            at_speed.x_TD.sum().item()  # the check works
        got = run(layer, at_speed)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_same_bits(got, want)


@pytest.mark.gpu
@pytest.mark.parametrize("at_speed", [SUPER], indirect=True)
def test_layer_replays_from_a_graph_bit_for_bit(at_speed: Problem, tmp_path: Path) -> None:
    layer = make_layer(at_speed, tmp_path)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run(layer, at_speed)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(layer, at_speed)
    other = at_speed._replace(
        x_TD=at_speed.x_TD.flip(0),
        dy_TD=at_speed.dy_TD.flip(1),
        experts_TK=(at_speed.experts_TK + 5) % at_speed.num_experts,
        gates_TK=at_speed.gates_TK.flip(0),
    )
    for inputs in (at_speed._replace(x_TD=at_speed.x_TD.clone()), other):
        want = run(layer, inputs)
        for name in ("x_TD", "dy_TD", "experts_TK", "gates_TK"):
            getattr(at_speed, name).copy_(getattr(inputs, name))
        for _ in range(2):
            graph.replay()
            assert_same_bits(out, want)
