"""FLOPs and parameters by hand arithmetic against a count of the real modules."""

from pathlib import Path

import pytest
import torch
from torch import nn

from nmoe import flops
from nmoe.config import read_config
from nmoe.flops import count_parameters, flops_per_token, forward_flops, padded_vocab
from nmoe.model import Transformer
from nmoe.paths import REPO_ROOT
from nmoe.rdep import open_transport
from tests import tiny

VARIANTS = [
    [],
    ["experts.num_dense_layers=1"],
    ["experts.num_experts=0"],
    ["experts.num_shared=0"],
    ["experts.activation=relu_squared", "experts.num_shared=0"],
    ["attention.qk_norm=false"],
]


def build(path: Path, overrides: list[str]) -> tuple[Transformer, object]:
    config = read_config(path, overrides=overrides)
    transport = open_transport(
        rank=0,
        world=1,
        num_experts=max(1, config.experts.num_experts),
        top_k=config.experts.top_k,
        dim=config.model.dim,
        max_tokens=1024,
        num_layers=config.model.num_layers,
        dtype=torch.float32,
        device="cpu",
        impl="reference",
    )
    return Transformer(config, transport, vocab_size=257, dtype=torch.float32), config


@pytest.mark.parametrize("overrides", VARIANTS, ids=str)
def test_parameters_equal_those_of_the_model(tmp_path: Path, overrides: list[str]) -> None:
    model, config = build(tiny.write_config(tmp_path), overrides)
    counted = count_parameters(config, padded_vocab(257))
    assert counted.total == sum(parameter.numel() for parameter in model.parameters())
    experts = [p for name, p in model.named_parameters() if ".experts." in name]
    assert counted.expert == sum(parameter.numel() for parameter in experts)


@pytest.mark.parametrize("overrides", VARIANTS[:3], ids=str)
def test_flops_equal_those_of_the_matrix_products_run(tmp_path: Path, overrides: list[str]) -> None:
    """Counts 2 x weight elements x rows for every linear map, and adds attention by formula."""
    model, config = build(tiny.write_config(tmp_path), overrides)
    expected = 0
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or name.startswith("embedding"):
            continue
        share = config.experts.top_k / config.experts.num_experts if ".experts." in name else 1
        expected += int(2 * parameter.numel() * share)
    seq, layers = config.train.seq_len, config.model.num_layers
    attention = layers * 2 * 2 * config.model.dim * seq // 2
    assert forward_flops(config, padded_vocab(257)).total == expected + attention
    assert isinstance(model, nn.Module)


def test_flops_of_super_are_those_of_its_definition() -> None:
    config = read_config(REPO_ROOT / "configs" / "speedrun" / "super.toml")
    assert padded_vocab(50257) == 50304
    per_token = flops_per_token(config, 50304)
    assert per_token == pytest.approx(1039e6, rel=1e-3)
    part = forward_flops(config, 50304)
    assert part.experts / part.total == pytest.approx(0.429, abs=1e-3)
    assert part.head / part.total == pytest.approx(0.223, abs=1e-3)


def test_parameters_of_ultra_are_those_of_its_definition() -> None:
    config = read_config(REPO_ROOT / "configs" / "speedrun" / "ultra.toml")
    assert count_parameters(config, 50304).total == pytest.approx(43.6e9, rel=5e-3)


@pytest.mark.parametrize(
    ("name", "product"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA H200 NVL", "H200 NVL"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA GB200", "GB200"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA GeForce RTX 5090", "GeForce RTX 5090"),
        ("NVIDIA B300 SXM6 AC", "B300 SXM6 AC"),
    ],
)
def test_product_keeps_chips_apart(name, product):
    assert flops.product(name) == product


def test_peak_is_unknown_when_gpu_or_dtype_is_not_in_the_table():
    assert flops.peak_tflops("H200", "bf16") == 989.4
    assert flops.peak_tflops("H100", "nvfp4") is None
    assert flops.peak_tflops("GeForce RTX 5090", "bf16") is None
    assert flops.peak_tflops(None, "bf16") is None
