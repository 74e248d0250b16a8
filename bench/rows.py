"""Rows of results: their schema, JSON, table, comparison with older rows, and the summary.

A row is one JSON object in one line. The summary maps a metric to its newest measurement on a GPU.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from nmoe.paths import write_atomic

OURS = "nmoe"
CPU = "cpu"
MIN_TIMINGS, MIN_STEPS = 30, 8  # of a row that may enter the summary
LIMIT = 0.01  # relative L2 of bf16 against fp64 lands between 1e-3 and this
REGRESSION = 1.03  # slower than this, and by more than both spreads


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where and with what rows were measured."""

    gpu: str  # its name, or "cpu"
    gpus: int
    driver: str
    versions: dict[str, str]
    commit: str
    date: str  # ISO, UTC


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One implementation of one thing at one shape.

    us: median; spread_us: interquartile range; percent: of the ceiling of this machine; errors:
    relative L2 against fp64 by output, `error` their largest; plain_error: that of plain bf16
    torch on the same inputs. An implementation that could not run has a note and no figures.
    """

    what: str
    shape: str
    implementation: str
    machine: Machine
    us: float | None = None
    spread_us: float | None = None
    timings: int = 0
    rate: float | None = None
    unit: str = ""
    percent: float | None = None
    errors: dict[str, float] = field(default_factory=dict)
    plain_error: float | None = None
    note: str = ""

    @property
    def error(self) -> float | None:
        return worst(self.errors)

    @property
    def key(self) -> tuple[str, str, str, str, int]:
        """What two rows must share to be compared."""
        machine = self.machine
        return (self.what, self.shape, self.implementation, machine.gpu, machine.gpus)


def worst(errors: Mapping[str, float]) -> float | None:
    """The largest error; NaN is larger than any."""
    if any(math.isnan(each) for each in errors.values()):
        return math.nan
    return max(errors.values(), default=None)


def right(errors: Mapping[str, float], *, limit: float = LIMIT) -> bool:
    """Whether every output is as near to fp64 as bf16 rows allow; NaN never is."""
    return all(error <= limit for error in errors.values())


def dump(row: Row) -> str:
    """The line of a row; the machine's facts lie in the row itself."""
    flat = {each.name: getattr(row, each.name) for each in fields(row) if each.name != "machine"}
    return json.dumps({**flat, "error": row.error, **asdict(row.machine)})


def parse(line: str) -> Row:
    """The row of a line; ValueError names what is wrong with it."""
    try:
        record: dict[str, Any] = json.loads(line)
        machine = Machine(**{each.name: record.pop(each.name) for each in fields(Machine)})
        record.pop("error", None)
        return Row(**record, machine=machine)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"not a row of results: {error!r} in {line[:80]!r}.") from error


def load(path: Path) -> list[Row]:
    """The rows of a file, one a line."""
    return [parse(line) for line in path.read_text().splitlines() if line.strip()]


def save(path: Path, rows: Iterable[Row]) -> None:
    write_atomic(path, "".join(f"{dump(row)}\n" for row in rows))


def regressions(old: Iterable[Row], new: Iterable[Row]) -> dict[tuple[Any, ...], float]:
    """How many times slower each row that regressed is, by key.

    A row regressed when it is more than 3 % slower and the difference exceeds both spreads. A
    single timing has no spread and is not judged.
    """
    before = {row.key: row for row in old if row.us is not None and row.timings > 1}
    found = {}
    for row in new:
        past = before.get(row.key)
        if past is None or past.us is None or row.us is None or row.timings < 2:
            continue
        spread = max(past.spread_us or 0.0, row.spread_us or 0.0)
        if row.us > past.us * REGRESSION and row.us - past.us > spread:
            found[row.key] = row.us / past.us
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A figure of the summary, and which row holds it."""

    name: str
    what: str
    shape: str
    gpus: int
    unit: str
    min_timings: int = MIN_TIMINGS

    def value(self, row: Row) -> float | None:
        if self.unit == "ms":
            return None if row.us is None else round(row.us / 1000, 4)
        return None if row.rate is None else round(row.rate, 1)


FORWARD, BOTH = "layer forward", "layer forward + backward"
SYNCS, DISPATCH, LOSS = "layer host syncs", "dispatch", "loss forward + backward"
STEP, STEP_SYNCS, LOGGING = "step", "step host syncs", "logging and events"
CORE_SUITE = "CORE, all items"
TOKENS, SHARE = "tok/s", "% of the step"  # of one GPU
METRICS = (
    Metric(name="s1_fwd_ms_1gpu", what=FORWARD, shape="s1", gpus=1, unit="ms"),
    Metric(name="s1_fwdbwd_ms_1gpu", what=BOTH, shape="s1", gpus=1, unit="ms"),
    Metric(name="s1_fwdbwd_ms_2gpu", what=BOTH, shape="s1", gpus=2, unit="ms"),
    Metric(name="dispatch_gbps_2gpu", what=DISPATCH, shape="s1", gpus=2, unit="GB/s"),
    Metric(name="ce_fwdbwd_ms_1gpu", what=LOSS, shape="head", gpus=1, unit="ms"),
    *(
        Metric(
            name=f"{preset}_tok_s_{name}",
            what=STEP,
            shape=preset,
            gpus=gpus,
            unit=TOKENS,
            min_timings=MIN_STEPS,
        )
        for preset, gpus, name in (
            ("super", 1, "1gpu"),
            ("super", 2, "per_gpu_2gpu"),
            ("dense", 1, "1gpu"),
        )
    ),
    Metric(name="core_suite_s_1gpu", what=CORE_SUITE, shape="super", gpus=1, unit="s"),
    Metric(name="layer_host_syncs", what=SYNCS, shape="s1", gpus=1, unit="syncs"),
)


def summarize(old: Mapping[str, Any], rows: Iterable[Row]) -> dict[str, Any]:
    """The summary with what these rows know better.

    Rows of a CPU, of too few timings and those older than the entry change nothing; metrics that no
    row holds, those of another machine among them, are kept.
    """
    summary = dict(old)
    for row in rows:
        machine = row.machine
        if machine.gpu == CPU or row.implementation != OURS:
            continue
        for metric in METRICS:
            if (metric.what, metric.shape, metric.gpus) != (row.what, row.shape, machine.gpus):
                continue
            if row.us is not None and row.timings < metric.min_timings:
                continue
            value, entry = metric.value(row), summary.get(metric.name)
            if value is None or (entry and entry["date"] > machine.date):
                continue
            summary[metric.name] = {
                "value": value,
                "unit": metric.unit,
                "gpu": machine.gpu,
                "gpus": machine.gpus,
                "commit": machine.commit,
                "date": machine.date,
            }
    return {name: summary[name] for name in sorted(summary)}


def update_summary(path: Path, rows: Sequence[Row]) -> bool:
    """Merge rows into the file; whether anything was worth writing."""
    old = json.loads(path.read_text()) if path.exists() else {}
    new = summarize(old, rows)
    if new == old:
        return False
    write_atomic(path, json.dumps(new, indent=2) + "\n")
    return True
