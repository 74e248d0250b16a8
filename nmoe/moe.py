"""Mixture of experts: router with bias balancing, stacked expert weights, the layer.

Shapes: B batch, S sequence, T = B*S tokens, D model, F expert hidden, K top-k, E experts,
e local experts, R received rows.
"""

import torch
from torch import Tensor, nn

from nmoe import ops
from nmoe.config import Activation, Config, Impl
from nmoe.layers import Linear, SwiGLU
from nmoe.rdep import Rows, Transport

BIAS_LIMIT = 16.0


class Router(nn.Module):
    """Sigmoid scores in fp32, biased top-K choice; the bias balances loads and has no gradient."""

    bias_E: Tensor
    loads_E: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.top_k = config.experts.top_k
        self.bias_rate = config.experts.bias_rate
        self.impl: Impl = config.model.impl
        self.gate = Linear(config.model.dim, config.experts.num_experts)
        self.register_buffer("bias_E", torch.zeros(config.experts.num_experts))
        self.register_buffer(
            "loads_E", torch.zeros(config.experts.num_experts, dtype=torch.int64), persistent=False
        )

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(experts_TK, gates_TK, scores_TE); in training the choices are counted in `loads_E`."""
        logits_TE = self.gate(x_TD.float())
        experts_TK, gates_TK, scores_TE = ops.route(
            logits_TE, self.bias_E, top_k=self.top_k, impl=self.impl
        )
        if self.training:
            self.loads_E += count_choices(experts_TK, self.loads_E.numel())
        return experts_TK, gates_TK, scores_TE

    @torch.no_grad()
    def update_bias(self, loads_E: Tensor) -> None:
        """Lower the bias of overloaded experts: b -= rate * (u - mean u), u = sign(load - mean)."""
        loads_E = loads_E.to(self.bias_E.dtype)
        sign_E = torch.sign(loads_E - loads_E.mean())
        self.bias_E -= self.bias_rate * (sign_E - sign_E.mean())
        self.bias_E.clamp_(-BIAS_LIMIT, BIAS_LIMIT)


class Experts(nn.Module):
    """The stacked weights of this rank's experts: w1, w3 [e, D, F] and w2 [e, F, D]."""

    def __init__(self, config: Config, local: range) -> None:
        super().__init__()
        self.local = local
        self.activation: Activation = config.experts.activation
        self.impl: Impl = config.model.impl
        dim, hidden = config.model.dim, config.experts.hidden
        self.w1_eDF = nn.Parameter(torch.empty(len(local), dim, hidden))
        self.w2_eFD = nn.Parameter(torch.empty(len(local), hidden, dim))
        self.w3_eDF = (
            nn.Parameter(torch.empty(len(local), dim, hidden))
            if self.activation != "relu_squared"
            else None
        )

    def forward(self, rows: Rows) -> Tensor:
        """y_RD of the received rows, not yet gated."""
        dtype = rows.x_SD.dtype
        w3_eDF = None if self.w3_eDF is None else self.w3_eDF.to(dtype)
        return ops.experts(
            rows.x_SD,
            rows.index_R,
            rows.ends_e,
            (self.w1_eDF.to(dtype), self.w2_eFD.to(dtype), w3_eDF),
            activation=self.activation,
            impl=self.impl,
        )


class MoE(nn.Module):
    """Route, dispatch, experts, combine, add the shared expert."""

    def __init__(self, config: Config, transport: Transport, *, layer: int) -> None:
        super().__init__()
        self.transport = transport
        self.layer = layer
        self.router = Router(config)
        self.experts = Experts(config, transport.local_experts)
        shared = config.experts.num_shared * config.experts.hidden
        self.shared = SwiGLU(config.model.dim, shared) if shared else None

    def forward(self, x_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """(y_BSD, aux): `aux` is the load-balance loss summed over the batch's sequences."""
        x_TD = x_BSD.flatten(0, 1)
        experts_TK, gates_TK, scores_TE = self.router(x_TD)
        rows, receipt = self.transport.dispatch(x_TD, experts_TK, gates_TK, layer=self.layer)
        y_TD = self.transport.combine(self.experts(rows), rows, receipt)
        if self.shared is not None:
            y_TD = y_TD + self.shared(x_TD)
        return y_TD.view_as(x_BSD), balance_loss(experts_TK, scores_TE, batch=x_BSD.shape[0])


def count_choices(experts_TK: Tensor, num_experts: int) -> Tensor:
    """How often each expert was chosen, int64 [E]."""
    return torch.bincount(experts_TK.flatten(), minlength=num_experts)


def balance_loss(experts_TK: Tensor, scores_TE: Tensor, *, batch: int) -> Tensor:
    """Switch load-balance loss of every sequence, summed: E * sum_e share_e * mean probability_e.

    A perfectly balanced sequence gives 1. Source: Switch Transformer, equation 4, by sequence.
    """
    num_experts = scores_TE.shape[1]
    scores_BSE = scores_TE.view(batch, -1, num_experts)
    experts_BN = experts_TK.view(batch, -1)
    share_BE = torch.zeros(batch, num_experts, dtype=scores_TE.dtype, device=scores_TE.device)
    share_BE.scatter_add_(1, experts_BN, torch.ones_like(experts_BN, dtype=scores_TE.dtype))
    share_BE = share_BE / experts_BN.shape[1]
    probability_BE = (scores_BSE / (scores_BSE.sum(-1, keepdim=True) + 1e-20)).mean(1)
    return num_experts * (share_BE * probability_BE).sum()
