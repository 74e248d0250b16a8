"""The device wire between real processes: two ranks agree with one, bit by bit where they can.

Without a GPU the kernels are interpreted over host shared memory; the source is the same.
"""

from collections.abc import Callable, Iterator

import pytest
import torch

from tests.rdep import device_cases as cases
from tests.rdep.device_cases import Pass
from tests.rdep.ranks import Ranks

World = Callable[[int], Ranks]

PASSES = [
    Pass(counts=(20, 13)),
    Pass(counts=(20, 13), layer=1, seed=1),
    Pass(counts=(0, 9), routing="one", seed=2),
    Pass(counts=(64, 1), routing="one", seed=3),
    Pass(counts=(7, 0), seed=4),
    Pass(counts=(0, 0), seed=5),
]


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    difference = (got.double() - want.double()).norm().item()
    return difference / want.double().norm().item() if difference else 0.0


def test_two_ranks_agree_with_one_when_layers_follow_each_other(ranks: World) -> None:
    assert_two_agree_with_one(ranks, PASSES)


@pytest.mark.gpu
@pytest.mark.soak
@pytest.mark.parametrize("seed", range(4))
def test_two_ranks_agree_with_one_when_hundreds_of_layers_are_drawn(
    ranks: World, seed: int
) -> None:
    assert_two_agree_with_one(ranks, cases.random_passes(300, seed=seed))


@pytest.mark.skipif(1 < torch.cuda.device_count() < 8, reason="eight ranks: none, one or 8 GPUs")
def test_eight_ranks_agree_with_one_when_layers_follow_each_other(ranks: World) -> None:
    """An expert a rank; ranks without tokens, all tokens to the first three."""
    passes = [
        Pass(counts=(3, 0, 64, 1, 7, 20, 0, 5)),
        Pass(counts=(0, 9, 0, 0, 0, 0, 0, 2), layer=1, routing="one", seed=1),
        Pass(counts=(5,) * 8, seed=2),
    ]
    assert_many_agree_with_one(ranks, 8, passes)


def assert_two_agree_with_one(ranks: World, passes: list[Pass]) -> None:
    assert_many_agree_with_one(ranks, 2, passes)


def assert_many_agree_with_one(ranks: World, world: int, passes: list[Pass]) -> None:
    parts, (whole,) = ranks(world).run(cases.layers, passes), ranks(1).run(cases.layers, passes)
    for number, want in enumerate(whole):
        got = {name: torch.cat([part[number][name] for part in parts]) for name in want}
        # rows are the same and in the same order, so all that is made of whole rows is equal
        for name in ("dgates", "dw13", "dw2"):
            assert torch.equal(got[name], want[name]), (number, name)
        # sums of a token over ranks are rounded to bf16 on each rank first
        for name in ("y", "dx"):
            assert relative(got[name], want[name]) <= 5e-3, (number, name)


def test_rows_without_room_are_told_to_all_ranks_and_come_when_it_has_grown(ranks: World) -> None:
    # all tokens choose three experts of rank 0: three tiles of rows; the room is 1, 2, then 4 tiles
    crowded = Pass(counts=(40, 24), routing="one", seed=7)
    small, ample = (ranks(2).run(cases.grown, crowded, room) for room in (1, 10_000))
    assert [answers for answers, _ in small] == [[False, False, True]] * 2
    assert [answers for answers, _ in ample] == [[True]] * 2
    for (_, got), (_, want) in zip(small, ample, strict=True):
        assert torch.equal(got, want)


def test_same_bits_come_out_when_layers_run_again(ranks: World) -> None:
    first, again = (ranks(2).run(cases.layers, PASSES[:3]) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        for left, right in zip(one, other, strict=True):
            assert all(torch.equal(left[name], right[name]) for name in left)


def test_check_names_the_late_rank_when_one_does_not_come(ranks: World) -> None:
    message, silent = ranks(2).run(cases.absent)
    assert "waited" in message
    assert "for rank 1, which did not come" in message
    assert silent == ""


@pytest.fixture
def doomed() -> Iterator[Ranks]:
    world = Ranks(2)
    yield world
    world.close()


def test_survivor_is_told_soon_when_a_rank_is_killed_in_mid_step(doomed: Ranks) -> None:
    (message, seconds), dead = doomed.run(cases.die_in_step, 1)
    assert dead is None
    assert "for rank 1, which did not come" in message
    assert seconds < 10
