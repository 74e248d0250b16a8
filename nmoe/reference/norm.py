"""The residual stream and its RMS norm in plain torch.

Legend: T tokens, in any number of dimensions, D model.
"""

import torch.nn.functional as F
from torch import Tensor


def add_rms_norm(
    x_TD: Tensor, delta_TD: Tensor | None, weight_D: Tensor, *, eps: float
) -> tuple[Tensor, Tensor]:
    """(x + delta, or x without one; that over its RMS, times the weight), in the dtype of x."""
    x_TD = x_TD if delta_TD is None else x_TD + delta_TD
    return x_TD, F.rms_norm(x_TD, (x_TD.shape[-1],), weight_D.to(x_TD.dtype), eps)
