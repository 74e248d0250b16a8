"""The whole model on kernels: loss and all gradients against the reference in fp32."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nmoe.config import Activation, Config, Impl, read_config
from nmoe.model import Transformer, init_weights
from nmoe.rdep import open_transport
from tests import tiny
from tests.kernels.cases import ACTIVATIONS, error

BATCH, SEQ, VOCABULARY = 2, 24, 257


def make_config(folder: Path, activation: Activation) -> Config:
    """Two layers, one of them dense, at narrow widths; every token goes to all experts.

    So no choice is a close call that rounding decides, for one implementation only.
    """
    config = read_config(tiny.write_config(folder))
    experts = replace(
        config.experts,
        num_experts=4,
        top_k=4,
        hidden=64,
        num_shared=1,
        num_dense_layers=1,
        activation=activation,
    )
    return replace(
        config,
        model=replace(config.model, dim=128, num_heads=2, dense_hidden=128),
        experts=experts,
        train=replace(config.train, seq_len=SEQ),
    )


def gradients(
    config: Config, impl: Impl, dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """What two micro-batches give: the loss, and the gradient of every parameter."""
    config = replace(config, model=replace(config.model, impl=impl))
    transport = open_transport(
        rank=0,
        world=1,
        num_experts=config.experts.num_experts,
        top_k=config.experts.top_k,
        dim=config.model.dim,
        max_tokens=BATCH * SEQ,
        num_layers=1,
        dtype=dtype,
        device=device,
        impl=impl,
    )
    with device:
        model = Transformer(config, transport, vocab_size=VOCABULARY, dtype=dtype)
    init_weights(model, seed=3)
    generator = torch.Generator().manual_seed(4)
    for parameter in model.parameters():  # those that start at zero too
        if parameter.ndim > 1 and not parameter.any():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_(drawn * parameter.shape[-1] ** -0.5)
    for _, layer in model.moe_layers():
        layer.experts.refresh()
    loss = torch.zeros((), device=device)
    for _ in range(2):
        windows = torch.randint(VOCABULARY, (BATCH, SEQ + 1), generator=generator).to(device)
        nats, _, aux = model.nats(windows)
        loss = loss + nats.detach() / (BATCH * SEQ)
        (nats / (BATCH * SEQ) + 1e-3 * aux).backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(found) == len(list(model.parameters()))
    return {"loss": loss} | found


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_model_on_kernels_is_no_worse_than_its_reference_in_bf16(
    activation: Activation, device: torch.device, tmp_path: Path
) -> None:
    config = make_config(tmp_path, activation)
    exact = gradients(config, "reference", torch.float32, device)
    plain = gradients(config, "reference", torch.bfloat16, device)
    got = gradients(config, "triton", torch.bfloat16, device)
    for name, want in exact.items():
        assert error(got[name], want) <= 1.25 * error(plain[name], want) + 1e-3, name
