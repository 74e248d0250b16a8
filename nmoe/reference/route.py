"""Router decision: sigmoid scores, biased top-K choice, renormalised gates.

Shapes: T tokens, E experts, K top-k.
"""

import torch
from torch import Tensor


def route(logits_TE: Tensor, bias_E: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Choose `top_k` experts a token.

    s = sigmoid(logits); chosen = top-K of s + bias; gate = s[chosen] / sum of s[chosen].
    The bias steers the choice only and gets no gradient. Returns (experts_TK int64 in order of
    falling s + bias, gates_TK fp32, scores_TE fp32).
    """
    scores_TE = torch.sigmoid(logits_TE.float())
    with torch.no_grad():
        experts_TK = torch.topk(scores_TE + bias_E, top_k, dim=-1).indices
    chosen_TK = scores_TE.gather(1, experts_TK)
    gates_TK = chosen_TK / (chosen_TK.sum(-1, keepdim=True) + 1e-20)
    return experts_TK, gates_TK, scores_TE
