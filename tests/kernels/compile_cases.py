"""What is compiled offline: every launcher of a kernel, at the shapes of the presets.

A new kernel gets a case here: a function that launches it on meta tensors, through its launcher.
`test_compile.py` fails for a kernel that no case launches.

    python -m tests.kernels.compile_cases 90    one report a line; 100 for sm_100a
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from nmoe.config import Activation, read_config
from nmoe.expert_layout import Rows, capacity, parts
from nmoe.flops import padded_vocab
from nmoe.kernels import (
    adamw,
    combine,
    experts,
    grad_norm,
    linear_cross_entropy,
    muon,
    norm,
    peers,
    rotary,
    route,
    sort,
    swiglu,
)
from nmoe.ops import ROW_TILE
from nmoe.paths import REPO_ROOT
from tests.kernels.offline import compile_cases

TOKENS = 4096  # row counts are no part of a compiled kernel
BF16, FP32, INT32, INT64 = torch.bfloat16, torch.float32, torch.int32, torch.int64


class Shape(NamedTuple):
    """What of a MoE layer is compiled in."""

    dim: int
    hidden: int
    num_experts: int
    top_k: int
    activation: Activation = "swiglu"


def preset_shapes() -> dict[str, Shape]:
    """The layers of all presets that run kernels; presets alike in everything once."""
    shapes: dict[str, Shape] = {}
    configs = REPO_ROOT / "configs"
    for path in sorted([*configs.glob("*.toml"), *configs.glob("speedrun/*.toml")]):
        config = read_config(path)
        model, moe = config.model, config.experts
        shape = Shape(model.dim, moe.hidden, moe.num_experts, moe.top_k, moe.activation)
        if model.impl == "triton" and moe.num_experts and shape not in shapes.values():
            shapes[path.stem] = shape
    return shapes


SHAPES = preset_shapes() | {
    "small": Shape(768, 256, 128, 8),
    "wide": Shape(2048, 768, 128, 8),
    "relu_squared": Shape(768, 384, 256, 7, "relu_squared"),
    "squared_reglu": Shape(768, 384, 256, 7, "squared_reglu"),
}


def empty(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def rows_of(shape: Shape) -> Rows:
    length = capacity(TOKENS * shape.top_k, shape.num_experts, tile=ROW_TILE)
    ints = partial(empty, dtype=INT32)
    return Rows(
        tile=ROW_TILE,
        slot_R=ints(length),
        gate_R=empty(length, dtype=FP32),
        row_NK=ints(TOKENS, shape.top_k),
        start_e=ints(shape.num_experts),
        end_e=ints(shape.num_experts),
        expert_of_tile=ints(length // ROW_TILE),
        num_tiles=ints(1),
    )


def layer(shape: Shape, *, slots: int = TOKENS) -> None:
    """Every kernel of the experts, forward and backward."""
    rows, activation = rows_of(shape), shape.activation
    width = shape.hidden * parts(activation)
    length = len(rows.slot_R)
    x_SD, y_RD = empty(slots, shape.dim), empty(length, shape.dim)
    h_RG, a_RF = empty(length, width), empty(length, shape.hidden)
    w13_eDG = empty(shape.num_experts, shape.dim, width)
    w2_eFD = empty(shape.num_experts, shape.hidden, shape.dim)
    experts.up(x_SD, w13_eDG, rows, activation=activation)
    experts.down(a_RF, w2_eFD, rows)
    _, dgate_BR = experts.down_grad(x_SD, w2_eFD, h_RG, rows, activation=activation)
    experts.up_grad(h_RG, w13_eDG, rows)
    for out in (w2_eFD, empty(*w2_eFD.shape, dtype=FP32)):
        experts.weight_grad(a_RF, x_SD, rows, out, gathered="right")
    for out in (w13_eDG, empty(*w13_eDG.shape, dtype=FP32)):
        experts.weight_grad(x_SD, h_RG, rows, out, gathered="left")
    combine.combine(y_RD, rows.row_NK)
    combine.gate_grads(dgate_BR, rows.row_NK)


def micro_batches(shape: Shape) -> None:
    """dW that adds to what is there, when the device says so."""
    rows, accumulate = rows_of(shape), empty(1, dtype=INT32)
    x_SD, a_RF = empty(TOKENS, shape.dim), empty(len(rows.slot_R), shape.hidden)
    for dtype in (BF16, FP32):
        out = empty(shape.num_experts, shape.hidden, shape.dim, dtype=dtype)
        experts.weight_grad(a_RF, x_SD, rows, out, gathered="right", accumulate=accumulate)


def routing(shape: Shape, *, ranks: int = 1) -> None:
    """The counting sort of one rank, or of what several sent, with and without room for all."""
    count_P = empty(ranks, dtype=INT32) if ranks > 1 else None
    num_experts = shape.num_experts // ranks
    for overflow in (None, empty(1, dtype=INT32))[: 1 if ranks == 1 else 2]:
        sort.sort_rows(
            empty(ranks * TOKENS, shape.top_k, dtype=INT64 if ranks == 1 else INT32),
            empty(ranks * TOKENS, shape.top_k, dtype=FP32),
            first_expert=0,
            num_experts=num_experts,
            tile=ROW_TILE,
            num_rows=capacity(ranks * TOKENS * shape.top_k, num_experts, tile=ROW_TILE),
            count_P=count_P,
            stride=TOKENS if ranks > 1 else None,
            overflow=overflow,
        )


def decision(num_experts: int, top_k: int) -> None:
    """The router's choice and its gradient, with and without the balance loss, and the counts."""
    logits_TE = empty(TOKENS, num_experts, dtype=FP32).requires_grad_()
    for batch in (None, 2):
        experts_TK, gates_TK, *probability = route.route(
            logits_TE, empty(num_experts, dtype=FP32), top_k, batch=batch
        )
        outputs = [gates_TK, *(each for each in probability if each is not None)]
        torch.autograd.grad(outputs, [logits_TE], [torch.empty_like(each) for each in outputs])
        route.count_choices(experts_TK, num_experts, batch=batch or 1)


