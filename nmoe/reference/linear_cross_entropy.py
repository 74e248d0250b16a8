"""Cross-entropy of a linear head, in chunks of tokens so that [T, V] is never whole in memory.

Shapes: T tokens, D model, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def linear_cross_entropy(
    x_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, *, chunk: int, num_real: int
) -> Tensor:
    """Nats of every target, fp32 [T]: -log softmax(x W^T)[target] over the first `num_real` rows.

    Each chunk of `chunk` tokens recomputes its logits in the backward pass.
    """
    parts = [
        checkpoint(_nats, x_cD, weight_VD[:num_real], targets_c, use_reentrant=False)
        if torch.is_grad_enabled() and x_TD.shape[0] > chunk
        else _nats(x_cD, weight_VD[:num_real], targets_c)
        for x_cD, targets_c in zip(x_TD.split(chunk), targets_T.split(chunk), strict=True)
    ]
    return torch.cat(parts)


def _nats(x_TD: Tensor, weight_VD: Tensor, targets_T: Tensor) -> Tensor:
    logits_TV = F.linear(x_TD, weight_VD.to(x_TD.dtype)).float()
    return F.cross_entropy(logits_TV, targets_T, reduction="none")
