"""An executable model of the protocol of `nmoe.rdep.ipc`: late memory, schedulers, exact answers.

Ranks are generators; at every yield others may run. What a rank puts is in flight until it lands,
at any moment and in any order; before a signal reaches a rank, all that was put there lands.
Memory is poisoned and arithmetic is modulo a prime, so a value read too early or too late changes
the answers. They must equal those of one rank without a transport.

Expert: y = w2 gate h^2 with h = w1 x. Every layer adds its y to x. The loss is 3/2 x^2.
"""

import random
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from nmoe.rdep.ipc import PHASES

PRIME = 2**31 - 1
POISON = 123_456_789  # as an expert, nobody's

T = TypeVar("T")
Cell = tuple[Any, ...]  # region and indices
Condition = Callable[[], bool]
Event = int | tuple[int, int, Cell]  # a step of a rank, or what lands: source, peer, cell
Program = Generator[Condition | None, None, T]  # yields what must hold before it goes on
Choices = list[list[tuple[int, int]]]  # of each token its (expert, gate)
# of every rank y and, in training, d(gates) of each layer and dx; d(w1, w2) of (layer, expert)
Answers = tuple[list[list[list[int]]], dict[tuple[int, int], list[int]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One micro-batch."""

    x: list[list[int]]  # [rank][token]
    choices: list[list[Choices]]  # [layer][rank]
    is_training: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What all ranks compute together."""

    world: int
    top_k: int
    weights: list[list[tuple[int, int]]]  # [layer][expert]
    passes: list[Pass]

    @property
    def each(self) -> int:
        """Experts of a rank."""
        return len(self.weights[0]) // self.world

    @property
    def stride(self) -> int:
        return max(len(tokens) for one in self.passes for tokens in one.x)


class Row(NamedTuple):
    """One (token, chosen expert) pair at its owner."""

    expert: int
    source: int
    token: int
    choice: int
    gate: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """What forward keeps for backward."""

    layer: int
    choices: Choices
    rows: list[Row]
    h: list[int]


@dataclass(slots=True)
class Trace:
    """Regions read and put before each sync, in order, and since the last."""

    segments: list[tuple[frozenset[str], frozenset[str], str]] = field(default_factory=list)
    reads: set[str] = field(default_factory=set)
    puts: set[str] = field(default_factory=set)

    def sync(self, phase: str) -> None:
        self.segments.append((frozenset(self.reads), frozenset(self.puts), phase))
        self.reads.clear()
        self.puts.clear()


class Rank:
    """What one rank does, kernel by kernel, in the order of `nmoe.moe` and `nmoe.rdep.ipc`."""

    def __init__(self, world: "World", rank: int, problem: Problem) -> None:
        self.world, self.rank, self.problem = world, rank, problem
        self.local = range(rank * problem.each, (rank + 1) * problem.each)
        self.epochs: dict[str, int] = dict.fromkeys(PHASES, 0)
        self.trace = Trace()
        self.history = 0  # hash of all that was read
        self.answers: list[list[int]] = []
        self.dw = {(n, e): [0, 0] for n in range(len(problem.weights)) for e in self.local}

    def run(self) -> Program[None]:
        for one in self.problem.passes:
            yield from self.run_pass(one)

    def run_pass(self, one: Pass) -> Program[None]:
        x, kept = one.x[self.rank], []
        for layer, choices in enumerate(one.choices):
            y, arrived = yield from self.forward(x, choices[self.rank], layer)
            x = add(x, y)
            kept.append(arrived)
        self.answers.append(x)
        if one.is_training:
            dy = [3 * value % PRIME for value in x]
            while kept:
                dx, dgates = yield from self.backward(dy, kept.pop())
                self.answers.append(dgates)
                dy = add(dy, dx)
            self.answers.append(dy)

    def forward(self, x: list[int], choices: Choices, layer: int) -> Program:
        self.push_choices(choices)
        self.push_rows(self.recv(layer), x, choices)
        yield from self.sync("FD")
        rows = yield from self.sort_rows()
        x_slot = yield from self.read_slots(self.recv(layer), rows)
        h = [self.weights(layer, r)[0] * x_slot[r.source, r.token] % PRIME for r in rows]
        y = [self.weights(layer, r)[1] * r.gate * v * v for r, v in zip(rows, h, strict=True)]
        self.push_sums(y, rows)
        yield from self.sync("FR")
        total = yield from self.sum_home(choices)
        return total, Arrived(layer=layer, choices=choices, rows=rows, h=h)

    def backward(self, dy: list[int], arrived: Arrived) -> Program:
        rows, layer = arrived.rows, arrived.layer
        self.push_rows("dy", dy, arrived.choices)
        yield from self.sync("BD")
        dy_slot = yield from self.read_slots("dy", rows)
        da = [self.weights(layer, r)[1] * dy_slot[r.source, r.token] % PRIME for r in rows]
        dh = [2 * r.gate * v * h for r, v, h in zip(rows, da, arrived.h, strict=True)]
        yield from self.weight_grads(dh, arrived)
        dx = [self.weights(layer, r)[0] * v for r, v in zip(rows, dh, strict=True)]
        self.push_sums(dx, rows)
        self.push_gate_grads([v * h * h for v, h in zip(da, arrived.h, strict=True)], rows)
        yield from self.sync("BR")
        dgates = yield from self.read_gate_grads(arrived.choices)
        total = yield from self.sum_home(arrived.choices)
        return total, dgates

    def push_choices(self, choices: Choices) -> None:
        for peer in range(self.problem.world):
            self.put(peer, ("counts", self.rank), len(choices))
            for token, chosen in enumerate(choices):
                for k, (expert, gate) in enumerate(chosen):
                    self.put(peer, ("experts", self.rank, token, k), expert)
                    self.put(peer, ("gates", self.rank, token, k), gate)

    def push_rows(self, region: str, x: list[int], choices: Choices) -> None:
        for token, chosen in enumerate(choices):
            for owner in self.owners(chosen):
                self.put(owner, (region, self.rank, token), x[token])

    def push_sums(self, y: list[int], rows: list[Row]) -> None:
        sums: dict[tuple[int, int], int] = {}
        for row, value in zip(rows, y, strict=True):
            sums[row.source, row.token] = sums.get((row.source, row.token), 0) + value
        for (source, token), value in sums.items():
            self.put(source, ("home", self.rank, token), value % PRIME)

    def push_gate_grads(self, dgate: list[int], rows: list[Row]) -> None:
        for row, value in zip(rows, dgate, strict=True):
            self.put(row.source, ("dgates", row.token, row.choice), value % PRIME)

    def sort_rows(self) -> Program[list[Row]]:
        counts = yield from self.read(("counts", peer) for peer in range(self.problem.world))
        live = [
            (source, token, k)
            for (_, source), count in counts.items()
            for token in range(min(count, self.problem.stride))
            for k in range(self.problem.top_k)
        ]
        experts = yield from self.read(("experts", *at) for at in live)
        gates = yield from self.read(("gates", *at) for at in live)
        rows = [Row(experts["experts", *at], *at, gates["gates", *at]) for at in live]
        return sorted(row for row in rows if row.expert in self.local)

    def weight_grads(self, dh: list[int], arrived: Arrived) -> Program[None]:
        rows, layer = arrived.rows, arrived.layer
        dy_slot = yield from self.read_slots("dy", rows)
        x_slot = yield from self.read_slots(self.recv(layer), rows)
        for row, v, h in zip(rows, dh, arrived.h, strict=True):
            dw, slot = self.dw[layer, row.expert], (row.source, row.token)
            dw[0] = (dw[0] + x_slot[slot] * v) % PRIME
            dw[1] = (dw[1] + row.gate * h * h * dy_slot[slot]) % PRIME

    def sum_home(self, choices: Choices) -> Program[list[int]]:
        cells = [("home", o, t) for t, chosen in enumerate(choices) for o in self.owners(chosen)]
        total = [0] * len(choices)
        for (_, _, token), value in (yield from self.read(cells)).items():
            total[token] = (total[token] + value) % PRIME
        return total

    def read_gate_grads(self, choices: Choices) -> Program[list[int]]:
        cells = [("dgates", t, k) for t, chosen in enumerate(choices) for k in range(len(chosen))]
        values = yield from self.read(cells)
        return [values[cell] for cell in cells]

    def read_slots(self, region: str, rows: list[Row]) -> Program[dict[tuple[int, int], int]]:
        values = yield from self.read((region, row.source, row.token) for row in rows)
        return {(source, token): value for (_, source, token), value in values.items()}

    def sync(self, phase: str) -> Program[None]:
        self.trace.sync(phase)
        yield from self.signal(phase)
        yield from self.wait(phase)

    def signal(self, phase: str) -> Program[None]:
        self.epochs[phase] += 1
        for peer in self.world.order(range(self.problem.world)):
            yield
            self.release(peer)
            self.world.flags[peer][phase, self.rank] = self.epochs[phase]

    def release(self, peer: int) -> None:
        """What I put there is seen before the flag is."""
        self.world.land_all(self.rank, peer)

    def wait(self, phase: str) -> Program[None]:
        flags, epoch = self.world.flags[self.rank], self.epochs[phase]
        peers = range(self.problem.world)
        yield lambda: all(flags.get((phase, peer), 0) >= epoch for peer in peers)

    def put(self, peer: int, cell: Cell, value: int) -> None:
        # no yield: nobody sees it before it lands
        self.trace.puts.add(cell[0])
        self.world.put(self.rank, peer, cell, value)

    def read(self, cells: Iterable[Cell]) -> Program[dict[Cell, int]]:
        values = {}
        for cell in self.world.order(dict.fromkeys(cells)):
            yield
            values[cell] = self.world.memory[self.rank].get(cell, POISON)
            self.trace.reads.add(cell[0])
            self.history = hash((self.history, values[cell]))
        return values

    def recv(self, layer: int) -> str:
        return f"recv{layer}"

    def owners(self, chosen: list[tuple[int, int]]) -> list[int]:
        return sorted({expert // self.problem.each for expert, _ in chosen})

    def weights(self, layer: int, row: Row) -> tuple[int, int]:
        return self.problem.weights[layer][row.expert]


class World:
    """Memory, flags, what is in flight, and the ranks, each stopped at a yield."""

    def __init__(
        self, problem: Problem, kind: type[Rank], *, rng: random.Random | None = None
    ) -> None:
        ranks = range(problem.world)
        self._rng = rng
        self.memory: list[dict[Cell, int]] = [{} for _ in ranks]
        self.flags: list[dict[tuple[str, int], int]] = [{} for _ in ranks]
        # newest value only: an older one still in flight could never land after it
        self.in_flight: dict[tuple[int, int], dict[Cell, int]] = {
            (source, peer): {} for source in ranks for peer in ranks
        }
        self.ranks = [kind(self, rank, problem) for rank in ranks]
        self.steps = [0 for _ in ranks]
        self._programs = [rank.run() for rank in self.ranks]
        self._until: dict[int, Condition | None] = dict.fromkeys(ranks)

    @property
    def is_done(self) -> bool:
        return not self._until

    def ready(self) -> list[int]:
        """Ranks that can go on."""
        return [rank for rank, until in self._until.items() if until is None or until()]

    def step(self, rank: int) -> None:
        """Run a ready rank to its next yield."""
        self.steps[rank] += 1
        try:
            self._until[rank] = next(self._programs[rank])
        except StopIteration:
            del self._until[rank]

    def order(self, items: Iterable[T]) -> list[T]:
        """The items in an order of the schedule's choice."""
        ordered = list(items)
        if self._rng:
            self._rng.shuffle(ordered)
        return ordered

    def put(self, source: int, peer: int, cell: Cell, value: int) -> None:
        if source == peer:
            self.memory[peer][cell] = value
        else:
            self.in_flight[source, peer][cell] = value

    def land(self, source: int, peer: int, cell: Cell) -> None:
        self.memory[peer][cell] = self.in_flight[source, peer].pop(cell)

    def land_all(self, source: int, peer: int) -> None:
        self.memory[peer].update(self.in_flight[source, peer])
        self.in_flight[source, peer].clear()

    def key(self) -> int:
        """Hash of all that the rest of a schedule depends on."""
        contents = (*self.memory, *self.flags, *self.in_flight.values())
        history = tuple(rank.history for rank in self.ranks)
        return hash((tuple(self.steps), history, *(frozenset(c.items()) for c in contents)))

    def verdict(self, want: Answers) -> str:
        """How a schedule that cannot go on has ended: exact, wrong or deadlock."""
        if not self.is_done:
            return "deadlock"
        dw = {at: value for rank in self.ranks for at, value in rank.dw.items()}
        return "exact" if ([rank.answers for rank in self.ranks], dw) == want else "wrong"


def run_at_random(problem: Problem, want: Answers, kind: type[Rank], *, seed: int) -> str:
    """The verdict on one schedule: ranks of different speeds, rows that land early or late."""
    rng = random.Random(seed)
    world = World(problem, kind, rng=rng)
    bursts = [rng.choice((1, 1, 3, 20, 100)) for _ in world.ranks]
    landings = rng.choice((0, 1, 1, 3, 30))
    while ready := world.ready():
        rank = rng.choice(ready)
        for _ in range(rng.randint(1, bursts[rank])):
            world.step(rank)
            if rank not in world.ready():
                break
        for _ in range(rng.randint(0, landings)):
            (source, peer), cells = rng.choice(list(world.in_flight.items()))
            if cells:
                world.land(source, peer, rng.choice(list(cells)))
    return world.verdict(want)


def explore(problem: Problem, kind: type[Rank]) -> Iterator[str]:
    """Every state that a schedule of a small problem can reach: its verdict, or "running".

    A generator cannot be copied, so a branch begins by repeating what led to it.
    """
    want = oracle(problem)
    seen: set[int] = set()
    branches: list[list[Event]] = [[]]
    while branches:
        path = branches.pop()
        world = World(problem, kind)
        for event in path:
            _take(world, event)
        while (key := world.key()) not in seen:
            seen.add(key)
            if not world.ready():
                yield world.verdict(want)
                break
            yield "running"
            first, *others = _events(world)
            branches += [[*path, event] for event in others]
            path.append(first)
            _take(world, first)


def _events(world: World) -> list[Event]:
    lands = [(*link, cell) for link, cells in world.in_flight.items() for cell in cells]
    return [*world.ready(), *lands]


def _take(world: World, event: Event) -> None:
    if isinstance(event, int):
        world.step(event)
    else:
        world.land(*event)


def oracle(problem: Problem) -> Answers:
    """What one rank that holds all tokens and experts computes."""
    answers: list[list[list[int]]] = [[] for _ in range(problem.world)]
    dw = {(n, e): [0, 0] for n, layer in enumerate(problem.weights) for e in range(len(layer))}
    for one in problem.passes:
        for rank, answer in enumerate(answers):
            xs = [one.x[rank]]
            for w, choices in zip(problem.weights, one.choices, strict=True):
                tokens = zip(xs[-1], choices[rank], strict=True)
                y = [sum(w[e][1] * gate * (w[e][0] * x) ** 2 for e, gate in c) for x, c in tokens]
                xs.append(add(xs[-1], y))
            answer.append(xs.pop())
            if not one.is_training:
                continue
            dy = [3 * value % PRIME for value in answer[-1]]
            for layer in reversed(range(len(xs))):
                dx, dgates = [], []
                for x, g, chosen in zip(xs[layer], dy, one.choices[layer][rank], strict=True):
                    dx.append(0)
                    for expert, gate in chosen:
                        w1, w2 = problem.weights[layer][expert]
                        dgates.append(w2 * (w1 * x) ** 2 * g % PRIME)
                        dx[-1] += 2 * gate * w2 * w1**2 * x * g
                        sums = dw[layer, expert]
                        sums[0] = (sums[0] + 2 * gate * w2 * w1 * x**2 * g) % PRIME
                        sums[1] = (sums[1] + gate * (w1 * x) ** 2 * g) % PRIME
                answer.append(dgates)
                dy = add(dy, dx)
            answer.append(dy)
    return answers, dw


def add(first: list[int], second: list[int]) -> list[int]:
    return [(a + b) % PRIME for a, b in zip(first, second, strict=True)]


def random_problem(seed: int, *, world: int, layers: int = 2, most: int = 3) -> Problem:
    """Training, accumulated and forward-only passes; T anew on each rank, 0 included.

    Routing is free, or to the experts of the first half of the ranks, or all to the same experts.
    """
    rng = random.Random(seed)
    num_experts, top_k = 2 * world, 2

    def number() -> int:
        return rng.randrange(1, PRIME)

    def one_pass() -> Pass:
        counts = [rng.choice((0, 1, most, rng.randint(0, most))) for _ in range(world)]
        pool = range(rng.choice((num_experts, num_experts, world, top_k)))
        return Pass(
            x=[[number() for _ in range(count)] for count in counts],
            choices=[
                [
                    [[(e, number()) for e in rng.sample(pool, top_k)] for _ in range(count)]
                    for count in counts
                ]
                for _ in range(layers)
            ],
            is_training=rng.random() < 0.7,
        )

    return Problem(
        world=world,
        top_k=top_k,
        weights=[[(number(), number()) for _ in range(num_experts)] for _ in range(layers)],
        passes=[one_pass() for _ in range(4)],
    )