def between_ranks(shape: Shape, *, ranks: int) -> None:
    """What ranks write into each other, and how they wait."""
    table, each = empty(ranks, dtype=INT64), shape.num_experts // ranks
    experts_TK = empty(TOKENS, shape.top_k, dtype=INT64)
    gates_TK = empty(TOKENS, shape.top_k, dtype=FP32)
    row_SK = empty(ranks * TOKENS, shape.top_k, dtype=INT32)
    x_TD, y_RD = empty(TOKENS, shape.dim), empty(2 * TOKENS, shape.dim)
    dgate_BR = empty(3, 2 * TOKENS, dtype=FP32)
    peers.push_choices(
        experts_TK, gates_TK, experts_P=table, gates_P=table, counts_P=table, rank=0, stride=TOKENS
    )
    peers.push_rows(x_TD, experts_TK, rows_P=table, rank=0, stride=TOKENS, experts_per_rank=each)
    peers.push_sums(y_RD, row_SK, home_P=table, rank=0, stride=TOKENS)
    peers.push_gate_grads(dgate_BR, row_SK, dgates_P=table, stride=TOKENS)
    home_SD = empty(ranks * TOKENS, shape.dim)
    peers.sum_home(home_SD, experts_TK, world=ranks, stride=TOKENS, experts_per_rank=each)
    flags, one = empty(4, ranks, dtype=INT32), empty(1, dtype=INT32)
    for has_clock in (True, False):
        peers.signal_and_wait(
            table, flags, empty(4, dtype=INT32), one, phase=0, rank=0, timeout_ns=1,
            has_clock=has_clock,
        )  # fmt: skip


def loss(vocab_size: int, *, dim: int = 768) -> None:
    """The head's loss for training, and for validation, which needs no gradients."""
    targets_T = empty(TOKENS, dtype=INT64)
    for requires_grad in (True, False):
        weight_VD = empty(padded_vocab(vocab_size), dim, dtype=FP32).requires_grad_(requires_grad)
        linear_cross_entropy.linear_cross_entropy(
            empty(TOKENS, dim), weight_VD, targets_T, chunk=TOKENS, num_real=vocab_size
        )


def stream(dim: int, *, dtype: torch.dtype = BF16) -> None:
    """The residual stream and its norm: with and without delta, x' used and unused."""
    x_TD, delta_TD = (empty(TOKENS, dim, dtype=dtype).requires_grad_() for _ in range(2))
    weight_D = empty(dim, dtype=FP32).requires_grad_()
    for delta in (None, delta_TD):
        both = norm.add_rms_norm(x_TD, delta, weight_D, eps=1e-6)
        for outputs in (both, both[1:]):
            torch.autograd.grad(
                outputs, weight_D, [torch.empty_like(each) for each in outputs], retain_graph=True
            )


