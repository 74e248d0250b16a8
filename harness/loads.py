"""Loads of experts: records of router.f16, float16 [layers, experts], each a share of its layer.

A router event says which record is its own. Legend: L MoE layers, E experts, N records.
"""

import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.errors import RunError
from nmoe.paths import RunFolder

Floats = NDArray[np.float64]
_ITEM = np.dtype("<f2")
MAX_HISTORY = 512  # records that a history is drawn from


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What one record holds."""

    num_layers: int
    num_experts: int

    @property
    def num_bytes(self) -> int:
        return self.num_layers * self.num_experts * _ITEM.itemsize


def read_loads(folder: RunFolder, shape: Shape, record: int) -> Floats:
    """One record [L, E] as load over an even share, 1.0 where balanced.

    RunError when the file is missing or does not reach that far.
    """
    try:
        with folder.router.open("rb") as file:
            data = os.pread(file.fileno(), shape.num_bytes, max(0, record) * shape.num_bytes)
    except OSError as error:
        raise RunError(f"no loads of experts: {folder.router}: {error.strerror}") from None
    if record < 0 or len(data) < shape.num_bytes:
        raise RunError(
            f"{folder.router} ends before record {record} of {shape.num_layers} layers x"
            f" {shape.num_experts} experts"
        )
    share_LE = np.frombuffer(data, dtype=_ITEM).reshape(shape.num_layers, shape.num_experts)
    return share_LE.astype(np.float64) * shape.num_experts


def read_history(
    folder: RunFolder, shape: Shape, record: int, *, layer: int, expert: int
) -> tuple[NDArray[np.int64], Floats]:
    """(records [N], load [N]) of one expert up to `record`, evenly thinned to MAX_HISTORY.

    Records that cannot be read are left out; a file that is not there gives none.
    """
    records_N = np.unique(np.linspace(0, record, min(record + 1, MAX_HISTORY)).astype(np.int64))
    offset = (layer * shape.num_experts + expert) * _ITEM.itemsize
    try:
        with folder.router.open("rb") as file:
            items = [
                os.pread(file.fileno(), _ITEM.itemsize, int(each) * shape.num_bytes + offset)
                for each in records_N
            ]
    except OSError:
        return np.empty(0, np.int64), np.empty(0)
    whole = [len(item) == _ITEM.itemsize for item in items]
    values = np.frombuffer(b"".join(item for item in items if len(item) == _ITEM.itemsize), _ITEM)
    return records_N[whole], values.astype(np.float64) * shape.num_experts
