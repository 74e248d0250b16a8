"""Memory of one GPU in training, by hand arithmetic, and the micro-batch that fits in it.

Counted is what `nmoe.build` and a step allocate under the kernels: weights with their gradients and
optimizer state, what the backward pass keeps of a micro-batch, the memory that peers write, and
the logits of one chunk of the loss. Against the peaks of the benchmark it is within a few percent;
see tests/test_memory.py.
"""

from dataclasses import dataclass

from nmoe.config import WORST_CASE_RANKS, Config, with_train
from nmoe.flops import (
    VOCAB_SIZE,
    count_parameters,
    num_matrices,
    num_moe_layers,
    padded_vocab,
)

# What the estimate may take of a GPU; the rest is for CUDA itself, NCCL and fragments.
USABLE = 0.93
ROOM = 1.5  # times the mean of the rows that arrive, where not all are reserved
LOSS_TOKENS = 16_384  # whose logits are in memory at once
ROW_TILE = 128  # every expert's rows begin at a multiple
BF16, FP32 = 2, 4
# Of an expert's parameter: master, gradient, copy in bf16, and AdamW's two moments or Muon's one.
_EXPERT_BYTES = {"adamw": 3 * FP32 + FP32 + BF16, "muon": 2 * FP32 + FP32 + BF16}
# Of any other: master, gradient and its place in the buffer that is summed over ranks.
_DENSE_BYTES, _MOMENTS_BYTES = 3 * FP32, 2 * FP32
# Rows of D that attention and both norms of a layer keep: norms 2 + 2, qkv 3 before rotary and 3
# behind it, the product 1.
_KEPT_ROWS = 11


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of one GPU at the peak of a step."""

    state: int
    activations: int
    peers: int
    loss: int

    @property
    def total(self) -> int:
        return self.state + self.activations + self.peers + self.loss


def estimate(config: Config, *, world: int) -> Memory:
    """The peak of each of `world` GPUs with the config's micro-batch."""
    tokens = config.train.micro_batch * config.train.seq_len
    vocab = padded_vocab(VOCAB_SIZE.get(config.data.tokenizer, VOCAB_SIZE["gpt2"]))
    return Memory(
        state=_state(config, vocab, world),
        activations=_activations(config, tokens, world),
        peers=_peers(config, tokens, world),
        loss=min(tokens, LOSS_TOKENS) * vocab * BF16,
    )


def fit_micro_batch(config: Config, world: int, memory_bytes: int | None) -> Config:
    """The config with a micro-batch no larger than a rank's share of a step and its memory.

    Of what divides the share, the largest that fits; where nothing does, the preset's stays. On a
    CPU, and where the memory is not known, only the share is a limit.
    """
    share = max(1, config.train.batch_size // world)
    config = with_train(config, micro_batch=min(config.train.micro_batch, share))
    if config.model.impl == "reference" or memory_bytes is None:
        return config
    for size in range(config.train.micro_batch, 0, -1):
        if share % size:
            continue
        smaller = with_train(config, micro_batch=size)
        if estimate(smaller, world=world).total <= USABLE * memory_bytes:
            return smaller
    return config


def _state(config: Config, vocab: int, world: int) -> int:
    parameters = count_parameters(config, vocab)
    dense = parameters.total - parameters.expert
    expert_bytes = _EXPERT_BYTES[config.optim.matrices]
    return (
        parameters.expert // world * expert_bytes
        + dense * _DENSE_BYTES
        + dense // world * _MOMENTS_BYTES
    )


def _activations(config: Config, tokens: int, world: int) -> int:
    dim, layers, experts = config.model.dim, config.model.num_layers, config.experts
    moe = num_moe_layers(config)
    shared, hidden = experts.num_shared * experts.hidden, config.model.dense_hidden
    per_token = layers * _KEPT_ROWS * dim + 3 * (moe * shared + (layers - moe) * hidden)
    logits = moe * tokens * experts.num_experts * FP32
    # pre-activations and activations of every row
    per_row = num_matrices(config) * experts.hidden
    return BF16 * (tokens * per_token + moe * _rows(config, tokens, world) * per_row) + logits


def _rows(config: Config, tokens: int, world: int) -> int:
    """Rows of a layer that a rank has room for, padding included."""
    experts = config.experts
    choices = tokens * experts.top_k
    if world > WORST_CASE_RANKS:
        choices = int(choices * ROOM)
    elif world > 1:
        choices *= world
    return choices + experts.num_experts // world * (ROW_TILE - 1)


def _peers(config: Config, tokens: int, world: int) -> int:
    """A region of every source for each layer, one for gradients and one for what comes home."""
    moe = num_moe_layers(config)
    if world == 1 or moe == 0:
        return 0
    return (moe + 2) * world * tokens * config.model.dim * BF16
