"""Mixture of experts: router with bias balancing, stacked expert weights, the layer.

Shapes: B batch, S sequence, T = B*S tokens, D model, F expert hidden, G columns of w13, K top-k,
E experts, e local experts.
"""

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nmoe import ops
from nmoe.config import Activation, Config, Impl
from nmoe.expert_layout import Rows, parts
from nmoe.layers import Linear, SwiGLU
from nmoe.rdep import Transport

BIAS_LIMIT = 16.0


class Router(nn.Module):
    """Sigmoid scores in fp32, biased top-K choice; the bias balances loads and has no gradient."""

    bias_E: Tensor
    loads_E: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.top_k = config.experts.top_k
        self.bias_rate = config.experts.bias_rate
        self.has_aux = config.experts.aux_coef != 0
        self.impl: Impl = config.model.impl
        self.gate = Linear(config.model.dim, config.experts.num_experts)
        self.register_buffer("bias_E", torch.zeros(config.experts.num_experts))
        self.register_buffer(
            "loads_E", torch.zeros(config.experts.num_experts, dtype=torch.int64), persistent=False
        )

    def forward(self, x_TD: Tensor, *, batch: int = 1) -> tuple[Tensor, Tensor, Tensor]:
        """(experts_TK, gates_TK, aux) of `batch` sequences; in training choices are counted.

        `aux` is the load-balance loss summed over the sequences, 0 where its coefficient is 0.
        """
        logits_TE = ops.router_logits(x_TD, self.gate.weight, impl=self.impl)
        experts_TK, gates_TK, probability_BE = ops.route(
            logits_TE,
            self.bias_E,
            top_k=self.top_k,
            batch=batch if self.has_aux else None,
            impl=self.impl,
        )
        aux = gates_TK.new_zeros(())
        if self.training or probability_BE is not None:
            count_BE = ops.count_choices(experts_TK, len(self.loads_E), batch=batch, impl=self.impl)
            if self.training:
                self.loads_E += count_BE.sum(0)
            if probability_BE is not None:
                aux = balance_loss(count_BE, probability_BE)
        return experts_TK, gates_TK, aux

    @torch.no_grad()
    def update_bias(self, loads_E: Tensor) -> None:
        """Lower the bias of overloaded experts: b -= rate * (u - mean u), u = sign(load - mean)."""
        loads_E = loads_E.to(self.bias_E.dtype)
        sign_E = torch.sign(loads_E - loads_E.mean())
        self.bias_E -= self.bias_rate * (sign_E - sign_E.mean())
        self.bias_E.clamp_(-BIAS_LIMIT, BIAS_LIMIT)


