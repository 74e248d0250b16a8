"""The seam between the model and its implementations: each operation once, `impl` chooses.

`reference` is plain torch, the specification; `triton` are kernels for sm_90 and sm_100. Layout of
rows and expert weights: `nmoe.expert_layout`.

Legend: S slots, or positions, N slots with choices, or head size, K top-k, R rows, D model,
F hidden, G columns of w13 or h, e local experts, B sequences, or parts of d(gate), T tokens,
H heads, V vocabulary.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Literal

from torch import Tensor

from nmoe.config import Activation, Impl
from nmoe.expert_layout import Rows, capacity
from nmoe.memory import ROW_TILE
from nmoe.reference import adamw as reference_adamw
from nmoe.reference import combine as reference_combine
from nmoe.reference import experts as reference_experts
from nmoe.reference import grad_norm as reference_grad_norm
from nmoe.reference import linear_cross_entropy as reference_cross_entropy
from nmoe.reference import muon as reference_muon
from nmoe.reference import norm as reference_norm
from nmoe.reference import rotary as reference_rotary
from nmoe.reference import route as reference_route
from nmoe.reference import sort as reference_sort
from nmoe.reference import swiglu as reference_swiglu


def route(
    logits_TE: Tensor, bias_E: Tensor, *, top_k: int, batch: int | None = None, impl: Impl
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Choose experts: (experts_TK int64, gates_TK fp32, probability_BE fp32).

    The mean probability of each expert in each of `batch` sequences, for the balance loss, is None
    without `batch`.
    """
    return _route(impl).route(logits_TE, bias_E, top_k, batch=batch)


def router_logits(x_TD: Tensor, weight_ED: Tensor, *, impl: Impl) -> Tensor:
    """logits_TE of x W^T as exact as fp32, whatever the dtype of x; the weight is fp32."""
    return _route(impl).router_logits(x_TD, weight_ED)


def count_choices(experts_TK: Tensor, num_experts: int, *, batch: int, impl: Impl) -> Tensor:
    """count_BE int64: how often each expert was chosen in each sequence."""
    return _route(impl).count_choices(experts_TK, num_experts, batch=batch)


def sort_rows(
    experts_NK: Tensor,
    gates_NK: Tensor,
    local_experts: range,
    *,
    count_P: Tensor | None = None,
    stride: int | None = None,
    room: int | None = None,
    overflow: Tensor | None = None,
    impl: Impl,
) -> Rows:
    """Rows of the local experts; `count_P` and `stride` say which slots each source has filled.

    room: choices for which there are rows, of all slots when None. Where fewer than are needed,
    `overflow` (int32 [1]) becomes 1 and the rows are of no use.
    """
    first, num_experts = local_experts.start, len(local_experts)
    match impl:
        case "reference":
            return reference_sort.sort_rows(
                experts_NK,
                gates_NK,
                first_expert=first,
                num_experts=num_experts,
                count_P=count_P,
                stride=stride,
            )
        case "triton":
            from nmoe.kernels import sort

            num_slots, top_k = experts_NK.shape
            choices = num_slots * min(top_k, num_experts) if room is None else room
            return sort.sort_rows(
                experts_NK,
                gates_NK,
                first_expert=first,
                num_experts=num_experts,
                tile=ROW_TILE,
                num_rows=capacity(choices, num_experts, tile=ROW_TILE),
                count_P=count_P,
                stride=stride,
                overflow=overflow,
            )


def up(
    x_SD: Tensor, w13_eDG: Tensor, rows: Rows, *, activation: Activation, impl: Impl
) -> tuple[Tensor, Tensor]:
    """(h_RG, a_RF): pre-activations x W13 and gate * act(h), both kept for backward."""
    return _experts(impl).up(x_SD, w13_eDG, rows, activation=activation)


def down(a_RF: Tensor, w2_eFD: Tensor, rows: Rows, *, impl: Impl) -> Tensor:
    """y_RD = a W2 of each row's expert."""
    return _experts(impl).down(a_RF, w2_eFD, rows)


def down_grad(
    dy_SD: Tensor,
    w2_eFD: Tensor,
    h_RG: Tensor,
    rows: Rows,
    *,
    activation: Activation,
    impl: Impl,
) -> tuple[Tensor, Tensor]:
    """(dh_RG, dgate_BR): the parts of d(gate) are added up by `gate_grads`."""
    return _experts(impl).down_grad(dy_SD, w2_eFD, h_RG, rows, activation=activation)


def up_grad(dh_RG: Tensor, w13_eDG: Tensor, rows: Rows, *, impl: Impl) -> Tensor:
    """dx_RD = dh W13^T of each row's expert; not yet summed over the rows of a slot."""
    return _experts(impl).up_grad(dh_RG, w13_eDG, rows)


def weight_grad(
    left: Tensor,
    right: Tensor,
    rows: Rows,
    out_eMN: Tensor,
    *,
    gathered: Literal["left", "right"],
    accumulate: Tensor | None = None,
    impl: Impl,
) -> Tensor:
    """out[e] = left^T right over the rows of expert e, or added to it where `accumulate` says."""
    return _experts(impl).weight_grad(
        left, right, rows, out_eMN, gathered=gathered, accumulate=accumulate
    )


