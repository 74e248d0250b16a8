"""Floating-point operations and parameters of a model, by hand arithmetic.

Matrix products only; a multiply-add counts as two. Causal attention is counted once (half of the
square), backward is twice forward, nothing recomputed or padded is credited.
"""

from dataclasses import dataclass

from nmoe.config import Config

BACKWARD_FACTOR = 3  # forward + backward = 3 x forward
VOCAB_MULTIPLE = 128  # gives GPT-2's usual padding of 50,257 to 50,304


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
