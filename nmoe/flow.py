"""What a run reads from several sources: stages, the quota of each source, and the order.

Everything is whole windows and whole numbers: position p of the run, counted over all ranks, gives
(stage, source, how many windows of that source came before) by arithmetic alone.

    window j of a source with quota q, source i of k, is due at (j + (2i + 1) / 2k) / q of its stage

Windows come in the order in which they are due, on a tie by source: a smooth weighted round-robin
(stride scheduling, Waldspurger & Weihl 1995) whose phases keep equal sources apart.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowSource:
    """A dataset as it was when the flow was computed; `path` is absolute or below the data root."""

    name: str
    path: str
    digest: str
    windows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A stretch of the run: how many windows of each source, in the order of the sources."""

    name: str
    quotas: tuple[int, ...]

    @property
    def num_windows(self) -> int:
        """Windows of all sources together."""
        return sum(self.quotas)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """The whole run's reading; `digest` is over sources, windows and quotas, not over paths."""

    profile: str
    sources: tuple[FlowSource, ...]
    stages: tuple[Stage, ...]
    digest: str

    @property
    def ends(self) -> list[int]:
        """The position at which each stage ends; the last is the number of windows."""
        return list(accumulate(stage.num_windows for stage in self.stages))

    def consumed(self, position: int) -> list[int]:
        """Windows of each source among the first `position` of the run."""
        counts, left = [0] * len(self.sources), position
        for stage in self.stages:
            part = deal_counts(stage.quotas, min(left, stage.num_windows))
            counts = [before + more for before, more in zip(counts, part, strict=True)]
            left -= min(left, stage.num_windows)
        return counts

    def take(self, position: int, count: int) -> list[int]:
        """Source numbers of the `count` windows from `position` on; fewer where the run ends."""
        taken: list[int] = []
        for stage, end in zip(self.stages, self.ends, strict=True):
            start = position + len(taken) - (end - stage.num_windows)
            if len(taken) < count and start < stage.num_windows:
                wanted = min(count - len(taken), stage.num_windows - start)
                taken += deal(stage.quotas, start, wanted)
        return taken


def apportion(total: int, weights: Sequence[int]) -> list[int]:
    """`total` split by `weights` into whole numbers: largest remainder, ties to the first."""
    whole = sum(weights)
    shares = [total * weight // whole for weight in weights]
    remainders = [-(total * weight % whole) for weight in weights]
    by_remainder = sorted(range(len(weights)), key=remainders.__getitem__)
    for i in by_remainder[: total - sum(shares)]:
        shares[i] += 1
    return shares


def deal_counts(quotas: Sequence[int], position: int) -> list[int]:
    """Windows of each source among the first `position` of a stage."""
    first, gap, length = _ticks(quotas)
    # By tick t, between t / length * total - k / 2 and + k / 2 windows are due: here never more
    # than `position`, and fewer than k short of it.
    tick = (2 * position - len(quotas)) * length // (2 * sum(quotas))
    counts = [
        min(quota, max(0, (tick - first[i]) // gap[i] + 1)) if quota else 0
        for i, quota in enumerate(quotas)
    ]
    for source in _next(quotas, counts, position - sum(counts)):
        counts[source] += 1
    return counts


def deal(quotas: Sequence[int], position: int, count: int) -> list[int]:
    """Source numbers of the `count` windows from `position` of a stage on."""
    return _next(quotas, deal_counts(quotas, position), count)


def _next(quotas: Sequence[int], done: Sequence[int], count: int) -> list[int]:
    """Source numbers of the next `count` windows when `done` of each source are behind."""
    first, gap, length = _ticks(quotas)
    due = [
        first[i] + done[i] * gap[i] if done[i] < quota else length for i, quota in enumerate(quotas)
    ]
    order: list[int] = []
    for _ in range(count):
        source = min(range(len(due)), key=due.__getitem__)
        order.append(source)
        due[source] += gap[source]  # beyond `length` when that was the last of its quota
    return order


def _ticks(quotas: Sequence[int]) -> tuple[list[int], list[int], int]:
    """When each source is first due, its gap, and the stage's length, in ticks that fit all."""
    unit = math.lcm(*(quota for quota in quotas if quota))
    k = len(quotas)
    first = [(2 * i + 1) * unit // quota if quota else 0 for i, quota in enumerate(quotas)]
    gap = [2 * k * unit // quota if quota else 0 for quota in quotas]
    return first, gap, 2 * k * unit
