"""The loss of a checkpoint computed the long way: fp32, no kernels, no transport, no fused parts.

It shares nothing with the model but the names of its weights and the layout of packed ones, so
that a mistake in the model is not repeated here. Attention is `sdpa` only.

Shapes: B windows, S positions, T = B*S, D model, H heads, N head size, E experts, K top-k,
F hidden, V vocabulary.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from nmoe.config import Config
from nmoe.expert_layout import unpack


def is_supported(config: Config) -> bool:
    """Whether every part of the model is written out here."""
    attention = config.attention
    return (
        attention.attn == "sdpa"
        and (attention.attn_global_every == 1 or attention.attn_local == "sdpa")
        and config.experts.activation == "swiglu"
    )


@torch.no_grad()
def naive_nats(
    config: Config, weights: Mapping[str, Tensor], windows_BN: Tensor, *, vocab_size: int
) -> Tensor:
    """nats_BS of predicting each next token of windows [B, S + 1], in fp32 on the CPU."""
    tokens_BS, targets_BS = windows_BN[:, :-1], windows_BN[:, 1:]
    eps = config.model.norm_eps
    x_BSD = weights["embedding.weight"].float()[tokens_BS] * config.model.embedding_scale
    for layer in range(config.model.num_layers):
        own = _below(weights, f"blocks.{layer}.")
        h_BSD = _rms_norm(x_BSD, own["attention_norm.weight"], eps)
        x_BSD = x_BSD + _attention(config, _below(own, "attention."), h_BSD)
        h_BSD = _rms_norm(x_BSD, own["ffn_norm.weight"], eps)
        x_BSD = x_BSD + _feed_forward(config, _below(own, "ffn."), h_BSD)
    x_BSD = _rms_norm(x_BSD, weights["norm.weight"], eps)
    logits_BSV = x_BSD @ weights["head.weight"].float()[:vocab_size].T
    chosen_BS = logits_BSV.gather(-1, targets_BS[..., None]).squeeze(-1)
    return torch.logsumexp(logits_BSV, -1) - chosen_BS


def _attention(config: Config, own: Mapping[str, Tensor], h_BSD: Tensor) -> Tensor:
    batch, seq, dim = h_BSD.shape
    heads, eps = config.model.num_heads, config.model.norm_eps
    parts = [
        (h_BSD @ weight_DD.float().T).view(batch, seq, heads, dim // heads).transpose(1, 2)
        for weight_DD in own["qkv.weight"]
    ]
    q_BHSN, k_BHSN, v_BHSN = parts
    if config.attention.qk_norm:
        q_BHSN = _rms_norm(q_BHSN, own["q_norm.weight"], eps)
        k_BHSN = _rms_norm(k_BHSN, own["k_norm.weight"], eps)
    theta = config.attention.rope_theta
    q_BHSN, k_BHSN = _rotate(q_BHSN, theta), _rotate(k_BHSN, theta)
    score_BHSS = q_BHSN @ k_BHSN.transpose(-1, -2) / (dim // heads) ** 0.5
    is_later_SS = torch.ones(seq, seq, dtype=torch.bool).triu(1)
    share_BHSS = torch.softmax(score_BHSS.masked_fill(is_later_SS, float("-inf")), -1)
    y_BSD = (share_BHSS @ v_BHSN).transpose(1, 2).reshape(batch, seq, dim)
    return y_BSD @ own["out.weight"].float().T


def _rotate(x_BHSN: Tensor, theta: float) -> Tensor:
    """Pairs (n, n + N / 2) turned by position * theta^(-2n / N)."""
    seq, size = x_BHSN.shape[-2:]
    out = torch.empty_like(x_BHSN)
    for n in range(size // 2):
        angle_S = torch.arange(seq, dtype=torch.float64) * theta ** (-2 * n / size)
        cos_S, sin_S = angle_S.cos().float(), angle_S.sin().float()
        left, right = x_BHSN[..., n], x_BHSN[..., n + size // 2]
        out[..., n] = left * cos_S - right * sin_S
        out[..., n + size // 2] = right * cos_S + left * sin_S
    return out


def _feed_forward(config: Config, own: Mapping[str, Tensor], h_BSD: Tensor) -> Tensor:
    if "router.gate.weight" not in own:
        w1_DF, w3_DF = own["up.weight"].float().transpose(-1, -2)
        return _swiglu(h_BSD, w1_DF, w3_DF, own["down.weight"].T)
    h_TD = h_BSD.flatten(0, 1)
    score_TE = torch.sigmoid(h_TD @ own["router.gate.weight"].float().T)
    biased_TE = score_TE + own["router.bias_E"].float()
    experts_TK = biased_TE.sort(-1, descending=True).indices[:, : config.experts.top_k]
    gates_TK = score_TE.gather(1, experts_TK)
    gates_TK = gates_TK / gates_TK.sum(-1, keepdim=True)
    w1_EDF, w3_EDF = unpack(own["experts.w13_eDG"].float(), activation="swiglu")
    assert w3_EDF is not None
    y_TD = torch.zeros_like(h_TD)
    for expert in range(len(w1_EDF)):
        rows, place = (experts_TK == expert).nonzero(as_tuple=True)
        out = _swiglu(h_TD[rows], w1_EDF[expert], w3_EDF[expert], own["experts.w2_eFD"][expert])
        y_TD[rows] += gates_TK[rows, place, None] * out
    if "shared.up.weight" in own:
        w1_DF, w3_DF = own["shared.up.weight"].float().transpose(-1, -2)
        y_TD += _swiglu(h_TD, w1_DF, w3_DF, own["shared.down.weight"].T)
    return y_TD.view_as(h_BSD)


def _swiglu(x_TD: Tensor, w1_DF: Tensor, w3_DF: Tensor, w2_FD: Tensor) -> Tensor:
    a_TF = x_TD @ w1_DF
    return (a_TF / (1 + torch.exp(-a_TF)) * (x_TD @ w3_DF)) @ w2_FD.float()


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight.float()


def _below(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in weights.items()
        if name.startswith(prefix)
    }
