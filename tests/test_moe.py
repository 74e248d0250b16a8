"""Router, balancing and the MoE layer against plain definitions."""

import weakref
from dataclasses import replace
from math import sqrt
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from nmoe.config import Activation, Config, read_config
from nmoe.expert_layout import unpack
from nmoe.metrics import is_collapsed, router_health
from nmoe.model import Transformer, init_weights
from nmoe.moe import BIAS_LIMIT, Experts, MoE, Router, balance_loss
from nmoe.rdep import Transport, open_transport
from nmoe.reference.route import count_choices, mean_probability
from tests import tiny


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return read_config(tiny.write_config(tmp_path))


def transport_of(config: Config, *, dtype: torch.dtype = torch.float32) -> Transport:
    return open_transport(
        rank=0,
        world=1,
        num_experts=config.experts.num_experts,
        top_k=config.experts.top_k,
        dim=config.model.dim,
        max_tokens=1024,
        num_layers=config.model.num_layers,
        dtype=dtype,
        device="cpu",
        impl="reference",
    )


def make_model(config: Config, *, seed: int = 1) -> Transformer:
    transport = transport_of(config)
    model = Transformer(config, transport, vocab_size=257, dtype=torch.float32)
    init_weights(model, seed=seed)
    return model


def make_router(config: Config) -> Router:
    router = Router(config)
    nn.init.normal_(router.gate.weight, generator=torch.Generator().manual_seed(0))
    return router


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def test_router_chooses_by_biased_score_and_weighs_by_score(config: Config) -> None:
    router = make_router(config)
    x_TD = inputs(50, 32)
    router.bias_E[5] = 10.0
    experts_TK, gates_TK, _ = router(x_TD)
    assert (experts_TK[:, 0] == 5).all()
    expected_TE = torch.sigmoid(x_TD @ router.gate.weight.T)
    chosen_TK = expected_TE.gather(1, experts_TK)
    torch.testing.assert_close(gates_TK, chosen_TK / chosen_TK.sum(1, keepdim=True))


def test_router_bias_gets_no_gradient_but_the_gate_does(config: Config) -> None:
    router = make_router(config)
    _, gates_TK, _ = router(inputs(50, 32))
    (gates_TK * inputs(50, 2)).sum().backward()
    assert router.gate.weight.grad is not None
    assert router.gate.weight.grad.abs().sum() > 0
    assert not router.bias_E.requires_grad


def test_router_counts_choices_in_training_only(config: Config) -> None:
    router = make_router(config)
    router(inputs(50, 32))
    router(inputs(50, 32))
    assert router.loads_E.sum() == 2 * 50 * 2
    router.eval()
    router(inputs(50, 32))
    assert router.loads_E.sum() == 2 * 50 * 2


def test_router_bias_moves_against_the_load_centred_and_clamped(config: Config) -> None:
    router = make_router(config)
    loads_E = torch.tensor([8, 2, 2, 2, 2, 2, 2, 4])
    router.update_bias(loads_E)
    sign_E = torch.sign(loads_E.float() - loads_E.float().mean())
    torch.testing.assert_close(router.bias_E, -1e-3 * (sign_E - sign_E.mean()))
    assert router.bias_E.sum().abs() < 1e-7
    router.bias_rate = 100.0
    router.update_bias(loads_E)
    assert router.bias_E.abs().max() == BIAS_LIMIT


def test_router_bias_balances_a_skewed_router(config: Config) -> None:
    router = make_router(config)
    router.bias_rate = 0.01
    with torch.no_grad():
        router.gate.weight[:2] += 0.3
    x_TD = inputs(4000, 32).abs()

    def cv() -> float:
        router.loads_E.zero_()
        router(x_TD)
        return router_health(router.loads_E, router.bias_E).cv

    before = cv()
    for _ in range(300):
        router.update_bias(router.loads_E)
        cv()
    assert before > 0.5
    assert cv() < 0.25 * before