def gated(hidden: int, *, dtype: torch.dtype = BF16) -> None:
    """The activation of dense layers and of shared experts."""
    h_TG = empty(TOKENS, 2 * hidden, dtype=dtype).requires_grad_()
    torch.autograd.grad(swiglu.swiglu(h_TG), h_TG, empty(TOKENS, hidden, dtype=dtype))


def positions(heads: int, size: int, *, has_norm: bool = True, dtype: torch.dtype = BF16) -> None:
    """QK-norm and rotation, of gradients by token and by head."""
    qkv_BSPHN = empty(2, TOKENS // 2, 3, heads, size, dtype=dtype).requires_grad_()
    table = (empty(TOKENS // 2, size // 2, dtype=FP32) for _ in range(2))
    weights = (empty(size, dtype=FP32).requires_grad_() if has_norm else None for _ in range(2))
    outputs = rotary.rotary_norm(qkv_BSPHN, *weights, *table, eps=1e-6)
    for grads in ([torch.empty_like(y) for y in outputs], [y.new_empty(y.shape) for y in outputs]):
        torch.autograd.grad(outputs, qkv_BSPHN, grads, retain_graph=True)


def optimizers(*sizes: tuple[int, ...]) -> None:
    """Both updates of a stack of matrices, with and without a bf16 copy, columns packed or not."""
    now = empty(3, dtype=torch.float64)
    for size in sizes:
        p, g, m, v = (empty(*size, dtype=FP32) for _ in range(4))
        grad_norm.sum_squares([p])
        for copy in (None, empty(*size)):
            adamw.adamw(
                [p], [g], [m], [v], [copy],
                now=now, lr=1e-3, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1,
            )  # fmt: skip
            for packed in (False, True) if len(size) == 3 else (False,):
                muon.muon(
                    [p], [g], [m], [copy], now=now, lr=1e-3, momentum=0.95, weight_decay=0.1,
                    is_in_first=[True], packed=[packed],
                )  # fmt: skip


CASES: dict[str, Callable[[], None]] = {
    **{f"layer {name}": partial(layer, shape) for name, shape in SHAPES.items()},
    **{f"routing {name}": partial(routing, shape) for name, shape in SHAPES.items()},
    **{
        f"decision top {k} of {e}": partial(decision, e, k)
        for e, k in sorted(
            {
                *((shape.num_experts, shape.top_k) for shape in SHAPES.values()),
                (8, 2),
                (16, 16),
                (64, 16),
                (1000, 9),
                (300, 3),
                (4096, 16),
            }
        )
    },
    "routing of 8 ranks": partial(routing, SHAPES["super"], ranks=8),
    **{f"{n} ranks": partial(between_ranks, SHAPES["super"], ranks=n) for n in (2, 8)},
    **{f"loss over {size}": partial(loss, size) for size in (257, 50_257, 151_643)},
    **{f"stream of {dim}": partial(stream, dim) for dim in (64, 768, 2048, 8192)},
    "stream in fp32": partial(stream, 768, dtype=FP32),
    **{f"gated {hidden}": partial(gated, hidden) for hidden in (64, 384, 768, 2816, 3072, 11264)},
    "gated in fp32": partial(gated, 384, dtype=FP32),
    **{
        f"positions of {heads} x {size}": partial(positions, heads, size)
        for heads, size in ((12, 64), (16, 128), (4, 16), (8, 32), (2, 256))
    },
    "positions without a norm": partial(positions, 12, 64, has_norm=False),
    "positions in fp32": partial(positions, 12, 64, dtype=FP32),
    **{
        f"update {name}": partial(
            optimizers,
            (2, shape.dim, shape.hidden * parts(shape.activation)),
            (2, shape.hidden, shape.dim),
            (shape.dim, shape.dim),
        )
        for name in ("moonlet", "moe", "relu_squared")
        if (shape := SHAPES[name])
    },
    "update past 2^31": partial(optimizers, (4096, 768, 768)),
    "micro-batches": partial(micro_batches, SHAPES["super"]),
    "64-bit offsets": partial(layer, SHAPES["super"], slots=2**31 // 768 + 1),
}

if __name__ == "__main__":
    for report in compile_cases(CASES, target=int(sys.argv[1])):
        print(json.dumps(asdict(report)))
