"""The peer of a whole training step: the same model and recipe in plain torch, compiled.

fp32 weights that are cast where they are used, torch's own attention in its default order, experts
by `torch._grouped_mm`, the loss in chunks whose logits are computed twice, fused AdamW.

Legend: B batch, S sequence, N head size or S + 1 tokens of a window, H heads, T tokens, c tokens of
a chunk, D model, E experts, K top-k, L layers, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from bench.layers import grouped
from bench.problem import swiglu
from nmoe.config import Config, Plan
from nmoe.expert_layout import unpack
from nmoe.layers import SwiGLU
from nmoe.model import Block, Transformer
from nmoe.moe import BIAS_LIMIT, Experts, MoE, balance_loss
from nmoe.optim.schedule import lr_scale
from nmoe.reference import route as reference_route

CHUNK = 16_384  # tokens whose logits are in memory at once

Outputs = tuple[Tensor, Tensor, Tensor]  # x_BSD, aux, loads_E


def chunked_nats(x_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, *, num_real: int) -> Tensor:
    """The sum of nats, by chunks whose logits are computed again in the backward pass."""
    weight_VD = weight_VD.to(x_TD.dtype)
    total = torch.zeros((), device=x_TD.device)
    for x_cD, targets_c in zip(x_TD.split(CHUNK), targets_T.split(CHUNK), strict=True):
        total = total + checkpoint(
            _chunk_nats, x_cD, weight_VD, targets_c, num_real, use_reentrant=False
        )
    return total


def _chunk_nats(x_cD: Tensor, weight_VD: Tensor, targets_c: Tensor, num_real: int) -> Tensor:
    logits_cV = functional.linear(x_cD, weight_VD)[:, :num_real].float()
    return functional.cross_entropy(logits_cV, targets_c, reduction="sum")


class PlainTrainer:
    """Trains a copy of a model's weights with the recipe of its plan, on one device."""

    def __init__(self, plan: Plan, model: Transformer, *, is_compiled: bool) -> None:
        """Copy the weights; NotImplementedError for experts that are not gated."""
        self._plan, self._tokens = plan, 0
        self._num_real, self._dtype = model.vocab_size, model.dtype
        self._embedding = _copy(model.embedding.weight)
        self._embedding_scale = model.embedding_scale
        self._blocks = [
            _PlainBlock(plan, block) for block in model.blocks if isinstance(block, Block)
        ]
        self._norm, self._head = _copy(model.norm.weight), _copy(model.head.weight)
        self._nats = chunked_nats
        if is_compiled:
            self._nats = torch.compile(chunked_nats, dynamic=False)
            for block in self._blocks:
                block.compile(dynamic=False)
        self._optimizer = torch.optim.AdamW(self._groups(), eps=plan.optim.eps, fused=True)
        self._peaks = [group["lr"] for group in self._optimizer.param_groups]

    def step(self, micro_batches: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """(mean nats a token, global gradient norm) of one update; windows are [B, S + 1]."""
        train, schedule = self._plan.train, self._plan.schedule
        num_windows = sum(len(windows) for windows in micro_batches)
        num_tokens = num_windows * train.seq_len
        total = torch.zeros((), dtype=torch.float64, device=self._head.device)
        loads: list[Tensor] = []
        for windows_BN in micro_batches:
            nats, aux, loads_LE = self._forward(windows_BN)
            total += nats.detach()
            loss = nats / num_tokens + self._plan.experts.aux_coef * aux / num_windows
            loss.backward()
            loads.append(loads_LE)
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        scale = lr_scale(schedule, tokens=self._tokens, tokens_per_step=num_tokens)
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = scale * peak
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._balance(torch.stack(loads).sum(0))
        self._tokens += num_tokens
        return total / num_tokens, norm

    def _forward(self, windows_BN: Tensor) -> Outputs:
        """(sum of nats, aux over layers and sequences, loads_LE)."""
        x_BSD = functional.embedding(windows_BN[:, :-1], self._embedding)
        x_BSD = (x_BSD * self._embedding_scale).to(self._dtype)
        aux_sum, loads = torch.zeros((), device=x_BSD.device), []
        for block in self._blocks:
            x_BSD, aux, loads_E = block(x_BSD)
            aux_sum = aux_sum + aux
            loads.append(loads_E)
        eps = self._plan.model.norm_eps
        hidden_TD = _rms_norm(x_BSD, self._norm, eps).flatten(0, 1)
        targets_T = windows_BN[:, 1:].flatten()
        nats = self._nats(hidden_TD, self._head, targets_T, num_real=self._num_real)
        return nats, aux_sum, torch.stack(loads)

    @torch.no_grad()
    def _balance(self, loads_LE: Tensor) -> None:
        """Every router's bias after a step."""
        for block, loads_E in zip(self._blocks, loads_LE.float(), strict=True):
            if block.moe is not None:
                sign_E = torch.sign(loads_E - loads_E.mean())
                bias_E = block.moe.bias_E
                bias_E -= self._plan.experts.bias_rate * (sign_E - sign_E.mean())
                bias_E.clamp_(-BIAS_LIMIT, BIAS_LIMIT)

    def _groups(self) -> list[dict[str, object]]:
        """Weights by learning rate, beta2 and decay."""
        optim = self._plan.optim
        mixtures = [block.moe for block in self._blocks if block.moe is not None]
        experts = [weight for moe in mixtures for weight in (moe.w13, moe.w2)]
        routers = [moe.gate for moe in mixtures]
        others = [self._embedding, self._norm, self._head]
        others += [weight for block in self._blocks for weight in block.parameters()]
        known = {id(weight) for weight in (*experts, *routers)}
        others = [weight for weight in others if id(weight) not in known]
        dense, decay = (optim.beta1, optim.beta2), optim.weight_decay
        groups: list[dict[str, object]] = [
            {"params": [w for w in others if w.ndim > 1], "lr": optim.lr_dense, "betas": dense},
            {"params": [w for w in others if w.ndim == 1], "lr": optim.lr_dense, "betas": dense},
            {"params": routers, "lr": optim.lr_router, "betas": dense},
            {
                "params": experts,
                "lr": optim.lr_expert,
                "betas": (optim.beta1, optim.beta2_expert),
            },
        ]
        for group, rate in zip(groups, (decay, 0.0, optim.weight_decay_router, decay), strict=True):
            group["weight_decay"] = rate
        return [group for group in groups if group["params"]]


class _PlainBlock(nn.Module):
    """Attention and feed-forward of one layer."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: Config, block: Block) -> None:
        super().__init__()
        self.heads, self.eps = config.model.num_heads, config.model.norm_eps
        self.attention_norm = _copy(block.attention_norm.weight)
        self.ffn_norm = _copy(block.ffn_norm.weight)
        attention = block.attention
        self.qkv = _copy(attention.get_parameter("qkv.weight").flatten(0, 1))
        self.out = _copy(attention.get_parameter("out.weight"))
        self.num_experts = config.experts.num_experts
        self.has_norm = config.attention.qk_norm
        if self.has_norm:
            self.q_norm = _copy(attention.get_parameter("q_norm.weight"))
            self.k_norm = _copy(attention.get_parameter("k_norm.weight"))
        self.moe = _PlainMoE(config, block.ffn) if isinstance(block.ffn, MoE) else None
        self.ffn = _PlainSwiGLU(block.ffn) if isinstance(block.ffn, SwiGLU) else None
        size = config.model.dim // self.heads
        place_N = torch.arange(0, size, 2, device=self.out.device, dtype=torch.float64)
        place_S = torch.arange(config.train.seq_len, device=self.out.device, dtype=torch.float64)
        angle_SN = place_S[:, None] * config.attention.rope_theta ** (-place_N / size)
        self.register_buffer("cos", angle_SN.cos().float())
        self.register_buffer("sin", angle_SN.sin().float())

    def forward(self, x_BSD: Tensor) -> Outputs:
        x_BSD = x_BSD + self._attention(_rms_norm(x_BSD, self.attention_norm, self.eps))
        h_BSD = _rms_norm(x_BSD, self.ffn_norm, self.eps)
        if self.moe is not None:
            y_BSD, aux, loads_E = self.moe(h_BSD)
            return x_BSD + y_BSD, aux, loads_E
        assert self.ffn is not None
        nothing = torch.zeros((), device=x_BSD.device)
        return x_BSD + self.ffn(h_BSD), nothing, nothing.new_zeros(self.num_experts)

    def _attention(self, x_BSD: Tensor) -> Tensor:
        batch, seq, dim = x_BSD.shape
        qkv = functional.linear(x_BSD, self.qkv.to(x_BSD.dtype))
        q, k, v = qkv.view(batch, seq, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if self.has_norm:
            q, k = _rms_norm(q, self.q_norm, self.eps), _rms_norm(k, self.k_norm, self.eps)
        q, k = self._rotated(q), self._rotated(k)
        y_BHSN = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        y_BSD = y_BHSN.transpose(1, 2).reshape(batch, seq, dim)
        return functional.linear(y_BSD, self.out.to(x_BSD.dtype))

    def _rotated(self, x_BHSN: Tensor) -> Tensor:
        cos, sin = self.cos.to(x_BHSN.dtype), self.sin.to(x_BHSN.dtype)
        left, right = x_BHSN.chunk(2, dim=-1)
        return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)


class _PlainSwiGLU(nn.Module):
    def __init__(self, source: SwiGLU) -> None:
        super().__init__()
        self.up = _copy(source.up.weight.flatten(0, 1))
        self.down = _copy(source.down.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.linear(x, self.up.to(x.dtype))
        return functional.linear(swiglu(h), self.down.to(x.dtype))


class _PlainMoE(nn.Module):
    """Router, experts and shared expert of one layer; loads are those of all its tokens."""

    bias_E: Tensor

    def __init__(self, config: Config, source: MoE) -> None:
        super().__init__()
        self.top_k, self.num_experts = config.experts.top_k, config.experts.num_experts
        self.has_aux = config.experts.aux_coef != 0
        self.gate = _copy(source.router.gate.weight)
        self.register_buffer("bias_E", source.router.bias_E.detach().clone())
        w13, w2 = _expert_weights(source.experts)
        self.w13, self.w2 = nn.Parameter(w13), nn.Parameter(w2)
        self.shared = None if source.shared is None else _PlainSwiGLU(source.shared)

    def forward(self, x_BSD: Tensor) -> Outputs:
        batch, x_TD = len(x_BSD), x_BSD.flatten(0, 1)
        logits_TE = functional.linear(x_TD.float(), self.gate)
        sequences = batch if self.has_aux else None
        ids_TK, gates_TK, probability_BE = reference_route.route(
            logits_TE, self.bias_E, self.top_k, batch=sequences
        )
        count_BE = reference_route.count_choices(ids_TK, self.num_experts, batch=batch)
        aux = torch.zeros((), device=x_BSD.device)
        if probability_BE is not None:
            aux = balance_loss(count_BE, probability_BE)
        w13, w2 = self.w13.to(x_BSD.dtype), self.w2.to(x_BSD.dtype)
        y_TD = grouped(x_TD, ids_TK, gates_TK, w13, w2)
        if self.shared is not None:
            y_TD = y_TD + self.shared(x_TD)
        return y_TD.view_as(x_BSD), aux, count_BE.sum(0)


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return functional.rms_norm(x, (x.shape[-1],), weight.to(x.dtype), eps)


def _copy(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight.detach().float().clone())


def _expert_weights(experts: Experts) -> tuple[Tensor, Tensor]:
    """fp32 (W1 beside W3, W2)."""
    w1, w3 = unpack(experts.w13_eDG.detach(), activation=experts.activation)
    if w3 is None:
        raise NotImplementedError(f"{experts.activation} experts have no peer in plain torch.")
    return torch.cat((w1, w3), dim=-1).float(), experts.w2_eFD.detach().float().clone()
