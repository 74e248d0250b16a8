"""Router, balancing and the MoE layer against plain definitions."""

from math import sqrt
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nmoe.config import Config, read_config
from nmoe.metrics import is_collapsed, router_health
from nmoe.model import Transformer, init_weights
from nmoe.moe import BIAS_LIMIT, MoE, Router, balance_loss
from nmoe.rdep import open_transport
from tests import tiny


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return read_config(tiny.write_config(tmp_path))


def make_model(config: Config, *, seed: int = 1) -> Transformer:
    transport = open_transport(
        rank=0,
        world=1,
        num_experts=config.experts.num_experts,
        top_k=config.experts.top_k,
        dim=config.model.dim,
        max_tokens=1024,
        num_layers=config.model.num_layers,
        dtype=torch.float32,
        device="cpu",
    )
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
    experts_TK, gates_TK, scores_TE = router(x_TD)
    assert (experts_TK[:, 0] == 5).all()
    expected_TE = torch.sigmoid(x_TD @ router.gate.weight.T)
    torch.testing.assert_close(scores_TE, expected_TE)
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
    even_TK = torch.arange(8).repeat(4).view(-1, 2)
    flat_TE = torch.full((16, 8), 0.5)
    assert balance_loss(even_TK, flat_TE, batch=2).item() == pytest.approx(2.0)
    one_TK = torch.tensor([[0, 1]]).repeat(16, 1)
    sharp_TE = torch.full((16, 8), 0.01)
    sharp_TE[:, :2] = 0.99
    assert balance_loss(one_TK, sharp_TE, batch=2).item() > 6.0


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
    assert layer.experts.w3_eDF is not None
    for token, x_D in enumerate(x_BSD.flatten(0, 1)):
        expected_D = layer.shared(x_D)
        for expert, gate in zip(experts_TK[token], gates_TK[token], strict=True):
            w1, w2 = layer.experts.w1_eDF[expert], layer.experts.w2_eFD[expert]
            hidden = silu(x_D @ w1) * (x_D @ layer.experts.w3_eDF[expert])
            expected_D = expected_D + gate * (hidden @ w2)
        torch.testing.assert_close(y_BSD.flatten(0, 1)[token], expected_D, atol=1e-5, rtol=1e-4)


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
    nats_T, _ = model.nats(torch.zeros(1, 5, dtype=torch.int64))
    torch.testing.assert_close(nats_T, torch.full((4,), 257.0).log())


def test_init_draws_every_expert_from_its_own_seed(config: Config) -> None:
    (_, layer), *_ = make_model(config).moe_layers()
    w1_eDF = layer.experts.w1_eDF
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
