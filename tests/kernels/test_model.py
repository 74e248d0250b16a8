"""A whole dense model on kernels, forward and backward, beside the reference path's error."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nmoe.config import Impl, read_config
from nmoe.model import Transformer, init_weights
from nmoe.rdep.single import Single
from tests import tiny
from tests.kernels.cases import assert_no_worse


def make_model(folder: Path, *, impl: Impl, dtype: torch.dtype, has_norm: bool) -> Transformer:
    config = read_config(tiny.write_config(folder))
    config = replace(
        config,
        model=replace(config.model, dim=64, dense_hidden=128, impl=impl),
        experts=replace(config.experts, num_experts=0),
        attention=replace(config.attention, qk_norm=has_norm),
    )
    transport = Single(num_experts=0, dtype=dtype, impl=impl)
    model = Transformer(config, transport, vocab_size=257, dtype=dtype)
    init_weights(model, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def run(model: Transformer, windows_BN: Tensor) -> dict[str, Tensor]:
    """Nats of every token, and the gradients of all weights."""
    if model.dtype == torch.float64:
        model.double()
    nats, nats_T, _ = model.nats(windows_BN)
    names, parameters = zip(*model.named_parameters(), strict=True)
    grads = torch.autograd.grad(nats, parameters)
    return {"nats": nats_T.detach(), **dict(zip(names, grads, strict=True))}


@pytest.mark.parametrize("has_norm", [True, False])
def test_model_on_kernels_is_no_worse_than_plain_bf16(
    has_norm: bool, device: torch.device, tmp_path: Path
) -> None:
    windows_BN = torch.randint(0, 257, (3, 24), generator=torch.Generator().manual_seed(3))
    got, plain, exact = (
        run(
            make_model(tmp_path, impl=impl, dtype=dtype, has_norm=has_norm).to(device),
            windows_BN.to(device),
        )
        for impl, dtype in (
            ("triton", torch.bfloat16),
            ("reference", torch.bfloat16),
            ("reference", torch.float64),
        )
    )
    for name in exact:
        assert_no_worse(got[name], plain[name], exact[name])
