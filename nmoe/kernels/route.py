"""Router decision and its gradient, and counts of what was chosen.

One launch reads the logits once: scores, choices, gates and, where the balance loss is wanted, sums
of the normalised scores of each sequence. Backward writes d(logits) in one launch, from the chosen
scores alone or, with the balance loss, from the logits. Nothing is added up by atomics.

The logits are products of bf16 with fp32 sums: the fp32 weight goes in as two bf16 parts, which
hold 16 of its 24 bits, and x is bf16 anyway. Gradients are rounded to bf16, as in any linear map.

Of equal s + bias the lowest expert is chosen first; NaN counts as infinity.

Legend: T tokens, D model, B sequences of S tokens, E experts, K top-k, P parts of a sequence.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from nmoe.kernels.check import ANY, check
from nmoe.kernels.matmul import matmul

MAX_EXPERTS = 4096
PART = 16  # tokens, at least, whose probabilities a program adds up
CHOICES = 2048  # a program counts
MAX_BINS = 1024  # and experts; more would spill
_TINY = tl.constexpr(1e-20)
_LEAST = tl.constexpr(-(2**31))


def route(
    logits_TE: Tensor, bias_E: Tensor, top_k: int, *, batch: int | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(experts_TK int64, gates_TK fp32, probability_BE fp32): see `nmoe.reference.route`.

    logits_TE, bias_E: fp32; at most 4096 experts. Kept for backward: ids, gates and scores of the
    choices; the logits too with `batch`.
    """
    num_tokens, num_experts = logits_TE.shape
    check(
        "route",
        logits_TE.device,
        ("logits", logits_TE, (ANY, num_experts), torch.float32),
        ("bias", bias_E, (num_experts,), torch.float32),
    )
    if not 0 < top_k <= num_experts <= MAX_EXPERTS:
        raise ValueError(
            f"route: got top {top_k} of {num_experts} experts, expected 1 <= K <= E <= "
            f"{MAX_EXPERTS}."
        )
    _length("route", num_tokens, 1 if batch is None else batch)
    return _Route.apply(logits_TE, bias_E, top_k, batch)


def router_logits(x_TD: Tensor, weight_ED: Tensor) -> Tensor:
    """logits_TE fp32 of bf16 x and the fp32 weight."""
    dim = x_TD.shape[1]
    check(
        "router_logits",
        x_TD.device,
        ("x", x_TD, (ANY, dim), torch.bfloat16),
        ("weight", weight_ED, (ANY, dim), torch.float32),
    )
    return _Logits.apply(x_TD, weight_ED)


def count_choices(experts_TK: Tensor, num_experts: int, *, batch: int) -> Tensor:
    """count_BE int64: how often each expert was chosen in each sequence."""
    check("count_choices", experts_TK.device, ("experts", experts_TK, (ANY, ANY), torch.int64))
    choices = _length("count_choices", len(experts_TK), batch) * experts_TK.shape[1]
    parts = triton.cdiv(choices, CHOICES)
    count_BPE = torch.empty(batch, parts, num_experts, dtype=torch.int32, device=experts_TK.device)
    if count_BPE.numel():
        bins = min(MAX_BINS, triton.next_power_of_2(num_experts))
        _count[(batch * parts, triton.cdiv(num_experts, bins))](
            experts_TK, count_BPE, choices, parts, num_experts, bins, CHOICES, num_warps=4
        )  # fmt: skip
    return count_BPE.sum(1)


def _length(launcher: str, num_tokens: int, batch: int) -> int:
    """Tokens of a sequence; ValueError for a batch that does not divide them."""
    length = num_tokens // max(1, batch)
    if length * batch != num_tokens:
        raise ValueError(
            f"{launcher}: got {num_tokens} tokens in {batch} sequences, expected as many in each."
        )
    return length


