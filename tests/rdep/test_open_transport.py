"""What open_transport gives for one rank and what it refuses."""

from typing import Any

import pytest
import torch

from nmoe.rdep import open_transport

SETTINGS: dict[str, Any] = {
    "rank": 0,
    "world": 1,
    "num_experts": 8,
    "top_k": 2,
    "dim": 16,
    "max_tokens": 4,
    "num_layers": 1,
    "dtype": torch.float32,
    "device": "cpu",
    "impl": "reference",
}


def test_open_gives_all_experts_when_one_rank() -> None:
    transport = open_transport(**SETTINGS)
    assert (transport.rank, transport.world, transport.local_experts) == (0, 1, range(8))


def test_dispatch_hands_over_the_tokens_themselves_when_one_rank() -> None:
    transport = open_transport(**SETTINGS)
    x, ids = torch.randn(3, 16), torch.tensor([[0, 7], [3, 0], [7, 3]])
    arrived = transport.dispatch(x, ids, torch.ones(3, 2), layer=0)
    assert arrived.x_SD is x
    assert arrived.rows.slot_R.tolist() == [0, 1, 1, 2, 0, 2]
    assert arrived.rows.start_e.tolist() == [0, 2, 2, 2, 4, 4, 4, 4]
    assert arrived.rows.end_e.tolist() == [2, 2, 2, 4, 4, 4, 4, 6]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"world": 3}, "experts do not divide among ranks: got 8 experts on 3 ranks"),
        ({"world": 2, "device": "cuda:0"}, 'got impl "reference" on cuda:0, expected "triton"'),
        ({"dtype": torch.float16}, "got torch.float16, expected"),
    ],
)
def test_open_is_refused_when_settings_cannot_be_met(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_transport(**(SETTINGS | changes))
