"""The transport's protocol under all sorts of schedules, planted mistakes, and the code it models.

The model is `tests.rdep.protocol`.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nmoe import ops
from nmoe.config import read_config
from nmoe.moe import Experts
from nmoe.rdep.device import DeviceWire, flag_region
from nmoe.rdep.host import HostWire
from nmoe.rdep.ipc import PHASES, Ipc, Wire, regions
from tests import tiny
from tests.rdep import protocol
from tests.rdep.protocol import Arrived, Choices, Pass, Problem, Program, Rank, Trace, World

WORLDS = (2, 3, 4)
ENOUGH = 200  # schedules until a planted mistake must have shown


def failures(kind: type[Rank], *, world: int, schedules: range) -> dict[int, str]:
    """Of every schedule that did not end exactly: its seed and how it ended."""
    found = {}
    for seed in schedules:
        problem = protocol.random_problem(seed, world=world)
        verdict = protocol.run_at_random(problem, protocol.oracle(problem), kind, seed=seed)
        if verdict != "exact":
            found[seed] = verdict
    return found


def first_failure(kind: type[Rank], *, world: int = 3) -> str:
    """How the first schedule that did not end exactly has ended."""
    schedules = (failures(kind, world=world, schedules=range(n, n + 1)) for n in range(ENOUGH))
    return next((verdict for found in schedules for verdict in found.values()), "exact")


def one_row(owners: tuple[int, int], trained: tuple[bool, ...], *, layers: int = 1) -> Problem:
    """Two ranks of one token and one expert each; `owners` of the first and the second token."""
    return Problem(
        world=2,
        top_k=1,
        weights=[[(5, 7), (11, 13)]] * layers,
        passes=[
            Pass(
                x=[[17 + n], [37 + n]],
                choices=[[[[(owner, 53 + 7 * n + owner)]] for owner in owners]] * layers,
                is_training=is_training,
            )
            for n, is_training in enumerate(trained)
        ],
    )


# ------------------------------------------------------------------------------- the protocol


@pytest.mark.parametrize("world", WORLDS)
def test_answers_are_exact_when_schedules_are_random(world: int) -> None:
    assert failures(Rank, world=world, schedules=range(250)) == {}


@pytest.mark.soak
@pytest.mark.parametrize("world", WORLDS)
def test_answers_are_exact_when_schedules_are_random_and_many(world: int) -> None:
    assert failures(Rank, world=world, schedules=range(1000, 6000)) == {}


@pytest.mark.parametrize("owners", [(0, 1), (1, 0), (0, 0)])
@pytest.mark.parametrize("trained", [(False, False), (True, False), (True, True)])
def test_answers_are_exact_when_every_schedule_is_taken(
    owners: tuple[int, int], trained: tuple[bool, ...]
) -> None:
    states = Counter(protocol.explore(one_row(owners, trained), Rank))
    assert states.keys() == {"running", "exact"}
    assert states.total() > 500


@pytest.mark.soak
@pytest.mark.parametrize("owners", [(0, 1), (1, 0), (0, 0)])
def test_answers_are_exact_when_every_schedule_of_two_layers_is_taken(
    owners: tuple[int, int],
) -> None:
    problem = one_row(owners, (True, False, True), layers=2)
    assert set(protocol.explore(problem, Rank)) == {"running", "exact"}


# --------------------------------------------------------------------------- planted mistakes


def without(phase: str) -> type[Rank]:
    class Without(Rank):
        """One sync left out."""

        def sync(self, now: str) -> Program[None]:
            if now != phase:
                yield from super().sync(now)

    return Without


class Relaxed(Rank):
    """The flag may overtake the rows."""

    def release(self, peer: int) -> None:
        pass


class LateWeightGrads(Rank):
    """Gradients of the weights after the BR signal."""

    def weight_grads(self, dh: list[int], arrived: Arrived) -> Program[None]:
        self.late = dh, arrived
        yield from ()

    def wait(self, phase: str) -> Program[None]:
        if phase == "BR":
            yield from super().weight_grads(*self.late)
        yield from super().wait(phase)


class AllOwners(Rank):
    """Home sums what every rank left there, not only the owners that its ids name."""

    def sum_home(self, choices: Choices) -> Program[list[int]]:
        everyone = [(owner * self.problem.each, 0) for owner in range(self.problem.world)]
        return (yield from super().sum_home([everyone for _ in choices]))


class OneEpoch(Rank):
    """One counter for all phases; a flag that is ahead counts."""

    def signal(self, phase: str) -> Program[None]:
        yield from super().signal("FD")

    def wait(self, phase: str) -> Program[None]:
        yield from super().wait("FD")


class ExactEpoch(Rank):
    """A flag counts only while it equals the epoch."""

    def wait(self, phase: str) -> Program[None]:
        flags, epoch = self.world.flags[self.rank], self.epochs[phase]
        for peer in range(self.problem.world):
            yield lambda peer=peer: flags.get((phase, peer), 0) == epoch


class OneExactEpoch(OneEpoch, ExactEpoch):
    """One counter for all phases, and a flag counts only while it equals the epoch."""


class SilentWithoutRows(Rank):
    """A rank without rows does not signal its return."""

    def sort_rows(self) -> Program:
        self.rows = yield from super().sort_rows()
        return self.rows

    def signal(self, phase: str) -> Program[None]:
        if phase == "FR" and not self.rows:
            self.epochs[phase] += 1
            return
        yield from super().signal(phase)


class FrozenEpochs(Rank):
    """Every pass replays the epochs of the first, as if they had been captured with it."""

    def run_pass(self, one: Pass) -> Program[None]:
        self.epochs = dict.fromkeys(PHASES, 0)
        yield from super().run_pass(one)


class EarlyChoices(Rank):
    """The choices of the next layer are put before the FR wait."""

    def run_pass(self, one: Pass) -> Program[None]:
        self.coming = [choices[self.rank] for choices in one.choices[1:]]
        yield from super().run_pass(one)

    def wait(self, phase: str) -> Program[None]:
        if phase == "FR" and self.coming:
            self.push_choices(self.coming.pop(0))
        yield from super().wait(phase)


class OneRecv(Rank):
    """All layers receive into the same region."""

    def recv(self, layer: int) -> str:
        return "recv0"


class LateSums(Rank):
    """Sums go home after the signal that says they are there."""

    def push_sums(self, y: list[int], rows: list[protocol.Row]) -> None:
        self.late = y, rows

    def wait(self, phase: str) -> Program[None]:
        if phase in ("FR", "BR"):
            super().push_sums(*self.late)
        yield from super().wait(phase)


class LateGateGrads(Rank):
    """d(gate) is handed out as a view of the region and read after the next signal."""

    unread: tuple[list[int], Choices] | None = None

    def read_gate_grads(self, choices: Choices) -> Program[list[int]]:
        values: list[int] = []
        self.unread = values, choices
        yield from ()
        return values

    def wait(self, phase: str) -> Program[None]:
        yield from super().wait(phase)
        yield from self.catch_up()

    def run_pass(self, one: Pass) -> Program[None]:
        yield from super().run_pass(one)
        yield from self.catch_up()

    def catch_up(self) -> Program[None]:
        if self.unread:
            values, choices = self.unread
            values += yield from super().read_gate_grads(choices)
            self.unread = None


MISTAKES: dict[str, type[Rank]] = {f"without {phase}": without(phase) for phase in PHASES} | {
    kind.__name__: kind
    for kind in (
        Relaxed,
        LateWeightGrads,
        AllOwners,
        FrozenEpochs,
        EarlyChoices,
        OneRecv,
        LateSums,
        LateGateGrads,
    )
}


@pytest.mark.parametrize("name", MISTAKES)
def test_answers_are_wrong_when_a_mistake_is_planted(name: str) -> None:
    assert first_failure(MISTAKES[name]) == "wrong"


@pytest.mark.parametrize("kind", [OneExactEpoch, SilentWithoutRows])
def test_ranks_wait_forever_when_a_signal_is_lost(kind: type[Rank]) -> None:
    assert first_failure(kind) == "deadlock"


@pytest.mark.parametrize("kind", [OneEpoch, ExactEpoch])
def test_answers_are_exact_when_the_change_is_no_mistake(kind: type[Rank]) -> None:
    # so it is the two together that lose a signal
    assert failures(kind, world=3, schedules=range(100)) == {}


@pytest.mark.parametrize("phase", PHASES)
def test_some_schedule_is_wrong_when_a_sync_is_left_out(phase: str) -> None:
    assert "wrong" in protocol.explore(one_row((1, 0), (True, True)), without(phase))


# -------------------------------------------------------------------------- the code it models


class Memory:
    """Rank 0's regions in a world of two whose other rank has no tokens; notes what is done."""

    rank, world = 0, 2

    def __init__(self, trace: Trace, needed: dict[str, Any]) -> None:
        self.trace = trace
        self.tensors = {n: torch.zeros(r.shape, dtype=r.dtype) for n, r in needed.items()}

    def local(self, name: str) -> Tensor:
        return self.tensors[name].view_as(self.tensors[name])

    def pointers(self, name: str) -> Any:
        return name

    def put(
        self, dst: int, name: str, values: Tensor, *, at: Any = (), index: Tensor | None = None
    ) -> None:
        self.trace.puts.add(name)
        if dst == self.rank:
            target = self.tensors[name][at]
            target[torch.arange(len(values)) if index is None else index] = values

    def signal(self, phase: str) -> None:
        self.trace.sync(phase)

    def wait(self, phase: str) -> None:
        pass

    def close(self) -> None:
        pass


