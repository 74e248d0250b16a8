"""The gated activation in plain torch.

Legend: T tokens, in any number of dimensions, F hidden, G = 2 F columns of h.
"""

import torch.nn.functional as F
from torch import Tensor


def swiglu(h_TG: Tensor) -> Tensor:
    """a_TF: silu of the left half of h times its right half."""
    gate_TF, value_TF = h_TG.chunk(2, dim=-1)
    return F.silu(gate_TF) * value_TF
