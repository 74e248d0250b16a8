"""The transformer against its formulas, bit for bit on the reference path."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nmoe.config import Config, read_config
from nmoe.layers import RMSNorm
from nmoe.model import Transformer, init_weights
from nmoe.rdep import open_transport
from tests import tiny


def make_model(config: Config, *, dtype: torch.dtype) -> Transformer:
    """Every weight differs from its start, so that all of them have gradients."""
    transport = open_transport(
        rank=0,
        world=1,
        num_experts=config.experts.num_experts,
        top_k=config.experts.top_k,
        dim=config.model.dim,
        max_tokens=1024,
        num_layers=config.model.num_layers,
        dtype=dtype,
        device="cpu",
        impl=config.model.impl,
    )
    model = Transformer(config, transport, vocab_size=257, dtype=dtype)
    init_weights(model, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    for _, layer in model.moe_layers():
        layer.experts.refresh()
    return model


def normed(x: Tensor, norm: nn.Module) -> Tensor:
    assert isinstance(norm, RMSNorm)
    return F.rms_norm(x, (x.shape[-1],), norm.weight.to(x.dtype), norm.eps)


def written_out(model: Transformer, tokens_BS: Tensor) -> Tensor:
    """The residual stream with every sum where it belongs, and the last norm."""
    x_BSD = model.embedding(tokens_BS).to(model.dtype)
    for block in model.blocks:
        x_BSD = x_BSD + block.attention(normed(x_BSD, block.attention_norm))
        y_BSD = block.ffn(normed(x_BSD, block.ffn_norm))
        x_BSD = x_BSD + (y_BSD[0] if isinstance(y_BSD, tuple) else y_BSD)
    return normed(x_BSD, model.norm)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("num_dense_layers", [0, 1, 2])
def test_model_is_its_written_out_residual_stream_bit_for_bit(
    num_dense_layers: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    config = read_config(tiny.write_config(tmp_path))
    config = replace(config, experts=replace(config.experts, num_dense_layers=num_dense_layers))
    model = make_model(config, dtype=dtype)
    tokens_BS = torch.randint(0, 257, (3, 17), generator=torch.Generator().manual_seed(3))
    results: list[list[Tensor]] = []
    for forward in (model, lambda tokens: (written_out(model, tokens), None)):
        hidden_BSD, _ = forward(tokens_BS)
        names, parameters = zip(*model.named_parameters(), strict=True)
        grads = torch.autograd.grad(hidden_BSD.square().sum(), parameters, allow_unused=True)
        missing = [name for name, grad in zip(names, grads, strict=True) if grad is None]
        assert missing == ["head.weight"]
        results.append([hidden_BSD, *(grad for grad in grads if grad is not None)])
    for got, want in zip(*results, strict=True):
        assert want.any()
        assert torch.equal(got, want)