def combine(y_RD: Tensor, row_NK: Tensor, *, impl: Impl) -> Tensor:
    """y_ND: the sum of y over the rows of each slot's choices, in fp32, rounded once."""
    return _combine(impl).combine(y_RD, row_NK)


def gate_grads(dgate_BR: Tensor, row_NK: Tensor, *, impl: Impl) -> Tensor:
    """dgates_NK, fp32, of the parts that `down_grad` left; 0 where there is no row."""
    return _combine(impl).gate_grads(dgate_BR, row_NK)


def peer_kernels() -> ModuleType:
    """What writes into peers' memory and waits for them; CPU ranks do that without kernels."""
    from nmoe.kernels import peers

    return peers


def linear_cross_entropy(
    x_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, *, chunk: int, num_real: int, impl: Impl
) -> tuple[Tensor, Tensor]:
    """(sum of nats, nats_T of every target), fp32; only the sum has gradients. No [T, V] is made.

    chunk: tokens whose logits are in memory at once.
    """
    match impl:
        case "reference":
            return reference_cross_entropy.linear_cross_entropy(
                x_TD, weight_VD, targets_T, chunk=chunk, num_real=num_real
            )
        case "triton":
            from nmoe.kernels import linear_cross_entropy as kernels

            return kernels.linear_cross_entropy(
                x_TD, weight_VD, targets_T, chunk=chunk, num_real=num_real
            )


def add_rms_norm(
    x_TD: Tensor, delta_TD: Tensor | None, weight_D: Tensor, *, eps: float, impl: Impl
) -> tuple[Tensor, Tensor]:
    """(x + delta, its RMS norm times weight) over the last dimension, in the dtype of x.

    Without delta the first is x; T may be any number of dimensions.
    """
    match impl:
        case "reference":
            return reference_norm.add_rms_norm(x_TD, delta_TD, weight_D, eps=eps)
        case "triton":
            from nmoe.kernels import norm

            return norm.add_rms_norm(x_TD, delta_TD, weight_D, eps=eps)


def swiglu(h_TG: Tensor, *, impl: Impl) -> Tensor:
    """a_TF: silu of the left half of h times its right half; T may be any number of dimensions."""
    match impl:
        case "reference":
            return reference_swiglu.swiglu(h_TG)
        case "triton":
            from nmoe.kernels import swiglu as kernels

            return kernels.swiglu(h_TG)


def rotary_norm(
    qkv_BSPHN: Tensor,
    q_weight_N: Tensor | None,
    k_weight_N: Tensor | None,
    cos_SM: Tensor,
    sin_SM: Tensor,
    *,
    eps: float,
    impl: Impl,
) -> tuple[Tensor, Tensor, Tensor]:
    """(q, k, v) BHSN of P = 3 parts: q and k normed, where they have weights, and rotated.

    cos, sin: of each position and of each of M = N / 2 pairs, one from either half of a head.
    """
    match impl:
        case "reference":
            function = reference_rotary.rotary_norm
        case "triton":
            from nmoe.kernels import rotary

            function = rotary.rotary_norm
    return function(qkv_BSPHN, q_weight_N, k_weight_N, cos_SM, sin_SM, eps=eps)


def sum_squares(tensors: Sequence[Tensor], *, impl: Impl) -> Tensor:
    """fp64 scalar: the squares of all elements of fp32 tensors added up."""
    match impl:
        case "reference":
            return reference_grad_norm.sum_squares(tensors)
        case "triton":
            from nmoe.kernels import grad_norm

            return grad_norm.sum_squares(tensors)


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
    impl: Impl,
) -> None:
    """AdamW in place; now: fp64 [3] = (scale of lr, number of this update, factor on gradients)."""
    lists = (parameters, gradients, exp_avgs, exp_avg_sqs, copies)
    match impl:
        case "reference":
            update = reference_adamw.adamw
        case "triton":
            from nmoe.kernels import adamw

            update = adamw.adamw
    update(*lists, now=now, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)


def muon(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    momenta: Sequence[Tensor],
    copies: Sequence[Tensor | None],
    *,
    now: Tensor,
    lr: float,
    momentum: float,
    weight_decay: float,
    is_in_first: Sequence[bool],
    packed: Sequence[bool],
    impl: Impl,
) -> None:
    """Muon in place; now: as for `adamw`. Packed parameters are W1 and W3 in w13's columns."""
    match impl:
        case "reference":
            update = reference_muon.muon
        case "triton":
            from nmoe.kernels import muon

            update = muon.muon
    update(
        parameters,
        gradients,
        momenta,
        copies,
        now=now,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        is_in_first=is_in_first,
        packed=packed,
    )


def _route(impl: Impl) -> ModuleType:
    match impl:
        case "reference":
            return reference_route
        case "triton":
            from nmoe.kernels import route

            return route


def _experts(impl: Impl) -> ModuleType:
    match impl:
        case "reference":
            return reference_experts
        case "triton":
            from nmoe.kernels import experts

            return experts


def _combine(impl: Impl) -> ModuleType:
    match impl:
        case "reference":
            return reference_combine
        case "triton":
            from nmoe.kernels import combine

            return combine
