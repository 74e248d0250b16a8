"""Cross-entropy of a linear head, in chunks of tokens so that [T, V] is never whole in memory.

Shapes: T tokens, D model, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def linear_cross_entropy(
    x_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, *, chunk: int, num_real: int
) -> tuple[Tensor, Tensor]:
    """(sum of nats, nats_T), fp32: -log softmax(x W^T)[target] over the first `num_real` rows.

    The sum has gradients, nats_T has none. Each chunk of `chunk` tokens recomputes its logits in
    the backward pass. On a CPU a target outside 0 .. num_real - 1 raises ValueError.
    """
    if targets_T.device.type == "cpu" and ((targets_T < 0) | (targets_T >= num_real)).any():
        raise ValueError(
            f"linear_cross_entropy: got targets from {int(targets_T.min())} to "
            f"{int(targets_T.max())}, expected 0 to {num_real - 1}."
        )
    parts = [
        checkpoint(_nats, x_cD, weight_VD[:num_real], targets_c, use_reentrant=False)
        if torch.is_grad_enabled() and x_TD.shape[0] > chunk
        else _nats(x_cD, weight_VD[:num_real], targets_c)
        for x_cD, targets_c in zip(x_TD.split(chunk), targets_T.split(chunk), strict=True)
    ]
    nats_T = torch.cat(parts)
    return nats_T.sum(), nats_T.detach()


def _nats(x_TD: Tensor, weight_VD: Tensor, targets_T: Tensor) -> Tensor:
    logits_TV = F.linear(x_TD, weight_VD.to(x_TD.dtype)).float()
    return F.cross_entropy(logits_TV, targets_T, reduction="none")