def test_balance_loss_is_one_a_sequence_when_balanced_and_larger_when_not() -> None:
    def loss(experts_TK: Tensor, scores_TE: Tensor) -> float:
        count_BE = count_choices(experts_TK, 8, batch=2)
        return balance_loss(count_BE, mean_probability(scores_TE, 2)).item()

    even_TK = torch.arange(8).repeat(4).view(-1, 2)
    flat_TE = torch.full((16, 8), 0.5)
    assert loss(even_TK, flat_TE) == pytest.approx(2.0)
    one_TK = torch.tensor([[0, 1]]).repeat(16, 1)
    sharp_TE = torch.full((16, 8), 0.01)
    sharp_TE[:, :2] = 0.99
    assert loss(one_TK, sharp_TE) > 6.0


def test_router_gives_no_balance_loss_when_its_coefficient_is_zero(config: Config) -> None:
    off = replace(config, experts=replace(config.experts, aux_coef=0.0))
    for each, has_loss in ((config, True), (off, False)):
        *_, aux = make_router(each)(inputs(50, 32), batch=5)
        assert aux.requires_grad == has_loss
        assert (aux.item() > 0) == has_loss


def test_moe_equals_a_loop_over_tokens_and_experts(config: Config) -> None:
    model = make_model(config)
    (_, layer), *_ = model.moe_layers()
    assert isinstance(layer, MoE)
    assert layer.shared is not None
    nn.init.normal_(layer.experts.w2_eFD, std=0.1)
    nn.init.normal_(layer.shared.down.weight, std=0.1)
    x_BSD = inputs(2, 5, 32)
    y_BSD, _ = layer(x_BSD)
    experts_TK, gates_TK, _ = layer.router(x_BSD.flatten(0, 1))
    silu = torch.nn.functional.silu
    w1_eDF, w3_eDF = unpack(layer.experts.w13_eDG, activation="swiglu")
    assert w3_eDF is not None
    for token, x_D in enumerate(x_BSD.flatten(0, 1)):
        expected_D = layer.shared(x_D)
        for expert, gate in zip(experts_TK[token], gates_TK[token], strict=True):
            hidden = silu(x_D @ w1_eDF[expert]) * (x_D @ w3_eDF[expert])
            expected_D = expected_D + gate * (hidden @ layer.experts.w2_eFD[expert])
        torch.testing.assert_close(y_BSD.flatten(0, 1)[token], expected_D, atol=1e-5, rtol=1e-4)


def make_layer(config: Config, activation: Activation, *, dtype: torch.dtype) -> MoE:
    """A layer with normal weights; parameters are fp32, rows are `dtype`."""
    config = replace(config, experts=replace(config.experts, activation=activation))
    layer = MoE(config, transport_of(config, dtype=dtype), layer=0, dtype=dtype)
    generator = torch.Generator().manual_seed(6)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5, generator=generator)
    layer.experts.refresh()
    return layer


def dense(layer: MoE, leaves: dict[str, Tensor], experts_TK: Tensor) -> Tensor:
    """y_BSD and the balance loss as one vector, every expert on every token, choices as given."""
    x_BSD, activation = leaves["x"], layer.experts.activation
    x_TD, num_experts = x_BSD.flatten(0, 1), layer.router.bias_E.numel()
    scores_TE = torch.sigmoid(x_TD @ leaves["router.gate.weight"].T)
    is_chosen_TE = torch.zeros_like(scores_TE).scatter(1, experts_TK, 1.0)
    gates_TE = scores_TE * is_chosen_TE
    gates_TE = gates_TE / gates_TE.sum(1, keepdim=True)
    w1_eDF, w3_eDF = unpack(leaves["experts.w13_eDG"], activation=activation)
    h1 = torch.einsum("td,edf->tef", x_TD, w1_eDF)
    inner = nn.functional.silu(h1) if activation == "swiglu" else h1.clamp(min=0) ** 2
    if w3_eDF is not None:
        inner = inner * torch.einsum("td,edf->tef", x_TD, w3_eDF)
    y_TD = torch.einsum("te,tef,efd->td", gates_TE, inner, leaves["experts.w2_eFD"])
    up1, up3 = leaves["shared.up.weight"]
    shared_TF = nn.functional.silu(x_TD @ up1.T) * (x_TD @ up3.T)
    y_TD = y_TD + shared_TF @ leaves["shared.down.weight"].T
    aux = x_TD.new_zeros(())
    per_sequence = (part.chunk(len(x_BSD)) for part in (is_chosen_TE, scores_TE))
    for chosen, scores in zip(*per_sequence, strict=True):
        share_E = chosen.mean(0) / experts_TK.shape[1]
        aux = aux + num_experts * (share_E * (scores / scores.sum(1, keepdim=True)).mean(0)).sum()
    return torch.cat([y_TD.flatten(), aux.view(1)])


