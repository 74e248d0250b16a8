"""AdamW by torch's own fused step: the specification.

Of gradients times the factor and the learning rate times the scale:
m += (1 - b1) (g - m);  v = b2 v + (1 - b2) g^2;
p = p (1 - lr decay) - lr m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps).
Source: Loshchilov and Hutter 2019, with the weight decay of torch.optim.AdamW.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.adamw import adamw as torch_adamw


def adamw(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    copies: Sequence[Tensor | None],
    *,
    now: Tensor,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """Update parameters and moments in place, and round the parameters into their copies.

    now: fp64 [3] = (scale of lr, number t of this update from 1, factor on gradients).
    """
    scale, count, factor = now.tolist()
    if factor != 1:
        for gradient in gradients:
            gradient.mul_(factor)
    # torch adds one to each of them before it updates
    steps = [torch.full((), count - 1, device=now.device) for _ in parameters]
    torch_adamw(
        list(parameters),
        list(gradients),
        list(exp_avgs),
        list(exp_avg_sqs),
        [],
        steps,
        fused=True,
        amsgrad=False,
        beta1=betas[0],
        beta2=betas[1],
        lr=scale * lr,
        weight_decay=weight_decay,
        eps=eps,
        maximize=False,
    )
    for parameter, copy in zip(parameters, copies, strict=True):
        if copy is not None:
            copy.copy_(parameter)
