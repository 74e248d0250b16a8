"""Floating-point operations and parameters of a model, by hand arithmetic; peaks of GPUs.

Matrix products only; a multiply-add counts as two. Causal attention is counted once (half of the
square), backward is twice forward, nothing recomputed or padded is credited.
"""

import re
from dataclasses import dataclass

from nmoe.config import Config

BACKWARD_FACTOR = 3  # forward + backward = 3 x forward
VOCAB_MULTIPLE = 128  # gives GPT-2's usual padding of 50,257 to 50,304
# Vocabulary with its end-of-text token by tokenizer, for data that is not there yet.
VOCAB_SIZE = {"byte": 257, "gpt2": 50257}
# Dense TFLOP/s: H100 and H200 data sheets (2024), DGX B200 and GB200 data sheets (2025), per GPU.
PEAK_TFLOPS: dict[str, dict[str, float]] = {
    "H100": {"bf16": 989.4, "fp8": 1978.9},
    "H100 PCIe": {"bf16": 756.0, "fp8": 1513.0},
    "H100 NVL": {"bf16": 835.5, "fp8": 1671.0},
    "H200": {"bf16": 989.4, "fp8": 1978.9},
    "H200 NVL": {"bf16": 835.5, "fp8": 1671.0},
    "B200": {"bf16": 2250.0, "fp8": 4500.0, "nvfp4": 9000.0},
    "GB200": {"bf16": 2500.0, "fp8": 5000.0, "nvfp4": 10000.0},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """Forward FLOPs a token by part, summed over layers."""

    projections: int
    attention: int
    experts: int
    shared: int
    dense: int
    router: int
    head: int

    @property
    def total(self) -> int:
        return (
            self.projections
            + self.attention
            + self.experts
            + self.shared
            + self.dense
            + self.router
            + self.head
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """Parameter counts; `active` is what one token touches, the embedding table left out."""

    total: int
    active: int
    embedding: int
    expert: int


def padded_vocab(vocab_size: int) -> int:
    """The vocabulary rounded up to the rows of the embedding and the head."""
    return -(-vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


def num_moe_layers(config: Config) -> int:
    """Layers whose feed-forward is a mixture of experts."""
    if config.experts.num_experts == 0:
        return 0
    return config.model.num_layers - config.experts.num_dense_layers


def num_matrices(config: Config) -> int:
    """Weight matrices of one expert: three when gated, two otherwise."""
    return 2 if config.experts.activation == "relu_squared" else 3


def forward_flops(config: Config, vocab_size: int) -> Forward:
    """Forward FLOPs a token at the training sequence length; `vocab_size` is the padded one."""
    dim, layers, seq = config.model.dim, config.model.num_layers, config.train.seq_len
    experts, moe = config.experts, num_moe_layers(config)
    expert = num_matrices(config) * 2 * dim * experts.hidden
    return Forward(
        projections=layers * 4 * 2 * dim * dim,
        attention=layers * 2 * 2 * dim * seq // 2,
        experts=moe * experts.top_k * expert,
        shared=moe * experts.num_shared * expert,
        dense=(layers - moe) * 3 * 2 * dim * config.model.dense_hidden,
        router=moe * 2 * dim * experts.num_experts,
        head=2 * dim * vocab_size,
    )


def flops_per_token(config: Config, vocab_size: int) -> int:
    """Forward and backward FLOPs a token."""
    return BACKWARD_FACTOR * forward_flops(config, vocab_size).total


def count_parameters(config: Config, vocab_size: int) -> Parameters:
    """Parameters of the model with `vocab_size` padded rows in embedding and head."""
    dim, layers, moe = config.model.dim, config.model.num_layers, num_moe_layers(config)
    experts = config.experts
    expert = num_matrices(config) * dim * experts.hidden
    head_norms = 2 * (dim // config.model.num_heads) if config.attention.qk_norm else 0
    common = (
        vocab_size * dim
        + dim
        + layers * (4 * dim * dim + 2 * dim + head_norms)
        + (layers - moe) * 3 * dim * config.model.dense_hidden
        + moe * (experts.num_shared * expert + dim * experts.num_experts)
    )
    return Parameters(
        total=common + vocab_size * dim + moe * experts.num_experts * expert,
        active=common + moe * experts.top_k * expert,
        embedding=vocab_size * dim,
        expert=moe * experts.num_experts * expert,
    )


def product(name: str) -> str:
    """The product of a device's name: `NVIDIA H100 80GB HBM3` is `H100`, others keep theirs."""
    for chip in ("GB200", "B200", "GH200", "H200", "H100", "A100"):
        if re.search(rf"\b{chip}\b", name):
            form = re.search(r"\b(PCIe|NVL)\b", name)
            return f"{chip} {form[1]}" if form and chip in ("H100", "H200") else chip
    return name.removeprefix("NVIDIA ").strip()


def peak_tflops(gpu: str | None, dtype: str) -> float | None:
    """Dense peak of one GPU, or None when it is not in the table."""
    return PEAK_TFLOPS.get(gpu or "", {}).get(dtype)