class Experts(nn.Module):
    """The stacked weights of this rank's experts, w13 [e, D, G] and w2 [e, F, D]: fp32 masters.

    Where rows are bf16 the products read copies in bf16; whoever changes a master in place rounds
    it into its copy, `refresh` does so for both.
    """

    w13_copy: Tensor
    w2_copy: Tensor

    def __init__(
        self, config: Config, transport: Transport, *, layer: int, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.transport, self.layer = transport, layer
        self.local = transport.local_experts
        self.activation: Activation = config.experts.activation
        self.impl: Impl = config.model.impl
        dim, hidden, count = config.model.dim, config.experts.hidden, len(self.local)
        self.w13_eDG = nn.Parameter(torch.empty(count, dim, parts(self.activation) * hidden))
        self.w2_eFD = nn.Parameter(torch.empty(count, hidden, dim))
        self.has_copies = dtype != self.w2_eFD.dtype
        if self.has_copies:
            for name, master in (("w13_copy", self.w13_eDG), ("w2_copy", self.w2_eFD)):
                self.register_buffer(name, torch.empty_like(master, dtype=dtype), persistent=False)
            self.register_load_state_dict_post_hook(lambda module, _: module.refresh())

    @torch.no_grad()
    def refresh(self) -> None:
        """Round the masters into their copies."""
        if self.has_copies:
            self.w13_copy.copy_(self.w13_eDG)
            self.w2_copy.copy_(self.w2_eFD)

    def forward(self, x_TD: Tensor, experts_TK: Tensor, gates_TK: Tensor) -> Tensor:
        """y_TD: each token's gated sum over its experts, wherever they are."""
        masters = self.w13_eDG, self.w2_eFD
        read = (self.w13_copy, self.w2_copy) if self.has_copies else masters
        return ExpertLayer.apply(x_TD, experts_TK, gates_TK, *masters, *read, self)


class ExpertLayer(torch.autograd.Function):
    """Dispatch, experts, combine, and the same backward.

    Kept for backward: what arrived (x in its slots, the rows), pre-activations, gated activations
    and the weights that were read. The gradients of the weights have the dtype of the masters; a
    master that has a gradient from an earlier micro-batch gets this one added to it in place.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        experts_TK: Tensor,
        gates_TK: Tensor,
        w13_master: Tensor,
        w2_master: Tensor,
        w13_eDG: Tensor,
        w2_eFD: Tensor,
        layer: Experts,
    ) -> Tensor:
        impl, activation = layer.impl, layer.activation
        arrived = layer.transport.dispatch(x_TD, experts_TK, gates_TK, layer=layer.layer)
        h_RG, a_RF = ops.up(arrived.x_SD, w13_eDG, arrived.rows, activation=activation, impl=impl)
        y_RD = ops.down(a_RF, w2_eFD, arrived.rows, impl=impl)
        ctx.layer, ctx.masters = layer, (w13_master, w2_master)
        # x goes with the saved tensors: autograd guards it and lets go of it after backward
        ctx.arrived = replace(arrived, x_SD=x_TD.new_empty(0))
        ctx.save_for_backward(arrived.x_SD, h_RG, a_RF, w13_eDG, w2_eFD)
        return layer.transport.combine(y_RD, arrived)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy_TD,) = grads
        x_SD, h_RG, a_RF, w13_eDG, w2_eFD = ctx.saved_tensors
        layer, arrived = ctx.layer, ctx.arrived
        rows, impl, activation = arrived.rows, layer.impl, layer.activation
        w13_master, w2_master = ctx.masters
        dy_SD = layer.transport.dispatch_grads(dy_TD.contiguous(), arrived)
        dh_RG, dgate_BR = ops.down_grad(dy_SD, w2_eFD, h_RG, rows, activation=activation, impl=impl)
        dw2 = _weight_grad(w2_master, a_RF, dy_SD, rows, gathered="right", impl=impl)
        dw13 = _weight_grad(w13_master, x_SD, dh_RG, rows, gathered="left", impl=impl)
        dx_RD = ops.up_grad(dh_RG, w13_eDG, rows, impl=impl)
        dx_TD, dgates_TK = layer.transport.combine_grads(dx_RD, dgate_BR, arrived)
        return dx_TD, None, dgates_TK, dw13, dw2, None, None, None


def _weight_grad(
    master: Tensor,
    left: Tensor,
    right: Tensor,
    rows: Rows,
    *,
    gathered: Literal["left", "right"],
    impl: Impl,
) -> Tensor | None:
    """The gradient of a stack, or None once it is added to the one that its master has."""
    kept = master.grad if master.is_leaf else None
    out = torch.empty_like(master) if kept is None else kept
    add = None if kept is None else torch.ones(1, dtype=torch.int32, device=out.device)
    ops.weight_grad(left, right, rows, out, gathered=gathered, accumulate=add, impl=impl)
    return out if kept is None else None


class MoE(nn.Module):
    """Route, the experts of every token, add the shared expert."""

    def __init__(
        self, config: Config, transport: Transport, *, layer: int, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.router = Router(config)
        self.experts = Experts(config, transport, layer=layer, dtype=dtype)
        shared = config.experts.num_shared * config.experts.hidden
        self.shared = SwiGLU(config.model.dim, shared, impl=config.model.impl) if shared else None

    def forward(self, x_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """(y_BSD, aux): `aux` is the load-balance loss summed over the batch's sequences."""
        x_TD = x_BSD.flatten(0, 1)
        experts_TK, gates_TK, aux = self.router(x_TD, batch=x_BSD.shape[0])
        y_TD = self.experts(x_TD, experts_TK, gates_TK)
        if self.shared is not None:
            y_TD = y_TD + self.shared(x_TD)
        return y_TD.view_as(x_BSD), aux


def balance_loss(count_BE: Tensor, probability_BE: Tensor) -> Tensor:
    """Switch load-balance loss of every sequence, summed: E * sum_e share_e * mean probability_e.

    A perfectly balanced sequence gives 1. Source: Switch Transformer, equation 4, by sequence.
    """
    share_BE = count_BE / count_BE.sum(1, keepdim=True).clamp(min=1)
    return count_BE.shape[1] * (share_BE * probability_BE).sum()