@pytest.mark.parametrize(
    ("dtype", "limit"),
    # bf16: products, activations and sums are rounded to 2^-9 in turn, relu is squared
    [(torch.float32, 5e-6), (torch.bfloat16, 8 * 2**-9)],
)
@pytest.mark.parametrize("activation", get_args(Activation))
def test_moe_gradients_match_a_dense_oracle_when_any_activation(
    config: Config, activation: Activation, dtype: torch.dtype, limit: float
) -> None:
    layer = make_layer(config, activation, dtype=dtype)
    x_BSD = inputs(3, 40, 32).to(dtype).requires_grad_()
    dy = torch.randn(3 * 40 * 32 + 1, generator=torch.Generator().manual_seed(8)).to(dtype)
    y_BSD, aux = layer(x_BSD)
    names = dict(layer.named_parameters())
    torch.autograd.backward([y_BSD, aux], [dy[:-1].view_as(y_BSD), dy[-1].float()])

    leaves = {name: tensor.detach().double() for name, tensor in {"x": x_BSD, **names}.items()}
    for leaf in leaves.values():
        leaf.requires_grad_()
    experts_TK = layer.router(x_BSD.detach().flatten(0, 1))[0]
    want = dense(layer, leaves, experts_TK)
    want_grads = torch.autograd.grad(want, list(leaves.values()), dy.double())

    got: dict[str, Any] = {"y": y_BSD, "x": x_BSD.grad} | {n: p.grad for n, p in names.items()}
    expected = {"y": want[:-1].view_as(y_BSD)} | dict(zip(leaves, want_grads, strict=True))
    assert got.keys() == expected.keys()
    assert aux.item() == pytest.approx(want[-1].item(), rel=1e-5)
    for name, tensor in got.items():
        assert tensor.dtype == (dtype if name in ("x", "y") else torch.float32), name
        error = (tensor.double() - expected[name]).norm() / expected[name].norm()
        assert error.item() < limit, name


def test_experts_give_the_same_bits_and_keep_nothing_when_no_grad(config: Config) -> None:
    layer = make_layer(config, "swiglu", dtype=torch.float32)
    x_BSD = inputs(2, 5, 32)
    y_BSD, _ = layer(x_BSD)
    with torch.no_grad():
        without_BSD, _ = layer(x_BSD)
    assert torch.equal(without_BSD, y_BSD)
    assert without_BSD.grad_fn is None
    assert y_BSD.requires_grad


def test_expert_gradients_add_up_when_micro_batches_follow(config: Config) -> None:
    layer = make_layer(config, "swiglu", dtype=torch.float32)
    halves = inputs(2, 30, 32).chunk(2)
    torch.cat([layer(half)[0] for half in halves]).sum().backward()
    together = [p.grad for p in layer.experts.parameters()]
    layer.zero_grad()
    for half in halves:
        layer(half)[0].sum().backward()
    for added, grad in zip((p.grad for p in layer.experts.parameters()), together, strict=True):
        assert added is not None
        torch.testing.assert_close(added, grad)
        assert added.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_experts_give_zero_gradients_when_there_are_no_tokens(
    config: Config, dtype: torch.dtype
) -> None:
    experts = Experts(config, transport_of(config, dtype=dtype), layer=0, dtype=dtype)
    for parameter in experts.parameters():
        nn.init.normal_(parameter)
    x_TD = torch.zeros(0, 32, dtype=dtype, requires_grad=True)
    gates_TK = torch.zeros(0, 2, requires_grad=True)
    y_TD = experts(x_TD, torch.zeros(0, 2, dtype=torch.int64), gates_TK)
    assert y_TD.shape == (0, 32)
    y_TD.sum().backward()
    assert x_TD.grad is not None
    assert gates_TK.grad is not None
    assert (x_TD.grad.shape, gates_TK.grad.shape) == ((0, 32), (0, 2))
    for parameter in experts.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()


