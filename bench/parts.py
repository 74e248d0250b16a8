"""A profiled step by part of the model, from the trace that the profiler exports.

Work on the GPU belongs to whoever launched it: its correlation leads to the launch call, and the
call lies inside operations and regions of its thread. The innermost region that names a part wins.
A backward node is led to the operation that made it by the sequence number of autograd, and from
there to the regions around that operation; so is a function of one's own. What accumulates
gradients is a part of its own. Without any work of a GPU the operations themselves are the work,
each for the time that none of its children took.

Where work overlaps, the first one counts until it ends, so that parts and gaps add up to the step.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

STEP = "bench: step"
REGION = "bench: part "  # before the name of a part
ATTENTION, ROTARY = "attention", "rotary, qk norm"
ACCUMULATION, OPTIMIZER, OTHER, GAPS = "accumulation", "optimizer", "other", "gaps"
PARTS = (
    *(ATTENTION, ROTARY, "projections", "norms", "router", "dispatch", "experts", "combine"),
    *("shared expert", "dense FFN", "embedding", "head", ACCUMULATION, OPTIMIZER, OTHER, GAPS),
)
ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
NODE = "autograd::engine::evaluate_function: "
ACCUMULATE = f"{NODE}torch::autograd::AccumulateGrad"
# in the names of all operations of torch's attention, forward and backward
PRODUCT = ("scaled_dot_product", "ScaledDotProduct", "attention_forward", "attention_backward")

Event = Mapping[str, Any]


@dataclass(slots=True, kw_only=True)
class Span:
    """An operation or region of the host, and what it lies in; `own_us` leaves children out."""

    name: str
    start: float
    end: float
    own_us: float
    is_op: bool
    sequence: int | None
    is_backward: bool
    parent: "Span | None" = None


@dataclass(slots=True, kw_only=True)
class Breakdown:
    """us of a step by part, and in each part by kernel; `busy_us` is all of it but the gaps."""

    wall_us: float
    parts: dict[str, float] = field(default_factory=dict)
    kernels: dict[str, Counter[str]] = field(default_factory=dict)

    @property
    def busy_us(self) -> float:
        return sum(self.parts.values())

    def add(self, part: str, kernel: str, us: float) -> None:
        self.parts[part] = self.parts.get(part, 0.0) + us
        self.kernels.setdefault(part, Counter())[kernel] += us  # pyright: ignore[reportArgumentType]

    def gaps_us(self, wall_us: float) -> float:
        """What is idle in a step of that length: those of a profiled one hold the profiler too."""
        return max(0.0, wall_us - self.busy_us)


def breakdown(trace: Mapping[str, Any]) -> Breakdown:
    """The work launched inside the region STEP; ValueError when there is none."""
    events = [event for event in trace["traceEvents"] if event.get("ph") == "X"]
    named = (event for event in events if event["name"] == STEP)
    step = next((event for event in named if event.get("cat") == "user_annotation"), None)
    if step is None:
        raise ValueError(f"the trace has no region {STEP!r}: the profiler did not see the step.")
    host = Host(events, step)
    begin, end = step["ts"], step["ts"] + step["dur"]
    work = sorted((e for e in events if e.get("cat") in ON_DEVICE), key=lambda event: event["ts"])
    if not work:
        found = Breakdown(wall_us=end - begin)
        for span in host.within(begin, end):
            found.add(host.part(span), span.name, span.own_us)
        return found
    found, busy_until = Breakdown(wall_us=0.0), begin
    for event in work:
        launched = host.launched(event)
        if not begin <= (launched or event)["ts"] <= end:
            continue
        stop = event["ts"] + event["dur"]
        part = host.part(host.around(event, launched))
        found.add(part, event["name"], max(0.0, stop - max(event["ts"], busy_until)))
        busy_until = max(busy_until, stop)
    found.wall_us = busy_until - begin
    return found


class Host:
    """What the threads of the host did, as trees of spans."""

    def __init__(self, events: Iterable[Event], step: Event) -> None:
        self._launches: dict[int, Event] = {}
        self._by_id: dict[int, Span] = {}
        self._threads: dict[Any, tuple[list[float], list[Span]]] = {}
        self._made: list[tuple[int, Span]] = []
        by_thread: dict[Any, list[Event]] = {}
        for event in events:
            if event.get("cat") in ("cpu_op", "user_annotation"):
                by_thread.setdefault(event["tid"], []).append(event)
            elif event.get("cat") in ("cuda_runtime", "cuda_driver"):
                self._launches.setdefault(event.get("args", {}).get("correlation", -1), event)
        for thread, ops in by_thread.items():
            spans = self._nested(ops)
            self._threads[thread] = [span.start for span in spans], spans
        # the operations that made nodes; of several with one number the last to begin made it
        _, spans = self._threads[step["tid"]]
        made = {
            span.sequence: span
            for span in spans
            if span.sequence is not None and not span.is_backward
        }
        self._made = sorted(made.items())

    def launched(self, event: Event) -> Event | None:
        """The call that launched this work."""
        return self._launches.get(event.get("args", {}).get("correlation", -1))

    def around(self, event: Event, launched: Event | None) -> Span | None:
        """What the launch lies in; without one, what the profiler says of the work itself."""
        found = None
        if launched is not None and launched["tid"] in self._threads:
            starts, spans = self._threads[launched["tid"]]
            at = bisect_right(starts, launched["ts"]) - 1
            found = spans[at] if at >= 0 else None
            while found is not None and found.end < launched["ts"]:
                found = found.parent
        return found or self._by_id.get(event.get("args", {}).get("External id", -1))

    def within(self, begin: float, end: float) -> Iterator[Span]:
        """Every operation of any thread that began in this time."""
        for _, spans in self._threads.values():
            yield from (span for span in spans if span.is_op and begin <= span.start <= end)

    def part(self, span: Span | None) -> str:
        """The part of the innermost region that names one, else `other`."""
        is_product = False
        while span is not None:
            is_product = is_product or any(word in span.name for word in PRODUCT)
            if span.name.startswith(REGION):
                part = span.name.removeprefix(REGION)
                return ROTARY if part == ATTENTION and not is_product else part
            if span.name == ACCUMULATE:
                return ACCUMULATION
            if span.name.startswith("Optimizer."):
                return OPTIMIZER
            if span.name.startswith(NODE) and span.sequence is not None:
                span = self._maker(span.sequence)
            else:
                span = span.parent
        return OTHER

    def _maker(self, sequence: int) -> Span | None:
        """The operation that made the node; one operation may make several in a row."""
        at = bisect_right(self._made, sequence, key=lambda pair: pair[0]) - 1
        return self._made[at][1] if at >= 0 else None

    def _nested(self, events: list[Event]) -> list[Span]:
        """The spans of one thread in the order of their beginnings."""
        spans: list[Span] = []
        open_span: Span | None = None
        for event in sorted(events, key=lambda each: (each["ts"], -each["dur"])):
            while open_span is not None and open_span.end <= event["ts"]:
                open_span = open_span.parent
            args = event.get("args", {})
            span = Span(
                name=event["name"],
                start=event["ts"],
                end=event["ts"] + event["dur"],
                own_us=event["dur"],
                is_op=event.get("cat") == "cpu_op",
                sequence=args.get("Sequence number"),
                is_backward=bool(args.get("Fwd thread id")),
                parent=open_span,
            )
            if open_span is not None:
                open_span.own_us -= span.end - span.start
            if "External id" in args:
                self._by_id.setdefault(args["External id"], span)
            spans.append(span)
            open_span = span
        return spans
