"""The transport on 1, 2 and 4 real processes: results, bytes, order, determinism, death."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.rdep import cases
from tests.rdep.cases import DIM, MAX_TOKENS, NUM_EXPERTS, TOP_K, Problem
from tests.rdep.ranks import Ranks
from tests.rdep.stress import stress

World = Callable[[int], Ranks]
OURS = ("y", "dx", "dgates")
EXPERTS = ("dw1", "dw2", "dw3")
COUNTS = {1: (40,), 2: (25, 15), 4: (13, 0, 20, 7)}


def gathered(answers: list[Any]) -> dict[str, torch.Tensor]:
    """Token tensors in token order, weight gradients in expert order."""
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return {name: torch.cat([a[name] for a in answers]) for name in (*OURS, *EXPERTS)}


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want).norm() / want.norm())


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("routing", ["random", "one", "half"])
def test_layer_matches_dense_oracle_when_fp32(ranks: World, world: int, routing: str) -> None:
    problem = Problem(counts=COUNTS[world], routing=routing, seed=world)
    got, want = gathered(ranks(world).run(cases.layer, problem)), cases.oracle(problem)
    for name, tensor in got.items():
        assert relative_error(tensor, want[name]) < 2e-6, name


@pytest.mark.parametrize("world", [1, 2, 4])
def test_layer_stays_within_rounding_of_oracle_when_bf16(ranks: World, world: int) -> None:
    problem = Problem(counts=COUNTS[world], dtype=torch.bfloat16, seed=world)
    got, want = gathered(ranks(world).run(cases.layer, problem)), cases.oracle(problem)
    for name, tensor in got.items():
        # a bf16 rounding is 2^-9 relative; H, A, Y, the partial and the sum are rounded in turn
        assert relative_error(tensor, want[name]) < 8 * 2**-9, name


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_bit_equal_when_the_world_is_larger(
    ranks: World, world: int, dtype: torch.dtype
) -> None:
    problem = Problem(counts=COUNTS[world], dtype=dtype, seed=7)
    (one,) = ranks(1).run(cases.layer, problem)
    many = ranks(world).run(cases.layer, problem)
    for name in ("rows_x", "rows_y", "gate_R", "dw1", "dw2", "dw3"):
        assert torch.equal(torch.cat([a[name] for a in many]), one[name]), name
    assert torch.equal(torch.cat([a["dgates"] for a in many]), one["dgates"])
    for name in ("y", "dx"):
        limit = 1e-6 if dtype == torch.float32 else 5e-3
        assert relative_error(torch.cat([a[name] for a in many]), one[name].double()) < limit


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("routing", ["random", "one"])
def test_rows_out_equal_rows_in_when_any_routing(ranks: World, world: int, routing: str) -> None:
    problem = Problem(counts=COUNTS[world], routing=routing)
    answers = ranks(world).run(cases.layer, problem)
    assert sum(len(a["rows_x"]) for a in answers) == sum(problem.counts) * TOP_K
    want = torch.bincount(problem.tensors()["ids"].flatten(), minlength=NUM_EXPERTS)
    assert torch.cat([a["load_e"] for a in answers]).tolist() == want.tolist()


def test_layer_works_when_no_rank_has_tokens(ranks: World) -> None:
    answers = ranks(2).run(cases.layer, Problem(counts=(0, 0)))
    for answer in answers:
        assert answer["y"].shape == answer["dx"].shape == (0, DIM)
        assert not answer["dw1"].any()


def test_layer_works_when_ranks_are_full(ranks: World) -> None:
    problem = Problem(counts=(MAX_TOKENS,) * 4, routing="one")
    got, want = gathered(ranks(4).run(cases.layer, problem)), cases.oracle(problem)
    assert relative_error(got["y"], want["y"]) < 2e-6


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layer_of_the_model_gives_the_bits_of_the_phases_when_run(
    ranks: World, world: int, dtype: torch.dtype
) -> None:
    problem = Problem(counts=COUNTS[world], dtype=dtype)
    phases = ranks(world).run(cases.layer, problem)
    models = ranks(world).run(cases.layer_of_model, problem)
    for phase, model in zip(phases, models, strict=True):
        for name in (*OURS, *EXPERTS):
            assert torch.equal(model[name], phase[name]), name
        assert torch.equal(model["y_without_grad"], phase["y"])


@pytest.mark.parametrize("world", [1, 2, 4])
def test_layer_gives_the_same_bits_when_run_twice(ranks: World, world: int) -> None:
    problem = Problem(counts=COUNTS[world], dtype=torch.bfloat16)
    first, second = (ranks(world).run(cases.layer, problem) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        for name, tensor in a.items():
            assert torch.equal(tensor, b[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("counts", "routing"), [((25, 15), "random"), ((13, 0, 20, 7), "random"), ((9, 9, 0, 4), "one")]
)
def test_bytes_are_distinct_rows_and_metadata_when_counted(
    ranks: World, counts: tuple[int, ...], routing: str, dtype: torch.dtype
) -> None:
    world = len(counts)
    problem = Problem(counts=counts, routing=routing, dtype=dtype)
    answers = ranks(world).run(cases.traffic, problem)
    owners_N = [set((row // (NUM_EXPERTS // world)).tolist()) for row in problem.tensors()["ids"]]
    ids_P = problem.tensors()["ids"].split(counts)
    starts = [sum(counts[:p]) for p in range(world)]
    row_bytes = DIM * dtype.itemsize

    def distinct(source: int, owner: int) -> int:
        mine = owners_N[starts[source] : starts[source] + counts[source]]
        return sum(owner in owners for owners in mine)

    def choices(source: int, owner: int) -> int:
        return int((ids_P[source] // (NUM_EXPERTS // world) == owner).sum())

    for rank, seen in enumerate(answers):
        metadata = 4 + counts[rank] * TOP_K * (4 + 4)
        for peer in range(world):
            out, back = distinct(rank, peer) * row_bytes, distinct(peer, rank) * row_bytes
            assert seen["FD"][peer] == metadata + out
            assert seen["FR"][peer] == back
            assert seen["BD"][peer] == out
            assert seen["BR"][peer] == back + 4 * choices(peer, rank)
        received = [distinct(source, rank) for source in range(world)]
        returned = [distinct(rank, owner) for owner in range(world)]
        none = [0] * world
        written = {
            "FD": (received, none, none),
            "FR": (received, none, returned),
            "BD": (none, received, none),
            "BR": (none, received, returned),
        }
        for phase, lists in written.items():
            assert tuple(seen[f"{phase} {name}"] for name in ("recv0", "dy", "home")) == lists
        assert seen["dgates put"] == counts[rank] * TOP_K


@pytest.mark.parametrize("routing", ["random", "one"])
def test_results_do_not_show_poison_when_slots_hold_no_token(ranks: World, routing: str) -> None:
    counts = (13, 0, 20, 7)
    problem = Problem(counts=counts, routing=routing)
    answers = ranks(4).run(cases.traffic, problem)
    tensors = problem.tensors()
    for name, want in (
        ("y", 2 * tensors["x"]),  # the gates of a token sum to 1
        ("dx", 2 * TOP_K * tensors["dy"]),
        ("dgates", tensors["dy"].sum(dim=1, keepdim=True).expand(-1, TOP_K)),
    ):
        torch.testing.assert_close(torch.cat([seen[name] for seen in answers]), want)


@pytest.mark.parametrize(("world", "num_passes"), [(2, 150), (4, 100)])
def test_layers_stay_exact_when_passes_follow_each_other_at_random_speed(
    ranks: World, world: int, num_passes: int
) -> None:
    first, *others = gathered_counts = ranks(world).run(stress, num_passes, 11)
    assert all(answer == first for answer in others), gathered_counts
    assert sum(first) == num_passes
    assert min(first) > num_passes / 5


@pytest.fixture
def doomed() -> Iterator[Ranks]:
    world = Ranks(4)
    yield world
    world.close()


def test_survivors_raise_peer_lost_when_a_rank_is_killed_in_mid_step(doomed: Ranks) -> None:
    start = time.monotonic()
    answers = doomed.run(cases.die_in_step, 2)
    assert time.monotonic() - start < 20
    assert answers.pop(2) is None
    pid = doomed.processes[2].pid
    for name, message, elapsed_s, _ in answers:
        assert name == "PeerLost"
        assert message.startswith(f"rank 2 (pid {pid}) died: ")
        assert elapsed_s < 2
    assert not list(Path("/dev/shm").glob("nmoe-*"))


def test_ranks_raise_peer_timeout_when_one_does_not_come(ranks: World) -> None:
    messages = ranks(2).run(cases.absent, "stay")
    assert messages[0].startswith("PeerTimeout: rank 0 waited 1 s for FD of rank 1 (pid ")


def test_ranks_raise_peer_lost_when_one_has_closed(ranks: World) -> None:
    messages = ranks(2).run(cases.absent, "close")
    assert messages[0].startswith("PeerLost: rank 1 (pid ")
    assert "left" in messages[0]


def test_shared_memory_has_no_name_when_the_transport_is_open(ranks: World) -> None:
    assert ranks(4).run(cases.names_in_shm) == [[]] * 4


def test_open_is_refused_on_every_rank_when_shared_memory_is_too_small(ranks: World) -> None:
    messages = ranks(2).run(cases.open_huge)
    assert messages[0].startswith("/dev/shm is too small")
    assert "--shm-size" in messages[0]
    assert messages[0] == messages[1]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("dispatch twice", "got dispatch, expected combine"),
        ("combine twice", "got combine, expected dispatch or dispatch_grads"),
        (
            "other gradients",
            "dispatch_grads: got dy torch.float64 (5, 32), expected torch.float32 (",
        ),
        ("too few rows", "combine: got y torch.float32 (1, 32), expected torch.float32 ("),
        ("backward inside a layer", "got dispatch_grads, expected combine"),
        ("stale backward", "backward of layer 0: its rows are gone"),
        ("half a backward", "got dispatch, expected combine_grads"),
        ("too many tokens", "got 6 tokens in layer 0, expected at most 5 tokens"),
        ("no such layer", "and 1 layers as opened"),
        ("closed", "got dispatch, expected nothing: the transport is closed"),
    ],
)
def test_transport_refuses_misuse_when_calls_do_not_match(
    ranks: World, how: str, message: str
) -> None:
    for answer in ranks(2).run(cases.misuse, how):
        assert message in answer
