"""What the launchers between ranks refuse; what they do is shown by tests/rdep."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from nmoe.kernels import peers

STRIDE, DIM, TOP_K, WORLD = 64, 128, 2, 2


@pytest.fixture
def given(device: torch.device) -> dict[str, Tensor]:
    """Well-formed arguments by name."""
    slots = WORLD * STRIDE
    tensors = {
        "x": torch.zeros(5, DIM, dtype=torch.bfloat16),
        "experts": torch.zeros(5, TOP_K, dtype=torch.int64),
        "gates": torch.zeros(5, TOP_K),
        "table": torch.zeros(WORLD, dtype=torch.int64),
        "row": torch.zeros(slots, TOP_K, dtype=torch.int32),
        "dgate": torch.zeros(1, 256),
        "home": torch.zeros(slots, DIM, dtype=torch.bfloat16),
        "flags": torch.zeros(4, WORLD, dtype=torch.int32),
        "epochs": torch.zeros(4, dtype=torch.int32),
        "status": torch.zeros(1, dtype=torch.int32),
    }
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def push_choices(t: dict[str, Tensor]) -> None:
    tables: dict[str, Any] = dict.fromkeys(("experts_P", "gates_P", "counts_P"), t["table"])
    peers.push_choices(t["experts"], t["gates"], **tables, rank=0, stride=STRIDE)


def push_rows(t: dict[str, Tensor]) -> None:
    peers.push_rows(
        t["x"], t["experts"], rows_P=t["table"], rank=0, stride=STRIDE, experts_per_rank=4
    )


def push_sums(t: dict[str, Tensor]) -> None:
    peers.push_sums(t["x"], t["row"], home_P=t["table"], rank=0, stride=STRIDE)


def push_gate_grads(t: dict[str, Tensor]) -> None:
    peers.push_gate_grads(t["dgate"], t["row"], dgates_P=t["table"], stride=STRIDE)


def sum_home(t: dict[str, Tensor]) -> None:
    peers.sum_home(t["home"], t["experts"], world=WORLD, stride=STRIDE, experts_per_rank=4)


def signal_and_wait(t: dict[str, Tensor]) -> None:
    peers.signal_and_wait(
        t["table"], t["flags"], t["epochs"], t["status"],
        phase=0, rank=0, timeout_ns=1, has_clock=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("launch", "name", "wrong", "message"),
    [
        (push_choices, "experts", torch.Tensor.int, "push_choices: got experts int32"),
        (push_choices, "gates", torch.Tensor.double, "push_choices: got gates float64"),
        (push_choices, "table", torch.Tensor.int, "push_choices: got experts int32"),
        (push_rows, "x", torch.Tensor.float, "push_rows: got x float32"),
        (push_rows, "x", lambda x: x.repeat(1, 2)[:, ::2], r"got x .* strides \[256, 2\]"),
        (push_rows, "x", lambda x: x[:, :96].contiguous(), "got D = 96, expected a multiple of 64"),
        (push_rows, "experts", lambda ids: ids[:3], r"push_rows: got experts int64 \[3, 2\]"),
        (push_sums, "row", lambda row: row[:64], r"push_sums: got row int32 \[64, 2\]"),
        (push_gate_grads, "dgate", torch.Tensor.half, "push_gate_grads: got dgate float16"),
        (sum_home, "home", lambda home: home[:-1], r"sum_home: got home bfloat16 \[127, 128\]"),
        (signal_and_wait, "status", torch.Tensor.long, "signal_and_wait: got status int64"),
        (signal_and_wait, "epochs", lambda e: e[:2], r"signal_and_wait: got epochs int32 \[2\]"),
    ],
)
def test_launchers_refuse_what_they_would_read_wrongly(
    launch: Callable[[dict[str, Tensor]], None],
    name: str,
    wrong: Callable[[Tensor], Tensor],
    message: str,
    given: dict[str, Tensor],
) -> None:
    given[name] = wrong(given[name])
    with pytest.raises(ValueError, match=message):
        launch(given)