def _blocks(num_experts: int) -> tuple[int, int, int]:
    """(bins, tokens, warps): a program holds `tokens` rows of `bins` scores at a time.

    Eight scores a thread; rows of up to 512, in one warp, need no barriers.
    """
    bins = triton.next_power_of_2(num_experts)
    return bins, max(1, min(32, 256 // bins)), 1 if bins <= 512 else bins // 256


class _Logits(torch.autograd.Function):
    """x W^T with W in two parts, and the gradients of both."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_ED: Tensor) -> Tensor:
        high_ED = weight_ED.bfloat16()
        low_ED = (weight_ED - high_ED).bfloat16()
        ctx.save_for_backward(x_TD, high_ED)
        logits_TE = matmul(x_TD, high_ED.T)
        return matmul(x_TD, low_ED.T, out=logits_TE, add=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x_TD, high_ED = ctx.saved_tensors
        dlogits_TE = grads[0].bfloat16()
        return dlogits_TE @ high_ED, matmul(dlogits_TE.T, x_TD)


class _Route(torch.autograd.Function):
    """The decision, and d(logits) of gates and mean probabilities."""

    @staticmethod
    def forward(
        ctx: Any, logits_TE: Tensor, bias_E: Tensor, top_k: int, batch: int | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        num_tokens, num_experts = logits_TE.shape
        bins, tokens, warps = _blocks(num_experts)
        sequences = 1 if batch is None else batch
        length = num_tokens // max(1, sequences)
        chunks = 1 if batch is None else max(1, PART // tokens)
        parts = triton.cdiv(length, tokens * chunks)
        experts_TK = logits_TE.new_empty(num_tokens, top_k, dtype=torch.int64)
        gates_TK, chosen_TK = (logits_TE.new_empty(num_tokens, top_k) for _ in range(2))
        part_BPE = None if batch is None else logits_TE.new_empty(batch, parts, num_experts)
        if num_tokens:
            _route[(sequences * parts,)](
                logits_TE, bias_E, experts_TK, gates_TK, chosen_TK, part_BPE, length, parts,
                num_experts, top_k, bins, triton.next_power_of_2(top_k), tokens, chunks,
                num_warps=warps,
            )  # fmt: skip
        ctx.batch, ctx.num_experts = batch, num_experts
        ctx.mark_non_differentiable(experts_TK)
        ctx.set_materialize_grads(False)
        kept = () if batch is None else (logits_TE,)
        ctx.save_for_backward(experts_TK, gates_TK, chosen_TK, *kept)
        probability_BE = None if part_BPE is None else part_BPE.sum(1) / max(1, length)
        return experts_TK, gates_TK, probability_BE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        _, dgates_TK, dprobability_BE = grads
        experts_TK, gates_TK, chosen_TK, *kept = ctx.saved_tensors
        dgates_TK = torch.zeros_like(gates_TK) if dgates_TK is None else dgates_TK.contiguous()
        if dprobability_BE is not None:
            dprobability_BE = dprobability_BE.contiguous()
        num_tokens, top_k = experts_TK.shape
        bins, tokens, warps = _blocks(ctx.num_experts)
        sequences = 1 if dprobability_BE is None else ctx.batch
        length = num_tokens // max(1, sequences)
        parts = triton.cdiv(length, tokens)
        dlogits_TE = gates_TK.new_empty(num_tokens, ctx.num_experts)
        if num_tokens:
            _route_grad[(sequences * parts,)](
                experts_TK, gates_TK, chosen_TK, dgates_TK,
                None if dprobability_BE is None else kept[0], dprobability_BE, dlogits_TE,
                length, parts, ctx.num_experts, top_k, bins, triton.next_power_of_2(top_k), tokens,
                num_warps=warps,
            )  # fmt: skip
        return dlogits_TE, None, None, None


@triton.jit
def _ordered(x):
    """int32 in the order of floats; NaN with infinity."""
    bits = tl.where(x == x, x, float("inf")).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit(do_not_specialize=["length", "parts"])
def _route(
    logits, bias, experts, gates, chosen, part, length, parts,
    E: tl.constexpr, K: tl.constexpr, BINS: tl.constexpr, CHOICES: tl.constexpr,
    TOKENS: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    first = (program % parts) * (TOKENS * CHUNKS)
    expert, choice = tl.arange(0, BINS)[None, :], tl.arange(0, CHOICES)[None, :]
    b = tl.load(bias + expert, mask=expert < E, other=0.0)
    total = tl.zeros((TOKENS, BINS), tl.float32)
    for chunk in range(CHUNKS):
        place = (first + chunk * TOKENS + tl.arange(0, TOKENS))[:, None]
        live = place < length
        token = (program // parts).to(tl.int64) * length + place
        at = logits + token * E
        s = tl.sigmoid(tl.load(at + expert, mask=live & (expert < E), other=float("-inf")))
        key = tl.where(expert < E, _ordered(s + b), _LEAST)
        ids = tl.zeros((TOKENS, CHOICES), tl.int32)
        for k in tl.static_range(K):
            top = tl.max(key, 1, keep_dims=True)
            pick = tl.min(tl.where(key == top, expert, BINS), 1, keep_dims=True)
            key = tl.where(expert == pick, _LEAST, key)
            ids = tl.where(choice == k, pick, ids)
        used = live & (choice < K)
        mine = tl.sigmoid(tl.load(at + ids, mask=used, other=float("-inf")))
        gate = mine / (tl.sum(mine, 1, keep_dims=True) + _TINY)
        tl.store(experts + token * K + choice, ids.to(tl.int64), mask=used)
        tl.store(gates + token * K + choice, gate, mask=used)
        tl.store(chosen + token * K + choice, mine, mask=used)
        if part is not None:
            total += s / (tl.sum(s, 1, keep_dims=True) + _TINY)
    if part is not None:
        to = part + program.to(tl.int64) * E + expert
        tl.store(to, tl.sum(total, 0, keep_dims=True), mask=expert < E)


@triton.jit(do_not_specialize=["length", "parts"])
def _route_grad(
    experts, gates, chosen, dgates, logits, dprobability, out, length, parts,
    E: tl.constexpr, K: tl.constexpr, BINS: tl.constexpr, CHOICES: tl.constexpr,
    TOKENS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    sequence = (program // parts).to(tl.int64)
    place = ((program % parts) * TOKENS + tl.arange(0, TOKENS))[:, None]
    live = place < length
    token = sequence * length + place
    expert = tl.arange(0, BINS)[None, :]
    at, used = token * E + expert, live & (expert < E)
    dx = tl.zeros((TOKENS, BINS), tl.float32)
    if logits is not None:
        s = tl.sigmoid(tl.load(logits + at, mask=used, other=float("-inf")))
        total = tl.sum(s, 1, keep_dims=True) + _TINY
        dp = tl.load(dprobability + sequence * E + expert, mask=expert < E, other=0.0) / length
        mean = tl.sum(dp * s, 1, keep_dims=True) / total
        dx = (dp - mean) / total * s * (1 - s)
    choice = tl.arange(0, CHOICES)[None, :]
    to, used_k = token * K + choice, live & (choice < K)
    ids = tl.load(experts + to, mask=used_k, other=0).to(tl.int32)
    gate = tl.load(gates + to, mask=used_k, other=0.0)
    dgate = tl.load(dgates + to, mask=used_k, other=0.0)
    mean = tl.sum(gate * dgate, 1, keep_dims=True)
    # d(s) * s (1 - s), where d(s) = (dgate - mean) / sum of s, and s / sum of s is the gate
    d = (dgate - mean) * gate * (1 - tl.load(chosen + to, mask=used_k, other=0.0))
    for k in range(K):  # unrolled, it spills
        pick = tl.sum(tl.where(choice == k, ids, 0), 1, keep_dims=True)
        d_k = tl.sum(tl.where(choice == k, d, 0.0), 1, keep_dims=True)
        dx += tl.where(expert == pick, d_k, 0.0)
    tl.store(out + at, dx, mask=used)


@triton.jit(do_not_specialize=["choices", "parts"])
def _count(
    experts, count, choices, parts, E: tl.constexpr, BINS: tl.constexpr, BLOCK: tl.constexpr
):
    """Row `program` of `count`: choices of each expert in this part of a sequence."""
    program = tl.program_id(0)
    place = (program % parts) * BLOCK + tl.arange(0, BLOCK)
    first = (program // parts).to(tl.int64) * choices
    live = place < choices
    lowest = tl.program_id(1) * BINS
    expert = tl.load(experts + first + place, mask=live, other=-1).to(tl.int32) - lowest
    total = tl.histogram(expert, BINS, mask=live & (expert >= 0) & (expert < BINS))
    bins = lowest + tl.arange(0, BINS)
    tl.store(count + program.to(tl.int64) * E + bins, total, mask=bins < E)
