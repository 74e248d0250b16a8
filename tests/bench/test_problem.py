"""Inputs are new every time; the distance from fp64 sees whatever is wrong."""

from dataclasses import replace

import pytest
import torch

from bench.host_syncs import waits
from bench.layers import EAGER, Layer, entrants
from bench.problem import Outputs, Source, layer_errors
from bench.rows import OURS
from bench.shapes import TINY, Shape

OUTPUTS = {"y", "dx", "dgates", "dw1", "dw3", "dw2"}


@pytest.mark.parametrize("shape", TINY, ids=lambda shape: shape.name)
def test_every_draw_is_new_and_every_token_has_distinct_experts(shape: Shape):
    source = Source(shape, device="cpu")
    first, second = source.draw(), source.draw()
    assert first.ids_TK.shape == (shape.tokens, shape.top_k)
    assert not torch.equal(first.ids_TK, second.ids_TK)
    assert not torch.equal(first.x_TD, second.x_TD)
    ordered = first.ids_TK.sort(dim=1).values
    assert bool((ordered[:, 1:] > ordered[:, :-1]).all())
    assert int(ordered.min()) >= 0
    assert int(ordered.max()) < shape.num_experts


def test_popularity_follows_zipf():
    shape = replace(TINY[1], tokens=4096, top_k=1)
    counts = Source(shape, device="cpu").draw().ids_TK.flatten().bincount()
    assert counts[0] / counts[3] == pytest.approx(4**shape.zipf, rel=0.2)


@pytest.fixture(scope="module")
def solved() -> tuple[Source, dict[str, Layer], dict[str, Outputs]]:
    """Both layers of a CPU after one run on the same inputs."""
    source = Source(TINY[1], device="cpu", seed=3)
    weights, inputs = source.weights(), source.draw()
    layers, absent = entrants(TINY[1], weights, inputs, device="cpu")
    assert set(absent.values()) == {"measured on GPUs only"}
    for layer in layers.values():
        layer.load(inputs)
        layer.forward()
        layer.backward()
    return layer_errors(inputs, weights, {n: each.outputs() for n, each in layers.items()}), (
        inputs,
        weights,
        layers[OURS].outputs(),
    )


def test_layers_are_as_near_to_fp64_as_bf16_allows(solved):
    errors, _ = solved
    assert set(errors) == {OURS, EAGER}
    assert set(errors[OURS]) == OUTPUTS
    assert all(0 < error < 0.02 for each in errors.values() for error in each.values())
    assert max(errors[OURS].values()) <= max(errors[EAGER].values())


def test_distance_is_large_when_an_output_is_wrong(solved):
    _, (inputs, weights, right) = solved

    def of(**changes) -> dict[str, float]:
        return layer_errors(inputs, weights, {"x": replace(right, **changes)})["x"]

    assert of(y_TD=right.y_TD.flip(0))["y"] > 1
    assert of(dgates_TK=right.dgates_TK * 2)["dgates"] == pytest.approx(1, rel=0.01)
    assert of(dx_TD=right.dx_TD * torch.nan)["dx"] != of(dx_TD=right.dx_TD)["dx"]
    swapped = of(split=lambda expert: tuple(right.split(expert)[at] for at in (1, 0, 2)))
    assert min(swapped["dw1"], swapped["dw3"]) > 0.5 > swapped["dw2"]


def test_waits_are_synchronisations_and_blocking_copies():
    free = ["cudaLaunchKernel", "cuLaunchKernelEx", "cudaMemcpyAsync", "cudaStreamWaitEvent"]
    held = ["cudaStreamSynchronize", "cudaDeviceSynchronize", "cuEventSynchronize", "cudaMemcpy"]
    free += ["cudaMemsetAsync", "cuMemcpyDtoHAsync_v2", "aten::item", "cudaEventRecord"]
    held += ["cuMemcpyDtoH_v2", "cudaEventSynchronize"]
    assert sorted(waits(free + held)) == sorted(held)