class Reads(TorchDispatchMode):
    """Notes the regions that operations read; views and writes of a region are no reads."""

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self.trace = memory.trace
        self.names = {storage(tensor): name for name, tensor in memory.tensors.items()}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        made = {storage(leaf) for leaf in tree_leaves(result) if isinstance(leaf, Tensor)}
        used = {storage(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        self.trace.reads |= {self.names[at] for at in used - made if at in self.names}
        return result


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Kernels:
    """In place of `nmoe.kernels.peers`: what a launch puts and reads; only choices get through."""

    def __init__(self, memory: Memory) -> None:
        self.memory, self.trace = memory, memory.trace

    def push_choices(
        self,
        experts_TK: Tensor,
        gates_TK: Tensor,
        *,
        experts_P: str,
        gates_P: str,
        counts_P: str,
        rank: int,
        **_: Any,
    ) -> None:
        self.memory.put(0, counts_P, torch.tensor([len(experts_TK)]).int())
        self.memory.put(0, experts_P, experts_TK.int(), at=(rank,))
        self.memory.put(0, gates_P, gates_TK, at=(rank,))

    def push_rows(self, x_TD: Tensor, experts_TK: Tensor, *, rows_P: str, **_: Any) -> None:
        self.trace.puts.add(rows_P)

    def push_sums(self, y_RD: Tensor, row_SK: Tensor, *, home_P: str, **_: Any) -> None:
        self.trace.puts.add(home_P)

    def push_gate_grads(self, dgate: Tensor, row_SK: Tensor, *, dgates_P: str, **_: Any) -> None:
        self.trace.puts.add(dgates_P)

    def sum_home(self, home_SD: Tensor, experts_TK: Tensor, **_: Any) -> Tensor:
        return torch.zeros(len(experts_TK), home_SD.shape[1]) + home_SD[: len(experts_TK)]

    def signal_and_wait(self, *_: Any, phase: int, **__: Any) -> None:
        self.trace.sync(PHASES[phase])


def host_wire(memory: Any, patch: pytest.MonkeyPatch) -> Wire:
    return HostWire(memory, stride=memory.tensors["dy"].shape[1], num_experts=8)


def device_wire(memory: Any, patch: pytest.MonkeyPatch) -> Wire:
    patch.setattr(ops, "peer_kernels", lambda: Kernels(memory))
    patch.setattr(DeviceWire, "impl", "reference")  # of the experts between the calls
    stride = memory.tensors["dy"].shape[1]
    return DeviceWire(memory, stride=stride, experts_per_rank=4, timeout_s=1.0)


def trace_of_code(
    wire_of: Callable[[Any, pytest.MonkeyPatch], Wire],
    trained: tuple[bool, ...],
    folder: Path,
    patch: pytest.MonkeyPatch,
) -> Trace:
    """What rank 0 does in passes of two layers of the real transport and experts."""
    config, tokens = read_config(tiny.write_config(folder)), 3
    top_k, dim, dtype = config.experts.top_k, config.model.dim, torch.float32
    needed = regions(world=2, stride=64, top_k=top_k, dim=dim, num_layers=2, dtype=dtype)
    trace = Trace()
    memory = Memory(trace, needed | flag_region(2))
    transport = Ipc(
        wire_of(memory, patch),
        rank=0,
        world=2,
        local_experts=range(4),
        top_k=top_k,
        dim=dim,
        max_tokens=tokens,
        num_layers=2,
        dtype=dtype,
    )
    layers = [Experts(config, transport, layer=n, dtype=torch.float32) for n in range(2)]
    for parameter in (each for layer in layers for each in layer.parameters()):
        parameter.data.normal_()
    experts_TK = torch.tensor([[0, 7], [5, 1], [2, 3]])
    with Reads(memory):
        for is_training in trained:
            x_TD = torch.ones(tokens, dim, requires_grad=True)
            gates_TK = torch.ones(tokens, top_k, requires_grad=True)
            with torch.set_grad_enabled(is_training):
                y_TD = x_TD
                for layer in layers:
                    y_TD = y_TD + layer(y_TD, experts_TK, gates_TK)
            if is_training:
                y_TD.sum().backward()
    return trace


def trace_of_model(trained: tuple[bool, ...]) -> Trace:
    problem = Problem(
        world=2,
        top_k=2,
        weights=[[(1, 1)] * 8] * 2,
        passes=[
            Pass(
                x=[[1, 2, 3], []],
                choices=[[[[(0, 1), (7, 1)], [(5, 1), (1, 1)], [(2, 1), (3, 1)]], []]] * 2,
                is_training=is_training,
            )
            for is_training in trained
        ],
    )
    world = World(problem, Rank)
    while ready := world.ready():
        world.step(ready[0])
    assert world.verdict(protocol.oracle(problem)) == "exact"
    return world.ranks[0].trace


@pytest.mark.parametrize("wire_of", [host_wire, device_wire])
@pytest.mark.parametrize("trained", [(True, True, False, True), (False, True)])
def test_model_reads_and_puts_between_syncs_what_the_code_does(
    wire_of: Callable[[Any, pytest.MonkeyPatch], Wire],
    trained: tuple[bool, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code = trace_of_code(wire_of, trained, tmp_path, monkeypatch)
    model = trace_of_model(trained)
    assert code == model
    assert len(model.segments) == sum(8 if is_training else 4 for is_training in trained)
