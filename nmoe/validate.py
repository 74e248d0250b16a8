"""Loss and bits per byte on the fixed validation stream.

Shapes: W windows, S sequence, B batch, T = B*S targets, V vocabulary.
"""

from dataclasses import dataclass
from math import log

import numpy as np
import torch

from nmoe import dist
from nmoe.model import Transformer


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """Mean nats a target, bits a byte of text, targets counted."""

    loss: float
    bpb: float
    tokens: int


@torch.no_grad()
def validate(
    model: Transformer,
    windows_WS: np.ndarray,
    byte_lengths_V: np.ndarray,
    *,
    world: dist.World,
    batch: int,
    device: torch.device,
) -> Validation:
    """Mean over every target of `windows` [W, S + 1], dealt over ranks, summed in fp64.

    All ranks run equally many batches; a rank without a window of its own repeats the first one
    and does not count it.
    """
    model.eval()
    lengths_V = torch.from_numpy(byte_lengths_V).to(device)
    nats, text_bytes = torch.zeros(2, dtype=torch.float64, device=device)
    for start in range(0, len(windows_WS), batch * world.size):
        mine = range(
            start + world.rank, min(start + batch * world.size, len(windows_WS)), world.size
        )
        rows = list(mine) or [0]
        windows = dist.to_device(windows_WS[rows].astype(np.int64), device)
        _, nats_T, _ = model.nats(windows)
        if len(mine):
            nats += nats_T.double().sum()
            text_bytes += lengths_V[windows[:, 1:]].sum()
    model.train()
    totals = dist.all_reduce(torch.stack((nats, text_bytes))).tolist()
    tokens = len(windows_WS) * (windows_WS.shape[1] - 1)
    return Validation(
        loss=totals[0] / tokens, bpb=totals[0] / log(2) / max(1.0, totals[1]), tokens=tokens
    )
