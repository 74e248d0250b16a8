"""The seam between the model and its implementations: each operation once, `impl` chooses.

`reference` is plain torch and the specification; an implementation that is not built is refused.
"""

from torch import Tensor

from nmoe.config import Activation, ConfigError, Impl
from nmoe.reference import experts as reference_experts
from nmoe.reference import linear_cross_entropy as reference_cross_entropy
from nmoe.reference import route as reference_route

BUILT: tuple[Impl, ...] = ("reference",)


def route(
    logits_TE: Tensor, bias_E: Tensor, *, top_k: int, impl: Impl
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose experts: (experts_TK int64, gates_TK fp32, scores_TE fp32)."""
    match impl:
        case "reference":
            return reference_route.route(logits_TE, bias_E, top_k)
        case "triton":
            raise _not_built("route")


def experts(
    x_SD: Tensor,
    index_R: Tensor,
    ends_e: Tensor,
    weights: tuple[Tensor, Tensor, Tensor | None],
    *,
    activation: Activation,
    impl: Impl,
) -> Tensor:
    """y_RD: every received row through its expert; `weights` are (w1_eDF, w2_eFD, w3_eDF)."""
    w1_eDF, w2_eFD, w3_eDF = weights
    match impl:
        case "reference":
            return reference_experts.experts(
                x_SD, index_R, ends_e, w1_eDF, w2_eFD, w3_eDF, activation=activation
            )
        case "triton":
            raise _not_built("experts")


def linear_cross_entropy(
    x_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, *, chunk: int, num_real: int, impl: Impl
) -> Tensor:
    """Nats of every target, fp32 [T], without the whole [T, V]."""
    match impl:
        case "reference":
            return reference_cross_entropy.linear_cross_entropy(
                x_TD, weight_VD, targets_T, chunk=chunk, num_real=num_real
            )
        case "triton":
            raise _not_built("linear_cross_entropy")


def _not_built(name: str) -> ConfigError:
    return ConfigError(
        f'impl = "triton": no {name} kernel is built in this version. Set model.impl = "reference".'
    )
