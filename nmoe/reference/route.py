"""Router decision: sigmoid scores, biased top-K choice, renormalised gates, and what was chosen.

Shapes: T tokens of B sequences, D model, E experts, K top-k.
"""

import torch
from torch import Tensor
from torch.nn import functional

TINY = 1e-20  # keeps sums of scores from being zero


def route(
    logits_TE: Tensor, bias_E: Tensor, top_k: int, *, batch: int | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Choose `top_k` experts a token.

    s = sigmoid(logits); chosen = top-K of s + bias; gate = s[chosen] / sum of s[chosen].
    The bias steers the choice only and gets no gradient. Returns (experts_TK int64 in order of
    falling s + bias, gates_TK fp32, probability_BE fp32 of `mean_probability`, None without
    `batch`). Which of equal s + bias is taken first is left open here (`torch.topk` does not say);
    the kernels take the lowest expert.
    """
    scores_TE = torch.sigmoid(logits_TE.float())
    with torch.no_grad():
        experts_TK = torch.topk(scores_TE + bias_E, top_k, dim=-1).indices
    chosen_TK = scores_TE.gather(1, experts_TK)
    gates_TK = chosen_TK / (chosen_TK.sum(-1, keepdim=True) + TINY)
    probability_BE = None if batch is None else mean_probability(scores_TE, batch)
    return experts_TK, gates_TK, probability_BE


def router_logits(x_TD: Tensor, weight_ED: Tensor) -> Tensor:
    """logits_TE = x W^T in fp32."""
    return functional.linear(x_TD.float(), weight_ED)


def mean_probability(scores_TE: Tensor, batch: int) -> Tensor:
    """probability_BE: s / sum of s, averaged over the tokens of each sequence; 0 without tokens."""
    num_tokens, num_experts = scores_TE.shape
    length = num_tokens // max(1, batch)
    probability_TE = scores_TE / (scores_TE.sum(-1, keepdim=True) + TINY)
    return probability_TE.view(batch, length, num_experts).sum(1) / max(1, length)


def count_choices(experts_TK: Tensor, num_experts: int, *, batch: int) -> Tensor:
    """count_BE int64: how often each expert was chosen in each sequence. No host waits for it."""
    choices = experts_TK.numel() // max(1, batch)
    experts_BN = experts_TK.view(batch, choices)
    count_BE = torch.zeros(batch, num_experts, dtype=torch.int64, device=experts_TK.device)
    return count_BE.scatter_add_(1, experts_BN, torch.ones_like(experts_BN))
