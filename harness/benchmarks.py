"""Rows of the bench suite as it keeps them, each beside the one before it on the same GPUs.

`bench/results/*.jsonl` holds one row a line, `summary.json` the newest value of each metric.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

from nmoe.config import ConfigError, build
from nmoe.paths import BENCH_RESULTS

OURS = "nmoe"
# As the suite judges: slower by more than this, and by more than the spread of either.
REGRESSION = 1.03
Verdict: TypeAlias = Literal["first", "same", "faster", "slower", "unjudged", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One implementation of one thing at one shape; `us` and `spread_us` are median and spread.

    `percent` is the share of what the machine can do; a row with neither time nor rate has a note.
    """

    what: str
    shape: str
    implementation: str
    gpu: str
    gpus: int
    commit: str
    date: str
    us: float | None = None
    spread_us: float | None = None
    timings: int = 0
    rate: float | None = None
    unit: str = ""
    percent: float | None = None
    error: float | None = None
    plain_error: float | None = None
    note: str = ""
    driver: str = ""

    @property
    def key(self) -> tuple[str, str, str, str, int]:
        """What two rows must share to be compared."""
        return (self.what, self.shape, self.implementation, self.gpu, self.gpus)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """The newest row of a key, those before it (newest first), and the fastest peer's time."""

    row: Row
    history: tuple[Row, ...] = ()
    peer: Row | None = None

    @property
    def before(self) -> Row | None:
        """The newest row of another commit."""
        return next((row for row in self.history if row.commit != self.row.commit), None)

    @property
    def change(self) -> float | None:
        """How many times slower than before: 1.1 takes a tenth longer."""
        return None if self.before is None else _times_slower(self.row, self.before)

    @property
    def verdict(self) -> Verdict:
        """The word for the row; a single timing has no spread and is not judged."""
        row, before = self.row, self.before
        if row.us is None and row.rate is None:
            return "failed"
        if before is None:
            return "first"
        if row.us is None or before.us is None or min(row.timings, before.timings) < 2:
            return "unjudged"
        spread = max(row.spread_us or 0.0, before.spread_us or 0.0)
        if abs(row.us - before.us) <= spread:
            return "same"
        if row.us > before.us * REGRESSION:
            return "slower"
        return "faster" if row.us * REGRESSION < before.us else "same"

    @property
    def against_peer(self) -> float | None:
        """How many times as fast as the fastest other implementation."""
        return None if self.peer is None else _times_slower(self.peer, self.row)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A figure of the summary."""

    name: str
    value: float
    unit: str
    gpu: str
    gpus: int
    commit: str
    date: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Everything in the folder; `problems` name what could not be read."""

    benches: tuple[Bench, ...] = ()
    metrics: tuple[Metric, ...] = ()
    problems: tuple[str, ...] = ()


def read(folder: Path = BENCH_RESULTS) -> Results:
    """The results in `folder`; one that is missing is empty, a line that is no row is a problem."""
    rows: list[Row] = []
    problems: list[str] = []
    for path in sorted(folder.glob("*.jsonl")):
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"{path.name} cannot be read: {error}")
            continue
        for number, line in enumerate(lines, start=1):
            if line.strip():
                row = _parse(Row, line)
                if row is None:
                    problems.append(f"{path.name} line {number} is not a row of results")
                else:
                    rows.append(row)
    return Results(
        benches=compare(rows),
        metrics=_metrics(folder / "summary.json", problems),
        problems=tuple(problems),
    )


def compare(rows: Iterable[Row]) -> tuple[Bench, ...]:
    """The newest row of each key with its past and its peer, in the order they were first seen."""
    by_key: dict[tuple[str, str, str, str, int], list[Row]] = {}
    for row in rows:
        by_key.setdefault(row.key, []).append(row)
    newest = {key: sorted(each, key=lambda row: row.date)[::-1] for key, each in by_key.items()}
    fastest = _fastest([each[0] for each in newest.values() if each[0].implementation != OURS])
    return tuple(
        Bench(
            row=each[0],
            history=tuple(each[1:]),
            peer=fastest.get(_place(each[0])) if each[0].implementation == OURS else None,
        )
        for each in newest.values()
    )


def _fastest(rows: Sequence[Row]) -> dict[tuple[str, str, str, int], Row]:
    """The fastest of the other implementations of each thing."""
    found: dict[tuple[str, str, str, int], Row] = {}
    for row in rows:
        known = found.get(_place(row))
        slower = None if known is None else _times_slower(known, row)
        if row.us is not None and (slower is None or slower > 1):
            found[_place(row)] = row
    return found


def _place(row: Row) -> tuple[str, str, str, int]:
    return (row.what, row.shape, row.gpu, row.gpus)


def _times_slower(row: Row, other: Row) -> float | None:
    """How many times as long `row` takes as `other`, by time, else by rate."""
    if row.us is not None and other.us:
        return row.us / other.us
    if row.us is None and other.us is None and row.rate and other.rate is not None:
        return other.rate / row.rate if row.unit == other.unit else None
    return None


def _metrics(path: Path, problems: list[str]) -> tuple[Metric, ...]:
    try:
        raw: Any = json.loads(path.read_text(encoding="utf-8"))
        return tuple(
            build(Metric, {"name": name, **value}, where=name) for name, value in raw.items()
        )
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, TypeError, AttributeError) as error:
        problems.append(f"{path.name} cannot be read: {error}")
        return ()


def _parse(cls: type[Row], line: str) -> Row | None:
    """The row of a line, without what this reader does not show."""
    try:
        raw: object = json.loads(line)
    except ValueError:
        return None
    if not isinstance(raw, dict):
        return None
    content = cast("dict[str, Any]", raw)
    known = {name: content[name] for name in cls.__dataclass_fields__ if name in content}
    try:
        row = build(cls, known, where="row")
    except ConfigError:
        return None
    return row if row.us is None or math.isfinite(row.us) else None