def test_experts_refuse_when_tokens_were_changed_before_backward(config: Config) -> None:
    layer = make_layer(config, "swiglu", dtype=torch.float32)
    x_TD = inputs(5, 32)
    experts_TK, gates_TK, _ = layer.router(x_TD.clone())
    y_TD = layer.experts(x_TD, experts_TK, gates_TK)
    x_TD.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y_TD.sum().backward()


def test_experts_let_go_of_tokens_when_backward_is_done(config: Config) -> None:
    layer = make_layer(config, "swiglu", dtype=torch.float32)
    x_TD = inputs(5, 32)
    experts_TK, gates_TK, _ = layer.router(x_TD.clone())
    y_TD = layer.experts(x_TD, experts_TK, gates_TK)
    kept = weakref.ref(x_TD)
    del x_TD
    assert kept() is not None
    y_TD.sum().backward()
    assert kept() is None


def test_experts_refuse_when_differentiated_twice(config: Config) -> None:
    layer = make_layer(config, "swiglu", dtype=torch.float32)
    x_BSD = inputs(1, 5, 32).requires_grad_()
    y_BSD, _ = layer(x_BSD)
    (dx_BSD,) = torch.autograd.grad(y_BSD.square().sum(), [x_BSD], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx_BSD.square().sum().backward()


def test_model_does_not_look_ahead(config: Config) -> None:
    model = make_model(config)
    for parameter in model.parameters():
        if parameter.abs().sum() == 0:
            nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(5))
    model.eval()
    tokens_BS = torch.randint(0, 257, (1, 20), generator=torch.Generator().manual_seed(2))
    changed_BS = tokens_BS.clone()
    changed_BS[0, 12:] = (changed_BS[0, 12:] + 1) % 257
    rows, cols = torch.zeros(20, dtype=torch.int64), torch.arange(20)
    before = model.logits_at(tokens_BS, rows, cols)
    after = model.logits_at(changed_BS, rows, cols)
    torch.testing.assert_close(before[:12], after[:12])
    assert (before[12:] - after[12:]).abs().amax(1).min() > 1e-4


def test_model_gives_no_probability_to_padded_tokens(config: Config) -> None:
    model = make_model(config)
    rows = cols = torch.zeros(1, dtype=torch.int64)
    assert model.logits_at(torch.zeros(1, 4, dtype=torch.int64), rows, cols).shape == (1, 257)
    assert model.head.weight.shape[0] == 384
    nats, nats_T, _ = model.nats(torch.zeros(1, 5, dtype=torch.int64))
    torch.testing.assert_close(nats_T, torch.full((4,), 257.0).log())
    torch.testing.assert_close(nats, nats_T.sum())


def test_init_draws_every_expert_from_its_own_seed(config: Config) -> None:
    (_, layer), *_ = make_model(config).moe_layers()
    w1_eDF, w3_eDF = unpack(layer.experts.w13_eDG, activation="swiglu")
    assert w3_eDF is not None
    assert not torch.equal(w1_eDF, w3_eDF)
    for first in range(8):
        for second in range(first):
            assert not torch.equal(w1_eDF[first], w1_eDF[second])
    assert w1_eDF.std().item() == pytest.approx(32**-0.5, rel=0.05)
    assert layer.experts.w2_eFD.abs().sum() == 0


def test_init_depends_on_the_seed_and_on_nothing_else(config: Config) -> None:
    first, same, other = make_model(config), make_model(config), make_model(config, seed=2)
    for name, value in first.state_dict().items():
        assert torch.equal(value, same.state_dict()[name])
    assert not torch.equal(first.embedding.weight, other.embedding.weight)


def test_router_health_of_even_and_of_collapsed_loads() -> None:
    bias_E = torch.tensor([0.0, 1.0, -2.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    even = router_health(torch.full((8,), 5), bias_E)
    assert (even.cv, even.experts_active, even.max_load) == (0.0, 8, 1.0)
    assert even.entropy == pytest.approx(1.0)
    assert even.bias_range == 3.0
    assert not is_collapsed(even, num_experts=8, top_k=2)
    worst = router_health(torch.tensor([20, 20, 0, 0, 0, 0, 0, 0]), bias_E)
    assert worst.cv == pytest.approx(sqrt(8 / 2 - 1))
    assert is_collapsed(worst, num_experts=8, top_k=2)
    assert not is_collapsed(worst, num_experts=3, top_k=2)
