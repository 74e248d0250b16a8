"""The transformer: blocks, initialisation in one function, parameter groups.

Shapes: B batch, S sequence, T = B*S tokens, D model, V vocabulary (padded).
"""

import hashlib
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nmoe import ops
from nmoe.attention import build_attention
from nmoe.config import Config, Impl
from nmoe.flops import padded_vocab
from nmoe.layers import Linear, RMSNorm, SwiGLU
from nmoe.moe import Experts, MoE
from nmoe.rdep import Transport

GroupName = Literal["dense", "router", "expert"]
Kind = Literal["matrix", "table", "vector"]
# Tokens whose logits are in memory at once: a product of 16k rows fills a GPU.
LOSS_CHUNK: dict[Impl, int] = {"reference": 4096, "triton": 16_384}


class Block(nn.Module):
    """x + attention(norm x), then x + feed-forward(norm x)."""

    def __init__(self, config: Config, transport: Transport, *, layer: int) -> None:
        super().__init__()
        dim, eps = config.model.dim, config.model.norm_eps
        self.attention_norm = RMSNorm(dim, eps=eps)
        self.attention = build_attention(config, layer)
        self.ffn_norm = RMSNorm(dim, eps=eps)
        is_moe = config.experts.num_experts > 0 and layer >= config.experts.num_dense_layers
        self.ffn: nn.Module
        if is_moe:
            self.ffn = MoE(config, transport, layer=layer - config.experts.num_dense_layers)
        else:
            self.ffn = SwiGLU(dim, config.model.dense_hidden)

    def forward(self, x_BSD: Tensor) -> tuple[Tensor, Tensor | None]:
        """(x_BSD, aux), where aux is None for a dense layer."""
        x_BSD = x_BSD + self.attention(self.attention_norm(x_BSD))
        if isinstance(self.ffn, MoE):
            y_BSD, aux = self.ffn(self.ffn_norm(x_BSD))
            return x_BSD + y_BSD, aux
        return x_BSD + self.ffn(self.ffn_norm(x_BSD)), None


class Transformer(nn.Module):
    """Decoder-only language model with untied embedding and head."""

    def __init__(
        self, config: Config, transport: Transport, *, vocab_size: int, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.dtype = dtype
        self.impl: Impl = config.model.impl
        dim = config.model.dim
        self.embedding = nn.Embedding(padded_vocab(vocab_size), dim)
        self.blocks = nn.ModuleList(
            Block(config, transport, layer=layer) for layer in range(config.model.num_layers)
        )
        self.norm = RMSNorm(dim, eps=config.model.norm_eps)
        self.head = Linear(dim, padded_vocab(vocab_size))

    def forward(self, tokens_BS: Tensor) -> tuple[Tensor, Tensor]:
        """(hidden_BSD after the last norm, aux summed over layers and sequences)."""
        x_BSD = self.embedding(tokens_BS).to(self.dtype)
        aux_sum = torch.zeros((), device=tokens_BS.device)
        for block in self.blocks:
            x_BSD, aux = block(x_BSD)
            if aux is not None:
                aux_sum = aux_sum + aux
        return self.norm(x_BSD), aux_sum

    def nats(self, windows_BN: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(sum of nats, nats_T of predicting each next token, aux sum); windows are [B, S + 1].

        nats_T has no gradients.
        """
        hidden_BSD, aux_sum = self(windows_BN[:, :-1])
        nats, nats_T = ops.linear_cross_entropy(
            hidden_BSD.flatten(0, 1),
            self.head.weight,
            windows_BN[:, 1:].flatten(),
            chunk=LOSS_CHUNK[self.impl],
            num_real=self.vocab_size,
            impl=self.impl,
        )
        return nats, nats_T, aux_sum

    @torch.no_grad()
    def logits_at(self, tokens_BS: Tensor, rows_N: Tensor, cols_N: Tensor) -> Tensor:
        """fp32 logits [N, real vocabulary] at the asked (row, position) pairs only."""
        hidden_BSD, _ = self(tokens_BS)
        weight_VD = self.head.weight[: self.vocab_size]
        return F.linear(hidden_BSD[rows_N, cols_N], weight_VD.to(hidden_BSD.dtype)).float()

    def moe_layers(self) -> list[tuple[int, MoE]]:
        """(block index, layer) of every mixture of experts."""
        return [
            (index, block.ffn)
            for index, block in enumerate(self.blocks)
            if isinstance(block, Block) and isinstance(block.ffn, MoE)
        ]


@torch.no_grad()
def init_weights(model: Transformer, *, seed: int) -> None:
    """Draw every weight from a generator of its own, so that no draw depends on the rank count.

    Matrices that write into the residual stream start at zero, the others normal with standard
    deviation fan_in ** -0.5; the embedding is normal with 1. An expert is seeded by its global id.
    """
    for name, parameter in model.named_parameters():
        owner = model.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, RMSNorm):
            parameter.fill_(1.0)
        elif isinstance(owner, Experts):
            for local, expert in enumerate(owner.local):
                _draw(parameter[local], f"{name}.{expert}", fan_in=parameter.shape[-2], seed=seed)
        elif isinstance(owner, nn.Embedding):
            _draw(parameter, name, fan_in=1, seed=seed)
        else:
            _draw(parameter, name, fan_in=parameter.shape[-1], seed=seed)


def _draw(weight: Tensor, name: str, *, fan_in: int, seed: int) -> None:
    if _is_residual_output(name):
        weight.zero_()
        return
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    weight.copy_(torch.randn(weight.shape, generator=generator) * fan_in**-0.5)


def _is_residual_output(name: str) -> bool:
    return any(part in name for part in (".out.weight", ".down.weight", ".w2_eFD", "head.weight"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Parameters that share an optimizer setting; expert ones differ by rank, others do not.

    `copies` and `packed` are empty or go with `parameters`: the bf16 tensor that holds the rounded
    parameter after each update, if there is one, and whether the columns hold W1 and W3 in turn
    (`nmoe.expert_layout`), two matrices to an optimizer of matrices.
    """

    name: GroupName
    kind: Kind
    parameters: tuple[nn.Parameter, ...]
    copies: tuple[Tensor | None, ...] = ()
    packed: tuple[bool, ...] = ()


def parameter_groups(model: Transformer) -> list[Group]:
    """All parameters by group and kind: a matrix maps features, a table is embedding or head."""
    buckets: dict[tuple[GroupName, Kind], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        group: GroupName = "dense"
        if ".experts." in name:
            group = "expert"
        elif ".router." in name:
            group = "router"
        kind: Kind = "vector" if parameter.ndim == 1 else "matrix"
        if name.startswith(("embedding.", "head.")):
            kind = "table"
        buckets.setdefault((group, kind), []).append(parameter)
    return [
        Group(name=name, kind=kind, parameters=tuple(parameters))
        for (name, kind), parameters in buckets.items()
    ]
