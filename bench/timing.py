"""Contests in which implementations take turns, intervals of a loop, medians and spreads.

A single piece of work is timed by `nmoe.probe.Stopwatch`.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch

from bench.rows import OURS

Work = Callable[[], Any]


def intervals(works: Sequence[Work], *, device: str) -> list[float]:
    """us of pieces of work that follow one another, each from the end of the last one.

    On a GPU between events of its stream: the host queues ahead and waits only behind the last, as
    it does in a loop. What a piece makes the host wait for is in its own interval.
    """
    if device != "cuda":
        ends = [time.perf_counter()]
        for work in works:
            work()
            ends.append(time.perf_counter())
        return [(end - start) * 1e6 for start, end in pairwise(ends)]
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(len(works) + 1)]
    marks[0].record()
    for work, mark in zip(works, marks[1:], strict=True):
        work()
        mark.record()
    marks[-1].synchronize()
    return [start.elapsed_time(end) * 1000 for start, end in pairwise(marks)]


@dataclass(kw_only=True)
class Contest:
    """Entrants that take turns: a round times each once, every round another one begins.

    prepare: draws the inputs of a round, outside the timers. Entrants map a name to a function that
    times one run and returns us by what was timed.
    """

    prepare: Work
    entrants: dict[str, Callable[[], dict[str, float]]]
    times: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    rounds: int = 0

    def round(self) -> None:
        """A peer that fails is out, with the reason as its note; our own failure is raised."""
        self.prepare()
        names = [name for name in self.entrants if name not in self.failures]
        first = self.rounds % max(1, len(names))
        for name in names[first:] + names[:first]:
            try:
                timed = self.entrants[name]()
            except FAILURES as error:
                if name == OURS:
                    raise
                self.failures[name] = reason(error)
                continue
            for what, us in timed.items():
                self.times.setdefault((name, what), []).append(us)
        self.rounds += 1

    def taken(self, name: str, what: str, *, last: int) -> list[float]:
        """The newest timings; none of an entrant that is out."""
        return [] if name in self.failures else self.times.get((name, what), [])[-last:]


# What the code of others raises when it cannot run here.
FAILURES = (RuntimeError, ValueError, TypeError, NotImplementedError, AssertionError, ImportError)


def reason(error: BaseException) -> str:
    """The first line of an error, short enough for a table."""
    text = str(error).strip() or type(error).__name__
    return f"failed: {text.splitlines()[0][:120]}"


def median(times: Sequence[float]) -> float:
    return statistics.median(times)


def spread(times: Sequence[float]) -> float:
    """The interquartile range; 0 of a single timing."""
    if len(times) < 2:
        return 0.0
    first, _, third = statistics.quantiles(times, n=4, method="inclusive")
    return third - first
