"""Who owns which expert, what a dispatch refuses; sender and owner agree."""

import re

import pytest
import torch
from hypothesis import given, settings

from nmoe.rdep import layout
from nmoe.reference.sort import sort_rows
from tests.reference.routings import Routing, routings


@given(routings())
@settings(max_examples=100, deadline=None)
def test_sender_and_owner_name_the_same_tokens_when_any_routing(routing: Routing) -> None:
    world, num_experts = routing.world, routing.num_experts
    sent = [layout.destinations(i, num_experts=num_experts, world=world) for i in routing.sent()]
    for owner in range(world):
        local = layout.share(num_experts, rank=owner, world=world)
        rows = sort_rows(
            routing.experts_NK,
            routing.gates_NK,
            first_expert=local.start,
            num_experts=len(local),
            count_P=routing.count_P,
            stride=routing.stride,
        )
        received = (rows.row_NK >= 0).any(dim=1).split(routing.stride)
        for source in range(world):
            assert torch.equal(sent[source][owner], received[source].nonzero().flatten())


def test_share_covers_all_experts_when_they_divide() -> None:
    assert [list(layout.share(6, rank=rank, world=3)) for rank in range(3)] == [
        [0, 1],
        [2, 3],
        [4, 5],
    ]


def test_share_is_refused_when_experts_do_not_divide() -> None:
    with pytest.raises(ValueError, match="got 8 experts on 3 ranks"):
        layout.share(8, rank=0, world=3)


X, IDS, GATES = torch.zeros(4, 8), torch.zeros(4, 2, dtype=torch.int64), torch.zeros(4, 2)


@pytest.mark.parametrize(
    ("x", "ids", "gates", "message"),
    [
        (X[:3], IDS, GATES, "got x (3, 8) and experts (4, 2)"),
        (X, IDS, GATES[:, :1], "got gates torch.float32 (4, 1), expected float32 (4, 2)"),
        (X, IDS, GATES.bfloat16(), "got gates torch.bfloat16"),
        (X.double(), IDS, GATES, "got x torch.float64"),
        (X, IDS.int(), GATES, "experts torch.int32, expected"),
        (X, IDS + 6, GATES, "got expert ids 6 to 6, expected 0 to 5"),
        (X, IDS - 1, GATES, "got expert ids -1 to -1"),
    ],
)
def test_check_refuses_when_inputs_do_not_fit(
    x: torch.Tensor, ids: torch.Tensor, gates: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        layout.check(x, ids, gates, num_experts=6, dtype=torch.float32)
