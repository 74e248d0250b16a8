"""The transformer: blocks, initialisation in one function, parameter groups.

Shapes: B batch, S sequence, T = B*S tokens, D model, V vocabulary (padded).
"""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nmoe import ops
from nmoe.attention import build_attention
from nmoe.config import Config, Impl
from nmoe.expert_layout import pack, parts
from nmoe.flops import padded_vocab
from nmoe.layers import Linear, RMSNorm, SwiGLU
from nmoe.memory import LOSS_TOKENS
from nmoe.moe import Experts, MoE
from nmoe.rdep import Transport

GroupName = Literal["dense", "router", "expert"]
Kind = Literal["matrix", "table", "vector"]
# Tokens whose logits are in memory at once: a product of 16k rows fills a GPU.
LOSS_CHUNK: dict[Impl, int] = {"reference": 4096, "triton": LOSS_TOKENS}


class Block(nn.Module):
    """x + attention(norm x), then x + feed-forward(norm x); every sum is left to the next norm."""

    def __init__(
        self, config: Config, transport: Transport, *, layer: int, dtype: torch.dtype
    ) -> None:
        super().__init__()
        dim, eps, impl = config.model.dim, config.model.norm_eps, config.model.impl
        self.attention_norm = RMSNorm(dim, eps=eps, impl=impl)
        self.attention = build_attention(config, layer)
        self.ffn_norm = RMSNorm(dim, eps=eps, impl=impl)
        is_moe = config.experts.num_experts > 0 and layer >= config.experts.num_dense_layers
        self.ffn: nn.Module
        if is_moe:
            number = layer - config.experts.num_dense_layers
            self.ffn = MoE(config, transport, layer=number, dtype=dtype)
        else:
            self.ffn = SwiGLU(dim, config.model.dense_hidden, impl=impl)

    def forward(
        self, x_BSD: Tensor, delta_BSD: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """(x_BSD, what is yet to be added to it, aux): aux is None for a dense layer."""
        x_BSD, h_BSD = self.attention_norm(x_BSD, delta_BSD)
        x_BSD, h_BSD = self.ffn_norm(x_BSD, self.attention(h_BSD))
        y_BSD, aux = self.ffn(h_BSD) if isinstance(self.ffn, MoE) else (self.ffn(h_BSD), None)
        return x_BSD, y_BSD, aux


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
        self.embedding_std = config.model.embedding_std
        self.embedding_scale = config.model.embedding_scale
        self.blocks = nn.ModuleList(
            Block(config, transport, layer=layer, dtype=dtype)
            for layer in range(config.model.num_layers)
        )
        self.norm = RMSNorm(dim, eps=config.model.norm_eps, impl=self.impl)
        self.head = Linear(dim, padded_vocab(vocab_size))

    def forward(self, tokens_BS: Tensor) -> tuple[Tensor, Tensor]:
        """(hidden_BSD after the last norm, aux summed over layers and sequences)."""
        x_BSD = (self.embedding(tokens_BS) * self.embedding_scale).to(self.dtype)
        delta_BSD = None
        aux_sum = torch.zeros((), device=tokens_BS.device)
        for block in self.blocks:
            x_BSD, delta_BSD, aux = block(x_BSD, delta_BSD)
            if aux is not None:
                aux_sum = aux_sum + aux
        _, hidden_BSD = self.norm(x_BSD, delta_BSD)
        return hidden_BSD, aux_sum

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
        """fp32 logits [N, real vocabulary] at the asked (row, position) pairs only.

        The pairs may lie anywhere, the logits are where the model is.
        """
        tokens_BS, rows_N, cols_N = (
            each.to(self.head.weight.device) for each in (tokens_BS, rows_N, cols_N)
        )
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
    deviation fan_in ** -0.5; the embedding is normal with its own. An expert is seeded by its
    global id, W1 and W3 each by their own name.
    """
    draws: list[Callable[[], None]] = []
    for name, parameter in model.named_parameters():
        owner, weight = model.get_submodule(name.rpartition(".")[0]), parameter.detach()
        if isinstance(owner, RMSNorm):
            weight.fill_(1.0)
        elif _is_residual_output(name):
            weight.zero_()
        elif isinstance(owner, Experts):
            prefix = name.removesuffix("w13_eDG")
            for w13_DG, expert in zip(weight, owner.local, strict=True):
                draws.append(partial(_draw_expert, w13_DG, prefix, expert, owner, seed=seed))
        else:
            is_table = isinstance(owner, nn.Embedding)
            std = model.embedding_std if is_table else weight.shape[-1] ** -0.5
            draws.append(partial(_draw, weight, name, std=std, seed=seed))
    with ThreadPoolExecutor() as pool:
        for drawn in [pool.submit(draw) for draw in draws]:
            drawn.result()
    for _, layer in model.moe_layers():
        layer.experts.refresh()


def _draw(weight: Tensor, name: str, *, std: float, seed: int) -> None:
    weight.copy_(_normal(weight.shape, name, std=std, seed=seed))


def _draw_expert(w13_DG: Tensor, prefix: str, expert: int, experts: Experts, *, seed: int) -> None:
    """W1 and W3 of one expert, each by its own name."""
    dim, width = w13_DG.shape
    names = ("w1_eDF", "w3_eDF")[: parts(experts.activation)]
    shape = torch.Size((dim, width // len(names)))
    std = dim**-0.5
    drawn = [_normal(shape, f"{prefix}{name}.{expert}", std=std, seed=seed) for name in names]
    w13_DG.copy_(pack(drawn[0], drawn[1] if len(drawn) == 2 else None))


def _normal(shape: torch.Size, name: str, *, std: float, seed: int) -> Tensor:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    return torch.randn(shape, generator=generator, device="cpu") * std


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
    copies, packed = _stacks(model)
    return [
        Group(
            name=name,
            kind=kind,
            parameters=tuple(parameters),
            copies=tuple(copies[each] for each in parameters) if name == "expert" else (),
            packed=tuple(packed[each] for each in parameters) if name == "expert" else (),
        )
        for (name, kind), parameters in buckets.items()
    ]


def _stacks(
    model: Transformer,
) -> tuple[dict[nn.Parameter, Tensor | None], dict[nn.Parameter, bool]]:
    """Of every stack of expert weights: its bf16 copy, if it has one, and whether it is packed."""
    copies: dict[nn.Parameter, Tensor | None] = {}
    packed: dict[nn.Parameter, bool] = {}
    for _, layer in model.moe_layers():
        experts = layer.experts
        w13, w2 = experts.w13_eDG, experts.w2_eFD
        copies |= {w13: None, w2: None}
        if experts.has_copies:
            copies |= {w13: experts.w13_copy, w2: experts.w2_copy}
        packed |= {w13: parts(experts.activation) == 2, w2: False}
    return copies, packed
